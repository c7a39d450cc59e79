"""Which leases exist: creates those that are missing and removes those that are finished. One of the fleet is enough.

Discovery may be expensive (ListShards, the database), so after its first time a process asks only now and then, the
larger the fleet the less often: about once in `discover_interval_s` for all together.

When a large fleet meets an empty table, everybody would create everything. Instead each creates those that follow its own
place on the ring and stops where another has been already.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Sequence

from tidegate import telemetry
from tidegate.errors import Transient
from tidegate.leases import planner
from tidegate.leases.lease import Lease
from tidegate.leases.planner import Balance
from tidegate.leases.store import LeaseStore, in_time
from tidegate.settings import LeaseSettings

Discover = Callable[[], Awaitable[Sequence[Lease]]]

log = telemetry.get_logger(__name__)

# So many clean-ups are tried in one interval between surveys, whatever the size of the fleet.
_CLEANERS = 2.0
# A finished lease is deleted once it has stood still for this long. Whoever sent its creation while it was missing (a late
# request, a process that was stopped) would otherwise make it anew after it is gone, at the start of its shard.
_REST_S = 120.0


class Upkeep:
    """Keeps the table's leases those that should exist."""

    def __init__(self, store: LeaseStore, settings: LeaseSettings, discover: Discover | None) -> None:
        self._store = store
        self._settings = settings
        self._discover = discover
        self._due_s = float("-inf")
        self._is_new = True
        self._missing: dict[str, Lease] = {}  # parents first
        self.is_busy = False  # leases were missing at the last look
        self._wanted: frozenset[str] | None = None

    def hurry(self) -> None:
        """A shard ended here: its children are missing, perhaps."""
        self._due_s, self._is_new = float("-inf"), True

    async def tend(
        self, leases: Sequence[Lease], held: Collection[str], balance: Balance, moved_s: Callable[[str], float]
    ) -> list[Lease]:
        """After a look at the whole table. Returns the leases created. Raises Transient, and what discovery raises.

        `balance`: of the fleet, as it was known before. `moved_s`: when a lease was last seen to move, by its key.
        """
        await self._look_for_missing(len(balance.loads))
        if self._missing:
            known = {lease.key for lease in leases}
            self._missing = {key: lease for key, lease in self._missing.items() if key not in known}
        self.is_busy = bool(self._missing)
        created: list[Lease] = []
        is_alone = True
        while self._missing and is_alone:
            wave = planner.around(planner.creatable(list(self._missing.values())), planner.spot(balance.me))
            made, is_alone = await self._create(wave)
            created.extend(made)
        if self._wanted is not None and random.random() < _CLEANERS / len(balance.loads):
            finished = planner.removable(leases, self._wanted | set(held))
            rested_s = asyncio.get_running_loop().time() - _REST_S
            await self._remove([lease for lease in finished if moved_s(lease.key) <= rested_s])
        return created

    async def _look_for_missing(self, fleet_size: int) -> None:
        now_s = asyncio.get_running_loop().time()
        if self._discover is None or now_s < self._due_s:
            return
        if self._is_new or random.random() < 1 / fleet_size:
            wanted = await self._discover()
            self._missing = {lease.key: lease for lease in wanted}
            self._wanted = frozenset(lease.key for lease in wanted)
            self._is_new = False
        self._due_s = now_s + self._settings.discover_interval_s * random.uniform(0.75, 1.25)

    async def _create(self, leases: Sequence[Lease]) -> tuple[list[Lease], bool]:
        """Create several at a time until others turn out to be doing the same. The leases made, and whether alone."""
        made: list[Lease] = []
        size = self._settings.parallel_writes
        for start in range(0, len(leases), size):
            some = leases[start : start + size]
            async with asyncio.TaskGroup() as group:
                tries = [group.create_task(self._create_one(lease)) for lease in some]
            new = [lease for lease, attempt in zip(some, tries, strict=True) if attempt.result()]
            made.extend(new)
            if 2 * len(new) < len(some):
                return made, False
        return made, True

    async def _create_one(self, lease: Lease) -> bool:
        """Whether the lease is new. One that exists is not missing any more; one that failed is tried again later."""
        try:
            is_new = await in_time(self._store.create(lease), self._settings.request_timeout_s)
        except Transient as error:
            log.warning(telemetry.LEASE_WRITE_FAILED, lease=lease.key, error=str(error))
            return False
        self._missing.pop(lease.key, None)
        if is_new:
            log.info(telemetry.LEASE_CREATED, lease=lease.key)
        else:
            telemetry.LEASE_CONFLICTS.labels("create").inc()
        return is_new

    async def _remove(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            if await in_time(self._store.delete(lease), self._settings.request_timeout_s):
                log.info(telemetry.LEASE_DELETED, lease=lease.key)
