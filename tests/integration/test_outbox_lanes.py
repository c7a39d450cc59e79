"""Many changes of one row in the outbox: one at a time, in order, and no claim looks at all that waits behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest
import pytest_asyncio

from local.postgres import Postgres
from tests.integration.worker_rows import create_tables, rows
from tidegate.database import DatabaseSettings, connect
from tidegate.errors import Transient
from worker.outbox import PostgresOutbox

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUEUE = """
INSERT INTO tidegate.outbox (destination, event_id, lane, entity, key, payload)
SELECT 'hook', $1 || '-' || n, $2, 'gadget', $1, '' FROM generate_series($3::int, $4::int) AS n
"""
DUE = "SELECT key, count(*)::int FROM tidegate.outbox WHERE state = 'waiting' AND due_at <= now() GROUP BY key ORDER BY key"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def dsn() -> AsyncIterator[str]:
    async with Postgres() as postgres:
        await create_tables(postgres.dsn)
        yield postgres.dsn


@pytest_asyncio.fixture(loop_scope="module")
async def sql(dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(dsn)
    await connection.execute("TRUNCATE tidegate.outbox")
    yield connection
    await connection.close()


async def test_what_stands_behind_a_claimed_change_is_put_aside_and_comes_back_one_by_one(
    dsn: str, sql: asyncpg.Connection[asyncpg.Record]
) -> None:
    await sql.execute(QUEUE, "A", 1, 1, 400)
    await sql.execute(QUEUE, "B", 2, 1, 1)
    told = []
    async with connect(dsn, DatabaseSettings(), "test") as database:
        outbox, other = PostgresOutbox(database), PostgresOutbox(database)
        [first, alone] = await outbox.claim("hook", 8, 60)
        assert [first.event_id, alone.event_id] == ["A-1", "B-1"]
        assert await rows(sql, DUE) == [], "nobody looks at what cannot be claimed"
        # What comes meanwhile is due, but not its lane's oldest.
        await sql.execute(QUEUE, "A", 1, 401, 403)
        assert await other.claim("hook", 8, 60) == []
        assert await outbox.sent(alone)
        claimed = [first]
        while claimed:
            [effect] = claimed
            told.append(effect.event_id)
            assert await outbox.sent(effect)
            claimed = await other.claim("hook", 8, 60)
    assert told == [f"A-{number}" for number in range(1, 404)]


async def test_behind_a_claim_that_ended_and_one_that_failed_the_order_holds(
    dsn: str, sql: asyncpg.Connection[asyncpg.Record]
) -> None:
    await sql.execute(QUEUE, "A", 1, 1, 3)
    async with connect(dsn, DatabaseSettings(), "test") as database:
        outbox = PostgresOutbox(database)
        [gone] = await outbox.claim("hook", 8, 0.0)
        [again] = await outbox.claim("hook", 8, 60)
        assert (again.event_id, again.attempt) == ("A-1", 2)
        assert not await outbox.sent(gone), "its claim had ended"
        assert not await outbox.failed(again, Transient("away"), wait_s=0.0, retry_for_s=60)
        [third] = await outbox.claim("hook", 8, 60)
        assert (third.event_id, third.attempt) == ("A-1", 3)
        assert await outbox.failed(third, Transient("away"), wait_s=0.0, retry_for_s=0.0), "it is dead"
        [after] = await outbox.claim("hook", 8, 60)
        assert after.event_id == "A-2"
