"""An HTTP back office as a source: the adapter over aiohttp for `tidegate.bubble.Rest`.

One `fetch` is one request; nothing is retried here. The only wait is for the client-side request budget
(`requests_per_s`). What goes wrong is sorted here and nowhere else:

    no connection, time-out, 408, 425, 429, 5xx, 3xx,
    an answer that is not what the declaration says   Transient (with Retry-After, seconds or a date)
    401, 403, 404, other 4xx, a cursor of another     Refused: Transient too, but a person must mend it (or it is a
    kind of feed                                      maintenance page); long waits, and other sources go on

Except that with page tokens 400, 404 and 410 are plainly Transient: tokens expire, and the walk starts over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from zoneinfo import ZoneInfo

import aiohttp
import msgspec

from poller.source import FullWalk, Page, PageRef, Position, Refused, SinceRevision, SinceTime
from poller.times import OLDEST, as_text, wall_clock
from poller.translate import dig, raw_key
from poller.walk import Answer, Step, after_full, after_revision, after_time
from tidegate import retry_after, telemetry
from tidegate.bubble import ByRevision, ByTime, Env, Offset, PageNumber, PageToken, RawRow, Rest, Source
from tidegate.errors import Fatal, Transient

_MOST_ANSWER_BYTES = 64 * 1024 * 1024
_PASSING = frozenset({408, 425, 429})
_TOKEN_GONE = frozenset({400, 404, 410})


class _Reply(msgspec.Struct, frozen=True):
    document: object
    asked_at: datetime
    served_at: datetime


class RestSource:
    """`environ` holds the values that the declaration names by `Env`. Raises Fatal when one is missing."""

    def __init__(
        self,
        declared: Source,
        feed: Rest,
        session: aiohttp.ClientSession,
        environ: Mapping[str, str],
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._declared = declared
        self._feed = feed
        self._session = session
        self._url = _value(declared.name, feed.url, environ).rstrip("/")
        self._headers = {h.name: h.prefix + _value(declared.name, h.value, environ) for h in feed.headers}
        self._key_path = tuple(feed.key.split("."))
        self._clock = clock
        self._now = now
        self._free_at = float("-inf")

    @property
    def start(self) -> SinceTime | SinceRevision | None:
        match self._feed.changes:
            case ByTime():
                return SinceTime(bound=OLDEST)
            case ByRevision():
                return SinceRevision()
            case None:
                return None

    @property
    def reread_size(self) -> int:
        return 0 if self._feed.reread is None else self._feed.reread.size

    @property
    def absence_decides(self) -> bool:
        return False

    async def fetch(self, position: Position, mark: str = "") -> Page:
        page = None if isinstance(position, SinceRevision) else position.page
        params = [*self._bound_params(position), *self._page_params(page)]
        reply = await self._get(self._feed.path, params)
        rows = self._rows(reply.document)
        step = self._step(position, self._answer(reply, rows, page))
        return Page(
            rows=rows,
            following=step.following,
            has_more=step.has_more,
            served_at=reply.served_at,
            as_of=step.as_of,
            doubt=step.doubt,
        )

    async def reread(self, keys: Sequence[str]) -> Page:
        how = self._feed.reread
        if how is None or not 0 < len(keys) <= how.size:
            raise ValueError(f"{self._declared.name}: cannot re-read {len(keys)} keys")
        values = keys if how.separator is None else [how.separator.join(keys)]
        params = [(how.param, value) for value in values]
        reply = await self._get(how.path, params)
        rows = self._rows(reply.document)
        return Page(rows=rows, following=FullWalk(), has_more=False, served_at=reply.served_at)

    def _bound_params(self, position: Position) -> list[tuple[str, str]]:
        match position, self._feed.changes:
            case FullWalk(), _:
                return []
            case SinceTime(bound=bound), ByTime() as rule:
                return [(rule.param, as_text(bound, rule))]
            case SinceRevision(at=at), ByRevision() as by_revision:
                return [(by_revision.param, str(at))]
        # The bubble changed its way of asking since the cursor was written.
        raise Refused(f"source {self._declared.name!r}: its cursor is of another kind; delete the cursor's item")

    def _page_params(self, page: PageRef) -> list[tuple[str, str]]:
        paging = self._feed.paging
        first: PageRef = 1 if isinstance(paging, PageNumber) else 0 if isinstance(paging, Offset) else None
        asked = first if page is None else page
        params = [] if asked is None else [(paging.param, str(asked))]
        return params if paging.size_param is None else [*params, (paging.size_param, str(paging.size))]

    def _step(self, position: Position, answer: Answer) -> Step:
        safety_s = self._declared.safety_s
        match position, self._feed.changes:
            case SinceTime(), ByTime(zone=zone):
                return after_time(position, answer, safety_s, ZoneInfo(zone))
            case SinceRevision(), _:
                return after_revision(position, answer, safety_s)
            case FullWalk(), _:
                return after_full(position, answer, safety_s)
        raise AssertionError("unreachable: _bound_params refused it")

    def _answer(self, reply: _Reply, rows: Sequence[RawRow], page: PageRef) -> Answer:
        paging, changes = self._feed.paging, self._feed.changes
        total = None
        if isinstance(paging, PageNumber | Offset) and paging.total is not None:
            total = _whole(dig(reply.document, tuple(paging.total.split("."))))
        times: list[datetime | None] = []
        revisions: list[int | None] = []
        if isinstance(changes, ByTime):
            path = tuple(changes.column.split("."))
            times = [wall_clock(dig(row, path), changes) for row in rows]
        elif isinstance(changes, ByRevision):
            path = tuple(changes.column.split("."))
            revisions = [_whole(dig(row, path)) for row in rows]
        keys = [raw_key(row, self._key_path) for row in rows]
        next_page = self._next_page(reply.document, len(rows), page)
        return Answer(keys, next_page, total, reply.asked_at, reply.served_at, times, revisions)

    def _next_page(self, document: object, rows: int, page: PageRef) -> PageRef:
        paging = self._feed.paging
        if isinstance(paging, PageNumber):
            pages = _whole(dig(document, tuple(paging.pages.split("."))))
            if pages is None:
                raise self._odd(f"no number of pages at {paging.pages!r}")
            number = 1 if page is None else int(page)
            return number + 1 if rows and number < pages else None
        following = dig(document, tuple(paging.next.split(".")))
        if following is None or following == "" or following is False:
            return None
        if isinstance(paging, PageToken):
            return str(following)
        offset = _whole(following)
        if offset is None or offset <= int(page or 0):
            raise self._odd(f"the next offset at {paging.next!r} is {following!r}")
        return offset if rows else None

    def _rows(self, document: object) -> tuple[RawRow, ...]:
        feed = self._feed
        rows = dig(document, tuple(feed.rows.split(".")))
        if not isinstance(rows, list):
            raise self._odd(f"no list of rows at {feed.rows!r}")
        if feed.columns is None:
            # A row of another form goes to quarantine with the rest of what cannot be read.
            return tuple(row if isinstance(row, dict) else {"row": row} for row in rows)
        names = dig(document, tuple(feed.columns.split(".")))
        if not isinstance(names, list):
            raise self._odd(f"no list of column names at {feed.columns!r}")
        return tuple(
            dict(zip(map(str, names), row, strict=True))
            if isinstance(row, list) and len(row) == len(names)
            else {"row": row}
            for row in rows
        )

    async def _get(self, path: str, params: list[tuple[str, str]]) -> _Reply:
        await self._pace()
        sent = self._clock()
        status = "broken"
        try:
            async with self._session.get(
                self._url + path,
                params=params,
                headers=self._headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=self._feed.timeout_s),
            ) as response:
                elapsed_s = self._clock() - sent
                status = str(response.status)
                self._refuse(response)
                body = await self._body(response)
                served_at = self._date(response)
        except TimeoutError as error:
            status = "timeout"
            raise Transient(f"{self._declared.name}: no answer in {self._feed.timeout_s} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Transient(f"{self._declared.name}: {type(error).__name__}: {error}") from error
        finally:
            telemetry.POLLER_REQUEST_SECONDS.labels(self._declared.name, status).observe(self._clock() - sent)
        # The answer's date is taken after the rows were read; when it was asked is the safe side.
        return _Reply(self._document(body), served_at - timedelta(seconds=elapsed_s), served_at)

    async def _pace(self) -> None:
        """Keeps to the request budget: evenly spaced, nothing saved up."""
        now = self._clock()
        wait_s = self._free_at - now
        self._free_at = max(now, self._free_at) + 1 / self._feed.requests_per_s
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    def _refuse(self, response: aiohttp.ClientResponse) -> None:
        status, name = response.status, self._declared.name
        if 200 <= status < 300:
            return
        wish = retry_after.seconds(response.headers.get("Retry-After"), self._now())
        is_token_gone = isinstance(self._feed.paging, PageToken) and status in _TOKEN_GONE
        if status in _PASSING or status >= 500 or status < 400 or is_token_gone:
            raise Transient(f"{name}: the back office answered {status}", retry_after_s=wish)
        remedy = "check its credentials" if status in (401, 403) else "check the path and parameters of its declaration"
        raise Refused(f"source {name!r}: {response.url.path} answered {status}; {remedy}", retry_after_s=wish)

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for part in response.content.iter_chunked(256 * 1024):
            size += len(part)
            if size > _MOST_ANSWER_BYTES:
                raise self._odd(f"its answer is larger than {_MOST_ANSWER_BYTES} bytes; ask for smaller pages")
            parts.append(part)
        body = b"".join(parts)
        charset = (response.charset or "utf-8").lower()
        if charset in ("utf-8", "utf8"):
            return body
        try:
            return body.decode(charset).encode()
        except (LookupError, UnicodeDecodeError) as error:
            raise self._odd(f"its answer is not in {charset}: {error}") from error

    def _date(self, response: aiohttp.ClientResponse) -> datetime:
        """The back office's own time; ours when it does not say, which the safety time must then cover."""
        try:
            at = parsedate_to_datetime(response.headers["Date"])
        except (KeyError, ValueError):
            return self._now()
        return at if at.tzinfo is not None else at.replace(tzinfo=UTC)

    def _document(self, body: bytes) -> object:
        try:
            document: object = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._odd(f"its answer is not JSON: {error}") from error
        except RecursionError as error:
            raise self._odd("its answer nests too deep") from error
        return document

    def _odd(self, what: str) -> Transient:
        return Transient(f"{self._declared.name}: {what}")


def _value(source: str, env: Env, environ: Mapping[str, str]) -> str:
    value = environ.get(env.name) or env.default
    if not value:
        raise Fatal(f"source {source!r}: the environment variable {env.name} is missing")
    return value


def _whole(value: object) -> int | None:
    """An integer, also one written as text."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        return int(value)
    return None
