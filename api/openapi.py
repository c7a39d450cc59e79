"""The specification, OpenAPI 3.1, made from the entities and reports.  (pure)"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from api import schemas
from api.openapi_writes import write_paths, write_schemas
from api.problems import PREFIX, READS
from api.schemas import STRING
from api.selection import DEFAULT_LIMIT, LARGEST_LIMIT, LISTED, Join
from tidegate import __version__
from tidegate.bubble import Bubble
from tidegate.contract import Schema, entity_schemas
from tidegate.entity import Entity, EntityShape, Kind, describe
from tidegate.report import Report

_FRESHNESS: dict[str, str] = {
    "Data-As-Of": "Every row created or updated in the back office before this time (RFC 3339, UTC) is in the answer.",
    "Data-Incomplete": "Sources whose freshness is not known, or of which rows are missing; then there is no Data-As-Of.",
    "Data-Unwatermarked": "Sources that cannot say how fresh they are; Data-As-Of does not speak of them.",
    "Data-Stale": "Sources whose rows are older than is promised.",
}
_HEADERS: dict[str, str] = {
    **_FRESHNESS,
    "ETag": "Changes with what is shown; send it back in If-None-Match.",
    "Age": "Seconds since the answer was computed; 0 but for reports that have not changed.",
    "X-Request-Id": "Name it when you report a problem.",
    "Next-Cursor": "Where to go on: the cursor of the next request.",
    "Retry-After": "Seconds to wait before the next request.",
}
_SHOWN = (*_FRESHNESS, "ETag", "Age", "X-Request-Id")
_FOLLOWED = (*_FRESHNESS, "Age", "X-Request-Id", "Next-Cursor", "Retry-After")
_PROBLEM: Schema = {
    "type": "object",
    "description": "RFC 9457 problem details; programs compare `type`.",
    "properties": {
        "type": {"type": "string", "pattern": f"^{PREFIX}[a-z-]+$", "examples": [f"{PREFIX}{kind}" for kind in READS]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What is wrong and what to do, for people."},
        "where": {
            "type": "object",
            "properties": {"in": {"enum": ["path", "query", "header", "body"]}, "name": {"type": "string"}},
            "required": ["in", "name"],
        },
        "request_id": {"type": "string"},
    },
    "required": ["type", "title", "status", "detail"],
}
_PROBLEMS: dict[str, tuple[str, str]] = {
    "400": ("BadRequest", "A parameter is wrong or unknown; `where` names it."),
    "401": ("Unauthorized", "No access token, or not a valid one."),
    "403": ("Forbidden", "The token has none of the scopes that open this."),
    "404": ("NotFound", "No such row, or none that this caller may see."),
    "410": ("Gone", "The cursor can be followed no longer; begin anew."),
    "429": ("TooManyRequests", "Come back after Retry-After seconds."),
    "503": ("Unavailable", "It cannot be answered at the moment; come back after Retry-After seconds."),
}
_USUAL = ("400", "401", "403", "429", "503")
_KEYS: dict[Kind, Schema] = {
    Kind.INTEGER: {"type": "integer", "format": "int64"},
    Kind.UUID: {"type": "string", "format": "uuid"},
}


def document(bubble: Bubble) -> Schema:
    """The specification as JSON values."""
    joins = _joins(bubble)
    entities = entity_schemas(bubble, "#/components/schemas/{name}")
    paths: Schema = {}
    for entity in bubble.entities:
        shape = describe(entity)
        mine = joins[shape.collection]
        paths[f"/v1/{shape.collection}"] = {"get": _list_operation(entity, shape, mine)}
        paths[f"/v1/{shape.collection}/changes"] = {"get": _changes_operation(entity, shape)}
        paths[f"/v1/{shape.collection}/{{{shape.key.name}}}"] = {"get": _get_operation(entity, shape, mine)}
    if bubble.reports:
        paths["/v1/reports"] = {"get": _reports_operation()}
    for report in bubble.reports:
        paths[f"/v1/reports/{report.name}"] = {"get": _report_operation(report)}
    paths |= write_paths(bubble)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": bubble.name,
            "version": __version__,
            "description": "The front office's view of the back office, which says how fresh it is; and what is sent to it.",
        },
        "servers": [{"url": "/"}],
        "security": [{"accessToken": []}],
        "tags": _tags(bubble),
        "paths": paths,
        "components": {
            "schemas": {
                **entities,
                **schemas.shown_rows(bubble, entities, joins),
                **write_schemas(bubble),
                "Problem": _PROBLEM,
            },
            "headers": {name: _header(name, text) for name, text in _HEADERS.items()},
            "responses": {name: _problem_response(status, name, text) for status, (name, text) in _PROBLEMS.items()},
            "securitySchemes": {"accessToken": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def encoded(bubble: Bubble) -> str:
    """The specification as it is served."""
    return msgspec.json.encode(document(bubble)).decode()


def _joins(bubble: Bubble) -> dict[str, Sequence[Join]]:
    shapes = {shape.collection: shape for shape in bubble.shapes}
    return {
        name: [Join(embed, shapes[embed.collection]) for embed in shape.embeds] for name, shape in shapes.items()
    }  # fmt: skip


def _tags(bubble: Bubble) -> list[Schema]:
    tags: list[Schema] = [{"name": shape.collection, "description": shape.title} for shape in bubble.shapes]
    return (
        [*tags, {"name": "reports", "description": "Figures over what the caller may see."}] if bubble.reports else tags
    )


def _list_operation(entity: type[Entity], shape: EntityShape, joins: Sequence[Join]) -> Schema:
    page = _object(
        items={"type": "array", "items": _shown(entity), "maxItems": LARGEST_LIMIT},
        next_cursor={"type": ["string", "null"], "description": "Null on the last page."},
    )
    return {
        "operationId": f"list_{shape.table}",
        "tags": [shape.collection],
        "summary": f"{shape.title} All that the caller may see, page after page.",
        "parameters": [
            _LIMIT,
            schemas.parameter("cursor", "The next_cursor of the page before, with the same other parameters.", STRING),
            *schemas.choice_parameters(shape, joins, sorts=True),
            *schemas.filter_parameters(shape.filters, LISTED),
            _IF_NONE_MATCH,
        ],
        "responses": _responses(page, _SHOWN, _USUAL),
    }


def _get_operation(entity: type[Entity], shape: EntityShape, joins: Sequence[Join]) -> Schema:
    key: Schema = {
        "name": shape.key.name, "in": "path", "required": True,
        "schema": _KEYS.get(shape.key.kind, {"type": "string", "minLength": 1}),
    }  # fmt: skip
    return {
        "operationId": f"get_{shape.table}",
        "tags": [shape.collection],
        "summary": f"{shape.title} One, by its {shape.key.name}.",
        "parameters": [key, *schemas.choice_parameters(shape, joins), _IF_NONE_MATCH],
        "responses": _responses(_shown(entity), _SHOWN, (*_USUAL, "404")),
    }


def _changes_operation(entity: type[Entity], shape: EntityShape) -> Schema:
    key: Schema = {"type": "string", "description": f"The {shape.key.name}, as text."}
    shown = _object(change={"const": "shown"}, key=key, row=_shown(entity))
    removed = _object(change={"const": "removed"}, key=key)
    page = _object(
        changes={"type": "array", "items": {"oneOf": [shown, removed]}, "maxItems": LARGEST_LIMIT},
        next_cursor={"type": "string"},
        has_more={"type": "boolean", "description": "Ask again at once."},
    )
    words = "The next_cursor of the answer before. Without one, the answer says where to begin, and nothing else."
    return {
        "operationId": f"follow_{shape.table}",
        "tags": [shape.collection],
        "summary": f"{shape.title} What changed since a cursor; 304 when nothing did.",
        "parameters": [
            _LIMIT, schemas.parameter("cursor", words, STRING), *schemas.choice_parameters(shape),
        ],
        "responses": _responses(page, _FOLLOWED, (*_USUAL, "410")),
    }  # fmt: skip


def _reports_operation() -> Schema:
    listed: Schema = {"type": "array", "items": _object(name=STRING, title=STRING)}
    return {
        "operationId": "list_reports",
        "tags": ["reports"],
        "summary": "The reports.",
        "parameters": [_IF_NONE_MATCH],
        "responses": _responses(_object(reports=listed), ("ETag", "Age", "X-Request-Id"), _USUAL),
    }


def _report_operation(report: Report) -> Schema:
    shape = describe(report.entity)
    fields = [shape.field(name) for name in report.filters]
    return {
        "operationId": f"report_{report.name.replace('-', '_')}",
        "tags": ["reports"],
        "summary": f"{report.title}, of what the caller may see.",
        "parameters": [*schemas.filter_parameters(fields), _IF_NONE_MATCH],
        "responses": _responses(schemas.report_lines(report, shape), _SHOWN, _USUAL),
    }


_LIMIT: Schema = schemas.parameter(
    "limit", "Rows on a page.", {"type": "integer", "minimum": 1, "maximum": LARGEST_LIMIT, "default": DEFAULT_LIMIT}
)
_IF_NONE_MATCH: Schema = {
    "name": "If-None-Match", "in": "header", "description": "ETags that the caller has.", "schema": STRING,
}  # fmt: skip


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _responses(body: Schema, headers: Sequence[str], problems: Sequence[str]) -> Schema:
    shown = {name: {"$ref": f"#/components/headers/{name}"} for name in headers}
    return {
        "200": {
            "description": "What is asked for.",
            "headers": shown,
            "content": {"application/json": {"schema": body}},
        },
        "304": {"description": "The caller has this already.", "headers": shown},
        **{status: {"$ref": f"#/components/responses/{_PROBLEMS[status][0]}"} for status in problems},
    }


def _problem_response(status: str, name: str, text: str) -> Schema:
    headers: Schema = {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}}
    if status in ("429", "503"):
        headers["Retry-After"] = {"$ref": "#/components/headers/Retry-After"}
    schema: Schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": text, "headers": headers, "content": {"application/problem+json": {"schema": schema}}}


def _header(name: str, text: str) -> Schema:
    return {"description": text, "schema": {"type": "integer"} if name in ("Age", "Retry-After") else STRING}


def _shown(entity: type[Entity]) -> Schema:
    return {"$ref": f"#/components/schemas/{entity.__name__}Shown"}
