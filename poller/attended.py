"""A source's loop with a person beside it: paused and resumed, sent on errands, and telling where it stands.

An errand gets one step after each step of the loop that is not amid a poll, and all of the time in which the loop has
nothing to do: it neither starves nor holds up live changes for longer than a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from msgspec.structs import replace

from poller.archive import Archive
from poller.errands import Errand, errand, over
from poller.loop import SourceLoop
from poller.signals import Signals
from poller.term import Term, pause
from tidegate.errors import Rejected, Transient
from tidegate.signals import Signal, Standing, State, Verb


class Attended:
    """`owner` is this process, for people; `clock` is monotonic, in seconds."""

    def __init__(
        self,
        loop: SourceLoop,
        term: Term,
        signals: Signals,
        archive: Archive | None,
        *,
        owner: str,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._loop = loop
        self._term = term
        self._signals = signals
        self._archive = archive
        self._owner = owner
        self._clock = clock or asyncio.get_running_loop().time
        self._errand: Errand | None = None
        self._signal: Signal | None = None
        self._sweeps_before = 0
        self._due_at = float("-inf")
        self._failures = 0
        self._errand_last = False
        self._watch = term.reading.watch
        self._shape_at = float("-inf")

    async def run(self, least_epoch: int = 0) -> None:
        """As SourceLoop.run."""
        await self.open(least_epoch)
        while not self._term.stop.is_set():
            await pause(self._term.stop, await self.step())

    async def open(self, least_epoch: int = 0) -> None:
        """Begin the term. Raises as `Term.open`."""
        if self._watch is not None:
            self._watch.begin(await self._signals.shape())
        await self._loop.open(least_epoch)

    async def step(self) -> float:
        """Do the next thing; answers how many seconds there is nothing to do."""
        was_paused = self._signals.control.paused
        await self._signals.look()
        if was_paused and not self._signals.control.paused:
            self._loop.retry_now()
        await self._signals.say(self._state())
        await self._keep_shape()
        if self._signals.control.paused:
            return self._signals.interval_s
        if not self._errand_last and not self._loop.in_poll and await self._errand_step():
            self._errand_last = True
            return 0.0
        self._errand_last = False
        wait_s = await self._loop.step()
        return 0.0 if wait_s > 0 and await self._errand_step() else min(wait_s, self._signals.interval_s)

    async def _keep_shape(self) -> None:
        watch = self._watch
        if watch is None:
            return
        if watch.accept(self._signals.control.accepted):
            self._loop.retry_now()
        if watch.is_dirty and self._clock() >= self._shape_at:
            watch.is_dirty = not await self._signals.keep(watch.shape)
            self._shape_at = self._clock() + self._signals.interval_s

    async def _errand_step(self) -> bool:
        """One step of the errand in hand, or of the next one; False when there is none that is due."""
        signal = self._signal or self._signals.errand
        if signal is None or self._clock() < self._due_at:
            return False
        if self._loop.is_closed and signal.verb.asks:
            return False
        try:
            following = await self._on(signal)
        except Rejected as error:
            following = replace(signal, standing=Standing.FAILED, note=str(error))
        except Transient as error:
            self._failures += 1
            self._due_at = self._clock() + self._term.back_off_s(self._failures, error)
            await self._signals.tell(replace(signal, note=f"waiting: {error}"))
            return False
        self._failures = 0
        is_new = self._signal is None
        self._signal = None if following.is_over else following
        if following.is_over:
            self._errand = None
        await self._signals.tell(following, now=is_new or following.is_over)
        return following.verb is not Verb.SWEEP

    async def _on(self, signal: Signal) -> Signal:
        if signal.verb is Verb.SWEEP:
            return await self._sweep(signal)
        if self._errand is None:
            self._errand = errand(self._term, signal, self._archive)
        following = await self._errand.step()
        return replace(following, note="") if following.note.startswith("waiting:") else following

    async def _sweep(self, signal: Signal) -> Signal:
        """The loop sweeps for itself; here it is told to begin, and looked at."""
        if self._signal is None:
            self._sweeps_before = self._loop.sweeps
            is_new = signal.standing is Standing.ASKED
            await self._loop.sweep_now(again=signal.again, allowed=signal.allow, anew=is_new)
            return replace(signal, standing=Standing.RUNNING)
        swept = self._loop.swept
        if self._loop.sweeps == self._sweeps_before or swept is None:
            under_way = self._loop.sweep_rows
            return signal if under_way == signal.rows else replace(signal, rows=under_way)
        note = ""
        if swept.is_held:
            note = f"{swept.nominated_count} rows are gone, more than the limit: confirm with --allow-mass-deletion"
        elif swept.is_ignored:
            note = "the back office's answers by key prove nothing: no row was deleted"
        return over(replace(signal, rows=swept.rows, published=swept.published), note)

    def _state(self) -> State:
        term, loop = self._term, self._loop
        doing = (
            "paused"
            if self._signals.control.paused
            else "closed"
            if loop.is_closed
            else self._signal.verb.value
            if self._signal is not None
            else "polling"
            if term.progress.loaded
            else "loading"
        )
        return State(
            at=datetime.now(UTC),
            owner=self._owner,
            epoch=term.cursor.epoch,
            doing=doing,
            keys=len(term.index),
            loaded=term.progress.loaded,
            doubt=term.progress.doubt,
            held=loop.swept is not None and loop.swept.is_held,
            as_of=loop.as_of,
            mark=term.progress.mark,
            translation=term.reading.source.translation,
            error=term.failing,
            drift=() if self._watch is None else tuple(self._watch.notes),
        )
