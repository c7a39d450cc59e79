"""What people asked of one source, as its loop sees it; and what the loop says of itself.

One small query every few seconds finds both. The table is a convenience: while it cannot be read, polling goes on as it
was told last, and what is to be said waits.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol, TypeVar

from msgspec.structs import replace

from poller.drift import Shape
from poller.settings import SignalSettings
from tidegate import telemetry
from tidegate.errors import Fatal, Transient
from tidegate.signals import ASKED, CONTROL, SIGNAL, STATE, Control, Signal, Standing, State
from tidegate.source_table import Item, SourceTable

T = TypeVar("T")

SHAPE = "shape"
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
_KEPT = 20
"""Signals that are over are kept for people to see, the newest ones."""


class Signals(Protocol):
    @property
    def control(self) -> Control: ...

    @property
    def errand(self) -> Signal | None:
        """The oldest signal that is not over."""
        ...

    @property
    def interval_s(self) -> float:
        """How often `look` is worth calling."""
        ...

    async def look(self) -> None:
        """See what is asked now, unless that was seen just before."""
        ...

    async def tell(self, signal: Signal, *, now: bool = False) -> None:
        """Say what became of the errand: at once, or when it is worth a write."""
        ...

    async def say(self, state: State) -> None:
        """Say where the source stands, if it is new or some time ago."""
        ...

    async def shape(self) -> Shape | None:
        """The rows' shape that was kept last. Raises Transient, Fatal."""
        ...

    async def keep(self, shape: Shape) -> bool:
        """Keep it; False: not now, try again later."""
        ...


class TableSignals:
    """`clock` is monotonic, in seconds."""

    def __init__(self, table: SourceTable, source: str, settings: SignalSettings, clock: Callable[[], float]) -> None:
        self._table = table
        self._source = source
        self._settings = settings
        self._clock = clock
        self._looked_at = self._told_at = self._said_at = float("-inf")
        self._said: State | None = None
        self._signals: dict[str, Signal] = {}
        self._revisions: dict[str, int] = {}
        self._control = Control()
        self._log = telemetry.get_logger("poller.signals")

    @property
    def control(self) -> Control:
        return self._control

    @property
    def errand(self) -> Signal | None:
        return next((signal for signal in self._signals.values() if not signal.is_over), None)

    @property
    def interval_s(self) -> float:
        return self._settings.interval_s

    async def look(self) -> None:
        now = self._clock()
        if now - self._looked_at < self._settings.interval_s:
            return
        self._looked_at = now
        try:
            items = await self._table.items(self._source, ASKED)
            over = await self._forget_old([each.name for each in items if each.name.startswith(SIGNAL)])
        except Transient as error:
            self._log.warning(telemetry.POLLER_SIGNALS_UNSEEN, source=self._source, error=str(error))
            return
        before = self._control.paused
        named = [each for each in items if each.name == CONTROL]
        self._control = (self._read(named[0], Control) or self._control) if named else Control()
        for each in items:
            is_new = each.name.startswith(SIGNAL) and each.name not in over and each.name not in self._signals
            if is_new and (signal := self._read(each, Signal)) is not None:
                self._signals[each.name] = signal
        self._signals = dict(sorted((name, each) for name, each in self._signals.items() if name not in over))
        if self._control.paused != before:
            event = telemetry.POLLER_PAUSED if self._control.paused else telemetry.POLLER_RESUMED
            self._log.info(event, source=self._source, by=self._control.by, reason=self._control.reason)

    async def tell(self, signal: Signal, *, now: bool = False) -> None:
        name = SIGNAL + signal.id
        told = replace(signal, updated_at=datetime.now(UTC))
        self._signals[name] = told
        if not now and self._clock() - self._told_at < self._settings.interval_s:
            return
        try:
            # Only the holder of the source's lease writes here.
            await self._table.put(self._source, name, told)
        except Transient as error:
            if told.is_over:
                # It is told again: an errand that is done twice is done.
                self._signals[name] = replace(told, standing=Standing.RUNNING)
            self._log.warning(telemetry.POLLER_SIGNALS_UNSEEN, source=self._source, error=str(error))
            return
        self._told_at = self._clock()
        if told.is_over:
            self._log.info(
                telemetry.POLLER_ERRAND_OVER, source=self._source, verb=signal.verb, standing=signal.standing,
                rows=signal.rows, published=signal.published, note=signal.note,
            )  # fmt: skip

    async def say(self, state: State) -> None:
        now = self._clock()
        is_new = self._said is None or _gist(state) != _gist(self._said)
        wait_s = self._settings.interval_s if is_new else self._settings.state_s
        if now - self._said_at < wait_s:
            return
        try:
            await self._table.put(self._source, STATE, state)
        except Transient as error:
            self._log.warning(telemetry.POLLER_SIGNALS_UNSEEN, source=self._source, error=str(error))
            return
        self._said, self._said_at = state, now

    async def shape(self) -> Shape | None:
        item = await self._table.get(self._source, SHAPE)
        return self._read(item, Shape) if item.revision else None

    async def keep(self, shape: Shape) -> bool:
        try:
            return await self._table.put(self._source, SHAPE, shape)
        except Transient as error:
            self._log.warning(telemetry.POLLER_SIGNALS_UNSEEN, source=self._source, error=str(error))
            return False

    def _read(self, item: Item, kind: type[T]) -> T | None:
        """None for what a newer release wrote, or somebody by hand: that must not end the poller."""
        try:
            return item.read(kind)
        except Fatal as error:
            self._log.warning(telemetry.POLLER_SIGNALS_UNSEEN, source=self._source, error=str(error))
            return None

    async def _forget_old(self, names: list[str]) -> set[str]:
        over = [name for name in names if name in self._signals and self._signals[name].is_over]
        old = over[:-_KEPT]
        for name in old:
            await self._table.delete(self._source, name)
        return set(old)


def _gist(state: State) -> State:
    """What is worth a write at once; how many keys there are, and how fresh, can wait."""
    return replace(state, at=_LONG_AGO, keys=0, as_of=None)
