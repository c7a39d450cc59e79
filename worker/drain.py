"""Writes what was parked, once the dead letters that held it up are closed.

Who calls: `worker.app`, once for the process, where an entity asks for strict order; every worker does it, whichever
shards it holds. A round asks the database for keys whose oldest letter is parked and writes what waits of each, some at
a time, in transactions of their own. What arrives meanwhile is parked behind it, so nothing overtakes. A change that
fails now holds up the rest as any failure does. Nothing is remembered between two rounds.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tidegate import telemetry
from tidegate.errors import Transient
from tidegate.event import EntityKey
from worker.ports import Decode, DrainStep, Parking
from worker.settings import DrainSettings

log = telemetry.get_logger(__name__)

_PAUSE = 10
"""A worker asks for at most about a tenth of its time: with thousands of keys held up each question takes a while."""


class Drain:
    """`decode` makes changes of the parked records, as it did when they came."""

    def __init__(self, parking: Parking, decode: Decode, settings: DrainSettings) -> None:
        self._parking = parking
        self._decode = decode
        self._settings = settings
        self._step = DrainStep(settings.step_letters, settings.step_bytes)

    @asynccontextmanager
    async def draining(self, stop: asyncio.Event) -> AsyncIterator[None]:
        """Drain beside the block, until `stop`. Raises Fatal for a database that was not migrated."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.run(stop))
            yield

    async def run(self, stop: asyncio.Event) -> None:
        """One round every interval. A round that fails for now is left to the next."""
        look_s = _now_s()
        while not stop.is_set():
            began_s = _now_s()
            try:
                await self.round(stop)
                if _now_s() >= look_s:
                    await self._look()
                    look_s = _now_s() + self._settings.look_interval_s
            except Transient as error:
                log.warning(telemetry.DRAIN_FAILED, error=str(error))
            await self._wait(stop, _now_s() - began_s)

    async def round(self, stop: asyncio.Event) -> int:
        """Write all that may be written; answers how many letters were tried. Raises Transient or Fatal."""
        total = 0
        while keys := await self._parking.ready(self._settings.keys):
            tried = 0
            for key in keys:
                if stop.is_set():
                    return total + tried
                tried += await self._drain(key)
            total += tried
            if not tried:
                # Other workers are at them.
                break
        return total

    async def _drain(self, key: EntityKey) -> int:
        result = await self._parking.drain(key, self._decode, self._step)
        if result is None:
            return 0
        for outcome, count in result._asdict().items():
            telemetry.PARKED_DRAINED.labels(outcome).inc(count)
        if result.rejected:
            log.warning(telemetry.DRAIN_HELD_UP, entity=key.entity, count=result.rejected)
        return sum(result)

    async def _look(self) -> None:
        await self._parking.settle()
        for entity, (count, age_s) in (await self._parking.look()).items():
            telemetry.PARKED_OPEN.labels(entity).set(count)
            telemetry.PARKED_OLDEST_SECONDS.labels(entity).set(age_s)

    async def _wait(self, stop: asyncio.Event, took_s: float) -> None:
        """Until the next round. Not all workers at the same moment, and less often where asking is dear."""
        pause_s = max(self._settings.interval_ms / 1000, _PAUSE * took_s)
        try:
            async with asyncio.timeout(random.uniform(0.5, 1.0) * pause_s):
                await stop.wait()
        except TimeoutError:
            return


def _now_s() -> float:
    return asyncio.get_running_loop().time()
