"""The route table: request in, answer out, errors as problem details.

    GET /v1/{collection}         rows by key, page after page: {"items": […], "next_cursor": …|null}
    GET /v1/{collection}/{key}   one row
    GET /v1/openapi.json         the specification, open to all

Everything but the specification needs claims.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Protocol

import msgspec

from api import openapi, queries
from api.access import Unidentified, encode_viewers, viewers_of
from api.answer import Answer, Refused, Where, freshness_headers, problem, representation
from api.database import Read
from api.openapi import DEFAULT_LIMIT, LARGEST_LIMIT
from api.queries import Query
from api.request import Request
from tidegate.bubble import Bubble
from tidegate.entity import EntityShape
from tidegate.errors import Fatal, Rejected, Transient

FATAL_RETRY_AFTER_S = 30

_LONGEST_SHOWN = 40
"""Characters of a caller's own text that an answer repeats."""

_PREFIX = "/v1/"
_SPECIFICATION = "openapi.json"
_PAGING = ("limit", "cursor")
_LIMIT = re.compile(r"[1-9][0-9]{0,8}")
_ALWAYS = {"Cache-Control": "private, no-cache", "Vary": "Authorization"}


class Reads(Protocol):
    """What the routes need of a database."""

    async def read(self, viewers: str, query: Query, sources: Sequence[str]) -> Read: ...


class Collection(msgspec.Struct, frozen=True):
    """One entity as a REST resource, with the sources that feed it."""

    shape: EntityShape
    watermarked: tuple[str, ...]
    unwatermarked: tuple[str, ...]


def collections_of(bubble: Bubble) -> dict[str, Collection]:
    return {
        shape.collection: Collection(
            shape,
            watermarked=tuple(source.name for source in bubble.sources_of(shape.name) if source.watermark),
            unwatermarked=tuple(source.name for source in bubble.sources_of(shape.name) if not source.watermark),
        )
        for shape in bubble.shapes
    }


class App:
    """Answers the requests of one bubble."""

    def __init__(self, bubble: Bubble, database: Reads) -> None:
        self._bubble = bubble
        self._database = database
        self._collections = collections_of(bubble)

    @cached_property
    def _specification(self) -> str:
        # Not at start: most sandboxes never serve it.
        return openapi.encoded(self._bubble)

    async def answer(self, request: Request) -> Answer:
        """Raises Transient, Rejected or Fatal as the database does.

        `unavailable` and `unacceptable` make answers of them.
        """
        try:
            answer = await self._routed(request)
        except Refused as refused:
            answer = problem(refused, request.request_id)
        return finished(answer, request.request_id)

    async def _routed(self, request: Request) -> Answer:
        if request.method != "GET":
            detail = f"this API only reads; use GET instead of {_shown(request.method)}"
            raise Refused(405, "method-not-allowed", "Method not allowed", detail, headers={"Allow": "GET"})
        if request.path == _PREFIX + _SPECIFICATION:
            return representation(self._specification, request.headers.get("if-none-match"))
        try:
            viewers = encode_viewers(viewers_of(request.claims, self._bubble.viewers))
        except Unidentified as error:
            headers = {"WWW-Authenticate": "Bearer"}
            raise Refused(401, "unidentified", "Unauthorized", str(error), headers=headers) from error
        name, slash, key = request.path.removeprefix(_PREFIX).partition("/")
        collection = self._collections.get(name) if request.path.startswith(_PREFIX) else None
        if collection is None:
            known = ", ".join(_PREFIX + name for name in self._collections)
            where = Where("path", "collection")
            raise Refused(404, "no-such-collection", "No such collection", f"there are {known}", where=where)
        _check_parameters(request, () if slash else _PAGING)
        if slash:
            return await self._row(request, collection, viewers, key)
        return await self._page(request, collection, viewers)

    async def _page(self, request: Request, collection: Collection, viewers: str) -> Answer:
        shape = collection.shape
        limit = _limit(request)
        # One row more than asked for tells whether there is a next page.
        query = queries.page(shape, limit=limit + 1, after=_after(request, shape))
        read = await self._database.read(viewers, query, collection.watermarked)
        items = read.items[:limit]
        more = len(read.items) > limit
        cursor = f'"{queries.encode_cursor(shape, queries.key_of(shape, items[-1]))}"' if more else "null"
        body = f'{{"items":[{",".join(items)}],"next_cursor":{cursor}}}'
        answer = representation(body, request.headers.get("if-none-match"))
        return answer.with_headers(freshness_headers(read.as_of, collection.unwatermarked))

    async def _row(self, request: Request, collection: Collection, viewers: str, key: str) -> Answer:
        shape = collection.shape
        if not queries.key_fits(shape, key):
            raise _no_such_row(shape, {})
        read = await self._database.read(viewers, queries.row(shape, key), collection.watermarked)
        freshness = freshness_headers(read.as_of, collection.unwatermarked)
        if not read.items:
            raise _no_such_row(shape, freshness)
        return representation(read.items[0], request.headers.get("if-none-match")).with_headers(freshness)


def finished(answer: Answer, request_id: str) -> Answer:
    """The headers that every answer carries."""
    return answer.with_headers({**_ALWAYS, "X-Request-Id": request_id})


def unavailable(error: Transient | Fatal, request_id: str) -> Answer:
    """503 with Retry-After; what exactly is wrong is for the log, not for the caller."""
    retry_after_s = FATAL_RETRY_AFTER_S
    if isinstance(error, Transient):
        retry_after_s = max(1, math.ceil(error.retry_after_s or 1))
    detail = "the rows cannot be read at the moment; nothing is lost, try again"
    headers = {"Retry-After": str(retry_after_s)}
    refused = Refused(503, "unavailable", "Service unavailable", detail, headers=headers)
    return finished(problem(refused, request_id), request_id)


def unacceptable(error: Rejected, request_id: str) -> Answer:
    """400 for a value that only the database knew to be impossible."""
    detail = f"a value of this request cannot be looked up ({error.reason}); check the key or the cursor"
    refused = Refused(400, "bad-value", "Bad value", detail)
    return finished(problem(refused, request_id), request_id)


def _shown(text: str) -> str:
    """A caller's text as an answer may repeat it: short, and without what JSON or a terminal cannot take."""
    return repr(text[:_LONGEST_SHOWN])


def _check_parameters(request: Request, known: Sequence[str]) -> None:
    """A misspelt parameter must not look as if it had worked."""
    for name in request.query:
        if name not in known:
            allowed = f"there are {', '.join(known)}" if known else "this address takes none"
            detail = f"there is no parameter {_shown(name)}; {allowed}"
            # A name that cannot be written as it came is shown as it is in the text.
            where = Where("query", name if name.isprintable() and len(name) <= _LONGEST_SHOWN else _shown(name))
            raise Refused(400, "unknown-parameter", "Unknown parameter", detail, where=where)


def _no_such_row(shape: EntityShape, freshness: Mapping[str, str]) -> Refused:
    # The same words for a row that is not there, is deleted, or belongs to somebody else.
    detail = f"{shape.collection} has no row of this key that you may see"
    return Refused(404, "no-such-row", "No such row", detail, where=Where("path", "key"), headers=freshness)


def _limit(request: Request) -> int:
    text = request.query.get("limit")
    if text is None:
        return DEFAULT_LIMIT
    if _LIMIT.fullmatch(text) is None or int(text) > LARGEST_LIMIT:
        detail = f"limit is {_shown(text)}; it must be a whole number from 1 to {LARGEST_LIMIT}"
        raise Refused(400, "bad-limit", "Bad limit", detail, where=Where("query", "limit"))
    return int(text)


def _after(request: Request, shape: EntityShape) -> str | None:
    cursor = request.query.get("cursor")
    if cursor is None:
        return None
    try:
        return queries.decode_cursor(shape, cursor)
    except ValueError as error:
        raise Refused(400, "bad-cursor", "Bad cursor", str(error), where=Where("query", "cursor")) from error
