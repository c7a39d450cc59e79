"""What is in the tables already is passed by in one statement, which changes nothing where that is not so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeAlias

import asyncpg
import pytest
import pytest_asyncio

from local.postgres import Postgres
from tests.integration.worker_rows import SHAPES, batch, change, create_tables, gadget
from tidegate.database import Database, DatabaseSettings, connect
from tidegate.errors import Superseded
from tidegate.event import ChangeEvent
from worker import dead_letter
from worker.aurora import AuroraSink
from worker.batch import Position
from worker.ports import ShardState, WriteResult
from worker.replays import Replays
from worker.statements import EntityStatements

pytestmark = pytest.mark.asyncio(loop_scope="module")
module_fixture = pytest_asyncio.fixture(scope="module", loop_scope="module")
fixture = pytest_asyncio.fixture(loop_scope="module")
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# Of two entities, and of one key two versions.
EVENTS = [
    change("A", 1, gadget("A")),
    change("7", 1, {"number": 7, "total": 1}, entity="counter"),
    change("A", 2, gadget("A", pieces=4)),
    change("B", 1, None),
]


@module_fixture
async def dsn() -> AsyncIterator[str]:
    async with Postgres() as postgres:
        await create_tables(postgres.dsn)
        yield postgres.dsn


@fixture
async def sql(dsn: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(dsn)
    await connection.execute("TRUNCATE gadgets, counters, tidegate.shard, tidegate.watermark, tidegate.dead_letter")
    yield connection
    await connection.close()


@fixture
async def database(dsn: str, sql: Connection) -> AsyncIterator[Database]:
    async with connect(dsn, DatabaseSettings(), "test") as made:
        yield made


@fixture
async def sink(database: Database) -> AuroraSink:
    made = AuroraSink(database, "stream", SHAPES, dead_letter.file)
    await made.register(["shard-0"], [], [])
    await made.open("shard-0", 1)
    return made


@fixture
async def replays(database: Database) -> Replays:
    made = Replays(database, "stream", {shape.name: EntityStatements(shape) for shape in SHAPES})
    made.begin("shard-0")
    return made


async def test_a_batch_that_is_there_is_passed_by_and_the_position_moves(sink: AuroraSink, replays: Replays) -> None:
    await sink.write(batch(*EVENTS), 1)
    there = batch(*EVENTS, change("B", 1, None), first=11)
    assert await replays.passed(there, 3) == WriteResult(unchanged=3, coalesced=2)
    assert await sink.open("shard-0", 3) == ShardState(Position(15, 0), 3)


async def test_what_is_older_than_the_table_is_there_too(sink: AuroraSink, replays: Replays) -> None:
    await sink.write(batch(*EVENTS), 1)
    assert await replays.passed(batch(*EVENTS[:2], first=11), 1) == WriteResult(unchanged=1, stale=1)


@pytest.mark.parametrize("missing", [change("C", 1, gadget("C")), change("A", 3, gadget("A"))], ids=["row", "version"])
async def test_where_one_change_is_missing_nothing_moves(
    sink: AuroraSink, replays: Replays, missing: ChangeEvent
) -> None:
    await sink.write(batch(*EVENTS), 1)
    more = batch(*EVENTS[1:], missing, first=11)
    assert await replays.passed(more, 1) is None
    assert await sink.open("shard-0", 1) == ShardState(Position(4, 0), 1)
    assert (await sink.write(more, 1)).applied == 1


async def test_rows_that_may_close_an_open_letter_are_written(sink: AuroraSink, replays: Replays) -> None:
    await sink.write(batch(*EVENTS, change("C", 1, gadget("C", colour="none"))), 1)
    assert await replays.passed(batch(*EVENTS, first=11), 1) is None
    assert await sink.open("shard-0", 1) == ShardState(Position(5, 0), 1)


async def test_a_newer_holder_is_behind_the_same_fence(sink: AuroraSink, replays: Replays) -> None:
    await sink.write(batch(*EVENTS), 2)
    late = batch(*EVENTS, first=11)
    assert await replays.passed(late, 1) is None
    with pytest.raises(Superseded):
        await sink.write(late, 1)


async def test_it_is_asked_after_opening_and_as_long_as_it_was_true(sink: AuroraSink, replays: Replays) -> None:
    await sink.write(batch(*EVENTS), 1)
    fresh = batch(change("C", 1, gadget("C")), first=11)
    assert await replays.passed(fresh, 1) is None
    assert await replays.passed(batch(*EVENTS, first=21), 1) is None, "what came last was new, and so will the next be"
    replays.begin("shard-0")
    for first in (31, 41):
        assert await replays.passed(batch(*EVENTS, first=first), 1) == WriteResult(unchanged=3, coalesced=1)
    replays.end("shard-0")
    assert await replays.passed(batch(*EVENTS, first=51), 1) is None


async def test_the_sink_counts_the_same_either_way(sink: AuroraSink, sql: Connection) -> None:
    await sink.write(batch(*EVENTS), 1)
    written = [await sink.write(batch(*EVENTS, first=first), 1) for first in (11, 21, 31)]
    assert written == [WriteResult(unchanged=3, coalesced=1)] * 3
    assert await sql.fetchval("SELECT count(DISTINCT _projected_at) FROM gadgets") == 1
