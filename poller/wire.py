"""Requests to one back office over HTTP: the adapter over aiohttp. Nothing is retried here.

Each request waits for its turn at the back office's gate (`poller.gate`: hours, budget, breaker). What goes wrong is
sorted here and nowhere else:

    no connection, time-out, 408, 425, 429, 5xx, 3xx,
    an answer that is not what the declaration says   Transient (with Retry-After, seconds or a date)
    401, 403, 404, other 4xx                          Refused: Transient too, but a person must mend it (or it is a
                                                      maintenance page); long waits, and other sources go on

Except that a 401 is plainly Transient once after each renewal of a token, and that a caller names the statuses which are
answers to it: an expired page token, a row that does not exist.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
import msgspec

from poller import bodies
from poller.auth import Credentials, value_of
from poller.gate import Gate
from poller.paging import Params, next_link
from poller.rows import Odd
from poller.source import Refused
from tidegate import __version__, retry_after, telemetry
from tidegate.errors import Transient
from tidegate.feeds import Rest

_MOST_ANSWER_BYTES = 64 * 1024 * 1024
_MOST_KEPT_BYTES = 16 * 1024 * 1024
_PASSING = frozenset({408, 425, 429})


class Reply(msgspec.Struct, frozen=True):
    """`link` as in `paging.Shown`; `status` is one of those that the caller called answers, else 200."""

    document: object
    asked_at: datetime
    served_at: datetime
    link: str = ""
    status: int = 200


class _Kept(msgspec.Struct, frozen=True):
    """An answer that can be asked for again with conditions."""

    conditions: dict[str, str]
    body: bytes
    charset: str
    link: str


class Wire:
    """`environ` holds the values that the declaration names by `Env`. Raises Fatal when one is missing."""

    def __init__(
        self,
        source: str,
        feed: Rest,
        session: aiohttp.ClientSession,
        environ: Mapping[str, str],
        gate: Gate,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._source = source
        self._feed = feed
        self._session = session
        self._gate = gate
        self._base = value_of(source, feed.url, environ).rstrip("/")
        self._credentials = Credentials(source, feed, environ, self._post, clock)
        self._clock = clock
        self._now = now
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._kept_bytes = 0

    async def get(self, path: str, params: Params, *, urgent: bool = True, answers: Sequence[int] = ()) -> Reply:
        """One request. `answers` are statuses that are no failure; their document is None. Raises Transient."""
        url = self._url(path)
        headers = await self._credentials.headers()
        extra = self._missing(url, [*self._credentials.params, *params])
        identity = f"{url} {params}"
        kept = self._kept.get(identity)
        if kept is not None:
            headers = {**headers, **kept.conditions}
        async with self._gate.turn(urgent=urgent):
            return await self._ask(url, extra, headers, identity, kept, answers)

    async def _ask(
        self, url: str, params: Params, headers: Mapping[str, str], identity: str, kept: _Kept | None,
        answers: Sequence[int],
    ) -> Reply:  # fmt: skip
        sent = self._clock()
        status = "broken"
        try:
            async with self._session.get(
                url,
                params=params,
                headers={"User-Agent": f"tidegate/{__version__} ({self._gate.owner})", **headers},
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=self._feed.timeout_s),
            ) as response:
                elapsed_s = self._clock() - sent
                status = str(response.status)
                served_at = self._date(response)
                asked_at = served_at - timedelta(seconds=elapsed_s)
                if response.status in answers:
                    return Reply(None, asked_at, served_at, status=response.status)
                if response.status == 304 and kept is not None:
                    self._kept.move_to_end(identity)
                    return self._reply(kept, asked_at, served_at)
                self._refuse(response)
                answer = _Kept(
                    _conditions(response), await self._body(response), response.charset or "", _link(response)
                )
        except TimeoutError as error:
            status = "timeout"
            raise Transient(f"{self._source}: no answer in {self._feed.timeout_s} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Transient(f"{self._source}: {type(error).__name__}: {_without_query(error)}") from error
        finally:
            telemetry.POLLER_REQUEST_SECONDS.labels(self._source, status).observe(self._clock() - sent)
        reply = self._reply(answer, asked_at, served_at)
        self._keep(identity, answer)
        return reply

    def _reply(self, answer: _Kept, asked_at: datetime, served_at: datetime) -> Reply:
        # The answer's date is taken after the rows were read; when it was asked is the safe side.
        try:
            document = bodies.parsed(answer.body, self._feed.body, answer.charset)
        except Odd as error:
            raise Transient(f"{self._source}: {error}") from error
        return Reply(document, asked_at, served_at, answer.link)

    def _url(self, path: str) -> str:
        """A path of this back office, or an address that it named. Credentials go nowhere else."""
        if "://" not in path:
            return self._base + path if path.startswith("/") or not path else urljoin(f"{self._base}/", path)
        if urlsplit(path)[:2] != urlsplit(self._base)[:2]:
            raise Transient(f"{self._source}: the next page's address is on another server: {urlsplit(path).netloc!r}")
        return path

    def _missing(self, url: str, params: Params) -> Params:
        """An address for the next page has its parameters already."""
        query = urlsplit(url).query
        named = {part.partition("=")[0] for part in query.split("&")} if query else set()
        return [(name, value) for name, value in params if name not in named]

    def _keep(self, identity: str, answer: _Kept) -> None:
        old = self._kept.pop(identity, None)
        self._kept_bytes -= 0 if old is None else len(old.body)
        if not self._feed.conditional or not answer.conditions:
            return
        self._kept[identity] = answer
        self._kept_bytes += len(answer.body)
        while self._kept_bytes > _MOST_KEPT_BYTES:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= len(oldest.body)

    def _refuse(self, response: aiohttp.ClientResponse) -> None:
        status, name = response.status, self._source
        if 200 <= status < 300:
            return
        wish = retry_after.seconds(response.headers.get("Retry-After"), self._now())
        is_renewable = status == 401 and self._credentials.refused()
        if status in _PASSING or status >= 500 or status < 400 or is_renewable:
            # Who is asked to wait says so with 429 and 503; no other answer holds up the other sources.
            if wish is not None and status in (429, 503):
                self._gate.pause(wish)
            raise Transient(f"{name}: the back office answered {status}", retry_after_s=wish)
        remedy = "check its credentials" if status in (401, 403) else "check the path and parameters of its declaration"
        raise Refused(f"source {name!r}: {response.url.path} answered {status}; {remedy}", retry_after_s=wish)

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for part in response.content.iter_chunked(256 * 1024):
            size += len(part)
            if size > _MOST_ANSWER_BYTES:
                raise Transient(
                    f"{self._source}: its answer is larger than {_MOST_ANSWER_BYTES} bytes; ask for smaller pages"
                )
            parts.append(part)
        return b"".join(parts)

    def _date(self, response: aiohttp.ClientResponse) -> datetime:
        """The back office's own time; ours when it does not say, which the safety time must then cover."""
        ours = self._now()
        try:
            at = parsedate_to_datetime(response.headers["Date"])
        except (KeyError, ValueError):
            return ours
        theirs = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
        # It is cut off to whole seconds: half of one is its mean.
        skew_s = (theirs - ours).total_seconds() + 0.5
        telemetry.POLLER_CLOCK_SKEW.labels(self._source).set(round(skew_s, 3))
        return theirs

    async def _post(self, url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> Any:
        """Ask a token server. Its answer is never shown."""
        timeout = aiohttp.ClientTimeout(total=self._feed.timeout_s)
        try:
            async with self._session.post(
                url, data=form, headers=headers, allow_redirects=False, timeout=timeout
            ) as response:
                status, body = response.status, await self._body(response)
        except TimeoutError as error:
            raise Transient(f"{self._source}: the token server does not answer") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Transient(f"{self._source}: the token server: {type(error).__name__}") from error
        if status in (400, 401, 403):
            raise Refused(
                f"source {self._source!r}: the token server answered {status}; check the client's credentials"
            )
        if not 200 <= status < 300:
            raise Transient(f"{self._source}: the token server answered {status}")
        try:
            return msgspec.json.decode(body)
        except msgspec.DecodeError as error:
            raise Transient(f"{self._source}: the token server's answer is not JSON") from error


def _conditions(response: aiohttp.ClientResponse) -> dict[str, str]:
    """The headers by which the same answer is asked for only if it changed. RFC 9110 wants both where there are both."""
    found = {"If-None-Match": response.headers.get("ETag"), "If-Modified-Since": response.headers.get("Last-Modified")}
    return {name: value for name, value in found.items() if value}


def _link(response: aiohttp.ClientResponse) -> str:
    header = ", ".join(response.headers.getall("Link", ()))
    target = next_link(header) if header else ""
    return urljoin(str(response.url), target) if target else ""


def _without_query(error: Exception) -> str:
    """An error's text without what is behind a question mark: a parameter may be a key."""
    return " ".join(word.partition("?")[0] for word in str(error).split())
