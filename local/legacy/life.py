"""Changes by themselves (life) and on demand (bursts)."""

import asyncio
import random
from collections.abc import Iterator

import msgspec

from local.legacy.desk import Desk
from local.legacy.office import BackOffice, Deed
from local.legacy.store import Store

CHUNK = 200
"""Changes in one transaction of a burst. Between two, the legacy API gets its turn."""

MOST_PER_BURST = 1_000_000
TICK_S = 0.02
"""Changes of the life that fall within this time share a transaction."""


class Burst(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many changes of each kind to make."""

    creates: int = 0
    updates: int = 0
    corrections: int = 0
    deletes: int = 0

    def __post_init__(self) -> None:
        if min(self.creates, self.updates, self.corrections, self.deletes) < 0:
            raise ValueError("counts may not be negative")
        if self.creates + self.updates + self.corrections + self.deletes > MOST_PER_BURST:
            raise ValueError(f"at most {MOST_PER_BURST} changes in one burst")

    def deeds(self, rng: random.Random) -> Iterator[Deed]:
        """All of them, well mixed: each next one is drawn from what is left."""
        left: dict[Deed, int] = {
            "creates": self.creates,
            "updates": self.updates,
            "corrections": self.corrections,
            "deletes": self.deletes,
        }
        while any(left.values()):
            deed = rng.choices(list(left), weights=list(left.values()))[0]
            left[deed] -= 1
            yield deed


class Applied(msgspec.Struct, frozen=True):
    """What a burst really did: fewer than asked when, say, no row was left to delete."""

    applied: dict[Deed, int]
    last_change: int


class Setting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether the back office changes by itself, and how fast on average."""

    on: bool
    changes_per_s: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.changes_per_s <= 5000:
            raise ValueError("changes_per_s must be above 0 and at most 5000")


class Life:
    """The random life of one back office. Its setting survives a restart."""

    def __init__(self, office: BackOffice, store: Store, rng: random.Random) -> None:
        self._office = office
        self._store = store
        self._rng = rng
        self._turned = asyncio.Event()
        kept = store.note("life")
        self.setting = msgspec.json.decode(kept, type=Setting) if kept else Setting(on=False)

    def turn(self, setting: Setting) -> None:
        """Switch on or off, or change the speed."""
        self.setting = setting
        self._store.set_note("life", msgspec.json.encode(setting).decode())
        self._turned.set()

    async def run(self) -> None:
        """Until cancelled: changes at random moments, `changes_per_s` on average."""
        while True:
            # One change at a time at low rates, small transactions of several at high ones.
            count = max(1, round(self.setting.changes_per_s * TICK_S))
            pause_s = self._rng.expovariate(self.setting.changes_per_s / count)
            await self._pause(pause_s if self.setting.on else None)
            if self.setting.on:
                self._change(count)

    async def burst(self, order: Burst) -> Applied:
        """Apply the burst in transactions of `CHUNK` changes."""
        applied: dict[Deed, int] = {"creates": 0, "updates": 0, "corrections": 0, "deletes": 0}
        desk = Desk(self._store, self._rng)
        for deed in order.deeds(self._rng):
            applied[deed] += self._office.does(deed, desk)
            if len(desk.changes) >= CHUNK:
                self._store.commit(desk)
                await asyncio.sleep(0)
                desk = Desk(self._store, self._rng)
        return Applied(applied, self._store.commit(desk))

    def _change(self, count: int) -> None:
        desk = Desk(self._store, self._rng)
        mix = self._office.life_mix
        for deed in self._rng.choices(list(mix), weights=list(mix.values()), k=count):
            self._office.does(deed, desk)
        self._store.commit(desk)

    async def _pause(self, seconds: float | None) -> None:
        self._turned.clear()
        try:
            await asyncio.wait_for(self._turned.wait(), seconds)
        except TimeoutError:
            return
