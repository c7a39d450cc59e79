"""The database of `project`: the shipments' table as `tidegate migrate` makes it, written by a login of the worker's role."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import asyncpg

from bench._project_stream import COLUMNS, SHAPE, Shipment
from local import provision
from local.postgres import Postgres
from tidegate import migrate
from tidegate.bubble import Bubble

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

_BUBBLE = Bubble(name="bench", entities=(Shipment,), sources=())
_WORKER = "worker_login"
_PASSWORD = "bench"
_SUM = f"""
SELECT count(*) || ' rows, ' || coalesce(sum(hashtextextended(ROW({", ".join(COLUMNS)})::text, 0)::numeric), 0)
FROM shipments
"""


class BenchDatabase:
    """`dsn` is for the sides; `sql` is a superuser's."""

    def __init__(self, dsn: str, sql: Connection) -> None:
        self.dsn = dsn
        self._sql = sql

    async def empty(self) -> None:
        await self._sql.execute("TRUNCATE shipments, tidegate.shard, tidegate.dead_letter CASCADE")
        await self.settle()

    async def drop_indexes(self) -> None:
        """All but the key's: the cheapest table there can be."""
        for reader in SHAPE.readers:
            for name in reader.fields:
                await self._sql.execute(f"DROP INDEX shipments_{name}_key")

    async def settle(self) -> None:
        """Each load begins with the housekeeping done that the one before it left."""
        await self._sql.execute("VACUUM (ANALYZE) shipments")
        await self._sql.execute("CHECKPOINT")

    async def checksum(self) -> str:
        """Of everything but the time of writing."""
        return str(await self._sql.fetchval(_SUM))


@asynccontextmanager
async def database() -> AsyncIterator[BenchDatabase]:
    async with Postgres() as postgres:
        owner = postgres.dsn_for(provision.OWNER, _PASSWORD, provision.DATABASE)
        passwords = dict.fromkeys((provision.OWNER, *provision.LOGINS), _PASSWORD)
        await provision.make_database(postgres.dsn, owner, passwords)
        with tempfile.TemporaryDirectory() as folder:
            migrate.generate(_BUBBLE, Path(folder), "first")
            await asyncio.to_thread(migrate.upgrade, owner, _BUBBLE, Path(folder))
        await provision.make_logins(postgres.dsn, passwords)
        sql = await asyncpg.connect(f"{postgres.dsn.rpartition('/')[0]}/{provision.DATABASE}")
        # For the sides that write by way of a temporary table.
        await sql.execute(f'GRANT TEMPORARY ON DATABASE "{provision.DATABASE}" TO "{_WORKER}"')
        yield BenchDatabase(postgres.dsn_for(_WORKER, _PASSWORD, provision.DATABASE), sql)
        await sql.close()
