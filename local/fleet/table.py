"""The lease table of a simulated fleet: single compare-and-set steps in memory, and the bill DynamoDB would send.

What a lease store *makes* of these steps (recognising its own lost replies, asking, releasing) is production code, in
`network.Link`; here is only what DynamoDB itself does with one request.

Billed as on demand. A write is one unit, whether its condition held or not: an item is below 1 KB. A read by key is
one unit (below 4 KB), a page of a scan or a query the sum of its items rounded up to 4 KB; half of that when it is
eventually consistent. Every item is billed at the size of a full one.

Eventually consistent reads show a past state of the table, between 0 and `replica_lag_s` old, as do reads of an
index. Readers at the same time see the same one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import ceil

from tidegate.errors import Superseded
from tidegate.leases.items import item_of
from tidegate.leases.lease import Lease, Part
from tidegate.leases.store import Look, Names

PAGE_BYTES = 1 << 20
PAGE_ITEMS = 1000  # as many as the lease store asks for at a time
UNIT_BYTES = 4096
REPLICA_LAG_S = 1.0

# Told of every write that was done, before and after it.
Written = Callable[[Lease, Lease], None]


class Bill:
    """What was asked of the table so far: requests that write, and units read."""

    def __init__(self) -> None:
        self.writes = 0
        self.conflicts = 0  # of the writes, those whose condition failed
        self.read_units = 0.0

    def read(self, size_bytes: int, *, consistent: bool) -> None:
        """One page, or one item read by its key."""
        units = max(1, ceil(size_bytes / UNIT_BYTES))
        self.read_units += units if consistent else units / 2


class Table:
    """Every call is one step at one instant; who is how far away is the network's business."""

    def __init__(self, now_s: Callable[[], float], written: Written, seed: int, item_bytes: int) -> None:
        self.leases: dict[str, Lease] = {}
        self.bill = Bill()
        self._now_s = now_s
        self._written = written
        self._item_bytes = item_bytes
        self._lags = random.Random(seed)
        self._replica: list[Lease] = []
        self._parts: dict[int, list[list[Lease]]] = {}
        self._segments: dict[int, dict[str, int]] = {}  # by how many there are: which one shows a key
        self._by_owner: dict[str, list[str]] | None = None
        self._replica_until_s = float("-inf")

    # ------------------------------------------------------------------ writes

    def swap(self, before: Lease, after: Lease) -> Lease:
        """Write `after` if counter and both owners are still as in `before`, else Superseded."""
        self.bill.writes += 1
        current = self.leases.get(before.key)
        if (
            current is None
            or current.counter != before.counter
            or current.owner != before.owner
            or current.checkpoint_owner != before.checkpoint_owner
        ):
            self.bill.conflicts += 1
            raise Superseded(f"lease {before.key} has changed")
        self.leases[before.key] = after
        self._written(current, after)
        return after

    def create(self, lease: Lease) -> bool:
        self.bill.writes += 1
        if lease.key in self.leases:
            self.bill.conflicts += 1
            return False
        self.leases[lease.key] = lease
        return True

    def delete(self, lease: Lease) -> bool:
        self.bill.writes += 1
        current = self.leases.get(lease.key)
        if current is None or current.counter != lease.counter:
            self.bill.conflicts += 1
            return False
        del self.leases[lease.key]
        return True

    # ------------------------------------------------------------------ reads

    def get(self, key: str) -> Lease | None:
        self.bill.read(self._item_bytes, consistent=True)
        return self.leases.get(key)

    def scan(self) -> list[Lease]:
        """Everything as it is now."""
        leases = list(self.leases.values())
        self._read_pages(len(leases), self._item_bytes, consistent=True)
        return leases

    def look(self, part: Part | None) -> Look:
        """Everything, or one part of it, as it was a moment ago."""
        self._refresh()
        leases = self._replica if part is None else self._part(part)
        return Look(leases, self._read_pages(len(leases), self._item_bytes, consistent=False))

    def named(self, owner: str) -> Names:
        """The index on the owner, as it was a moment ago: keys only, in their order."""
        self._refresh()
        if self._by_owner is None:
            self._by_owner = {}
            for lease in self._replica:
                if lease.owner is not None:
                    self._by_owner.setdefault(lease.owner, []).append(lease.key)
        keys = sorted(self._by_owner.get(owner, ()))
        entry_bytes = len("leaseKey") + len("leaseOwner") + len(owner) + (len(keys[0]) if keys else 0)
        return Names(keys, self._read_pages(len(keys), entry_bytes, consistent=False))

    def _read_pages(self, items: int, item_bytes: int, *, consistent: bool) -> float:
        """Bill a scan or a query; the units that it took."""
        before = self.bill.read_units
        page_items = min(PAGE_ITEMS, PAGE_BYTES // item_bytes)
        for first in range(0, max(1, items), page_items):
            self.bill.read(min(page_items, items - first) * item_bytes, consistent=consistent)
        return self.bill.read_units - before

    def _part(self, part: Part) -> list[Lease]:
        total = part.total
        if total not in self._parts:
            parts = self._parts[total] = [[] for _ in range(total)]
            segments = self._segments.setdefault(total, {})
            for lease in self._replica:
                key = lease.key
                if key not in segments:
                    segments[key] = segment_of(key, total)
                parts[segments[key]].append(lease)
        return self._parts[total][part.index]

    def _refresh(self) -> None:
        """A copy of the table that is newer than `REPLICA_LAG_S` at any time. Nobody may change what it is shown."""
        now_s = self._now_s()
        if now_s >= self._replica_until_s:
            self._replica = list(self.leases.values())
            self._parts.clear()
            self._by_owner = None
            self._replica_until_s = now_s + self._lags.uniform(0.0, REPLICA_LAG_S)


def size_of(lease: Lease) -> int:
    """Bytes of an item, as DynamoDB counts them: names and texts in UTF-8, numbers by their digits."""
    size = 0
    for name, value in item_of(lease).items():
        size += len(name)
        for kind, content in value.items():
            size += _size_of(kind, content)
    return size


def _size_of(kind: str, content: str | Sequence[str]) -> int:
    if kind == "N":
        return len(content) // 2 + 2
    if kind == "SS":
        return 3 + sum(1 + len(text) for text in content)
    return len(content)


def segment_of(key: str, segments: int) -> int:
    """Which part of a parallel scan shows an item: DynamoDB divides the range of the keys' hashes evenly.

    Not by the hash that the planner places leases by, or a process' leases would all lie in the same part.
    """
    place = int.from_bytes(blake2b(key.encode(), digest_size=4).digest(), "big")
    return place * segments >> 32
