"""One HTTP request, out of an API Gateway HTTP API event of payload format 2.0.  (pure)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import msgspec

from api.access import Claims
from tidegate.errors import Fatal


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """`path` is decoded and starts with a slash; header names are lower case; `claims` None without an authorizer."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    claims: Claims | None
    request_id: str


class _Jwt(msgspec.Struct):
    claims: dict[str, Any] | None = None


class _Authorizer(msgspec.Struct):
    jwt: _Jwt | None = None


class _Http(msgspec.Struct):
    method: str


class _Context(msgspec.Struct, rename="camel"):
    http: _Http
    request_id: str = ""
    stage: str = "$default"
    authorizer: _Authorizer | None = None


class _Event(msgspec.Struct, rename="camel"):
    version: str
    raw_path: str
    request_context: _Context
    headers: dict[str, str] | None = None
    query_string_parameters: dict[str, str] | None = None


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
    authorizer = context.authorizer
    jwt = authorizer.jwt if authorizer else None
    return Request(
        method=context.http.method.upper(),
        path=_path(parsed.raw_path, context.stage),
        query=parsed.query_string_parameters or {},
        headers={name.lower(): value for name, value in (parsed.headers or {}).items()},
        claims=jwt.claims if jwt else None,
        request_id=context.request_id,
    )


def _path(raw: str, stage: str) -> str:
    """Without the stage, which a named stage puts in front; an HTTP API leaves only %25 encoded in `rawPath`."""
    if stage != "$default":
        raw = raw.removeprefix(f"/{stage}") or "/"
    return unquote(raw)
