"""Whether the database takes our writes now: what /readyz says of it after the start.

A worker that writes knows by itself; only when nothing was committed for a while, it asks. Nobody restarts a worker because
of the answer: it waits, and goes on when the database is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tidegate import telemetry
from tidegate.database import Database
from tidegate.errors import Transient
from worker.settings import WatchSettings

log = telemetry.get_logger(__name__)


class DatabaseWatch:
    """`ready` and `not_ready` are told at every look; the latter with the reason."""

    def __init__(
        self, database: Database, settings: WatchSettings, ready: Callable[[], None], not_ready: Callable[[str], None]
    ) -> None:
        self._database = database
        self._settings = settings
        self._ready = ready
        self._not_ready = not_ready
        self._is_up = True
        telemetry.DATABASE_UP.set(1)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch beside the block. Raises Fatal for what `Database.transaction` raises it."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._run())
            yield
            task.cancel()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._settings.interval_s)
            await self.look()

    async def look(self) -> None:
        """One look; asks only when the last commit is longer ago than the interval."""
        if self._database.silence_s <= self._settings.interval_s:
            return self._say_up()
        try:
            await self._database.probe(self._settings.timeout_s)
        except Transient as error:
            return self._say_down(str(error))
        return self._say_up()

    def _say_up(self) -> None:
        if not self._is_up:
            log.info(telemetry.DATABASE_BACK)
        self._is_up = True
        telemetry.DATABASE_UP.set(1)
        self._ready()

    def _say_down(self, why: str) -> None:
        if self._is_up:
            log.error(telemetry.DATABASE_LOST, error=why)
        self._is_up = False
        telemetry.DATABASE_UP.set(0)
        self._not_ready(why)
