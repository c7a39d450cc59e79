"""A lease table in memory, proven by the same contract suite as DynamoDB, and a network that misbehaves in front of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import TypeVar

from msgspec.structs import replace

from tidegate.errors import Superseded, TidegateError, Transient
from tidegate.leases.lease import SHARD_END, Checkpoint, Lease
from tidegate.leases.store import LeaseStore

T = TypeVar("T")


class MemoryLeaseStore:
    """Every call is one step: nothing awaits in between."""

    def __init__(self) -> None:
        self.leases: dict[str, Lease] = {}

    async def scan(self) -> list[Lease]:
        return list(self.leases.values())

    async def get(self, key: str) -> Lease | None:
        return self.leases.get(key)

    async def create(self, lease: Lease) -> bool:
        return self.leases.setdefault(lease.key, lease) is lease

    async def take(self, lease: Lease, owner: str) -> Lease | None:
        current = self.leases.get(lease.key)
        epoch = lease.epoch + 1
        if current is not None and (current.owner, current.epoch, current.counter) == (owner, epoch, lease.counter + 1):
            return current
        if current is None or not is_as_read(lease, current):
            return None
        switches = current.owner_switches + ((current.checkpoint_owner or current.owner) not in (None, owner))
        taken = replace(current, owner=owner, owner_switches=switches, epoch=epoch, checkpoint_owner=None)
        return self._put(taken)

    async def ask(self, lease: Lease, owner: str) -> Lease | None:
        current = self.leases.get(lease.key)
        if current is None or current.counter != lease.counter:
            return None
        if (current.owner, current.checkpoint_owner) != (owner, lease.owner):
            if not is_as_read(lease, current):
                return None
            self.leases[lease.key] = replace(current, owner=owner, checkpoint_owner=current.owner)
        return self.leases[lease.key]

    async def renew(self, lease: Lease) -> Lease:
        return self._write(lease, lambda now: now)

    async def checkpoint(self, lease: Lease, checkpoint: Checkpoint) -> Lease:
        return self._write(lease, lambda now: replace(now, checkpoint=checkpoint, owner_switches=0))

    async def end(self, lease: Lease, child_keys: Sequence[str]) -> Lease:
        children = frozenset(child_keys) or lease.child_keys
        return self._write(lease, lambda now: replace(now, checkpoint=SHARD_END, child_keys=children, owner_switches=0))

    async def release(self, lease: Lease) -> bool:
        try:
            self._write(lease, give_up)
        except Superseded:
            current = self.leases.get(lease.key)
            if current is None or current.checkpoint_owner is not None or current.epoch != lease.epoch:
                return False
            return current.counter == lease.counter + 1
        return True

    async def delete(self, lease: Lease) -> bool:
        current = self.leases.get(lease.key)
        if current is None or current.counter != lease.counter:
            return False
        del self.leases[lease.key]
        return True

    def _write(self, lease: Lease, change: Callable[[Lease], Lease]) -> Lease:
        current = self.leases.get(lease.key)
        mine = lease.checkpoint_owner or lease.owner
        if current is None or (current.checkpoint_owner or current.owner) != mine or current.epoch != lease.epoch:
            raise Superseded(f"lease {lease.key} is not {mine}'s any more")
        if current.counter < lease.counter:
            raise Superseded(f"lease {lease.key} has moved back")
        if current.counter > lease.counter and change(current) == current:
            return current
        return self._put(change(current))

    def _put(self, lease: Lease) -> Lease:
        self.leases[lease.key] = replace(lease, counter=lease.counter + 1)
        return self.leases[lease.key]


def is_as_read(lease: Lease, current: Lease) -> bool:
    """The condition of every write."""
    return (current.counter, current.owner, current.checkpoint_owner) == (
        lease.counter,
        lease.owner,
        lease.checkpoint_owner,
    )


def give_up(lease: Lease) -> Lease:
    """To the one that asked, else to nobody."""
    if lease.checkpoint_owner is None:
        return replace(lease, owner=None)
    return replace(lease, checkpoint_owner=None, owner_switches=lease.owner_switches + 1)


class FlakyLeaseStore:
    """One process's way to a shared store: slow, and it loses requests, loses replies and delivers requests late.

    A late request is carried out even when the caller has given up on it meanwhile. `cut` takes the process off the
    network altogether: no request arrives, no reply comes. Seeded: same seed, same faults.
    """

    def __init__(self, store: LeaseStore, seed: int, *, fault_rate: float = 0.1, latency_s: float = 0.02) -> None:
        self._store = store
        self._random = random.Random(seed)
        self.fault_rate = fault_rate
        self._latency_s = latency_s
        self._late: set[asyncio.Task[None]] = set()
        self.cut = False
        self.late_by_s = 0.0  # if set, every request arrives so much later, and no reply comes

    async def scan(self) -> list[Lease]:
        return await self._call(self._store.scan)

    async def get(self, key: str) -> Lease | None:
        return await self._call(lambda: self._store.get(key))

    async def create(self, lease: Lease) -> bool:
        return await self._call(lambda: self._store.create(lease))

    async def take(self, lease: Lease, owner: str) -> Lease | None:
        return await self._call(lambda: self._store.take(lease, owner), lease)

    async def ask(self, lease: Lease, owner: str) -> Lease | None:
        return await self._call(lambda: self._store.ask(lease, owner), lease)

    async def renew(self, lease: Lease) -> Lease:
        return await self._call(lambda: self._store.renew(lease), lease)

    async def checkpoint(self, lease: Lease, checkpoint: Checkpoint) -> Lease:
        return await self._call(lambda: self._store.checkpoint(lease, checkpoint), lease)

    async def end(self, lease: Lease, child_keys: Sequence[str]) -> Lease:
        return await self._call(lambda: self._store.end(lease, child_keys), lease)

    async def release(self, lease: Lease) -> bool:
        return await self._call(lambda: self._store.release(lease), lease)

    async def delete(self, lease: Lease) -> bool:
        return await self._call(lambda: self._store.delete(lease), lease)

    async def close(self) -> None:
        """Wait for the requests that are still on their way."""
        await asyncio.gather(*self._late)

    async def _call(self, step: Callable[[], Coroutine[None, None, T]], base: Lease | None = None) -> T:
        await asyncio.sleep(self._random.uniform(0, self._latency_s))
        if self.cut:
            await asyncio.sleep(1.0)
            raise Transient("cut off")
        fault = self._random.random()
        if fault < self.fault_rate / 3:
            raise Transient("request lost")
        if fault < self.fault_rate * 2 / 3 or self.late_by_s:
            late_by_s = self.late_by_s or self._random.uniform(0.5, 20.0)
            late = asyncio.get_running_loop().create_task(self._deliver_late(step, base, late_by_s))
            self._late.add(late)
            late.add_done_callback(self._late.discard)
            await asyncio.sleep(60.0)
        reply = await step()
        if fault < self.fault_rate:
            raise Transient("reply lost")
        await asyncio.sleep(self._random.uniform(0, self._latency_s))
        return reply

    async def _deliver_late(
        self, step: Callable[[], Coroutine[None, None, T]], base: Lease | None, late_by_s: float
    ) -> None:
        """One write arrives after its caller gave up, so nobody is there to look why its condition fails."""
        await asyncio.sleep(late_by_s)
        current = await self._store.get(base.key) if base is not None else None
        if base is not None and (current is None or not is_as_read(base, current)):
            return
        try:
            await step()
        except TidegateError:
            return
