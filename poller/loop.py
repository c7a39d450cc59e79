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
from datetime import UTC, datetime

import msgspec
from msgspec.structs import replace

from poller.ahead import Ahead
from poller.hours import next_cron
from poller.overlap import Overlap
from poller.publisher import Publisher
from poller.schedule import Agenda, Kind, next_step, paced_s
from poller.source import FullWalk, Live, Page, SinceRevision
from poller.sweep import Standing, Sweep, stood
from poller.term import Term, pause
from tidegate import telemetry
from tidegate.errors import Transient
from tidegate.event import Cause

_SOON_S = 5.0
"""How long after a take the first sweep begins, when nothing presses."""
_LOOK_S = 30.0
"""How often a source whose back office is closed looks whether it still is."""
_COMPACT_S = 60.0
"""Sources that walk all the time write their snapshot no more often than this."""


class SourceLoop:
    """`clock` is monotonic, in seconds; `wall` is seconds since 1970. `allowed`: a mass deletion was confirmed.

    `republish`: publish everything once more; `has_republished` tells when its walk is complete.
    `sweeps` counts those that came to their end, `swept` is the last of them.
    `closed_s`: how long the back office is not to be asked now.
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
        closed_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._term = term
        self._ahead = Ahead(term)
        self._publisher = publisher
        self._clock = clock or asyncio.get_running_loop().time
        self._wall = wall
        self._allowed = allowed
        self._republish = republish
        self._closed_s = closed_s
        self.has_republished = False
        self._declared = term.reading.source
        self._overlap = Overlap(self._declared.overlap_s)
        self._again: Live | None = None
        self._quiet_polls = 0
        self._polls = term.source.start is not None
        self._poll_at: float | None = None
        self._sweep_at = float("inf")
        self._swept_last = True
        self._in_poll = False
        self._poll_failures = 0
        self._sweep_failures = 0
        self._unproven = 0
        self._sweep: Sweep | None = None
        self._standing: Standing | None = None
        self._stood_at = 0.0
        self._is_kept = False
        self._allowed_once = False
        self.sweeps = 0
        self.swept: Sweep | None = None
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
        term = self._term
        await term.open(max(least_epoch, int(self._wall())), republish=self._republish)
        self._begin()
        presses = self._presses()
        # Under pressure a sweep must see every row from now on, not from when another one began.
        self._standing = None if presses else stood(await term.remembered_sweep(), term)
        if self._standing is not None:
            self._sweep_at = self._clock()

    @property
    def in_poll(self) -> bool:
        """A poll is under way and has more pages."""
        return self._in_poll

    @property
    def is_closed(self) -> bool:
        """The back office is not to be asked now."""
        return self._closed_s() > 0

    @property
    def as_of(self) -> datetime | None:
        """The last watermark that was sent."""
        return self._as_of

    @property
    def sweep_rows(self) -> int:
        """How many rows the sweep under way has seen."""
        return 0 if self._sweep is None else self._sweep.rows

    async def sweep_now(self, *, again: bool = False, allowed: bool = False, anew: bool = True) -> None:
        """Begin a sweep, and do away with the one under way. `again`: publish everything; `allowed`: as for the class.

        Not `anew`: where another process left it, if that is known. Raises as `Term.commit`.
        """
        if again:
            await self._term.doubt()
            self._republish, self.has_republished = True, False
        if anew or again:
            self._standing = None
        self._allowed_once = allowed
        self._sweep, self._sweep_at = None, self._clock()

    def retry_now(self) -> None:
        """What was in the way is not there any more."""
        if self._poll_at is not None:
            self._poll_at = self._clock()
        else:
            self._sweep_at = self._clock()

    async def step(self) -> float:
        """Do the next thing that is due; answers how many seconds there is nothing to do."""
        closed_s = self._closed_s()
        if closed_s > 0:
            return min(closed_s, _LOOK_S)
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

    def _presses(self) -> bool:
        """Whether something waits for a sweep."""
        term = self._term
        is_behind = term.index.is_behind(self._declared.translation)
        return self._republish or term.progress.doubt or is_behind or term.index.unsure_count() > 0

    def _begin(self) -> None:
        term, now = self._term, self._clock()
        presses = self._presses()
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
        began = self._clock()
        if self._again is None and not self._in_poll and before.loaded:
            self._again = self._overlap.again(began)
        position = self._again or before.live or term.source.start
        if position is None:
            raise RuntimeError(f"{term.name}: there are no changes to ask for")
        read, page = await self._ahead.fetch(position)
        async with self._ahead.asking(page.following if page.has_more else None):
            await self._take(read, page, began)

    async def _take(self, read: int, page: Page, began: float) -> None:
        term, before = self._term, self._term.progress
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
        self._again = None
        if self._sweep is not None:
            self._sweep.roll.call(changes.seen)
        self._quiet_polls = 0 if changes.records else self._quiet_polls + (not page.has_more)
        if not page.has_more:
            self._overlap.note(began, page.following)
        self._in_poll = page.has_more
        self._poll_at = self._clock() if page.has_more else self._following_poll_at(began)
        self._after_page(page, loaded_now=progress.loaded and not before.loaded)
        if not page.has_more:
            await self._send_watermark(page.as_of)
        await self._bound_journals()

    def _following_poll_at(self, began: float) -> float:
        declared = self._declared
        if declared.poll_cron is not None:
            return self._cron_at(declared.poll_cron)
        return began + paced_s(declared.poll_interval_s, declared.poll_most_s, self._quiet_polls)

    def _cron_at(self, expression: str) -> float:
        now = datetime.fromtimestamp(self._wall(), UTC)
        due = next_cron(expression, self._declared.zone, now)
        return self._clock() + (due - now).total_seconds()

    def _after_page(self, page: Page, *, loaded_now: bool) -> None:
        if loaded_now:
            self._sweep_at = self._clock()
            self._log.info(telemetry.POLLER_LOADED, source=self._term.name, keys=len(self._term.index))
        if page.doubt:
            # Only a sweep that begins from here on can tell.
            self._sweep, self._sweep_at = None, self._clock()
            self._overlap.clip(page.following)
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
            allowed = self._allowed or self._allowed_once
            self._sweep = Sweep(self._term, self._cause(), self._suspects, allowed=allowed)
            self._sweep_began = self._stood_at = self._clock()
            if self._standing is not None:
                self._sweep.resume(self._standing)
                self._standing, self._is_kept = None, True
        began = self._clock()
        if await self._sweep.step():
            await self._finish(self._sweep)
            return
        await self._remember(self._sweep)
        if self._polls and self._declared.sweep_requests_per_s is not None:
            self._sweep_at = began + 1 / self._declared.sweep_requests_per_s
        await self._bound_journals()

    async def _remember(self, sweep: Sweep) -> None:
        """Now and then, so that whoever takes the source next need not begin a long walk anew."""
        if self._clock() - self._stood_at < self._term.settings.sweep_kept_s:
            return
        await self._compact_now()
        standing = sweep.standing() if self._sweep is sweep else None
        if standing is not None:
            await self._term.remember_sweep(msgspec.msgpack.encode(standing))
            self._is_kept = True
        self._stood_at = self._clock()

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
        await term.advance(replace(progress, loaded=progress.loaded or loaded_now, live=self._still_true(sweep)))
        if self._is_kept:
            await term.remember_sweep(b"")
            self._is_kept = False
        self._sweep, self._allowed_once = None, False
        self.sweeps, self.swept = self.sweeps + 1, sweep
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

    def _still_true(self, sweep: Sweep) -> Live | None:
        """Where polling goes on: further back when every revision there is, is lower than where we are."""
        live = self._term.progress.live
        if not isinstance(live, SinceRevision) or sweep.newest is None or sweep.began_at is None:
            return live
        if sweep.newest >= sweep.began_at:
            return live
        fallen = SinceRevision(bound=sweep.newest, at=sweep.newest, loaded=True)
        self._overlap.clip(fallen)
        self._log.warning(
            telemetry.POLLER_REVISIONS_FELL, source=self._term.name, bound=live.bound, newest=sweep.newest
        )
        return fallen

    def _following_sweep_at(self, sweep: Sweep) -> float:
        declared, now = self._declared, self._clock()
        interval_s = declared.sweep_interval_s if self._polls or sweep.is_held else declared.poll_interval_s
        if self._term.progress.doubt and not sweep.is_held:
            # It proved nothing, and watermarks wait for one that does: soon, but a broken re-read must not be hammered.
            self._unproven += 1
            return now + min(interval_s, _SOON_S * 2.0 ** min(self._unproven - 1, 10))
        self._unproven = 0
        if declared.sweep_cron is not None and self._polls and not sweep.is_held and not sweep.missing:
            return self._cron_at(declared.sweep_cron)
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
                drift=dict(sweep.drift),
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
