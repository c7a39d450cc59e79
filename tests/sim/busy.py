"""A fleet whose tasks write all the time, what they wrote, and a lease table that gets in the way."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from itertools import pairwise
from typing import NamedTuple

from tests.fakes.lease_store import MemoryLeaseStore
from tests.sim.fleet import SETTINGS, Fleet, Process, now_s
from tidegate.errors import Transient
from tidegate.leases import Hold, Lease, at, plain_leases
from tidegate.leases.writes import renewed
from tidegate.settings import LeaseSettings

KEYS = [f"shard-{index}" for index in range(6)]
LEASES = plain_leases(KEYS)
# A plan may come one jittered interval late, and a call takes a little.
PLAN_S = SETTINGS.plan_interval_s * 1.25 + 0.5
WRITE_EVERY_S = 0.05
CHECKPOINT_EVERY = 10


class Write(NamedTuple):
    """One write to the outside world: when, by whom, and which position of the shard."""

    at_s: float
    owner: str
    position: int


class Busy:
    """A fleet whose tasks write all the time, and what they wrote, by lease."""

    def __init__(
        self, seed: int, *, leases: int = len(KEYS), fault_rate: float = 0.0, settings: LeaseSettings = SETTINGS
    ) -> None:
        self.writes: dict[str, list[Write]] = defaultdict(list)
        self._keys = set(KEYS[:leases])
        self.fleet = Fleet(seed, LEASES[:leases], fault_rate=fault_rate, task=self.work, settings=settings)
        self.deaf: set[str] = set()
        self.pause_s = WRITE_EVERY_S

    async def work(self, hold: Hold) -> None:
        owner = hold.lease.holder
        assert owner is not None
        position = int(hold.lease.checkpoint.position) if hold.lease.checkpoint.is_number else 0
        while not hold.stop.is_set() or owner in self.deaf:
            await wait(asyncio.Event() if owner in self.deaf else hold.stop, self.pause_s)
            hold.check()
            assert self.fleet.believers(hold.key) == [owner]
            position += 1
            self.writes[hold.key].append(Write(now_s(), owner, position))
            if position % CHECKPOINT_EVERY == 0:
                await hold.checkpoint(at(str(position)))
        await hold.checkpoint(at(str(position)))

    def moves(self) -> list[tuple[Write, Write]]:
        """The last write of an old owner and the first of the new one, for every change of owner."""
        pairs = [pair for writes in self.writes.values() for pair in pairwise(writes)]
        return [(last, first) for last, first in pairs if last.owner != first.owner]

    def longest_pause_s(self, since_s: float = 0.0) -> float:
        """The longest time that any lease stood still after `since_s`."""
        return max(
            later.at_s - earlier.at_s
            for writes in self.writes.values()
            for earlier, later in pairwise([write for write in writes if write.at_s >= since_s])
        )

    async def alone(self, name: str = "old") -> Process:
        """A process that works on everything."""
        process = self.fleet.start(name)
        await self.fleet.until(lambda: process.held() == self.keys(), 5, "it takes everything")
        return process

    def keys(self) -> set[str]:
        return self._keys

    def wanted(self) -> Lease | None:
        """A lease that is asked for now."""
        return next((lease for lease in self.fleet.table.leases.values() if lease.checkpoint_owner), None)

    async def wanted_within(self, seconds: float) -> Lease | None:
        until_s = now_s() + seconds
        while self.wanted() is None and now_s() < until_s:
            await self.fleet.run_for(0.05)
        return self.wanted()

    async def until_wanted(self) -> str:
        lease = await self.wanted_within(2 * PLAN_S)
        assert lease is not None, "nobody asks for a lease"
        return lease.key


async def wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


class Hurdles(MemoryLeaseStore):
    """The shared table as one process meets it: what it asks for or takes goes wrong in a given way."""

    def __init__(self, shared: MemoryLeaseStore) -> None:
        super().__init__()
        self.leases = shared.leases
        self.overtaken = 0  # so many requests come just after the owner has written
        self.ask_late_by_s = 0.0  # the first request arrives so much later
        self.lose_reply_of_force = False
        self.asked_s: list[float] = []

    async def ask(self, lease: Lease, owner: str) -> Lease | None:
        self.asked_s.append(now_s())
        if self.ask_late_by_s:
            delay_s, self.ask_late_by_s = self.ask_late_by_s, 0.0
            late = asyncio.create_task(self._ask_late(lease.key, owner, delay_s))
            await wait(asyncio.Event(), SETTINGS.request_timeout_s)
            await late
        if len(self.asked_s) <= self.overtaken:
            self.leases[lease.key] = renewed(self.leases[lease.key])
        return await super().ask(lease, owner)

    async def take(self, lease: Lease, owner: str) -> Lease | None:
        taken = await super().take(lease, owner)
        if self.lose_reply_of_force and lease.checkpoint_owner:
            raise Transient("reply lost")
        return taken

    async def _ask_late(self, key: str, owner: str, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        await super().ask(self.leases[key], owner)
