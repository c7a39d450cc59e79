"""A lease table in memory, proven by the same contract suite as DynamoDB, and a network that misbehaves in front of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import TypeVar
from zlib import crc32

from tidegate.errors import Superseded, TidegateError, Transient
from tidegate.leases import writes
from tidegate.leases.lease import Checkpoint, Lease, Part
from tidegate.leases.store import LeaseStore, Look, Names

T = TypeVar("T")

# About what a shard's lease and its entry in the index weigh in DynamoDB.
_ITEM_BYTES = 300
_KEY_BYTES = 100


class MemoryLeaseStore:
    """Every call is one step: nothing awaits in between."""

    def __init__(self) -> None:
        self.leases: dict[str, Lease] = {}

    async def scan(self) -> list[Lease]:
        return list(self.leases.values())

    async def look(self, part: Part | None = None) -> Look:
        leases = list(self.leases.values())
        if part is not None:
            leases = [lease for lease in leases if crc32(lease.key.encode()) * part.total >> 32 == part.index]
        return Look(leases, _read_units(len(leases) * _ITEM_BYTES))

    async def named(self, owner: str) -> Names:
        keys = sorted(lease.key for lease in self.leases.values() if lease.owner == owner)
        return Names(keys, _read_units(len(keys) * _KEY_BYTES))

    async def get(self, key: str) -> Lease | None:
        return self.leases.get(key)

    async def create(self, lease: Lease) -> bool:
        return self.leases.setdefault(lease.key, lease) is lease

    async def take(self, lease: Lease, owner: str) -> Lease | None:
        return self._swap(lease, writes.taken(lease, owner))

    async def ask(self, lease: Lease, owner: str) -> Lease | None:
        return self._swap(lease, writes.asked(lease, owner))

    async def renew(
        self, lease: Lease, checkpoint: Checkpoint | None = None, throughput_kbps: float | None = None
    ) -> Lease:
        current = self._as_holder(lease)
        if current.counter > lease.counter and checkpoint in (None, current.checkpoint):
            return current
        renewed = self.leases[lease.key] = writes.renewed(current, checkpoint, throughput_kbps)
        return renewed

    async def end(self, lease: Lease, child_keys: Sequence[str]) -> Lease:
        current = self._as_holder(lease)
        if current.counter > lease.counter and current.is_ended:
            return current
        ended = self.leases[lease.key] = writes.ended(current, child_keys)
        return ended

    async def release(self, lease: Lease, checkpoint: Checkpoint | None = None, to: str | None = None) -> Lease | None:
        current = self.leases.get(lease.key)
        if current is not None and writes.is_same_hold(lease, current):
            self.leases[lease.key] = writes.given_up(current, checkpoint, to)
            return self.leases[lease.key]
        if current is None or current.checkpoint_owner is not None or current.epoch != lease.epoch:
            return None
        return current if current.counter == lease.counter + 1 else None

    async def withdraw(self, lease: Lease) -> bool:
        return self._swap(lease, writes.given_up(lease)) is not None

    async def delete(self, lease: Lease) -> bool:
        current = self.leases.get(lease.key)
        if current is None or current.counter != lease.counter:
            return False
        del self.leases[lease.key]
        return True

    def _swap(self, before: Lease, after: Lease) -> Lease | None:
        """Compare-and-set; `after` also when it was written before and only its reply was lost."""
        current = self.leases.get(before.key)
        if current is None or not (writes.is_unchanged(before, current) or current == after):
            return None
        self.leases[before.key] = after
        return after

    def _as_holder(self, lease: Lease) -> Lease:
        current = self.leases.get(lease.key)
        if current is None or not writes.is_same_hold(lease, current):
            raise Superseded(f"lease {lease.key} is not {lease.holder}'s any more")
        return current


def _read_units(size_bytes: int) -> float:
    return max(1, -(-size_bytes // 4096)) / 2


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

    async def look(self, part: Part | None = None) -> Look:
        return await self._call(lambda: self._store.look(part))

    async def named(self, owner: str) -> Names:
        return await self._call(lambda: self._store.named(owner))

    async def get(self, key: str) -> Lease | None:
        return await self._call(lambda: self._store.get(key))

    async def create(self, lease: Lease) -> bool:
        return await self._call(lambda: self._store.create(lease))

    async def take(self, lease: Lease, owner: str) -> Lease | None:
        return await self._call(lambda: self._store.take(lease, owner), lease)

    async def ask(self, lease: Lease, owner: str) -> Lease | None:
        return await self._call(lambda: self._store.ask(lease, owner), lease)

    async def renew(
        self, lease: Lease, checkpoint: Checkpoint | None = None, throughput_kbps: float | None = None
    ) -> Lease:
        return await self._call(lambda: self._store.renew(lease, checkpoint, throughput_kbps), lease)

    async def end(self, lease: Lease, child_keys: Sequence[str]) -> Lease:
        return await self._call(lambda: self._store.end(lease, child_keys), lease)

    async def withdraw(self, lease: Lease) -> bool:
        return await self._call(lambda: self._store.withdraw(lease), lease)

    async def release(self, lease: Lease, checkpoint: Checkpoint | None = None, to: str | None = None) -> Lease | None:
        return await self._call(lambda: self._store.release(lease, checkpoint, to), lease)

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
        if base is not None and (current is None or not writes.is_unchanged(base, current)):
            return
        try:
            await step()
        except TidegateError:
            return
