"""What the tests of strict order share: a sink of which one entity asks for it, and changes that it refuses."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, TypeAlias

import asyncpg
from msgspec.structs import replace

from tests.integration.worker_rows import DECODER, SHAPES, batch, change, gadget, rows
from tidegate import letters
from tidegate.bubble import Env, Webhook
from tidegate.database import Database
from tidegate.event import ChangeEvent
from tidegate.letters import Selection
from worker import dead_letter
from worker.aurora import AuroraSink
from worker.drain import Drain
from worker.ports import DrainStep, WriteResult
from worker.routes import Routes
from worker.settings import DrainSettings

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

STRICT = tuple(replace(shape, is_strict=shape.name == "gadget") for shape in SHAPES)
HOOK = Webhook(name="hook", url=Env("URL"), secrets=(Env("SECRET", secret=True),))
ROUTES = Routes([HOOK], [shape.name for shape in SHAPES])
STEP = DrainStep(200, 4_000_000)
MANY = 1_000
CHECK = f"ALTER TABLE gadgets DROP CONSTRAINT IF EXISTS few, ADD CONSTRAINT few CHECK (pieces < {MANY})"
MEND = "ALTER TABLE gadgets DROP CONSTRAINT few"
PARKED = (
    "SELECT version[2]::int FROM tidegate.dead_letter WHERE parked_at IS NOT NULL AND resolved_at IS NULL ORDER BY 1"
)
FAILED = "FROM tidegate.dead_letter WHERE parked_at IS NULL AND resolved_at IS NULL"
OPEN = f"SELECT version[2]::int {FAILED} ORDER BY 1"
TOLD = "SELECT event_id FROM tidegate.outbox ORDER BY id"
places = itertools.count(1, 100)


class World:
    """A sink with two shards, and what the tests ask of it."""

    def __init__(self, database: Database, sql: Connection, routes: Routes) -> None:
        self.sink = AuroraSink(database, "stream", STRICT, dead_letter.file, routes)
        self.sql = sql
        self.drain = Drain(self.sink, DECODER.decode_all, DrainSettings())

    async def begin(self) -> World:
        await self.sink.check()
        for shard in ("shard-0", "shard-1"):
            await self.sink.register([shard], [], [])
            await self.sink.open(shard, 1)
        return self

    async def put(self, *events: Any, shard_id: str = "shard-0") -> WriteResult:
        whole = batch(*events, first=next(places), shard_id=shard_id)
        result = await self.sink.write(whole, 1)
        assert sum(result) == whole.delivered
        return result

    async def drained(self) -> int:
        return await self.drain.round(asyncio.Event())

    async def versions(self, query: str) -> list[int]:
        return [version for (version,) in await rows(self.sql, query)]

    async def row(self, key: str = "A") -> int | None:
        """The source version that the table shows of the key."""
        found = await rows(self.sql, "SELECT _source_version FROM gadgets WHERE number = $1", key)
        return found[0][0] if found else None

    async def told(self) -> list[str]:
        return [event_id for (event_id,) in await rows(self.sql, TOLD)]


def good(version: int, key: str = "A") -> ChangeEvent:
    return change(key, version, gadget(key, pieces=version))


def refused(version: int, key: str = "A") -> ChangeEvent:
    """What the table refuses until it is mended."""
    return change(key, version, gadget(key, pieces=MANY + version))


def invalid(version: int, key: str = "A") -> ChangeEvent:
    """What the decoder refuses."""
    return change(key, version, gadget(key, pieces="many"))


async def drop(database: Database, version: int) -> None:
    async with database.transaction("drop") as connection:
        number = await connection.fetchval(
            "SELECT id FROM tidegate.dead_letter WHERE version[2] = $1 AND resolved_at IS NULL", version
        )
        assert await letters.drop(connection, Selection(ids=(number,)), "somebody", number) == 1
