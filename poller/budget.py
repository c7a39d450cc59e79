"""A back office's request budget, shared by every task of every poller process.

The budget is cut into slots. A slot is the right to have one request under way, and to send one every `pace_s`; whoever
holds a slot keeps both. So neither the budget nor the concurrency is ever exceeded, whoever holds which slot, and no
clock of two machines is compared: a slot that changes hands starts with a pause of its own pace.

Without a store all slots are this process's. With one, slots are taken by compare-and-set on one item for each back
office, renewed while they are used, and given back when they are idle, or in turn when others want one. A holder whose
renewals fail stops using a slot `PATIENCE_S` after its last one was sent; others take it when they have seen it
unchanged for `EXPIRY_S`. The same item tells every process when the back office asked to be left alone.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Protocol

import msgspec

from tidegate import telemetry
from tidegate.errors import Transient
from tidegate.feeds import Office

LOOK_S = 0.5
TURN_S = 2.0
IDLE_S = 5.0
PATIENCE_S = 4.0
EXPIRY_S = 6.0
_MARGIN = 1.05
"""Requests sent evenly arrive less so."""


class Board(msgspec.Struct, frozen=True):
    """What the store says of one back office.

    slots   number → "owner counter", owner "-" for nobody
    wants   rises whenever a process without a slot wants one
    pause   "number seconds" of the last wish to be left alone; "" for none
    """

    slots: Mapping[int, str] = {}
    wants: int = 0
    pause: str = ""


class SlotStore(Protocol):
    """Every call answers the board after it. Raises Transient, Fatal."""

    async def look(self, office: str) -> Board: ...

    async def swap(self, office: str, slot: int, expected: str, value: str) -> tuple[bool, Board]:
        """Set the slot if it is what was expected ("": not there); whether it was."""
        ...

    async def want(self, office: str) -> Board: ...

    async def set_pause(self, office: str, pause: str) -> Board: ...

    async def end_pause(self, office: str, pause: str) -> Board:
        """Take this pause back, if it is still the one that the board tells of."""
        ...


class _Slot:
    """Of this process's view: `value` as the store has it, `valid_until` while we hold it, `seen_at` of the value."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.value = ""
        self.seen_at = float("-inf")
        self.valid_until = float("-inf")
        self.renewed_at = float("-inf")
        self.taken_at = float("-inf")
        self.used_at = float("-inf")
        self.free_at = float("-inf")
        self.busy = False
        self.leaving = False  # given back as soon as its request is over


def cut(office: Office) -> tuple[int, float]:
    """How many slots there are, and the pace of each in seconds.

    In no second more requests are sent than the budget says: with n slots of pace p, that is n x (1/p + 1) at most for a
    p that does not go into the second, so p is just above a whole part of it. As many slots as may be, as long as they
    waste no more than a tenth of the budget.
    """
    rate = office.requests_per_s
    if rate < 1:
        return 1, _MARGIN / rate
    most = max(1, min(office.concurrency, math.floor(rate)))
    count = next((n for n in range(most, 1, -1) if n * math.floor(rate / n) >= 0.9 * rate), 1)
    return count, _MARGIN / math.floor(rate / count)


class Budget:
    """`clock` is monotonic, in seconds; `owner` names this process. `on_pause` is told of others' wishes to wait."""

    def __init__(
        self,
        office: Office,
        store: SlotStore | None = None,
        *,
        owner: str = "",
        clock: Callable[[], float],
        on_pause: Callable[[float], None] = lambda wait_s: None,
    ) -> None:
        count, self.pace_s = cut(office)
        self._name = office.name
        self._store = store
        self._owner = owner
        self._clock = clock
        self._on_pause = on_pause
        self._slots = [_Slot(number) for number in range(count)]
        self._spacing_s = _MARGIN / office.requests_per_s
        self._next_at = float("-inf")
        self._waiting: list[tuple[bool, int]] = []
        self._numbers = itertools.count(1)
        self._changed = asyncio.Event()
        self._needed = asyncio.Event()
        self._wants: int | None = None
        self._is_wanted = False
        self._after_others_at = float("-inf")
        self._pause = ""
        self._pause_over_at = float("inf")
        if store is None:
            for slot in self._slots:
                slot.valid_until = float("inf")

    @asynccontextmanager
    async def turn(self, *, urgent: bool) -> AsyncIterator[None]:
        """Wait for a slot and its pace; those who are urgent go first. The slot is used until the end of the block."""
        slot = await self._take((not urgent, next(self._numbers)))
        try:
            yield
        finally:
            slot.busy = False
            slot.used_at = self._clock()
            self._tell()

    async def _take(self, ticket: tuple[bool, int]) -> _Slot:
        heapq.heappush(self._waiting, ticket)
        asked_at = self._clock()
        try:
            while True:
                wait_s: float | None = None
                if self._waiting[0] == ticket:
                    slot, wait_s = self._best()
                    if slot is not None and wait_s <= 0:
                        now = self._clock()
                        slot.busy, slot.free_at = True, now + self.pace_s
                        self._next_at = now + self._spacing_s
                        telemetry.POLLER_TURN_WAITED.labels(self._name).inc(now - asked_at)
                        return slot
                await self._change(wait_s)
        finally:
            self._waiting.remove(ticket)
            heapq.heapify(self._waiting)
            self._tell()

    def _best(self) -> tuple[_Slot | None, float]:
        """The held slot that is free first, and how long until then."""
        now = self._clock()
        held = [slot for slot in self._slots if not (slot.busy or slot.leaving) and slot.valid_until > now]
        self._needed.set()
        if not held:
            return None, LOOK_S
        slot = min(held, key=lambda each: each.free_at)
        return slot, max(slot.free_at, self._next_at) - now

    async def _change(self, wait_s: float | None) -> None:
        changed = self._changed
        try:
            async with asyncio.timeout(wait_s):
                await changed.wait()
        except TimeoutError:
            return

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # ---------------------------------------------------------------- with a store

    async def keep(self) -> None:
        """Look after the slots, for as long as the process runs. Raises Fatal."""
        store = self._store
        if store is None:
            return
        while True:
            if not self._waiting and not self._held():
                self._needed.clear()
                await self._needed.wait()
            try:
                await self.tend(store)
            except Transient as error:
                telemetry.get_logger("poller.budget").warning(
                    telemetry.POLLER_BUDGET_BLIND, office=self._name, error=str(error)
                )
            await asyncio.sleep(LOOK_S)

    async def tend(self, store: SlotStore) -> None:
        """One round: look, renew, give back, take. Raises Transient, Fatal."""
        self._see(await store.look(self._name))
        if self._pause and self._clock() >= self._pause_over_at:
            # Whoever was asked to wait may be gone, and who starts later must not wait for what is over.
            self._see(await store.end_pause(self._name, self._pause))
        for slot in self._held():
            await self._tend_held(store, slot)
        if not self._waiting or self._clock() < self._after_others_at:
            return
        if not await self._take_one(store) and not self._held():
            self._see(await store.want(self._name))
            self._is_wanted = False

    async def give_back(self) -> None:
        """Let others have the slots at once. Raises Transient, Fatal."""
        for slot in self._held():
            slot.valid_until = float("-inf")
            if self._store is not None:
                await self._swap(self._store, slot, "-")

    async def _tend_held(self, store: SlotStore, slot: _Slot) -> None:
        now = self._clock()
        # Before its first request a slot waits for its pace.
        turn_s = TURN_S + self.pace_s
        is_idle = not slot.busy and now - slot.used_at > IDLE_S and now - slot.taken_at > turn_s
        has_had_its_turn = now - slot.taken_at > turn_s or len(self._held()) > 1 or not self._waiting
        is_wanted = self._is_wanted and not any(each.leaving for each in self._slots)
        if is_idle or (is_wanted and has_had_its_turn):
            # A slot whose requests follow each other closely is never seen free: it takes no further one.
            self._is_wanted, slot.leaving = False, True
        if slot.leaving and not slot.busy:
            slot.valid_until, slot.leaving = float("-inf"), False
            await self._swap(store, slot, "-")
            # Whoever wants it looks once in the meantime.
            self._after_others_at = self._clock() + 1.5 * LOOK_S
        elif now - slot.renewed_at >= TURN_S:
            await self._swap(store, slot, self._owner)

    async def _take_one(self, store: SlotStore) -> bool:
        now = self._clock()
        for slot in self._slots:
            is_free = not slot.value or slot.value.startswith("- ")
            is_expired = now - slot.seen_at > EXPIRY_S and slot.valid_until < now
            if slot.valid_until < now and (is_free or is_expired) and await self._swap(store, slot, self._owner):
                slot.taken_at, slot.leaving = self._clock(), False
                slot.free_at = self._clock() + self.pace_s
                self._tell()
                return True
        return False

    async def _swap(self, store: SlotStore, slot: _Slot, owner: str) -> bool:
        sent = self._clock()
        counter = int(slot.value.rpartition(" ")[2] or 0) + 1 if slot.value else 1
        value = f"{owner} {counter}"
        done, board = await store.swap(self._name, slot.number, slot.value, value)
        self._see(board)
        is_mine = done and owner == self._owner
        slot.valid_until = sent + PATIENCE_S if is_mine else float("-inf")
        slot.renewed_at = sent if is_mine else slot.renewed_at
        return done

    def _held(self) -> list[_Slot]:
        now = self._clock()
        return [slot for slot in self._slots if slot.valid_until > now] if self._store is not None else []

    def _see(self, board: Board) -> None:
        now = self._clock()
        for slot in self._slots:
            value = board.slots.get(slot.number, "")
            if value != slot.value or slot.seen_at == float("-inf"):
                slot.value, slot.seen_at = value, now
            if slot.valid_until > now and not value.startswith(f"{self._owner} "):
                slot.valid_until = float("-inf")
        if self._wants is not None and board.wants != self._wants:
            self._is_wanted = True
        self._wants = board.wants
        if board.pause != self._pause:
            self._pause = board.pause
            if board.pause:
                # How long ago it was asked is not known; from now on is never too short.
                wait_s = float(board.pause.partition(" ")[2])
                self._pause_over_at = now + wait_s
                self._on_pause(wait_s)

    async def tell_pause(self, wait_s: float, number: str) -> None:
        """Let every process know that the back office wants to be left alone. Raises Transient."""
        if self._store is None:
            return
        self._pause, self._pause_over_at = f"{number} {wait_s}", self._clock() + wait_s
        self._see(await self._store.set_pause(self._name, self._pause))
