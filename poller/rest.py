"""An HTTP back office as a source: what `tidegate.feeds.Rest` declares, over `poller.wire`.

One `fetch` is one request for rows (and a token before it, when one has run out); nothing is retried here, and the only
wait is for the back office's gate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

import aiohttp

from poller import paging as pages
from poller import walk
from poller.gate import Gate
from poller.paging import Following, Params, Shown, whole_numbers
from poller.rows import Odd, as_rows, rows_at
from poller.source import (
    FullWalk,
    Live,
    Page,
    ParentRow,
    Position,
    Refused,
    SinceKeyset,
    SinceRevision,
    SinceTime,
    SinceToken,
)
from poller.times import OLDEST, as_text, grain, wall_clock
from poller.translate import column, dig, raw_keys
from poller.walk import Answer, Step
from poller.wire import Reply, Wire
from tidegate.bubble import Source
from tidegate.errors import Transient
from tidegate.feeds import (
    Ask,
    ByKeyset,
    ByRevision,
    ByTime,
    ByToken,
    LinkHeader,
    NextLink,
    PageRef,
    PageToken,
    Paging,
    RawRow,
    Rest,
)

Keys = Sequence[str | None]

_TOKEN_GONE = frozenset({400, 404, 410})
_ABSENT = (404, 410)
_OLD = timedelta(hours=16)
"""A poll whose bound is older than this catches up; others go first. Its wall clock and ours differ by up to 14 hours."""


class RestSource:
    """`environ` holds the values that the declaration names by `Env`. Raises Fatal when one is missing.

    `gate`: shared by everybody who asks this back office; None: this source alone asks.
    """

    def __init__(
        self,
        declared: Source,
        feed: Rest,
        session: aiohttp.ClientSession,
        environ: Mapping[str, str],
        gate: Gate | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._declared = declared
        self._feed = feed
        self.gate = gate or Gate(feed.manners, clock=clock, now=now)
        self._wire = Wire(declared.name, feed, session, environ, self.gate, clock=clock, now=now)
        self._key_path = tuple(feed.key.split("."))
        self._now = now

    @property
    def start(self) -> Live | None:
        match self._feed.changes:
            case ByTime():
                return SinceTime(bound=OLDEST)
            case ByKeyset():
                return SinceKeyset(bound=OLDEST)
            case ByRevision():
                return SinceRevision()
            case ByToken():
                return SinceToken()
            case None:
                return None

    @property
    def reread_size(self) -> int:
        how = self._feed.reread
        return 0 if how is None else 1 if how.is_single else how.size

    @property
    def absence_decides(self) -> bool:
        return False

    def may_ask_ahead(self, position: Position) -> bool:
        """Who asks with a token of changes may thereby say that he has those before it, and they are dropped there."""
        return not isinstance(position, SinceToken) and self.closed_s() <= 0

    def closed_s(self) -> float:
        """How long nothing may be asked now: it is closed, or asked us to wait."""
        return self.gate.closed_s()

    async def fetch(self, position: Position, mark: str = "", *, urgent: bool = True) -> Page:
        since, urgent = self._since(position), urgent and self._is_urgent(position)
        try:
            if self._feed.read is not None:
                return await self._read(position, since, urgent)
            if self._feed.parent is not None and isinstance(position, FullWalk):
                return await self._family(position)
            return await self._list(position, since, urgent)
        except Odd as error:
            raise Transient(f"{self._declared.name}: {error}") from error

    async def reread(self, keys: Sequence[str]) -> Page:
        how = self._feed.reread
        if how is None or not 0 < len(keys) <= self.reread_size:
            raise ValueError(f"{self._declared.name}: cannot re-read {len(keys)} keys")
        path = how.path
        params: Params = []
        if how.is_single:
            path = path.replace("{key}", quote(keys[0], safe=""))
        else:
            values = keys if how.separator is None else [how.separator.join(keys)]
            params = [(how.param, value) for value in values]
        reply = await self._wire.get(path, params, answers=_ABSENT if how.is_single else ())
        try:
            rows = () if reply.status in _ABSENT else self._rows(reply.document, how.rows)
        except Odd as error:
            raise Transient(f"{self._declared.name}: {error}") from error
        return Page(rows=rows, following=FullWalk(), has_more=False, served_at=reply.served_at)

    # ---------------------------------------------------------------- the ordinary list

    async def _list(self, position: Position, since: Params, urgent: bool) -> Page:
        feed = self._feed
        # Changes by keyset or token page by their own parameters.
        by_page = not isinstance(position, SinceKeyset | SinceToken)
        page = position.page if isinstance(position, FullWalk | SinceTime) else None
        url = pages.address(feed.paging, page) if by_page else None
        params = [] if url is not None else [*since, *self._page_params(position, page)]
        reply = await self._ask(url or feed.path, params, position, urgent)
        if reply.status in _TOKEN_GONE:
            return Page(rows=(), following=SinceToken(), has_more=True, served_at=reply.served_at, doubt=True)
        rows = self._rows(reply.document, None)
        keys = raw_keys(rows, self._key_path)
        return self._page(position, reply, rows, keys, self._following(position, reply, keys, page))

    async def _ask(self, path: str, params: Params, position: Position, urgent: bool) -> Reply:
        has_expired = isinstance(position, SinceToken) and position.token is not None
        try:
            return await self._wire.get(path, params, urgent=urgent, answers=(400, 410) if has_expired else ())
        except Refused as error:
            # Page tokens expire, and the walk starts over: nothing that a person must mend.
            if isinstance(self._feed.paging, PageToken | NextLink | LinkHeader) and _names_page(position):
                raise Transient(str(error), retry_after_s=error.retry_after_s) from error
            raise

    def _page_params(self, position: Position, page: PageRef) -> Params:
        paging = self._feed.paging
        if isinstance(position, SinceKeyset | SinceToken):
            return [] if paging.size_param is None else [(paging.size_param, str(paging.size))]
        return pages.page_params(paging, page)

    def _since(self, position: Position) -> Params:
        match position, self._feed.changes:
            case FullWalk(), _:
                return []
            case SinceTime(bound=bound), ByTime() as rule:
                return [(rule.param, as_text(bound, rule))]
            case SinceKeyset() as at, ByKeyset() as keyset:
                bound, key = (at.bound, at.key) if at.at is None else (at.at, at.at_key)
                return [(keyset.time_param, as_text(bound, keyset)), (keyset.key_param, key)]
            case SinceRevision(at=reached), ByRevision() as by_revision:
                return [(by_revision.param, str(reached))]
            case SinceToken(token=token), ByToken() as by_token:
                return [] if token is None else [(by_token.param, token)]
        # The bubble changed its way of asking since the cursor was written.
        name = self._declared.name
        raise Refused(f"source {name!r}: its cursor is of another kind; delete the cursor's item")

    def _following(self, position: Position, reply: Reply, keys: Keys, page: PageRef) -> Following:
        if isinstance(position, SinceToken) and isinstance(self._feed.changes, ByToken):
            token = dig(reply.document, tuple(self._feed.changes.next.split(".")))
            return Following(None if token in (None, "") else str(token))
        if isinstance(position, SinceKeyset):
            return Following(None)
        last = position.last if isinstance(position, FullWalk) else None
        return pages.following(self._feed.paging, Shown(reply.document, keys, reply.link), page, last)

    def _page(
        self, position: Position, reply: Reply, rows: tuple[RawRow, ...], keys: Keys, following: Following
    ) -> Page:
        answer = self._answer(reply, rows, keys, following)
        step = self._step(position, answer, reply, rows)
        newest = max((each for each in answer.revisions if each is not None), default=None)
        return _as_page(rows, step, reply, newest)

    def _step(self, position: Position, answer: Answer, reply: Reply, rows: Sequence[RawRow]) -> Step:
        safety_s = self._declared.safety_s
        match position, self._feed.changes:
            case SinceTime(), ByTime() as rule:
                return walk.after_time(position, answer, safety_s, ZoneInfo(rule.zone), grain(rule))
            case SinceKeyset(), ByKeyset() as rule:
                return walk.after_keyset(position, answer, safety_s, ZoneInfo(rule.zone), grain(rule))
            case SinceToken(), ByToken(more=where):
                more = bool(rows) if where is None else dig(reply.document, tuple(where.split("."))) is True
                return walk.after_token(position, answer, safety_s, has_more=more)
            case SinceRevision(), _:
                return walk.after_revision(position, answer, safety_s)
            case FullWalk(), _:
                return walk.after_full(position, answer, safety_s)
        raise AssertionError("unreachable: _since refused it")

    def _answer(self, reply: Reply, rows: Sequence[RawRow], keys: Keys, following: Following) -> Answer:
        changes = self._feed.changes
        times: list[datetime | None] = []
        revisions: Sequence[int | None] = []
        if isinstance(changes, ByTime | ByKeyset):
            path = tuple(changes.column.split("."))
            times = [wall_clock(value, changes) for value in column(rows, path)]
        elif isinstance(changes, ByRevision):
            path = tuple(changes.column.split("."))
            revisions = whole_numbers(column(rows, path))
        return Answer(
            keys, following.page, following.total, reply.asked_at, reply.served_at, times, revisions, following.moved
        )

    def _rows(self, document: object, where: str | None) -> tuple[RawRow, ...]:
        """Raises Odd."""
        feed = self._feed
        if where == "":
            return as_rows(document if isinstance(document, list) else [document])
        found = rows_at(document, feed.rows if where is None else where, feed.inherit, lone=feed.body == "xml")
        if feed.columns is None:
            return as_rows(found)
        return as_rows(found, dig(document, tuple(feed.columns.split("."))) or ())

    def _is_urgent(self, position: Position) -> bool:
        """Live changes go before backfills and sweeps."""
        match position:
            case SinceTime(bound=bound) | SinceKeyset(bound=bound):
                return bound > self._now().replace(tzinfo=None) - _OLD
            case SinceRevision(loaded=loaded):
                return loaded
            case SinceToken(token=token):
                return token is not None
            case _:
                return False

    # ---------------------------------------------------------------- parents and children

    async def _family(self, at: FullWalk) -> Page:
        """One page of parents, or one page of the children of one of them."""
        feed, parent = self._feed, self._feed.parent
        assert parent is not None
        safety_s = self._declared.safety_s
        if not at.parents:
            reply = await self._get_page(parent.path, parent.paging, at.parent_page)
            found = as_rows(rows_at(reply.document, parent.rows, {}, lone=feed.body == "xml"))
            keys = raw_keys(found, tuple(parent.key.split(".")))
            shown = Shown(reply.document, keys, reply.link)
            following = pages.following(parent.paging, shown, at.parent_page, None)
            families = [
                ParentRow(key, _inherited(row, parent.inherit))
                for key, row in zip(keys, found, strict=True)
                if key is not None
            ]
            step = walk.after_parents(at, families, self._answer(reply, (), (), following), safety_s)
            return _as_page((), step, reply)
        family = at.parents[0]
        path = feed.path.replace("{parent}", quote(family.key, safe=""))
        reply = await self._get_page(path, feed.paging, at.page, answers=_ABSENT)
        if reply.status in _ABSENT:
            # The parent went away meanwhile, and its children with it.
            return _as_page((), walk.after_children(at, self._answer(reply, (), (), Following(None)), safety_s), reply)
        rows = tuple({**row, **family.inherited} for row in self._rows(reply.document, None))
        keys = raw_keys(rows, self._key_path)
        following = pages.following(feed.paging, Shown(reply.document, keys, reply.link), at.page, at.last)
        return _as_page(rows, walk.after_children(at, self._answer(reply, rows, keys, following), safety_s), reply)

    async def _get_page(self, path: str, paging: Paging, page: PageRef, answers: Sequence[int] = ()) -> Reply:
        url = pages.address(paging, page)
        params = [] if url is not None else pages.page_params(paging, page)
        return await self._wire.get(url or path, params, urgent=False, answers=answers)

    # ---------------------------------------------------------------- a source in Python

    async def _read(self, position: Position, since: Params, urgent: bool) -> Page:
        """The same walks over what a function of the bubble makes of its own requests."""
        read = self._feed.read
        assert read is not None
        replies: list[Reply] = []

        async def get(path: str, params: Mapping[str, str] | None = None) -> Any:
            reply = await self._wire.get(path, list((params or {}).items()), urgent=urgent)
            replies.append(reply)
            return reply.document

        page = position.page if isinstance(position, FullWalk | SinceTime) else None
        try:
            found = await read(get, Ask(page=page, since=since[0][1] if since else None))
            rows = as_rows(list(found.rows))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise Odd(f"its read function gave up: {type(error).__name__}: {error}") from error
        if not replies:
            raise Odd("its read function answered without asking the back office")
        # What was asked first is the oldest that any of the rows can be.
        reply = Reply(None, replies[0].asked_at, replies[0].served_at)
        return self._page(position, reply, rows, raw_keys(rows, self._key_path), Following(found.next))


def _names_page(position: Position) -> bool:
    return isinstance(position, FullWalk | SinceTime) and position.page is not None


def _inherited(row: RawRow, inherit: Mapping[str, str]) -> dict[str, Any]:
    return {name: dig(row, tuple(where.split("."))) for name, where in inherit.items()}


def _as_page(rows: tuple[RawRow, ...], step: Step, reply: Reply, newest: int | None = None) -> Page:
    return Page(
        rows=rows,
        following=step.following,
        has_more=step.has_more,
        served_at=reply.served_at,
        as_of=step.as_of,
        doubt=step.doubt,
        newest=newest,
    )
