"""How many dead letters are open, and since when: for the metrics, so that a letter at which nobody looks is told of.

Every worker asks and all get the same answer, so there is always somebody who does; take the fleet's maximum. What is
parked is not counted: nothing is wrong with it, and `worker.drain` counts it by entity.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tidegate import telemetry
from tidegate.database import Database
from tidegate.errors import Transient

log = telemetry.get_logger(__name__)

_LOOK = """
SELECT count(*), coalesce(extract(epoch FROM now() - min(first_seen_at)), 0)::double precision
FROM tidegate.dead_letter WHERE resolved_at IS NULL AND parked_at IS NULL
"""


class OpenLetters:
    """Looks every `interval_s`."""

    def __init__(self, database: Database, interval_s: float) -> None:
        self._database = database
        self._interval_s = interval_s

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Look beside the block. Raises Fatal for a database that was not migrated."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._run())
            yield
            task.cancel()

    async def _run(self) -> None:
        while True:
            try:
                await self.look()
            except Transient as error:
                log.warning(telemetry.LETTERS_NOT_COUNTED, error=str(error))
            await asyncio.sleep(self._interval_s)

    async def look(self) -> None:
        """One look. Raises Transient."""
        async with self._database.transaction("count open dead letters") as connection:
            [(count, age_s)] = await connection.fetch(_LOOK)
        telemetry.LETTERS_OPEN.set(count)
        telemetry.LETTERS_OLDEST_SECONDS.set(age_s)
