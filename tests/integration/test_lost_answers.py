"""A connection breaks around a commit, so that nobody knows whether it was done: the batch comes again, and is one try."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping
from typing import TypeAlias

import asyncpg
import pytest
import pytest_asyncio
from msgspec import Raw

from local.postgres import Postgres
from tests.integration.cable import COMMIT_ANSWERED, COMMIT_ASKED, Cable
from tests.integration.worker_rows import NOW, SHAPES, batch, change, create_tables, gadget, rows
from tests.integration.worker_stack import free_port
from tidegate.bubble import Env, Webhook
from tidegate.database import Database, DatabaseSettings, connect
from tidegate.errors import Superseded, Transient
from tidegate.event import Cause
from tidegate.inbound import Arrival
from worker import dead_letter
from worker.arrival_sink import ArrivalSink
from worker.aurora import AuroraSink
from worker.batch import Arrived, Batch, Record
from worker.ports import WriteResult
from worker.routes import Routes

pytestmark = pytest.mark.asyncio(loop_scope="module")
Sql: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

HOOK = Webhook(name="hook", url=Env("URL"), secrets=(Env("SECRET", secret=True),))
FILED = "SELECT event_id IS NULL, attempts, first_seen_at = last_seen_at FROM tidegate.dead_letter ORDER BY 1"
QUEUED = "SELECT count(*) FROM tidegate.outbox"
TRUNCATE = (
    "TRUNCATE gadgets, tidegate.shard, tidegate.watermark, tidegate.dead_letter, tidegate.outbox, tidegate.inbound"
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Postgres]:
    async with Postgres(port=free_port()) as made:
        await create_tables(made.dsn)
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def sql(server: Postgres) -> AsyncIterator[Sql]:
    connection = await asyncpg.connect(server.dsn)
    await connection.execute(TRUNCATE)
    yield connection
    await connection.close()


@pytest_asyncio.fixture(loop_scope="module")
async def cable(server: Postgres) -> AsyncIterator[Cable]:
    async with Cable(server.port).plugged() as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def database(server: Postgres, sql: Sql, cable: Cable) -> AsyncIterator[Database]:
    """All of it through the cable."""
    dsn = server.dsn.replace(f":{server.port}/", f":{cable.port}/")
    async with connect(dsn, DatabaseSettings(connections=1), "test") as made:
        yield made


class Told(list[Mapping[str, int]]):
    """What the sink said that it queued."""


@pytest_asyncio.fixture(loop_scope="module")
async def told() -> Told:
    return Told()


@pytest_asyncio.fixture(loop_scope="module")
async def sink(database: Database, told: Told) -> AuroraSink:
    routes = Routes((HOOK,), [shape.name for shape in SHAPES])
    made = AuroraSink(database, "stream", SHAPES, dead_letter.file, routes, told.append)
    await made.check()
    await made.register(["shard-0"], [], [])
    await made.open("shard-0", 1)
    return made


def mixed() -> Batch:
    """Applied and told, applied and not, coalesced, undecodable, and refused by the database."""
    return batch(
        change("A", 5, gadget("A")),
        change("B", 5, gadget("B"), cause=Cause.BACKFILL),
        change("C", 2, gadget("C", pieces=1), cause=Cause.BACKFILL),
        change("C", 1, gadget("C", pieces=2), cause=Cause.BACKFILL),
        b"poison",
        change("D", 1, gadget("D", name="nul\0")),
    )


COUNTS = WriteResult(applied=3, coalesced=1, rejected=2)


@pytest.mark.parametrize("lost", [COMMIT_ANSWERED, COMMIT_ASKED], ids=["done", "not done"])
async def test_a_batch_whose_commit_is_not_answered_counts_once_when_it_comes_again(
    cable: Cable, sink: AuroraSink, sql: Sql, told: Told, lost: bytes
) -> None:
    whole = mixed()
    cable.lose = lost
    with pytest.raises(Transient):
        await sink.write(whole, 1)
    assert await sql.fetchval("SELECT count(*) FROM gadgets") == (3 if lost == COMMIT_ANSWERED else 0)
    # The lease was renewed meanwhile.
    assert await sink.write(whole, 2) == COUNTS
    assert await rows(sql, FILED) == [(False, 1, True), (True, 1, True)]
    assert (await sql.fetchval(QUEUED), told) == (1, [{"hook": 1}])
    # Read once more, by a rewound lease for example, it is another try.
    assert await sink.write(whole, 3) == WriteResult(unchanged=3, coalesced=1, rejected=2)
    assert [attempts for _, attempts, _ in await rows(sql, FILED)] == [2, 2]
    assert (await sql.fetchval(QUEUED), told) == (1, [{"hook": 1}])


async def test_what_comes_again_may_be_lost_again(cable: Cable, sink: AuroraSink, sql: Sql) -> None:
    whole = mixed()
    for lost in (COMMIT_ASKED, COMMIT_ANSWERED, COMMIT_ANSWERED, COMMIT_ASKED):
        cable.lose = lost
        with pytest.raises(Transient):
            await sink.write(whole, 1)
    assert await sink.write(whole, 1) == COUNTS
    assert [attempts for _, attempts, _ in await rows(sql, FILED)] == [1, 1]


async def test_a_position_that_was_passed_before_is_no_proof(cable: Cable, sink: AuroraSink, sql: Sql) -> None:
    """Catching up behind the database's own position: the commit that failed must be done again."""
    await sink.write(batch(change("Z", 1, gadget("Z")), first=100), 1)
    cable.lose = COMMIT_ASKED
    whole = mixed()
    with pytest.raises(Transient):
        await sink.write(whole, 1)
    assert await sink.write(whole, 1) == COUNTS
    assert await sql.fetchval("SELECT count(*) FROM gadgets") == 4


async def test_a_database_that_was_restored_meanwhile_gets_the_batch_again(
    cable: Cable, sink: AuroraSink, sql: Sql
) -> None:
    whole = mixed()
    cable.lose = COMMIT_ANSWERED
    with pytest.raises(Transient):
        await sink.write(whole, 1)
    await sql.execute("TRUNCATE gadgets, tidegate.dead_letter, tidegate.outbox")
    await sql.execute("UPDATE tidegate.shard SET sequence_number = NULL, committed_at = NULL")
    assert await sink.write(whole, 1) == COUNTS
    assert await sql.fetchval("SELECT count(*) FROM gadgets") == 3


@pytest.mark.parametrize("taken", ["UPDATE tidegate.shard SET lease_counter = 9", "DELETE FROM tidegate.shard"])
async def test_who_lost_the_shard_meanwhile_is_told(cable: Cable, sink: AuroraSink, sql: Sql, taken: str) -> None:
    cable.lose = COMMIT_ANSWERED
    with pytest.raises(Transient):
        await sink.write(mixed(), 1)
    await sql.execute(taken)
    with pytest.raises(Superseded, match="is fenced"):
        await sink.write(mixed(), 1)


async def test_a_shard_that_is_opened_again_begins_without_what_was_kept(
    cable: Cable, sink: AuroraSink, sql: Sql
) -> None:
    """Its batches may be other ones, though they end at the same position."""
    cable.lose = COMMIT_ANSWERED
    with pytest.raises(Transient):
        await sink.write(mixed(), 1)
    await sink.open("shard-0", 2)
    assert (await sink.write(mixed(), 2)).unchanged == 3


async def test_arrivals_count_once_as_well(cable: Cable, database: Database, sql: Sql) -> None:
    sink = ArrivalSink(database, "arrivals")
    await sink.register(["shard-0"], [], [])
    await sink.open("shard-0", 1)
    events = [
        Arrival(
            id=str(number), source="urn:client", event_type="note", subject="somebody", time=NOW, received=NOW,
            viewers="{}", data=Raw(b'{"number": 1}'),
        )
        for number in (1, 2, 2)
    ]  # fmt: skip
    arrived = tuple(Arrived(Record(str(at), b""), event) for at, event in zip(itertools.count(1), events, strict=False))
    whole = Batch(
        shard_id="shard-0", last=arrived[-1].position, arrivals=arrived, dead=batch(b"poison").dead,
    )  # fmt: skip
    cable.lose = COMMIT_ANSWERED
    with pytest.raises(Transient):
        await sink.write(whole, 1)
    assert await sink.write(whole, 1) == WriteResult(applied=2, unchanged=1, rejected=1)
    assert await rows(sql, FILED) == [(True, 1, True)]
    assert await sql.fetchval("SELECT count(*) FROM tidegate.inbound") == 2
