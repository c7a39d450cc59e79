"""What is in my name: leases that others gave me or hand over to me, and those of mine that others want.

One query on the index twice a second finds both. A key in my name that I do not hold was given to me, or answers a
request of mine that I believed lost. A key that I hold and that is not in my name any more is asked for, or lost.

The index may lag behind the table, so each difference is looked at in the table itself before anything follows from
it; what turns out to be no difference is left alone for a while. Keys come in their order, so that a simulated run
can be repeated.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from tidegate import telemetry
from tidegate.errors import Transient
from tidegate.leases.farewell import Farewell
from tidegate.leases.handover import Attempts, Requests, Take, Way
from tidegate.leases.hold import Hold
from tidegate.leases.lease import Lease
from tidegate.leases.watch import Watch
from tidegate.settings import LeaseSettings

log = telemetry.get_logger(__name__)

# So many own looks pass before a key is looked at again that was not what the index said.
_ALONE_LOOKS = 3.0


class Inbox:
    """Looks at what is in my name until the process has given everything away.

    `may_start` says whether work on a lease may begin. `farewell` is told when the last lease is given away.
    """

    def __init__(
        self,
        me: str,
        settings: LeaseSettings,
        watch: Watch,
        holds: Mapping[str, Hold],
        attempts: Attempts,
        *,
        may_start: Callable[[Lease], Awaitable[bool]],
        farewell: Farewell,
    ) -> None:
        self._me = me
        self._settings = settings
        self._watch = watch
        self._holds = holds
        self._attempts = attempts
        self._may_start = may_start
        self._farewell = farewell
        # By key, the loop time until which it is left alone: though it is in my name, though it is not.
        self._not_given_until_s: dict[str, float] = {}
        self._not_wanted_until_s: dict[str, float] = {}

    async def run(self, stop: asyncio.Event, take: Take, requests: Requests) -> None:
        """Look until `stop`, then until everything is given away and taken by others."""
        while not (stop.is_set() and not self._holds and not requests.keys):
            await self._pause(stop)
            try:
                await self._look(stop, take, requests)
            except Transient as error:
                log.warning(telemetry.LEASE_PLAN_FAILED, error=str(error))
        await self._farewell.finish()
        if len(self._watch.balance.loads) > 1:
            # Others may have given me theirs, until they knew better.
            with suppress(Transient):
                await self._look(stop, take, requests)

    async def _pause(self, stop: asyncio.Event) -> None:
        pause_s = self._settings.own_look_s * random.uniform(0.75, 1.25)
        if not stop.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await stop.wait()
        else:
            await asyncio.sleep(0.25 * pause_s)

    async def _look(self, stop: asyncio.Event, take: Take, requests: Requests) -> None:
        named = set((await self._watch.named()).keys)
        self._not_given_until_s = _still(self._not_given_until_s)
        given = sorted(named - self._holds.keys() - requests.keys - self._not_given_until_s.keys())
        slots = asyncio.Semaphore(self._settings.parallel_writes)
        # Together: after a short absence it may be all that I had, and a call that hangs must not keep the others waiting.
        async with asyncio.TaskGroup() as group:
            for key in given:
                group.create_task(self._open(key, slots, stop, take, requests))
        self._not_wanted_until_s = _still(self._not_wanted_until_s)
        for key in sorted(self._holds.keys() - named - self._not_wanted_until_s.keys()):
            hold = self._holds.get(key)
            if hold is not None and not hold.stop.is_set() and (lease := await self._watch.get(key)):
                hold.heed(lease)
            self._not_wanted_until_s[key] = _now_s() + _ALONE_LOOKS * self._settings.own_look_s

    async def _open(
        self, key: str, slots: asyncio.Semaphore, stop: asyncio.Event, take: Take, requests: Requests
    ) -> None:
        async with slots:
            try:
                if await self._receive(key, stop, take, requests):
                    return
            except Transient as error:
                log.warning(telemetry.LEASE_WRITE_FAILED, lease=key, error=str(error))
                return
            self._not_given_until_s[key] = _now_s() + _ALONE_LOOKS * self._settings.own_look_s

    async def _receive(self, key: str, stop: asyncio.Event, take: Take, requests: Requests) -> bool:
        """Take one lease that the index shows in my name, if that is true. False: leave it alone."""
        sent_s = _now_s()
        lease = await self._watch.get(key)
        if lease is None or lease.owner != self._me or lease.is_ended or key in self._holds:
            return False
        if lease.holder != self._me:
            if not stop.is_set():
                requests.adopt(lease)
            return not stop.is_set()
        way = self._attempts.way_of(lease)
        if stop.is_set():
            if way is not Way.STEAL:
                await self._farewell.withdraw(lease)
            return False
        return await self._may_start(lease) and await take(lease, way, sent_s)


def _still(until_s: dict[str, float]) -> dict[str, float]:
    now_s = _now_s()
    return {key: each_s for key, each_s in until_s.items() if now_s < each_s}


def _now_s() -> float:
    return asyncio.get_running_loop().time()
