"""The specification, OpenAPI 3.1, made from the entities.  (pure)"""

from __future__ import annotations

import msgspec

from tidegate import __version__
from tidegate.bubble import Bubble
from tidegate.contract import Schema, entity_schemas
from tidegate.entity import Entity, EntityShape, Kind, describe

DEFAULT_LIMIT = 50
LARGEST_LIMIT = 200

_HEADERS: dict[str, str] = {
    "Data-As-Of": "Every row created or updated in the back office before this time (RFC 3339, UTC) is in the answer.",
    "Data-Incomplete": "Sources whose freshness is not known, or of which rows are missing; then there is no Data-As-Of.",
    "Data-Unwatermarked": "Sources that cannot say how fresh they are; Data-As-Of does not speak of them.",
    "ETag": "Changes with what is shown; send it back in If-None-Match.",
    "X-Request-Id": "Name it when you report a problem.",
}
_PROBLEM: Schema = {
    "type": "object",
    "description": "RFC 9457 problem details",
    "properties": {
        "type": {"type": "string", "format": "uri", "description": "What programs compare: urn:tidegate:problem:…"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "where": {
            "type": "object",
            "properties": {"in": {"enum": ["path", "query"]}, "name": {"type": "string"}},
            "required": ["in", "name"],
        },
        "request_id": {"type": "string"},
    },
    "required": ["type", "title", "status", "detail"],
}
_PROBLEMS: dict[str, str] = {
    "BadRequest": "A parameter is wrong or unknown; `where` names it.",
    "Unauthorized": "No access token, or not a valid one.",
    "NotFound": "No such row, or none that this caller may see.",
    "Unavailable": "The rows cannot be read at the moment; come back after Retry-After seconds.",
}


def document(bubble: Bubble) -> Schema:
    """The specification as JSON values."""
    paths: Schema = {}
    for entity in bubble.entities:
        shape = describe(entity)
        paths[f"/v1/{shape.collection}"] = {"get": _list_operation(entity, shape)}
        paths[f"/v1/{shape.collection}/{{{shape.key.name}}}"] = {"get": _get_operation(entity, shape)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"{bubble.name}: reads",
            "version": __version__,
            "description": "The front office's view of the back office: read-only, and it says how fresh it is.",
        },
        "servers": [{"url": "/"}],
        "security": [{"accessToken": []}],
        "paths": paths,
        "components": {
            "schemas": entity_schemas(bubble, "#/components/schemas/{name}"),
            "headers": {name: _header(text) for name, text in _HEADERS.items()},
            "responses": {name: _problem_response(name, text) for name, text in _PROBLEMS.items()},
            "securitySchemes": {"accessToken": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def encoded(bubble: Bubble) -> str:
    """The specification as it is served."""
    return msgspec.json.encode(document(bubble)).decode()


def _list_operation(entity: type[Entity], shape: EntityShape) -> Schema:
    page: Schema = {
        "type": "object",
        "properties": {
            "items": {"type": "array", "items": _reference(entity), "maxItems": LARGEST_LIMIT},
            "next_cursor": {"type": ["string", "null"], "description": "Null on the last page."},
        },
        "required": ["items", "next_cursor"],
        "additionalProperties": False,
    }
    limit: Schema = {"type": "integer", "minimum": 1, "maximum": LARGEST_LIMIT, "default": DEFAULT_LIMIT}
    return {
        "operationId": f"list_{shape.table}",
        "summary": f"{shape.title} All that the caller may see, by {shape.key.name}, page after page.",
        "parameters": [
            {"name": "limit", "in": "query", "description": "Rows on a page.", "schema": limit},
            {"name": "cursor", "in": "query", "description": "The next_cursor of the page before.", "schema": _STRING},
            _IF_NONE_MATCH,
        ],
        "responses": _responses(page, {"400": "BadRequest", "401": "Unauthorized", "503": "Unavailable"}),
    }


def _get_operation(entity: type[Entity], shape: EntityShape) -> Schema:
    key: Schema = {"name": shape.key.name, "in": "path", "required": True, "schema": _key_schema(shape)}
    return {
        "operationId": f"get_{shape.table}",
        "summary": f"{shape.title} One, by its {shape.key.name}.",
        "parameters": [key, _IF_NONE_MATCH],
        "responses": _responses(
            _reference(entity),
            {"400": "BadRequest", "401": "Unauthorized", "404": "NotFound", "503": "Unavailable"},
        ),
    }  # fmt: skip


_STRING: Schema = {"type": "string"}
_IF_NONE_MATCH: Schema = {
    "name": "If-None-Match", "in": "header", "description": "ETags that the caller has.", "schema": _STRING,
}  # fmt: skip


def _key_schema(shape: EntityShape) -> Schema:
    return {Kind.INTEGER: {"type": "integer"}, Kind.UUID: {"type": "string", "format": "uuid"}}.get(
        shape.key.kind, {"type": "string", "minLength": 1}
    )


def _responses(body: Schema, problems: dict[str, str]) -> Schema:
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in _HEADERS}
    content = {"application/json": {"schema": body}}
    return {
        "200": {"description": "What is asked for.", "headers": headers, "content": content},
        "304": {"description": "The caller has this already.", "headers": headers},
        **{status: {"$ref": f"#/components/responses/{name}"} for status, name in problems.items()},
    }


def _problem_response(name: str, text: str) -> Schema:
    headers: Schema = {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}}
    if name == "Unavailable":
        headers["Retry-After"] = {"description": "Seconds.", "schema": {"type": "integer"}}
    return {"description": text, "headers": headers, "content": {"application/problem+json": {"schema": _PROBLEM}}}


def _header(text: str) -> Schema:
    return {"description": text, "schema": _STRING}


def _reference(entity: type[Entity]) -> Schema:
    return {"$ref": f"#/components/schemas/{entity.__name__}"}
