"""Poison in a batch of 5,000, from one bad record to nothing but bad ones: the good rows are in, the rest is filed whole.

Of every stage: records that are no event, events that are no such entity, and values that the driver, the server's
parser or a constraint of the table refuses. What it costs, `make bench ONLY=poison` says.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest
import pytest_asyncio
from msgspec.structs import replace

from local.postgres import Postgres
from tests.integration.projection_model import TOO_MANY, Fault, Office, Poller, Put
from tests.integration.worker_rows import SHAPES, batch, change, create_tables, gadget, rows
from tidegate.bubble import Env, Webhook
from tidegate.database import DatabaseSettings, connect
from tidegate.entity import EntityShape
from worker import dead_letter
from worker.aurora import AuroraSink
from worker.ports import WriteResult
from worker.routes import Routes

pytestmark = pytest.mark.asyncio(loop_scope="module")

RECORDS = 5_000
REASONS = {
    Fault.UNDECODABLE: ("decode", "undecodable"),
    Fault.MISMATCH: ("decode", "invalid"),
    Fault.NUL: ("write", "character_not_in_repertoire"),
    Fault.RANGE: ("write", "numeric_value_out_of_range"),
    Fault.CHECK: ("write", "check_violation"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def dsn() -> AsyncIterator[str]:
    async with Postgres() as postgres:
        await create_tables(postgres.dsn)
        yield postgres.dsn


STRICT = tuple(replace(shape, is_strict=True) for shape in SHAPES)
HOOK = Webhook(name="hook", url=Env("URL"), secrets=(Env("SECRET", secret=True),))


def records(poison: int) -> list[Put]:
    """As many bad ones as asked for, spread evenly, of every kind in turn."""
    poller, faults, made = Poller(), list(Fault), []
    for number in range(RECORDS):
        office = Office(f"G{number:04}", pieces=3)
        bad = number * poison // RECORDS
        is_bad = bad != (number - 1) * poison // RECORDS
        made.append(poller.poison(office, faults[bad % len(faults)]) if is_bad else poller.change(office))
    return made


@pytest.mark.parametrize("shapes", [SHAPES, STRICT], ids=["default", "strict order"])
@pytest.mark.parametrize("poison", [1, 10, RECORDS])
async def test_the_good_rows_are_in_and_each_bad_record_is_filed_whole_and_once(
    dsn: str, poison: int, shapes: tuple[EntityShape, ...]
) -> None:
    puts = records(poison)
    bad = {number: put for number, put in enumerate(puts, 1) if put.fault is not None}
    assert len(bad) == poison
    sql = await asyncpg.connect(dsn)
    await sql.execute("TRUNCATE gadgets, tidegate.shard, tidegate.dead_letter CASCADE")
    await sql.execute(
        f"ALTER TABLE gadgets DROP CONSTRAINT IF EXISTS few, ADD CONSTRAINT few CHECK (pieces < {TOO_MANY})"
    )
    async with connect(dsn, DatabaseSettings(), "test") as database:
        sink = AuroraSink(database, "stream", shapes, dead_letter.file)
        await sink.register(["shard-0"], [], [])
        await sink.open("shard-0", 1)
        result = await sink.write(batch(*(put.data for put in puts)), 1)
    assert result == WriteResult(applied=RECORDS - poison, rejected=poison)
    good = {put.event.key.key for put in puts if put.fault is None and put.event is not None}
    assert {key for (key,) in await rows(sql, "SELECT number FROM gadgets WHERE NOT _deleted")} == good
    filed = await rows(
        sql, "SELECT sequence_number::int, stage, reason, payload, attempts FROM tidegate.dead_letter ORDER BY 1"
    )
    assert filed == [(number, *REASONS[put.fault], put.data, 1) for number, put in bad.items() if put.fault]
    await sql.close()


async def test_a_bad_record_does_not_change_what_is_counted_of_the_others(dsn: str) -> None:
    """Both are judged by what the table holds when all is written, however many steps that took."""
    routes = Routes([HOOK], [shape.name for shape in SHAPES])
    late = [change("LATE", version, gadget("LATE", pieces=version)) for version in (1, 2)]
    twice = [change("TWICE", 3, gadget("TWICE")), change("TWICE", 3, gadget("TWICE"))]
    poison = [change("TWICE", version, gadget("TWICE", name="\0")) for version in (2, 4)]
    async with connect(dsn, DatabaseSettings(), "test") as database:
        sink = AuroraSink(database, "counts", SHAPES, dead_letter.file, routes)
        await sink.register(["shard-0"], [], [])
        await sink.open("shard-0", 1)
        assert await sink.write(batch(change("LATE", 5, gadget("LATE"))), 1) == WriteResult(applied=1)
        assert await sink.write(batch(*late, first=10), 1) == WriteResult(stale=1, coalesced=1)
        expected = WriteResult(applied=1, stale=1, coalesced=2, rejected=2)
        assert await sink.write(batch(*late, *twice, *poison, first=20), 1) == expected


async def test_in_strict_order_each_of_many_keys_stops_at_its_own_failure(dsn: str) -> None:
    """A hundred rows of ten changes each, of which the third is bad: two are in, one is filed as a failure, seven wait."""
    sql = await asyncpg.connect(dsn)
    await sql.execute("TRUNCATE gadgets, tidegate.shard, tidegate.dead_letter CASCADE")
    keys = [f"G{number:03}" for number in range(100)]
    events = [
        change(key, version, gadget(key, pieces=TOO_MANY if version == 3 else version))
        for version in range(1, 11)
        for key in keys
    ]
    async with connect(dsn, DatabaseSettings(), "test") as database:
        sink = AuroraSink(database, "stream", STRICT, dead_letter.file)
        await sink.register(["shard-0"], [], [])
        await sink.open("shard-0", 1)
        expected = WriteResult(applied=2 * len(keys), rejected=len(keys), parked=7 * len(keys))
        assert await sink.write(batch(*events), 1) == expected
        assert await sink.write(batch(*events), 1) == WriteResult(
            unchanged=len(keys), coalesced=len(keys), rejected=len(keys), parked=7 * len(keys)
        )
    assert await rows(sql, "SELECT DISTINCT pieces FROM gadgets") == [(2,)]
    counted = "SELECT count(*), count(parked_at), min(attempts), max(attempts) FROM tidegate.dead_letter"
    assert await rows(sql, counted) == [(8 * len(keys), 7 * len(keys), 2, 2)]
    await sql.close()
