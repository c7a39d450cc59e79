"""Giving everything away when the process stops, so that each lease's work goes on within a second.

Every lease goes to another live process as soon as its task has ended, spread over all of them. Whom we know to live may
be half a minute out of date: a receiver may have died, or stop like us. So at the end we look whether each was taken,
and withdraw what was not: then anybody may take it, and needs not wait for its expiry. Who stops withdraws likewise
what others give it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Sequence
from contextlib import suppress

from tidegate import telemetry
from tidegate.errors import Transient
from tidegate.leases import planner
from tidegate.leases.lease import Lease
from tidegate.leases.store import LeaseStore, in_time
from tidegate.leases.watch import Watch
from tidegate.settings import LeaseSettings

log = telemetry.get_logger(__name__)

# A receiver looks at its name every `own_look_s`, jittered by a quarter; the index may lag a little.
_LOOKS_TO_TAKE = 1.6


class Farewell:
    """What this process gives away while it stops."""

    def __init__(self, store: LeaseStore, me: str, settings: LeaseSettings, watch: Watch) -> None:
        self.is_on = False  # the process stops
        self._store = store
        self._me = me
        self._settings = settings
        self._watch = watch
        self._balance = planner.alone(me)
        self._loads: dict[str, float] = {}
        self._given: list[Lease] = []

    async def begin(self, mine: Collection[Lease]) -> None:
        """The process stops. Who knows of nobody looks once more, for one that just started may not know the others."""
        self.is_on = True
        if len(self._watch.balance.loads) == 1:
            with suppress(Transient, TimeoutError):
                async with asyncio.timeout(self._settings.own_look_s):
                    await self._watch.look({lease.key for lease in mine})
                    self._watch.weigh(mine)
        self._balance = self._watch.balance
        self._loads = dict(self._balance.loads)

    def receiver(self, lease: Lease) -> str | None:
        """Who gets this lease; None while the process goes on, and when nobody else is known."""
        if not self.is_on or lease.is_ended:
            return None
        to = planner.receiver(self._loads, self._me, random.random)
        if to is not None:
            self._loads[to] += self._balance.weight(lease)
        return to

    def gave(self, left: Lease | None) -> None:
        """A lease was released: as it was left, None if it was not."""
        if self.is_on and left is not None and left.owner is not None:
            self._given.append(left)

    async def withdraw(self, lease: Lease) -> None:
        """A lease in somebody's name who does not take it: now anybody may. Failures leave it to its expiry."""
        try:
            await in_time(self._store.withdraw(lease), self._settings.request_timeout_s)
        except Transient as error:
            log.warning(telemetry.LEASE_WRITE_FAILED, lease=lease.key, error=str(error))

    async def finish(self) -> None:
        """After the last lease was given away: wait until all were taken, and withdraw those that were not."""
        if not self._given:
            return
        await asyncio.sleep(_LOOKS_TO_TAKE * self._settings.own_look_s)
        size = self._settings.parallel_writes
        for start in range(0, len(self._given), size):
            await self._check(self._given[start : start + size])

    async def _check(self, given: Sequence[Lease]) -> None:
        async with asyncio.TaskGroup() as group:
            for left in given:
                group.create_task(self._check_one(left))

    async def _check_one(self, left: Lease) -> None:
        try:
            current = await self._watch.get(left.key)
        except Transient:
            return
        if current is not None and (current.owner, current.counter) == (left.owner, left.counter):
            await self.withdraw(current)
