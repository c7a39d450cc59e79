"""What people ask of a source, in memory: as `poller.signals.TableSignals`, which looks at once and tells everything."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

from poller.drift import Shape
from tidegate.signals import Control, Signal, State, Verb


class MemorySignals:
    """`told` is every word of the loop's, `states` what it says of itself."""

    interval_s = 2.0

    def __init__(self) -> None:
        self.control = Control()
        self.signals: dict[str, Signal] = {}
        self.told: list[Signal] = []
        self.states: list[State] = []
        self.kept: Shape | None = None

    @property
    def errand(self) -> Signal | None:
        return next((signal for signal in self.signals.values() if not signal.is_over), None)

    def ask(self, verb: Verb, keys: Sequence[str] = (), **given: Any) -> str:
        """Answers the signal's id."""
        number = str(len(self.signals))
        at = datetime(2026, 11, 21, tzinfo=UTC)
        self.signals[number] = Signal(id=number, verb=verb, asked_at=at, keys=tuple(keys), **given)
        return number

    async def look(self) -> None:
        """There is nothing to wait for."""

    async def tell(self, signal: Signal, *, now: bool = False) -> None:
        self.signals[signal.id] = signal
        self.told.append(signal)

    async def say(self, state: State) -> None:
        self.states.append(state)

    async def shape(self) -> Shape | None:
        return self.kept

    async def keep(self, shape: Shape) -> bool:
        self.kept = deepcopy(shape)
        return True
