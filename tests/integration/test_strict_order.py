"""Strict order per key on a real PostgreSQL: what follows a dead letter waits, the rest goes on, nothing overtakes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

import asyncpg
import pytest
import pytest_asyncio
from msgspec.structs import replace

from local.postgres import Postgres
from tests.integration.strict_world import (
    CHECK,
    FAILED,
    MANY,
    MEND,
    OPEN,
    PARKED,
    ROUTES,
    STEP,
    STRICT,
    Connection,
    World,
    drop,
    good,
    invalid,
    refused,
)
from tests.integration.worker_rows import (
    DECODER,
    NOW,
    SHAPES,
    batch,
    change,
    create_tables,
    gadget,
    quarantined,
    rows,
    watermark,
)
from tidegate import codec, letters
from tidegate.codec import TypedChange
from tidegate.database import Database, DatabaseSettings, connect
from tidegate.erasure import Erasure
from tidegate.errors import Rejected, Superseded, Transient
from tidegate.event import ChangeEvent, EntityKey
from tidegate.letter import event_identity
from tidegate.letters import Selection
from tidegate.replay import record_of
from worker import dead_letter
from worker.aurora import AuroraSink
from worker.batch import Item, Record
from worker.decode import rejected
from worker.drain import Drain
from worker.ports import DrainStep, WriteResult
from worker.routes import NO_ROUTES
from worker.settings import DrainSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")
fixture = pytest_asyncio.fixture(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def dsn() -> AsyncIterator[str]:
    async with Postgres() as postgres:
        await create_tables(postgres.dsn)
        yield postgres.dsn


@fixture
async def sql(dsn: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(dsn)
    tables = "shard, tidegate.watermark, tidegate.dead_letter, tidegate.outbox, tidegate.erasure"
    await connection.execute(f"TRUNCATE gadgets, counters, tidegate.{tables}; {CHECK}")
    yield connection
    await connection.close()


@fixture
async def database(dsn: str, sql: Connection) -> AsyncIterator[Database]:
    async with connect(dsn, DatabaseSettings(), "test") as made:
        yield made


@fixture
async def world(database: Database, sql: Connection) -> World:
    return await World(database, sql, ROUTES).begin()


FAULTS = {"refused by the table": refused(2), "refused by the decoder": invalid(2)}


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_what_follows_waits_and_the_rest_goes_on(world: World, fault: ChangeEvent, together: bool) -> None:
    events = [good(1), fault, good(3), good(1, "B"), good(4), good(2, "B"), watermark(NOW)]
    if together:
        assert (await world.put(*events))[3:] == (0, 1, 2)
    else:
        for event in events:
            await world.put(event)
    assert [await world.row(), await world.row("B")] == [1, 2]
    assert await world.versions(PARKED) == [3, 4]
    assert await world.versions(OPEN) == [2]
    payloads = await rows(
        world.sql, "SELECT payload FROM tidegate.dead_letter WHERE parked_at IS NOT NULL ORDER BY version"
    )
    assert payloads == [(codec.encode(good(3)),), (codec.encode(good(4)),)], "whole"
    assert await rows(world.sql, "SELECT as_of FROM tidegate.data_as_of('{gadgets}')") == [(None,)]
    assert await world.drained() == 0
    # What is older is not later.
    assert await world.put(good(1)) == WriteResult(unchanged=1)


async def test_each_change_is_tried_also_where_a_newer_one_in_the_batch_would_do(
    database: Database, sql: Connection
) -> None:
    """Nobody is told of anything, so of another entity only the newest would be written."""
    world = await World(database, sql, NO_ROUTES).begin()
    expected = WriteResult(applied=2, rejected=1, parked=1)
    assert await world.put(good(1), refused(2), good(3), good(1, "B")) == expected
    assert [await world.row(), await world.versions(OPEN), await world.versions(PARKED)] == [1, [2], [3]]
    assert await world.put(good(2, "B"), good(3, "B")) == WriteResult(applied=2)


async def test_without_strict_order_nothing_waits(database: Database, sql: Connection) -> None:
    sink = AuroraSink(database, "stream", SHAPES, dead_letter.file)
    await sink.register(["shard-0"], [], [])
    await sink.open("shard-0", 1)
    assert await sink.write(batch(good(1), refused(2), good(3)), 1) == WriteResult(applied=1, coalesced=2)
    assert await sink.write(batch(refused(4), first=10), 1) == WriteResult(rejected=1)
    assert await sink.write(batch(good(5), first=20), 1) == WriteResult(applied=1)
    assert await rows(sql, "SELECT resolution, parked_at FROM tidegate.dead_letter") == [("superseded", None)]


async def test_the_replayed_record_passes_and_what_waited_follows_in_order(world: World) -> None:
    events = [good(1), refused(2), good(4), good(3), change("A", 5, None), good(6)]
    for event in events:
        await world.put(event)
    await world.sql.execute(MEND)
    assert await world.put(events[1]) == WriteResult(applied=1)
    assert await world.row() == 2
    # Before a worker has come to it, what arrives waits too.
    assert await world.put(good(7)) == WriteResult(parked=1)
    assert await world.drained() == 5
    assert await world.row() == 7
    expected = sorted([*events, good(7)], key=lambda event: event.version)
    assert await world.told() == [event.event_id for event in expected]
    assert await world.versions(PARKED) == await world.versions(OPEN) == []
    assert await world.put(good(8)) == WriteResult(applied=1)
    # The whole stream once more, as from an old checkpoint.
    told = await world.told()
    await world.put(*events, good(7))
    assert await world.told() == told
    assert await world.versions(PARKED) == await world.versions(OPEN) == []


async def test_the_records_read_again_while_they_wait_are_the_same_letters(world: World) -> None:
    events = [good(1), refused(2), good(3), good(4)]
    for _ in range(3):
        await world.put(*events)
    found = await rows(world.sql, "SELECT version[2], attempts, parked_at IS NULL FROM tidegate.dead_letter ORDER BY 1")
    assert found == [(2, 3, True), (3, 3, False), (4, 3, False)]


async def test_a_person_drops_the_failure_and_the_rest_follows(world: World, database: Database) -> None:
    await world.put(good(1), invalid(2), good(3), invalid(4), good(5))
    assert [await world.versions(PARKED), await world.versions(OPEN)] == [[3, 5], [2, 4]]
    await drop(database, 2)
    assert await world.drained() == 1
    assert [await world.row(), await world.versions(PARKED), await world.versions(OPEN)] == [3, [5], [4]]
    # The dropped one is read once more: a person has judged it.
    await world.put(invalid(2), good(6))
    assert [await world.versions(PARKED), await world.versions(OPEN)] == [[5, 6], [4]]
    await drop(database, 4)
    assert await world.drained() == 2
    assert await world.row() == 6


async def test_a_replay_behind_an_older_failure_waits_for_it(world: World, database: Database) -> None:
    await world.put(good(1), refused(5), good(6))
    # It was on its way for long.
    await world.put(invalid(3))
    assert await world.versions(OPEN) == [3, 5]
    await world.sql.execute(MEND)
    assert await world.put(refused(5)) == WriteResult(parked=1)
    assert [await world.versions(OPEN), await world.versions(PARKED)] == [[3], [5, 6]]
    await drop(database, 3)
    assert await world.drained() == 2
    assert await world.row() == 6


async def test_a_parked_change_that_fails_in_its_turn_holds_up_the_rest(world: World) -> None:
    await world.put(good(1), invalid(2), good(3), refused(4), good(5))
    await world.sql.execute(
        "UPDATE tidegate.dead_letter SET resolved_at = now(), resolution = 'dropped' WHERE version[2] = 2"
    )
    assert await world.drained() == 2
    assert [await world.row(), await world.versions(OPEN), await world.versions(PARKED)] == [3, [4], [5]]
    [(stage, reason, attempts, payload)] = await rows(
        world.sql, "SELECT stage, reason, attempts, payload FROM tidegate.dead_letter WHERE version[2] = 4"
    )
    assert (stage, reason, attempts, payload) == ("write", "check_violation", 2, codec.encode(refused(4)))
    assert await world.drained() == 0
    await world.sql.execute(MEND)
    assert await world.put(refused(4)) == WriteResult(applied=1)
    assert await world.drained() == 1
    assert await world.row() == 5


async def test_a_parked_change_that_no_release_can_read_any_more_is_a_failure_again(world: World) -> None:
    await world.put(invalid(2), good(3), good(4))
    await world.sql.execute("UPDATE tidegate.dead_letter SET resolved_at = now() WHERE version[2] = 2")

    def decode(records: Sequence[Record]) -> list[Item]:
        error = Rejected("invalid", "another release reads it otherwise")
        items = DECODER.decode_all(records)
        return [
            rejected(record.position, item, record.data, stage="decode", error=error)
            if isinstance(item, TypedChange) and item.version == good(3).version
            else item
            for record, item in zip(records, items, strict=True)
        ]

    assert await Drain(world.sink, decode, DrainSettings()).round(asyncio.Event()) == 1
    assert [await world.row(), await world.versions(PARKED)] == [None, [4]]
    assert await rows(world.sql, f"SELECT stage, reason, attempts {FAILED}") == [("decode", "invalid", 2)]


async def test_a_key_that_moves_to_another_shard_takes_its_letters_along(world: World) -> None:
    await world.put(good(1), refused(2), good(3))
    await world.sink.register([], [("shard-0", "shard-1")], [])
    await world.sink.end("shard-0", 1, ["shard-1"])
    assert await world.put(good(4), shard_id="shard-1") == WriteResult(parked=1)
    await world.sql.execute(MEND)
    assert await world.put(refused(2), shard_id="shard-1") == WriteResult(applied=1)
    assert await world.drained() == 2
    assert await world.row() == 4


async def test_a_zombie_parks_nothing(world: World) -> None:
    await world.put(good(1), refused(2))
    await world.sink.open("shard-0", 2)
    with pytest.raises(Superseded):
        await world.put(good(3))
    assert await world.versions(PARKED) == []


async def test_a_row_that_the_poller_could_not_translate_holds_up_what_was_read_later(
    world: World, database: Database
) -> None:
    def seen(event: ChangeEvent, seconds: int) -> ChangeEvent:
        return replace(event, observed_at=NOW + timedelta(seconds=seconds))

    await world.put(good(1), quarantined("A", observed_at=NOW + timedelta(seconds=5)), seen(good(3), 6))
    assert [await world.row(), await world.versions(PARKED)] == [1, [3]]
    assert await world.put(seen(good(2), 4)) == WriteResult(applied=1), "it was read before the row"
    assert await world.put(seen(good(4), 9)) == WriteResult(parked=1)
    assert await world.drained() == 0
    async with database.transaction("drop") as connection:
        await letters.drop(connection, Selection(stage="translate"), "somebody", 2**62)
    assert await world.drained() == 2
    assert await world.row() == 4


async def test_an_edited_failure_and_an_edited_parked_change_are_what_is_written(
    world: World, database: Database
) -> None:
    await world.put(good(1), invalid(2), good(3), good(4))
    found = {letter.version[1]: letter for letter in await _all(database) if letter.version}
    for version, pieces in ((2, 20), (3, 30)):
        event = change("A", version, gadget("A", pieces=pieces))
        record = codec.encode(event)
        async with database.transaction("edit") as connection:
            await letters.edit(connection, found[version].id, record, event, event_identity(record) or "", "somebody")
    with pytest.raises(Rejected, match="follows by itself"):
        record_of((await _all(database))[1])
    [edited] = [letter for letter in await _all(database) if letter.id == found[2].id]
    assert await world.put(record_of(edited)[0].data) == WriteResult(applied=1)
    assert await world.drained() == 2
    shown = [
        codec.decode(payload) for (payload,) in await rows(world.sql, "SELECT payload FROM tidegate.outbox ORDER BY id")
    ]
    assert [event.payload["pieces"] for event in shown if isinstance(event, ChangeEvent) and event.payload] == [
        1,
        20,
        30,
        4,
    ]
    assert {letter.resolution for letter in await _all(database)} == {"written", "superseded"}


async def _all(database: Database) -> list[letters.Letter]:
    async with database.transaction("read") as connection:
        return await letters.find(connection, Selection(resolved=True), 100)


async def test_an_edit_in_the_middle_of_a_drain_is_not_passed_over(world: World, database: Database, dsn: str) -> None:
    """The row is locked by somebody, so the drain has read the letter and waits; then the letter is edited."""
    await world.put(good(1), invalid(2), good(3))
    await drop(database, 2)
    event = change("A", 3, gadget("A", pieces=33))
    record = codec.encode(event)
    [parked] = [letter for letter in await _all(database) if letter.parked_at]
    other = await asyncpg.connect(dsn)
    async with other.transaction():
        await other.execute("SELECT FROM gadgets WHERE number = 'A' FOR UPDATE")
        drain = asyncio.create_task(world.sink.drain(EntityKey("gadget", "A"), DECODER.decode_all, STEP))
        await _is_waiting(world.sql)
        async with database.transaction("edit") as connection:
            await letters.edit(connection, parked.id, record, event, event_identity(record) or "", "somebody")
    with pytest.raises(Transient, match="edited"):
        await drain
    await other.close()
    assert await world.drained() == 1
    assert await rows(world.sql, "SELECT pieces FROM gadgets") == [(33,)]


async def _is_waiting(sql: Connection) -> None:
    """Returns when some session waits for a row."""
    async with asyncio.timeout(10):
        while not await sql.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"):
            await asyncio.sleep(0.01)


async def test_an_erased_key_leaves_nothing_parked_and_nothing_comes_back(world: World, database: Database) -> None:
    await world.put(good(1), invalid(2), good(3), good(1, "B"), invalid(2, "B"), good(3, "B"))
    erased = await Erasure(database, STRICT[0], "A").erase("somebody")
    assert erased.dead_letters == 2
    assert await world.put(good(3), good(4)) == WriteResult(stale=1, coalesced=1)
    assert await world.put(invalid(5), good(6)) == WriteResult(rejected=1, stale=1)
    assert await rows(world.sql, "SELECT key FROM tidegate.dead_letter ORDER BY id") == [("B",), ("B",)]


async def test_a_late_failure_of_a_row_that_is_newer_holds_up_nothing(world: World) -> None:
    await world.put(good(5))
    assert await world.put(invalid(3), refused(4)) == WriteResult(rejected=2)
    assert [await world.versions(OPEN), await world.put(good(6))] == [[], WriteResult(applied=1)]


async def test_a_failure_from_before_strict_order_that_misses_nothing_is_closed(world: World) -> None:
    """An older release filed it when the row was newer already, and nobody has closed it since."""
    await world.put(good(5), good(5, "B"), invalid(6, "B"), good(7, "B"))
    await world.put(invalid(3))
    await world.sql.execute("UPDATE tidegate.dead_letter SET resolved_at = NULL, resolution = NULL")
    assert await world.put(good(6)) == WriteResult(parked=1)
    assert await world.drained() == 0
    await world.sink.settle()
    assert await world.drained() == 1
    assert [await world.row(), await world.versions(OPEN), await world.versions(PARKED)] == [6, [6], [7]]


async def test_a_step_takes_so_many_letters_or_bytes(world: World, database: Database) -> None:
    await world.put(good(1), invalid(2), *map(good, range(3, 13)))
    await drop(database, 2)
    key, decode = EntityKey("gadget", "A"), DECODER.decode_all
    assert await world.sink.drain(key, decode, DrainStep(4, 4_000_000)) == WriteResult(applied=4)
    size = len(codec.encode(good(7)))
    assert await world.sink.drain(key, decode, DrainStep(200, size * 2 + 1)) == WriteResult(applied=3)
    assert await world.sink.drain(key, decode, DrainStep(200, 1)) == WriteResult(applied=1)
    assert [await world.row(), await world.drained(), await world.row()] == [10, 2, 12]
    assert await world.sink.drain(key, decode, STEP) == WriteResult()


async def test_what_waits_is_counted_and_said(world: World, database: Database) -> None:
    await world.put(good(1), invalid(2), good(3), invalid(4), good(5), invalid(7, "B"), good(1, "C"))
    assert {name: count for name, (count, _) in (await world.sink.look()).items()} == {"gadget": 2}
    async with database.transaction("look") as connection:
        found = await letters.find(connection, Selection(), 100)
        behind = await letters.waiting(connection, found)
        [group] = await letters.groups(connection, Selection(parked=False), 10)
        parked = await letters.find(connection, Selection(parked=True), 100)
        before = [await letters.holding(connection, letter) for letter in parked]
    number = {(letter.key, letter.version[1]): letter.id for letter in found if letter.version}
    assert behind == {number["A", 2]: 2, number["A", 4]: 1}
    assert (group.letters, group.waiting) == (3, 2)
    assert [letter.state for letter in parked] == ["parked", "parked"]
    assert sorted(before) == [[number["A", 2]], [number["A", 2], number["A", 4]]]


async def test_writers_and_drains_that_race_lose_nothing_and_keep_the_order(world: World, database: Database) -> None:
    """One writes and parks, one drops whatever fails, two drain; each change is told once, in order."""
    dice, keys, stop = random.Random(7), "KLMNO", asyncio.Event()
    events = [(refused if dice.random() < 0.1 else good)(version, key) for version in range(1, 61) for key in keys]

    async def write() -> None:
        for start in range(0, len(events), 6):
            await world.put(*events[start : start + 6])

    async def drop_all() -> None:
        while not stop.is_set():
            async with database.transaction("drop") as connection:
                await letters.drop(connection, Selection(parked=False), "somebody", 2**62)
            await asyncio.sleep(0)

    async def drain() -> None:
        while not stop.is_set():
            await world.drained()

    async with asyncio.TaskGroup() as group:
        for task in (drop_all, drain, drain):
            group.create_task(task())
        await write()
        stop.set()
    async with database.transaction("drop") as connection:
        await letters.drop(connection, Selection(parked=False), "somebody", 2**62)
    await world.drained()
    while await world.versions(OPEN):
        await world.sql.execute("UPDATE tidegate.dead_letter SET resolved_at = now() WHERE parked_at IS NULL")
        await world.drained()
    told = await world.told()
    for key in keys:
        expected = [
            event.event_id for event in events if event.key.key == key and (event.payload or {})["pieces"] < MANY
        ]
        assert [event_id for event_id in told if event_id in set(expected)] == expected
    assert len(told) == sum((event.payload or {})["pieces"] < MANY for event in events)
    assert await world.versions(PARKED) == []
