"""The sink on a real PostgreSQL: versions, tombstones, counts, poison, fences and watermarks."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TypeAlias
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio

from local import provision
from local.postgres import Postgres
from tests.integration.worker_rows import (
    NOW,
    SHAPES,
    batch,
    change,
    create_tables,
    gadget,
    rows,
    watermark,
)
from tidegate import bubble, codec
from tidegate.database import DatabaseSettings, connect
from tidegate.errors import Fatal, Superseded, Transient
from tidegate.event import StreamEvent
from worker import dead_letter
from worker.aurora import AuroraSink
from worker.batch import BatchBuilder, BatchLimits, DeadLetter, Position, Record
from worker.decode import Decoder
from worker.ports import ShardState, WriteResult

pytestmark = pytest.mark.asyncio(loop_scope="module")
module_fixture = pytest_asyncio.fixture(scope="module", loop_scope="module")
fixture = pytest_asyncio.fixture(loop_scope="module")
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


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
async def sink(dsn: str, sql: Connection) -> AsyncIterator[AuroraSink]:
    async with connect(dsn, DatabaseSettings(), "test") as database:
        made = AuroraSink(database, "stream", SHAPES, dead_letter.file)
        await made.check()
        await made.register(["shard-0"], [], [])
        await made.open("shard-0", 1)
        yield made


async def test_every_kind_of_column_is_stored_as_it_came(sink: AuroraSink, sql: Connection) -> None:
    assert await sink.write(batch(change("A", 1, gadget("A"))), 1) == WriteResult(applied=1)
    stored = (await sql.fetch("SELECT * FROM gadgets"))[0]
    assert tuple(stored)[:12] == (
        "A", "gadget A", "red", 3, 0.5, Decimal("12.50"), True, date(2026, 11, 20),
        datetime(2026, 11, 21, 5, 55, 3, tzinfo=UTC), UUID("7f1c3f0e-9d3b-4a52-8f7e-0a4d3c1b2a10"), None, 1,
    )  # fmt: skip
    assert tuple(stored)[12:18] == (0, 1, 1, 1, 1, False)
    assert str(stored["price"]) == "12.50"


async def test_the_newest_version_wins_in_any_order_of_arrival(sink: AuroraSink, sql: Connection) -> None:
    events = [change("A", version, gadget("A", pieces=version)) for version in range(1, 8)]
    random.Random(7).shuffle(events)
    total = WriteResult()
    for number, event in enumerate(events, 1):
        result = await sink.write(batch(event, first=number), 1)
        total = WriteResult(*(one + other for one, other in zip(total, result, strict=True)))
    assert sum(total) == 7
    assert total.stale == 7 - total.applied > 0
    assert await sql.fetchval("SELECT pieces FROM gadgets") == 7


async def test_the_same_batch_twice_is_once(sink: AuroraSink, sql: Connection) -> None:
    whole = batch(*(change(f"G{n}", 1, gadget(f"G{n}")) for n in range(50)), change("G7", 2, None), b"poison")
    assert await sink.write(whole, 1) == WriteResult(applied=50, coalesced=1, rejected=1)
    before = await rows(sql, "SELECT * FROM gadgets ORDER BY number")
    assert await sink.write(whole, 1) == WriteResult(unchanged=50, coalesced=1, rejected=1)
    assert await rows(sql, "SELECT * FROM gadgets ORDER BY number") == before
    assert await rows(sql, "SELECT reason, attempts FROM tidegate.dead_letter") == [("undecodable", 2)]


async def test_a_late_update_does_not_resurrect_a_tombstone(sink: AuroraSink, sql: Connection) -> None:
    await sink.write(batch(change("A", 1, gadget("A"))), 1)
    assert await sink.write(batch(change("A", 2, None, read=5), first=2), 1) == WriteResult(applied=1)
    late = batch(change("A", 2, gadget("A", pieces=9), read=4), first=3)
    assert await sink.write(late, 1) == WriteResult(stale=1)
    assert await rows(sql, "SELECT _deleted, name, pieces FROM gadgets") == [(True, None, None)]
    born_again = batch(change("A", 3, gadget("A", pieces=4)), first=4)
    assert await sink.write(born_again, 1) == WriteResult(applied=1)
    assert await rows(sql, "SELECT _deleted, pieces FROM gadgets") == [(False, 4)]


async def test_a_tombstone_may_come_before_any_content(sink: AuroraSink, sql: Connection) -> None:
    assert await sink.write(batch(change("17", 5, None, entity="counter")), 1) == WriteResult(applied=1)
    early = batch(change("17", 4, {"number": 17, "total": 1}, entity="counter"), first=2)
    assert await sink.write(early, 1) == WriteResult(stale=1)
    assert await rows(sql, "SELECT number, total, _deleted FROM counters") == [(17, None, True)]


async def test_same_content_moves_only_the_version(sink: AuroraSink, sql: Connection) -> None:
    await sink.write(batch(change("A", 1, gadget("A"))), 1)
    kept = "SELECT _event_id, _occurred_at, _projected_at FROM gadgets"
    before = await rows(sql, kept)
    assert await sink.write(batch(change("A", 1, gadget("A"), read=9), first=2), 1) == WriteResult(unchanged=1)
    assert await rows(sql, kept) == before
    assert await rows(sql, "SELECT _source_version, _read FROM gadgets") == [(1, 9)]
    tombstones = [batch(change("A", 2, None, read=read), first=read) for read in (10, 11)]
    assert [await sink.write(each, 1) for each in tombstones] == [WriteResult(applied=1), WriteResult(unchanged=1)]


async def test_results_sum_to_what_was_delivered(sink: AuroraSink) -> None:
    dice = random.Random(11)
    position = 1
    for _ in range(30):
        events: list[object] = []
        for _ in range(dice.randrange(1, 40)):
            key = f"K{dice.randrange(12)}"
            bad = dice.random()
            payload = gadget(key, pieces=dice.randrange(3), name="nul\0" if bad < 0.05 else "fine")
            event: object = change(key, dice.randrange(1, 20), None if dice.random() < 0.2 else payload)
            events.append(b"{" if bad > 0.95 else event)
        whole = batch(*events, first=position)  # type: ignore[arg-type]
        result = await sink.write(whole, 1)
        assert sum(result) == whole.delivered == len(events)
        position += len(events)


POISON: dict[str, dict[str, object]] = {
    "NUL": {"name": "a\0b"},
    "number out of range": {"pieces": 2**63},
    "float out of range": {"ratio": 10**400},
}


async def test_poison_is_filed_alone_and_the_rest_goes_on(sink: AuroraSink, sql: Connection) -> None:
    bad = [change(f"bad{n}", 1, gadget(f"bad{n}", **fields)) for n, fields in enumerate(POISON.values())]
    good = [change(f"good{n:03}", 1, gadget(f"good{n:03}")) for n in range(200)]
    # Too long for the index, and random so that it cannot be compressed.
    long_key = random.Random(3).randbytes(5_000).hex()
    mixed = [*good[:120], *bad, change(long_key, 1, gadget(long_key)), *good[120:], change("X", 1, {"number": "X"})]
    result = await sink.write(batch(*mixed, watermark(NOW)), 1)
    assert result == WriteResult(applied=200, rejected=5)
    filed = await rows(sql, "SELECT stage, reason, key FROM tidegate.dead_letter ORDER BY sequence_number")
    assert [(stage, key) for stage, _, key in filed] == [
        ("write", "bad0"), ("write", "bad1"), ("decode", "bad2"), ("write", long_key[:512]), ("decode", "X"),
    ]  # fmt: skip
    assert [reason for _, reason, _ in filed] == [
        "character_not_in_repertoire", "numeric_value_out_of_range", "invalid", "program_limit_exceeded", "invalid",
    ]  # fmt: skip
    assert await sql.fetchval("SELECT count(*) FROM tidegate.watermark") == 1


async def test_the_record_before_a_poisonous_one_is_not_lost_with_it(sink: AuroraSink, sql: Connection) -> None:
    older, poison = change("A", 1, gadget("A", pieces=1)), change("A", 2, gadget("A", name="\0"))
    assert await sink.write(batch(older, poison), 1) == WriteResult(applied=1, rejected=1)
    assert await rows(sql, "SELECT pieces FROM gadgets") == [(1,)]


async def test_a_row_that_the_table_refuses_is_filed(sink: AuroraSink, sql: Connection) -> None:
    await sql.execute("ALTER TABLE counters ADD CONSTRAINT small CHECK (total < 100)")
    try:
        events = [change(str(n), 1, {"number": n, "total": n}, entity="counter") for n in (1, 100, 2, 300)]
        assert await sink.write(batch(*events), 1) == WriteResult(applied=2, rejected=2)
    finally:
        await sql.execute("ALTER TABLE counters DROP CONSTRAINT small")
    filed = await rows(sql, "SELECT reason, key, payload FROM tidegate.dead_letter ORDER BY sequence_number")
    assert [(reason, key) for reason, key, _ in filed] == [("check_violation", "100"), ("check_violation", "300")]
    assert b'"total":100' in filed[0][2]


async def test_the_fence_refuses_a_lower_counter_and_writes_nothing(sink: AuroraSink, sql: Connection) -> None:
    await sink.write(batch(change("A", 1, gadget("A"))), 5)
    with pytest.raises(Superseded):
        await sink.write(batch(change("B", 1, gadget("B")), first=2), 4)
    with pytest.raises(Superseded):
        await sink.end("shard-0", 4, ["shard-1"])
    with pytest.raises(Superseded):
        await sink.note(
            "shard-0", 4, DeadLetter(position=Position(0, -1), stage="read", reason="gap", message="", payload=b"")
        )
    assert await rows(sql, "SELECT number FROM gadgets") == [("A",)]
    assert await rows(sql, "SELECT shard_id, lease_counter FROM tidegate.shard") == [("shard-0", 5)]


async def test_opening_raises_the_fence_and_tells_the_committed_position(sink: AuroraSink) -> None:
    await sink.write(batch(change("A", 1, gadget("A")), change("B", 1, gadget("B"))), 3)
    assert await sink.open("shard-0", 7) == ShardState(Position(2, 0), 7)
    assert await sink.open("shard-0", 6) == ShardState(Position(2, 0), 7), "a late opener changes nothing"
    assert await sink.open("shard-0", 6, replaces=7) == ShardState(Position(2, 0), 6), "after proof it does"
    with pytest.raises(Superseded):
        await sink.write(batch(change("A", 2, gadget("A"))), 5)


async def test_a_replay_of_older_positions_is_accepted_and_the_position_stays(sink: AuroraSink) -> None:
    """After a crash between commit and checkpoint the database is ahead of what is read again."""
    events = [change(f"G{n}", 1, gadget(f"G{n}")) for n in range(6)]
    await sink.write(batch(*events), 1)
    assert await sink.write(batch(*events[:3]), 2) == WriteResult(unchanged=3)
    assert await sink.open("shard-0", 2) == ShardState(Position(6, 0), 2)


async def test_watermarks_move_forward_only(sink: AuroraSink, sql: Connection) -> None:
    late, later = NOW + timedelta(seconds=1), NOW + timedelta(seconds=2)
    await sink.write(batch(watermark(late), watermark(NOW), watermark(NOW, "others")), 1)
    await sink.write(batch(watermark(NOW), first=4), 1)
    assert await rows(sql, "SELECT source, as_of FROM tidegate.watermark ORDER BY 1") == [
        ("gadgets", late),
        ("others", NOW),
    ]
    await sink.write(batch(watermark(later), first=5), 1)
    assert await sql.fetchval("SELECT as_of FROM tidegate.watermark WHERE source = 'gadgets'") == later


async def test_children_of_a_split_inherit_the_watermarks_once(sink: AuroraSink, sql: Connection) -> None:
    await sink.write(batch(watermark(NOW)), 1)
    await sink.end("shard-0", 1, ["shard-1", "shard-2"])
    marks = "SELECT shard_id, as_of FROM tidegate.watermark ORDER BY 1"
    assert await rows(sql, marks) == [("shard-1", NOW), ("shard-2", NOW)]
    newer = NOW + timedelta(seconds=9)
    await sink.write(batch(watermark(newer), shard_id="shard-1"), 1)
    await sink.end("shard-0", 1, ["shard-1", "shard-2"])
    assert await rows(sql, marks) == [("shard-1", newer), ("shard-2", NOW)]
    assert await rows(sql, "SELECT shard_id FROM tidegate.shard ORDER BY 1") == [("shard-1",), ("shard-2",)]


async def test_the_child_of_a_merge_inherits_the_older_watermark(sink: AuroraSink, sql: Connection) -> None:
    await sink.register(["shard-1"], [], [])
    await sink.open("shard-1", 1)
    older = NOW - timedelta(seconds=30)
    await sink.write(batch(watermark(NOW)), 1)
    await sink.write(batch(watermark(older), shard_id="shard-1"), 1)
    await sink.end("shard-0", 1, ["shard-2"])
    await sink.end("shard-1", 1, ["shard-2"])
    assert await rows(sql, "SELECT shard_id, as_of FROM tidegate.watermark") == [("shard-2", older)]


async def test_an_ended_shard_does_not_come_back_and_an_older_database_is_noticed(
    sink: AuroraSink, sql: Connection
) -> None:
    await sink.write(batch(watermark(NOW)), 1)
    await sink.end("shard-0", 1, ["shard-1"])
    lineage = [("shard-0", "shard-1")]
    assert await sink.register(["shard-0", "shard-1"], lineage, []) == []
    assert await rows(sql, "SELECT shard_id FROM tidegate.shard") == [("shard-1",)], (
        "its list of leases was a moment old"
    )
    assert await sink.register(["shard-0", "shard-1"], [], []) == []
    assert await sink.register(["shard-1"], lineage, ["shard-0"]) == []
    assert await rows(sql, "SELECT shard_id, as_of FROM tidegate.watermark") == [("shard-1", NOW)]
    assert await rows(sql, "SELECT shard_id FROM tidegate.shard") == [("shard-1",)]
    await sink.write(batch(change("A", 1, gadget("A")), shard_id="shard-1"), 1)
    assert await sink.register([], lineage, ["shard-0", "shard-1"]) == ["shard-1"]


async def test_a_shard_that_ended_takes_no_more_batches(sink: AuroraSink) -> None:
    await sink.end("shard-0", 1, ["shard-1"])
    assert await sink.open("shard-0", 2) is None
    with pytest.raises(Superseded):
        await sink.write(batch(change("A", 1, gadget("A"))), 1)


async def test_two_writers_of_the_same_rows_do_not_deadlock(sink: AuroraSink, sql: Connection) -> None:
    await sink.register(["shard-1"], [], [])
    await sink.open("shard-1", 1)
    keys = [f"G{n:03}" for n in range(300)]

    async def write(shard_id: str, offset: int) -> None:
        for round_number in range(8):
            mixed = random.Random(offset + round_number).sample(keys, len(keys))
            events = [change(key, round_number * 2 + offset, gadget(key, pieces=round_number)) for key in mixed]
            await sink.write(batch(*events, shard_id=shard_id), 1)

    await asyncio.gather(write("shard-0", 1), write("shard-1", 2))
    assert await rows(sql, "SELECT DISTINCT _source_version FROM gadgets") == [(16,)]


async def test_a_missing_table_is_fatal_and_says_what_to_do(sink: AuroraSink, sql: Connection) -> None:
    await sql.execute("ALTER TABLE counters RENAME COLUMN total TO sum")
    try:
        with pytest.raises(Fatal, match="run `tidegate migrate`"):
            await sink.check()
        with pytest.raises(Fatal, match="run `tidegate migrate`"):
            await sink.write(batch(change("1", 1, {"number": 1, "total": 1}, entity="counter")), 1)
    finally:
        await sql.execute("ALTER TABLE counters RENAME COLUMN sum TO total")


async def test_a_database_that_goes_away_is_transient_and_comes_back() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        postgres = Postgres(port=probe.getsockname()[1])
    await postgres.start()
    try:
        await create_tables(postgres.dsn)
        async with connect(postgres.dsn, DatabaseSettings(connect_timeout_s=1), "test") as database:
            sink = AuroraSink(database, "stream", SHAPES, dead_letter.file)
            await sink.register(["shard-0"], [], [])
            await sink.open("shard-0", 1)
            whole = batch(change("A", 1, gadget("A")))
            await postgres.kill()
            for _ in range(3):
                with pytest.raises(Transient):
                    await sink.write(whole, 1)
            await postgres.start()
            assert await _until_written(sink, whole) == WriteResult(applied=1)
    finally:
        await postgres.stop()


async def test_the_workers_own_login_may_do_all_that_the_sink_does() -> None:
    parcels = bubble.load("examples.parcels.bubble")
    passwords = dict.fromkeys((provision.OWNER, *provision.LOGINS), "secret")
    async with Postgres() as postgres:
        owner = postgres.dsn_for(provision.OWNER, "secret", provision.DATABASE)
        await provision.make_database(postgres.dsn, owner, passwords)
        await provision.migrate_database(owner, parcels, "examples.parcels.bubble")
        await provision.make_logins(postgres.dsn, passwords)
        url = postgres.dsn_for("worker_login", "secret", provision.DATABASE)
        async with connect(url, DatabaseSettings(), "test") as database:
            sink = AuroraSink(database, "stream", parcels.shapes, dead_letter.file)
            await sink.check()
            await sink.register(["shard-0"], [], [])
            await sink.open("shard-0", 1)
            office = {
                "number": "O1", "name": "n", "city": "c", "postal_code": "3000", "kind": "counter",
                "changed_at": "2026-11-21T00:00:00Z",
            }  # fmt: skip
            decoder = Decoder(parcels.entities)
            events: list[StreamEvent] = [
                change("O1", 1, office, entity="office"),
                change("O1", 2, None, entity="office"),
                watermark(NOW),
            ]
            for number, event in enumerate(events, 1):
                builder = BatchBuilder("shard-0", BatchLimits(max_records=9, max_bytes=9_999, max_age_s=1))
                records = [Record(str(number), codec.encode(event)), Record(str(number), b"poison", 1)]
                assert builder.fill(records, 0, decoder.decode_all, 0.0) == 2
                assert sum(await sink.write(builder.close(), 1)) == (1 if number == 3 else 2)
            await sink.end("shard-0", 1, ["shard-1"])
            assert await sink.register(["shard-1"], [("shard-0", "shard-1")], ["shard-0"]) == []


async def _until_written(sink: AuroraSink, whole: object) -> WriteResult:
    async with asyncio.timeout(10):
        while True:
            try:
                return await sink.write(whole, 1)  # type: ignore[arg-type]
            except Transient:
                await asyncio.sleep(0.05)
