"""One HTTP request, out of an API Gateway HTTP API event of payload format 2.0.  (pure)"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from urllib.parse import unquote

import msgspec

from api.compact import Claims
from tidegate.errors import Fatal


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """`path` is decoded and starts with a slash; header names are lower case.

    claims        those of the verified access token; an event has none, `api.entry` verifies the token and adds them
    unidentified  why there are no claims although there was a token: a text for the caller
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    request_id: str
    claims: Claims | None = None
    unidentified: str = ""
    body: bytes = b""


class _Http(msgspec.Struct):
    method: str


class _Context(msgspec.Struct, rename="camel"):
    http: _Http
    request_id: str = ""
    stage: str = "$default"


class _Event(msgspec.Struct, rename="camel"):
    version: str
    raw_path: str
    request_context: _Context
    headers: dict[str, str] | None = None
    query_string_parameters: dict[str, str] | None = None
    body: str | None = None
    is_base64_encoded: bool = False


def request_of(event: object) -> Request:
    """Raises Fatal for an event of any other kind: then the integration is set up wrong."""
    try:
        parsed = msgspec.convert(event, _Event)
    except msgspec.ValidationError as error:
        raise Fatal(
            f"this is no API Gateway HTTP API event: {error}; set the integration's payload format version to 2.0"
        ) from error
    if parsed.version != "2.0":
        raise Fatal(f"payload format version {parsed.version} is not 2.0; set it on the API's integration")
    context = parsed.request_context
    return Request(
        method=context.http.method.upper(),
        path=_path(parsed.raw_path, context.stage),
        query=parsed.query_string_parameters or {},
        headers={name.lower(): value for name, value in (parsed.headers or {}).items()},
        request_id=context.request_id,
        body=_body(parsed),
    )


def _body(event: _Event) -> bytes:
    """The gateway sends as base64 what it does not take for text."""
    if not event.is_base64_encoded:
        return (event.body or "").encode(errors="replace")
    try:
        return base64.b64decode(event.body or "", validate=True)
    except ValueError as error:
        raise Fatal(f"the event's body says it is base64 and is not: {error}") from error


def _path(raw: str, stage: str) -> str:
    """Without the stage, which a named stage puts in front; an HTTP API leaves only %25 encoded in `rawPath`."""
    if stage != "$default":
        raw = raw.removeprefix(f"/{stage}") or "/"
    return unquote(raw)
