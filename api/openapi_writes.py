"""The specification's part for what is written at the edge: events and users' own attributes.  (pure)

`api.openapi` joins it to the reads. Its responses refer to the problems that are declared there.
"""

from __future__ import annotations

from typing import Any

from api.routes import EVENTS, USER
from tidegate.bubble import Bubble
from tidegate.inbound import arrival_schema

Schema = dict[str, Any]

_SCHEMAS = "#/components/schemas/{name}"
_MACHINE_READABLE = "application/problem+json"
_PROBLEMS = {
    "400": "The body does not fit; `errors` names each event at fault.",
    "401": "No access token, or not a valid one.",
    "403": "The token may not do this.",
    "404": "Nothing is kept of this user yet.",
    "409": "There is something already.",
    "412": "It has changed since the version that If-Match names.",
    "413": "Larger than this API takes.",
    "415": "Another media type is wanted.",
    "428": "Say which version this is based on: If-Match.",
    "503": "Not now; come back after Retry-After seconds.",
}
_VERSION: Schema = {"ETag": {"description": "The version; send it back in If-Match.", "schema": {"type": "string"}}}
_IF_MATCH: Schema = {
    "name": "If-Match", "in": "header", "required": True, "schema": {"type": "string"},
    "description": "The ETag of the version that this is based on.",
}  # fmt: skip


def write_paths(bubble: Bubble) -> Schema:
    """Path → its operations."""
    events: Schema = {EVENTS: {"post": _post_events(bubble)}} if bubble.inbound else {}
    return {**events, USER: _user_operations()}


def write_schemas(bubble: Bubble) -> dict[str, Schema]:
    """Name → schema, for what the operations refer to."""
    own: Schema = {
        "type": "object",
        "description": "What a user keeps with us, as they like.",
        "additionalProperties": True,
    }
    if not bubble.inbound:
        return {"UserAttributes": own}
    offered, named = arrival_schema(bubble.inbound, _SCHEMAS)
    return {**named, "InboundEvent": offered, "EventResults": _RESULTS, "UserAttributes": own}


_RESULTS: Schema = {
    "type": "object",
    "properties": {
        "results": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "id": {"type": "string"},
                    "status": {"enum": ["accepted", "failed"]},
                    "detail": {"type": "string"},
                },
                "required": ["id", "status"],
            },
        }
    },
    "required": ["results"],
}


def _post_events(bubble: Bubble) -> Schema:
    one: Schema = {"$ref": "#/components/schemas/InboundEvent"}
    many: Schema = {"type": "array", "items": one, "minItems": 1}
    results: Schema = {"application/json": {"schema": {"$ref": "#/components/schemas/EventResults"}}}
    key: Schema = {
        "name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "minLength": 1, "maxLength": 255},
        "description": "Gives ids to events without one, the same for the same key.",
    }  # fmt: skip
    return {
        "operationId": "post_events",
        "summary": "Send events: one, or a batch of which all or none are looked at.",
        "parameters": [key],
        "requestBody": {
            "required": True,
            "content": {
                "application/cloudevents+json": {"schema": one},
                "application/cloudevents-batch+json": {"schema": many},
                "application/json": {"schema": {"anyOf": [one, many]}},
            },
        },
        "responses": {
            "202": {"description": "The stream has all of them.", "content": results},
            "207": {"description": "The stream has some of them; send the others once more.", "content": results},
            **_problems("400", "401", "403", "413", "415", "503"),
        },
    }


def _user_operations() -> Schema:
    body: Schema = {"required": True, "content": {"application/json": {"schema": _OWN}}}
    merge: Schema = {"required": True, "content": {"application/merge-patch+json": {"schema": {"type": "object"}}}}
    changing = ("400", "401", "403", "404", "412", "413", "415", "428", "503")
    begin: Schema = {
        **_IF_MATCH,
        "name": "If-None-Match",
        "required": False,
        "description": "`*`: begin, if there is nothing",
    }
    return {
        "get": _user("get_user", "What the caller keeps with us.", _shown("200", "401", "403", "404", "503")),
        "post": {
            **_user("create_user", "Begin.", _shown("201", "400", "401", "403", "409", "413", "415", "503")),
            "requestBody": body,
        },
        "put": {
            **_user("replace_user", "Replace it, or begin.", {**_shown("200", *changing), **_shown("201")}),
            "parameters": [{**_IF_MATCH, "required": False}, begin],
            "requestBody": body,
        },
        "patch": {
            **_user("merge_user", "Change some of it (RFC 7396).", _shown("200", *changing)),
            "parameters": [_IF_MATCH],
            "requestBody": merge,
        },
        "delete": {
            **_user("delete_user", "Delete it.", {"204": {"description": "It is gone."},
                                                  **_problems("401", "403", "404", "412", "428", "503")}),
            "parameters": [_IF_MATCH],
        },
    }  # fmt: skip


_OWN: Schema = {"$ref": "#/components/schemas/UserAttributes"}


def _user(operation: str, summary: str, responses: Schema) -> Schema:
    return {"operationId": operation, "summary": summary, "responses": responses}


def _shown(status: str, *problems: str) -> Schema:
    content: Schema = {"application/json": {"schema": _OWN}}
    return {status: {"description": "As it is now.", "headers": _VERSION, "content": content}, **_problems(*problems)}


def _problems(*statuses: str) -> Schema:
    schema: Schema = {"$ref": "#/components/schemas/Problem"}
    content: Schema = {_MACHINE_READABLE: {"schema": schema}}
    return {status: {"description": _PROBLEMS[status], "content": content} for status in statuses}
