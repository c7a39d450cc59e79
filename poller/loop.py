"""One source, for as long as its lease is held: poll, sweep, watermark, and what to do when something fails.

A source does one thing at a time, page by page, so the index needs no lock and the requests have an order.
`schedule` says what is next. A failure of the back office delays the failed activity alone, with back-off; the
lease stays held and the watermark ages. It ends when asked to stop (after the page in hand), when the lease is
lost (Superseded) or for good (Fatal).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime

from msgspec.structs import replace

from poller.publisher import Publisher
from poller.schedule import Agenda, Kind, next_step
from poller.source import FullWalk, Page
from poller.sweep import Sweep
from poller.term import Term, pause
from tidegate import telemetry
from tidegate.errors import Transient
from tidegate.event import Cause

_SOON_S = 5.0
"""How long after a take the first sweep begins, when nothing presses."""
_COMPACT_S = 60.0
"""Sources that walk all the time write their snapshot no more often than this."""


class SourceLoop:
    """`clock` is monotonic, in seconds; `wall` is seconds since 1970. `allowed`: a mass deletion was confirmed.

    `republish`: publish everything once more; `has_republished` tells when its walk is complete.
    """

    def __init__(
        self,
        term: Term,
        publisher: Publisher,
        *,
        clock: Callable[[], float] | None = None,
        wall: Callable[[], float] = time.time,
        allowed: bool = False,
        republish: bool = False,
    ) -> None:
        self._term = term
        self._publisher = publisher
        self._clock = clock or asyncio.get_running_loop().time
        self._wall = wall
        self._allowed = allowed
        self._republish = republish
        self.has_republished = False
        self._declared = term.reading.source
        self._polls = term.source.start is not None
        self._poll_at: float | None = None
        self._sweep_at = float("inf")
        self._swept_last = True
        self._in_poll = False
        self._poll_failures = 0
        self._sweep_failures = 0
        self._unproven = 0
        self._sweep: Sweep | None = None
        self._sweep_began = 0.0
        self._suspects: frozenset[str] = frozenset()
        self._walked_as_of: datetime | None = None
        self._as_of: datetime | None = None
        self._compacted_at = float("-inf")
        self._log = telemetry.get_logger("poller.loop")

    async def run(self, least_epoch: int = 0) -> None:
        """Until `stop`. Raises Superseded, Fatal; Transient when the source could not be opened."""
        await self.open(least_epoch)
        while not self._term.stop.is_set():
            await pause(self._term.stop, await self.step())

    async def open(self, least_epoch: int = 0) -> None:
        """Begin the term. Raises as `Term.open`."""
        await self._term.open(max(least_epoch, int(self._wall())), republish=self._republish)
        self._begin()

    async def step(self) -> float:
        """Do the next thing that is due; answers how many seconds there is nothing to do."""
        agenda = Agenda(self._poll_at, self._sweep_at, self._swept_last, self._in_poll)
        following = next_step(agenda, self._clock())
        match following.kind:
            case Kind.WAIT:
                return following.wait_s
            case Kind.POLL:
                await self._poll_guarded()
            case Kind.SWEEP:
                await self._sweep_guarded()
        return 0.0

    def _begin(self) -> None:
        term, now = self._term, self._clock()
        presses = term.progress.doubt or term.index.is_behind(self._declared.translation) or bool(term.index.unsure())
        if not self._polls:
            self._sweep_at = now
            return
        self._poll_at = now
        if term.progress.loaded:
            self._sweep_at = now if presses else now + min(_SOON_S, self._declared.sweep_interval_s)

    async def _poll_guarded(self) -> None:
        self._swept_last = False
        try:
            await self._poll()
            self._poll_failures = 0
        except Transient as error:
            self._poll_failures += 1
            self._poll_at = self._clock() + self._term.back_off_s(self._poll_failures, error)
            # A sweep may go on meanwhile: its requests fail or succeed for themselves.
            self._in_poll = False

    async def _poll(self) -> None:
        term = self._term
        before = term.progress
        position = before.live or term.source.start
        if position is None:
            raise RuntimeError(f"{term.name}: there are no changes to ask for")
        began = self._clock()
        read, page = await term.fetch(position)
        cause = Cause.LIVE if before.loaded else Cause.BACKFILL
        changes = await term.settle(page.rows, term.sight(read, page, cause))
        if isinstance(page.following, FullWalk):
            raise TypeError(f"{term.name}: a poll for changes went on as a walk")
        progress = replace(
            before,
            live=page.following,
            loaded=before.loaded or not page.has_more,
            doubt=before.doubt or page.doubt,
        )
        await term.commit(changes, progress)
        if self._sweep is not None:
            self._sweep.seen |= changes.seen
        self._in_poll = page.has_more
        self._poll_at = self._clock() if page.has_more else began + self._declared.poll_interval_s
        self._after_page(page, loaded_now=progress.loaded and not before.loaded)
        if not page.has_more:
            await self._send_watermark(page.as_of)
        await self._bound_journals()

    def _after_page(self, page: Page, *, loaded_now: bool) -> None:
        if loaded_now:
            self._sweep_at = self._clock()
            self._log.info(telemetry.POLLER_LOADED, source=self._term.name, keys=len(self._term.index))
        if page.doubt:
            # Only a sweep that begins from here on can tell.
            self._sweep, self._sweep_at = None, self._clock()
            self._log.warning(telemetry.POLLER_DOUBT, source=self._term.name)
        if not page.has_more:
            telemetry.POLLER_CURSOR_SECONDS.labels(self._term.name).set(page.served_at.timestamp())

    async def _sweep_guarded(self) -> None:
        self._swept_last = True
        try:
            await self._sweep_on()
            self._sweep_failures = 0
        except Transient as error:
            self._sweep_failures += 1
            self._sweep_at = self._clock() + self._term.back_off_s(self._sweep_failures, error)
            if self._sweep_failures % self._term.settings.walk_failures == 0:
                self._sweep = None

    async def _sweep_on(self) -> None:
        if self._sweep is None:
            self._sweep = Sweep(self._term, self._cause(), self._suspects, allowed=self._allowed)
            self._sweep_began = self._clock()
        if await self._sweep.step():
            await self._finish(self._sweep)
        await self._bound_journals()

    def _cause(self) -> Cause:
        if self._republish and not self.has_republished:
            # Whatever it brings back is no news to anybody outside.
            return Cause.BACKFILL
        return Cause.SWEEP if self._polls else Cause.LIVE if self._term.progress.loaded else Cause.BACKFILL

    async def _finish(self, sweep: Sweep) -> None:
        term = self._term
        loaded_now = not self._polls and not term.progress.loaded and not sweep.is_idle
        proves = sweep.as_of is not None and not sweep.is_ignored
        progress = replace(
            term.progress,
            # While rows are shown that may be gone, nothing is said about freshness.
            doubt=sweep.is_held or (term.progress.doubt and not proves),
            mark=term.progress.mark if sweep.is_held else sweep.mark,
        )
        await term.advance(replace(progress, loaded=progress.loaded or loaded_now))
        self._sweep = None
        self._sweep_at = self._following_sweep_at(sweep)
        self._suspects = sweep.missing
        telemetry.POLLER_DELETIONS_HELD.labels(term.name).set(sweep.is_held)
        if sweep.is_idle:
            return
        self.has_republished = self._republish
        await self._compact()
        self._tell(sweep, loaded_now)
        if not self._polls and not sweep.is_held and not sweep.is_ignored:
            # A deletion shows in the second walk only: until then the first one's time is what is true.
            as_of = self._walked_as_of if sweep.missing else sweep.as_of
            self._walked_as_of = sweep.as_of
            await self._send_watermark(as_of)

    def _following_sweep_at(self, sweep: Sweep) -> float:
        declared, now = self._declared, self._clock()
        interval_s = declared.sweep_interval_s if self._polls or sweep.is_held else declared.poll_interval_s
        if self._term.progress.doubt and not sweep.is_held:
            # It proved nothing, and watermarks wait for one that does: soon, but a broken re-read must not be hammered.
            self._unproven += 1
            return now + min(interval_s, _SOON_S * 2.0 ** min(self._unproven - 1, 10))
        self._unproven = 0
        if sweep.missing and self._polls and not sweep.is_held:
            return now
        return self._sweep_began + interval_s

    async def _compact(self) -> None:
        if self._polls or self._clock() - self._compacted_at >= _COMPACT_S:
            await self._compact_now()

    async def _bound_journals(self) -> None:
        """A successor must not have to read any number of journals because no sweep comes to its end."""
        if self._term.journals > self._term.settings.journals_most:
            await self._compact_now()

    async def _compact_now(self) -> None:
        if await self._term.compact():
            # Rows that a sweep under way has passed already may be unsure now.
            self._sweep, self._sweep_at = None, self._clock()
        self._compacted_at = self._clock()

    def _tell(self, sweep: Sweep, loaded_now: bool) -> None:
        name = self._term.name
        if loaded_now:
            self._log.info(telemetry.POLLER_LOADED, source=name, keys=len(self._term.index))
        if self._polls or sweep.deleted:
            self._log.info(
                telemetry.POLLER_SWEPT,
                source=name,
                seconds=round(self._clock() - self._sweep_began, 3),
                rows=sweep.rows,
                nominated=sweep.nominated_count,
                deleted=sweep.deleted,
            )

    async def _send_watermark(self, as_of: datetime | None) -> None:
        progress = self._term.progress
        if as_of is None or not self._declared.watermark or not progress.loaded or progress.doubt:
            return
        if self._as_of is not None and as_of <= self._as_of:
            return
        await self._publisher.watermark(self._term.name, as_of)
        self._as_of = as_of
        telemetry.POLLER_WATERMARK_SECONDS.labels(self._term.name).set(as_of.timestamp())
