"""Housekeeping on a real PostgreSQL: what may go goes, what still keeps something out stays, and nobody waits for it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest
import pytest_asyncio
from prometheus_client import REGISTRY

from local.postgres import Postgres
from tests.integration.worker_rows import SHAPES, batch, change, create_tables, gadget, rows
from tests.integration.worker_stack import wait_for
from tidegate import tables
from tidegate.database import Database, DatabaseSettings, connect
from tidegate.errors import Fatal, TidegateError, Transient
from tidegate.settings import read
from worker import dead_letter
from worker.aurora import AuroraSink
from worker.housekeeping import Housekeeping
from worker.open_letters import OpenLetters
from worker.settings import RetentionSettings, WorkerSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")
module_fixture = pytest_asyncio.fixture(scope="module", loop_scope="module")
fixture = pytest_asyncio.fixture(loop_scope="module")
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

SETTINGS = RetentionSettings(step_rows=10, pause_ms=0)
MONTHS = timedelta(days=70)
NEVER = asyncio.Event()


@module_fixture
async def dsn() -> AsyncIterator[str]:
    async with Postgres() as postgres:
        await create_tables(postgres.dsn)
        connection = await asyncpg.connect(postgres.dsn)
        for shape in SHAPES:
            await connection.execute(tables.tombstone_index(shape))
        # Whoever waits for a lock longer than that fails, and with it the test.
        await connection.execute("ALTER DATABASE postgres SET lock_timeout = '2s'")
        await connection.close()
        yield postgres.dsn


@fixture
async def sql(dsn: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        "TRUNCATE gadgets, counters, tidegate.shard, tidegate.watermark, tidegate.dead_letter, tidegate.erasure"
    )
    yield connection
    await connection.close()


@fixture
async def database(dsn: str, sql: Connection) -> AsyncIterator[Database]:
    async with connect(dsn, DatabaseSettings(), "test") as opened:
        yield opened


@fixture
async def sink(database: Database) -> AuroraSink:
    made = AuroraSink(database, "stream", SHAPES, dead_letter.file)
    await made.register(["shard-0"], [], [])
    await made.open("shard-0", 1)
    return made


async def a_day() -> int:
    return 24


def keeper(database: Database, hours: Any = a_day, settings: RetentionSettings = SETTINGS) -> Housekeeping:
    return Housekeeping(database, SHAPES, settings, hours)


async def bury(sink: AuroraSink, sql: Connection, count: int, age: timedelta = MONTHS) -> None:
    """So many tombstones of that age."""
    await sink.write(batch(*(change(f"G{number:03}", 5, None) for number in range(count))), 1)
    await sql.execute("UPDATE gadgets SET _projected_at = now() - $1::interval WHERE _deleted", age)


async def left(sql: Connection) -> list[str]:
    return [number for (number,) in await rows(sql, "SELECT number FROM gadgets ORDER BY 1")]


async def test_old_tombstones_go_step_by_step_and_nothing_else(
    database: Database, sink: AuroraSink, sql: Connection
) -> None:
    await bury(sink, sql, 35)
    await sink.write(batch(change("live", 1, gadget("live")), change("young", 1, None), first=100), 1)
    await sql.execute("UPDATE gadgets SET _projected_at = now() - $1::interval WHERE number = 'live'", MONTHS)
    almost = timedelta(hours=SETTINGS.tombstones_hours, minutes=-1)
    await sql.execute("UPDATE gadgets SET _projected_at = now() - $1::interval WHERE number = 'young'", almost)
    assert await keeper(database).round(NEVER) == {
        "dead_letter": 0,
        "departure": 0,
        "inbound": 0,
        "gadget": 35,
        "counter": 0,
    }
    assert await left(sql) == ["live", "young"]


async def test_a_tombstone_stays_while_a_letter_of_its_key_could_bring_the_row_back(
    database: Database, sink: AuroraSink, sql: Connection
) -> None:
    await bury(sink, sql, 4)
    # Newer than the tombstone: nothing has resolved them.
    await sink.write(batch(*(change(f"G{n:03}", 6, gadget(f"G{n:03}", pieces="x")) for n in (0, 1, 2)), first=50), 1)
    resolved = "UPDATE tidegate.dead_letter SET resolved_at = now(), replayed_at = now() - $2::interval WHERE key = $1"
    await sql.execute(resolved, "G001", timedelta(hours=SETTINGS.stream_hours - 1))
    await sql.execute(resolved, "G002", timedelta(hours=SETTINGS.stream_hours + 1))
    await keeper(database).round(NEVER)
    assert await left(sql) == ["G000", "G001"], "one is open, one's replay may still be in the stream"


async def test_an_erased_row_stays_for_ever(database: Database, sink: AuroraSink, sql: Connection) -> None:
    await bury(sink, sql, 2)
    await sql.execute("UPDATE gadgets SET _generation = 9223372036854775807 WHERE number = 'G000'")
    await keeper(database).round(NEVER)
    assert await left(sql) == ["G000"]


async def test_resolved_letters_go_and_open_ones_stay_whatever_their_age(
    database: Database, sink: AuroraSink, sql: Connection
) -> None:
    await sink.write(batch(*(change(f"G{n:03}", 2, gadget(f"G{n:03}", pieces="x")) for n in range(40))), 1)
    await sql.execute("UPDATE tidegate.dead_letter SET first_seen_at = now() - $1::interval", MONTHS)
    await sql.execute("UPDATE tidegate.dead_letter SET resolved_at = now() - $1::interval WHERE key < 'G030'", MONTHS)
    await sql.execute("UPDATE tidegate.dead_letter SET resolved_at = now() WHERE key >= 'G038'")
    assert (await keeper(database).round(NEVER))["dead_letter"] == 30
    assert await rows(sql, "SELECT count(*), count(resolved_at) FROM tidegate.dead_letter") == [(10, 2)]


async def test_open_letters_are_counted_with_the_age_of_the_oldest(
    database: Database, sink: AuroraSink, sql: Connection
) -> None:
    """Not the closed ones, and not what is parked."""
    async with OpenLetters(database, interval_s=0.01).watching():
        await wait_for(counted(0))
        await sink.write(batch(*(change(f"G{n:03}", 2, gadget(f"G{n:03}", pieces="x")) for n in range(5))), 1)
        for key, hours in (("G000", 30), ("G001", 20), ("G002", 10)):
            age = timedelta(hours=hours)
            await sql.execute(
                "UPDATE tidegate.dead_letter SET first_seen_at = now() - $2::interval WHERE key = $1", key, age
            )
        await sql.execute("UPDATE tidegate.dead_letter SET resolved_at = now() WHERE key = 'G000'")
        await sql.execute("UPDATE tidegate.dead_letter SET parked_at = now() WHERE key = 'G001'")
        await wait_for(counted(3))
        assert await metered() == (3, 10)
        await sql.execute("UPDATE tidegate.dead_letter SET resolved_at = now()")
        await wait_for(counted(0))
        assert await metered() == (0, 0)


async def test_what_the_stream_says_of_its_retention_is_told(database: Database, sink: AuroraSink) -> None:
    kept = keeper(database, a_year)
    assert REGISTRY.get_sample_value("tidegate_stream_retention_seconds") == SETTINGS.stream_hours * 3600
    await kept.round(NEVER)
    assert REGISTRY.get_sample_value("tidegate_stream_retention_seconds") == await a_year() * 3600


async def metered() -> tuple[float, int]:
    """Open letters, and the hours that the oldest has been open."""
    count = REGISTRY.get_sample_value("tidegate_dead_letters_open")
    age_s = REGISTRY.get_sample_value("tidegate_dead_letters_oldest_seconds")
    assert count is not None
    assert age_s is not None
    return count, round(age_s / 3600)


def counted(letters: int) -> Callable[[], Awaitable[bool]]:
    async def is_counted() -> bool:
        return (await metered())[0] == letters

    return is_counted


async def test_departures_go_when_no_cursor_can_ask_for_them_any_more(database: Database, sql: Connection) -> None:
    await sql.execute(
        "INSERT INTO tidegate.departure (relation, key, xid, seen_by, left_at) SELECT 'gadgets', n::text, n, '{}', "
        "now() - n * interval '1 hour' FROM generate_series(1, 100) AS n"
    )
    assert (await keeper(database).round(NEVER))["departure"] == 29, "after three days"
    assert await rows(sql, "SELECT max(xid) FROM tidegate.departure") == [(71,)]
    await sql.execute("TRUNCATE tidegate.departure")


async def test_arrivals_that_nobody_fetched_go_when_they_are_old(database: Database, sql: Connection) -> None:
    await sql.execute(
        "INSERT INTO tidegate.inbound (identity, event_id, event_type, source, subject, viewers, data, occurred_at, received_at, "
        "filed_at) SELECT n::text, n::text, 'wish', 's', 'u', '{}', '{}', now(), now(), now() - (100 - n) * interval '1 day' "
        "FROM generate_series(1, 40) AS n"
    )
    async with sql.transaction():
        # Whoever is fetching one keeps it; the others do not wait for that.
        await sql.execute("SELECT FROM tidegate.inbound WHERE identity = '3' FOR UPDATE")
        assert (await keeper(database).round(NEVER))["inbound"] == 9, (
            "after 90 days, but for the one that is being fetched"
        )
    assert await rows(sql, "SELECT min(identity::int), count(*) FROM tidegate.inbound") == [(3, 31)]
    assert (await keeper(database).round(NEVER))["inbound"] == 1
    await sql.execute("TRUNCATE tidegate.inbound")


async def a_year() -> int:
    return 8760


async def denied() -> int:
    raise Fatal("no permission to ask")


async def away() -> int:
    raise Transient("throttled")


@pytest.mark.parametrize("hours", [a_year, denied, away])
async def test_tombstones_stay_while_the_stream_keeps_records_longer_or_does_not_say(
    database: Database, sink: AuroraSink, sql: Connection, hours: Any
) -> None:
    await bury(sink, sql, 1)
    assert await keeper(database, hours).round(NEVER) == {"dead_letter": 0, "departure": 0, "inbound": 0}
    assert await left(sql) == ["G000"]


async def test_only_one_worker_keeps_house(database: Database, sink: AuroraSink, sql: Connection) -> None:
    await bury(sink, sql, 3)
    async with sql.transaction():
        await sql.execute("SELECT pg_advisory_xact_lock(hashtextextended('tidegate.housekeeping', 0))")
        assert not any((await keeper(database).round(NEVER)).values())
    assert (await keeper(database).round(NEVER))["gadget"] == 3


async def test_a_row_that_somebody_holds_is_passed_by(
    dsn: str, database: Database, sink: AuroraSink, sql: Connection
) -> None:
    await bury(sink, sql, 5)
    async with sql.transaction():
        await sql.execute("SELECT FROM gadgets WHERE number = 'G002' FOR UPDATE")
        async with asyncio.timeout(20):
            assert (await keeper(database).round(NEVER))["gadget"] == 4
    assert await left(sql) == ["G002"]
    assert (await keeper(database).round(NEVER))["gadget"] == 1


async def test_the_projection_writes_on_while_house_is_kept(
    database: Database, sink: AuroraSink, sql: Connection
) -> None:
    """Two writers bring rows back and delete them, beside two keepers of house, all over the same keys."""
    dice, done, written = random.Random(5), asyncio.Event(), set[int]()
    no_age = RetentionSettings(
        step_rows=7, pause_ms=0, stream_hours=24, replay_hours=0, tombstones_hours=24, letters_hours=24
    )
    await bury(sink, sql, 200)
    await sink.register(["shard-1"], [], [])
    await sink.open("shard-1", 1)

    async def write(shard_id: str) -> None:
        for version in range(6, 30):
            keys = sorted(dice.sample(range(200), 80))
            written.update(keys)
            events = [change(f"G{key:03}", version, None if key % 2 else gadget(f"G{key:03}")) for key in keys]
            result = await sink.write(batch(*events, shard_id=shard_id, first=version * 1000), 1)
            assert sum(result) == len(events)
            await sql_of_age()
            await asyncio.sleep(0)
        done.set()

    async def sql_of_age() -> None:
        async with database.transaction("make tombstones old") as connection:
            await connection.execute(
                "UPDATE gadgets SET _projected_at = now() - $1::interval WHERE number = ANY (ARRAY("
                "SELECT number FROM gadgets WHERE _deleted ORDER BY number FOR UPDATE SKIP LOCKED))", MONTHS,
            )  # fmt: skip

    async def keep() -> int:
        deleted = 0
        while not done.is_set():
            deleted += (await keeper(database, settings=no_age).round(NEVER)).get("gadget", 0)
            await asyncio.sleep(0)
        return deleted

    async with asyncio.TaskGroup() as group:
        keepers = [group.create_task(keep()) for _ in range(2)]
        for shard_id in ("shard-0", "shard-1"):
            group.create_task(write(shard_id))
    assert sum(task.result() for task in keepers) > 0, "there was something to do, and it was done meanwhile"
    await keeper(database, settings=no_age).round(NEVER)
    assert await left(sql) == [f"G{key:03}" for key in sorted(written) if key % 2 == 0], "and nothing but that"


async def test_a_stop_ends_it_between_two_steps(database: Database, sink: AuroraSink, sql: Connection) -> None:
    await bury(sink, sql, 35)
    stop = asyncio.Event()
    stop.set()
    assert not any((await keeper(database).round(stop)).values())
    async with asyncio.timeout(5):
        await keeper(database).run(stop)
    assert len(await left(sql)) == 35


async def test_it_runs_by_itself_and_a_failure_is_left_to_the_next_round(
    database: Database, sink: AuroraSink, sql: Connection
) -> None:
    await bury(sink, sql, 3)
    stop = asyncio.Event()
    await sql.execute("ALTER TABLE gadgets RENAME TO away")
    quick = RetentionSettings(interval_s=0.02)
    asked = asyncio.Event()

    async def hours() -> int:
        asked.set()
        return 24

    with pytest.raises(ExceptionGroup) as ended:
        async with keeper(database, hours, quick).keeping(stop):
            await asyncio.sleep(10)
    assert ended.group_contains(Fatal, match="run `tidegate migrate`"), "what was not migrated ends the process"
    await sql.execute("ALTER TABLE away RENAME TO gadgets")
    async with sql.transaction():
        await sql.execute("LOCK TABLE gadgets IN ACCESS EXCLUSIVE MODE")
        asked.clear()
        task = asyncio.create_task(
            keeper(database, hours, RetentionSettings(interval_s=0.02, statement_timeout_ms=50)).run(stop)
        )
        await asked.wait()
        asked.clear()
        await asked.wait()
    async with asyncio.timeout(10):
        while await left(sql):
            await asyncio.sleep(0.02)
    stop.set()
    await task


REQUIRED = {"TIDEGATE_STREAM": "s", "TIDEGATE_BUBBLE": "b", "TIDEGATE_DATABASE_URL": "u", "TIDEGATE_LEASE_TABLE": "l"}


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("TOMBSTONES_HOURS", "335", "less than STREAM_HOURS and REPLAY_HOURS together, 336: an event from before a deletion"),
        ("STREAM_HOURS", "8760", "could come again after its tombstone is gone"),
        ("LETTERS_HOURS", "167", "less than STREAM_HOURS, 168: a record that is still in the stream could be read again"),
    ],
)  # fmt: skip
async def test_a_retention_that_could_resurrect_a_row_is_refused_with_the_reason(
    name: str, value: str, text: str
) -> None:
    with pytest.raises(TidegateError) as refused:
        read(WorkerSettings, {**REQUIRED, f"TIDEGATE_RETENTION_{name}": value})
    assert text in str(refused.value)
    assert (
        read(WorkerSettings, {**REQUIRED, "TIDEGATE_RETENTION_TOMBSTONES_HOURS": "336"}).retention.tombstones_hours
        == 336
    )
