"""Dead letters on a real PostgreSQL: open ones make answers incomplete, newer rows close them, no record stops a shard."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import asyncpg
import msgspec
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings
from hypothesis import given as given_values
from hypothesis import strategies as st

from local.postgres import Postgres
from tests.integration.worker_rows import (
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
from tidegate import codec
from tidegate.database import DatabaseSettings, connect
from tidegate.event import StreamEvent
from worker import dead_letter
from worker.aurora import AuroraSink
from worker.batch import DeadLetter, Position
from worker.ports import WriteResult

pytestmark = pytest.mark.asyncio(loop_scope="module")
module_fixture = pytest_asyncio.fixture(scope="module", loop_scope="module")
fixture = pytest_asyncio.fixture(loop_scope="module")
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

LATER = NOW + timedelta(seconds=5)
EARLIER = NOW - timedelta(seconds=5)
FILINGS = "SELECT coalesce(sum(attempts), 0) FROM tidegate.dead_letter"
OPEN = "SELECT key FROM tidegate.dead_letter WHERE resolved_at IS NULL ORDER BY sequence_number"


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


async def as_of(sql: Connection) -> dict[str, datetime | None]:
    found = await sql.fetch("SELECT source, as_of FROM tidegate.data_as_of($1)", ["gadgets", "others"])
    return {row["source"]: row["as_of"] for row in found}


def poison(key: str, version: int) -> StreamEvent:
    """Decodes well; the database refuses it."""
    return change(key, version, gadget(key, name="a\0b"))


def invalid(key: str, version: int) -> StreamEvent:
    """Does not decode, yet tells whose it is."""
    return change(key, version, gadget(key, pieces="many"))


FAULTS: dict[str, StreamEvent] = {
    "rejected by the database": poison("A", 5),
    "rejected by the decoder": invalid("A", 5),
    "not translated by the poller": quarantined("A"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_an_open_letter_makes_its_source_incomplete_until_the_row_is_there(
    sink: AuroraSink, sql: Connection, fault: StreamEvent
) -> None:
    await sink.write(batch(watermark(NOW), watermark(NOW, "others"), fault), 1)
    assert await as_of(sql) == {"gadgets": None, "others": NOW}
    await sink.write(batch(change("B", 9, gadget("B")), first=10), 1)
    assert await as_of(sql) == {"gadgets": None, "others": NOW}, "another row is no remedy"
    await sink.write(batch(change("A", 6, gadget("A")), first=11), 1)
    assert await as_of(sql) == {"gadgets": NOW, "others": NOW}
    assert await rows(sql, OPEN) == []


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_deletion_is_a_remedy_and_one_batch_is_enough(
    sink: AuroraSink, sql: Connection, fault: StreamEvent
) -> None:
    await sink.write(batch(watermark(NOW), fault, change("A", 6, None)), 1)
    assert (await as_of(sql))["gadgets"] == NOW


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_replay_of_what_came_before_closes_nothing(
    sink: AuroraSink, sql: Connection, fault: StreamEvent
) -> None:
    whole = batch(change("A", 4, gadget("A")), fault)
    for _ in range(2):
        await sink.write(whole, 1)
        assert await rows(sql, OPEN) == [("A",)]
        assert await rows(sql, "SELECT _source_version FROM gadgets") == [(4,)]


async def test_the_same_version_read_by_a_repaired_release_closes_its_letter(sink: AuroraSink, sql: Connection) -> None:
    await sink.write(batch(watermark(NOW), invalid("A", 5)), 1)
    assert (await as_of(sql))["gadgets"] is None
    assert await sink.write(batch(watermark(NOW), change("A", 5, gadget("A"))), 1) == WriteResult(applied=1)
    assert (await as_of(sql))["gadgets"] == NOW
    await sink.write(batch(watermark(NOW), invalid("A", 5)), 1)
    assert (await as_of(sql))["gadgets"] == NOW, "what was made good stays so when it is filed once more"
    assert await rows(sql, "SELECT attempts FROM tidegate.dead_letter") == [(2,)]


async def test_a_belated_change_does_not_close_a_row_that_could_not_be_translated(
    sink: AuroraSink, sql: Connection
) -> None:
    await sink.write(batch(quarantined("A", observed_at=NOW)), 1)
    belated = msgspec.structs.replace(change("A", 3, gadget("A")), observed_at=EARLIER)
    await sink.write(batch(belated, first=10), 1)
    assert await rows(sql, OPEN) == [("A",)]
    await sink.write(batch(msgspec.structs.replace(belated, observed_at=LATER), first=11), 1)
    assert await rows(sql, OPEN) == []


async def test_a_row_that_its_poller_sends_again_is_one_letter_until_it_was_good_in_between(
    sink: AuroraSink, sql: Connection
) -> None:
    bad = batch(quarantined("A", observed_at=NOW))
    await sink.write(bad, 1)
    await sink.write(batch(quarantined("A", observed_at=LATER), first=2), 1)
    state = "SELECT attempts, sequence_number::int, resolution FROM tidegate.dead_letter"
    assert await rows(sql, state) == [(2, 2, None)]
    good = msgspec.structs.replace(change("A", 1, gadget("A")), observed_at=LATER)
    await sink.write(batch(good, first=3), 1)
    assert await rows(sql, state) == [(2, 2, "superseded")]
    await sink.write(bad, 1)
    assert await rows(sql, state) == [(3, 2, "superseded")], "the same records, read again"
    await sink.write(batch(quarantined("A", observed_at=LATER + timedelta(seconds=5)), first=4), 1)
    assert await rows(sql, state) == [(4, 4, None)], "the back office shows it as it was"


async def test_two_records_that_name_no_event_are_two_letters(sink: AuroraSink, sql: Connection) -> None:
    both = batch(b"garbage", b"garbage")
    for attempts in (1, 2):
        await sink.write(both, 1)
        assert await rows(sql, "SELECT attempts FROM tidegate.dead_letter") == [(attempts,)] * 2


async def test_a_refused_row_closes_nothing(sink: AuroraSink, sql: Connection) -> None:
    await sink.write(batch(quarantined("A"), poison("A", 6), change("A", 4, gadget("A"))), 1)
    assert await rows(sql, OPEN) == [("A",)], "of the row's state before the refused one"
    assert await rows(sql, "SELECT stage FROM tidegate.dead_letter WHERE resolved_at IS NULL") == [("write",)]


async def test_a_gap_makes_every_source_incomplete_until_a_person_closes_it(sink: AuroraSink, sql: Connection) -> None:
    await sink.write(batch(watermark(NOW), watermark(NOW, "others")), 1)
    gap = DeadLetter(position=Position(2, -1), stage="read", reason="gap", message="trimmed", payload=b"")
    await sink.note("shard-0", 1, gap)
    assert await as_of(sql) == {"gadgets": None, "others": None}
    await sink.write(batch(change("A", 1, gadget("A")), first=10), 1)
    assert (await as_of(sql))["gadgets"] is None
    await sql.execute("UPDATE tidegate.dead_letter SET resolved_at = now()")
    assert await as_of(sql) == {"gadgets": NOW, "others": NOW}


async def test_what_stands_for_no_row_of_a_source_blinds_nobody(sink: AuroraSink, sql: Connection) -> None:
    wrong_time = watermark(NOW.replace(tzinfo=None))
    lookalike = msgspec.structs.replace(quarantined("A", source="elsewhere"), stage="read", reason="gap")
    await sink.write(batch(watermark(NOW), watermark(NOW, "others"), b"garbage", lookalike, wrong_time), 1)
    assert len(await rows(sql, OPEN)) == 3
    assert await as_of(sql) == {"gadgets": NOW, "others": NOW}


async def test_a_watermark_from_a_clock_that_runs_ahead_is_bounded_by_ours(sink: AuroraSink, sql: Connection) -> None:
    await sink.write(batch(watermark(datetime(2999, 1, 1, tzinfo=UTC))), 1)
    assert await rows(sql, "SELECT as_of = committed_at FROM tidegate.watermark, tidegate.shard") == [(True,)]
    await sql.execute("UPDATE tidegate.watermark SET as_of = $1", NOW)
    await sink.write(batch(watermark(LATER), first=2), 1)
    assert (await as_of(sql))["gadgets"] == LATER


GOOD_PARTS = {"entity": "gadget", "stage": "translate", "reason": "invalid", "message": "why", "raw_base64": "aGk="}
texts = st.text(max_size=30) | st.sampled_from(["a\0b", "x" * 20_000, "\U0001f6a2" * 3_000])
times = st.sampled_from(
    ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-01-01T00:00:00", "2999-01-01T00:00:00Z"]
)
numbers = (
    st.integers() | st.sampled_from([2**63, -(2**63) - 1, 10**400]) | st.floats(allow_nan=False, allow_infinity=False)
)
versions = st.sampled_from(
    ["0.1.1.1.1", "1.2.3", "0.0.0.0.9223372036854775808", "9" * 5_000 + ".0.0.0.0", "0.9223372036854775807.1.1.1"]
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts | times | versions,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
types = st.sampled_from(["tidegate.gadget.upsert", "tidegate.gadget.delete", "tidegate.counter.upsert", "tidegate.counter.delete",
                         "tidegate.watermark", "tidegate.quarantine"])  # fmt: skip
contents = (
    st.dictionaries(st.sampled_from(list(gadget("A"))), values, max_size=4).map(lambda fields: gadget("A") | fields)
    | st.dictionaries(st.sampled_from(list(GOOD_PARTS)), values, max_size=3).map(lambda parts: GOOD_PARTS | parts)
    | st.fixed_dictionaries({"number": numbers, "total": numbers})
    | values
)
GOOD = {"specversion": "1.0", "id": "1", "source": "gadgets", "subject": "A", "time": "2026-01-01T00:00:00Z",
        "tidegateversion": "0.1.1.1.1", "tidegatecause": "live"}  # fmt: skip
# One attribute of the envelope is wrong, or none: a record that is wrong in all is filed at the first.
HOSTILE: dict[str, st.SearchStrategy[Any]] = dict.fromkeys(GOOD, texts | values) | {
    "time": times | values,
    "tidegateobserved": times | values,
    "tidegateversion": versions | values,
}
one_wrong = st.one_of(st.just({}), *(st.fixed_dictionaries({name: strategy}) for name, strategy in HOSTILE.items()))
good_payloads = st.sampled_from([gadget("A"), {"number": 1, "total": 1}, GOOD_PARTS, None])
envelopes = st.builds(
    lambda kind, data, changed: GOOD | {"type": kind, "data": data} | changed,
    types,
    good_payloads | contents,
    one_wrong,
)
positions = itertools.count(1)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given_values(st.lists(envelopes, min_size=1, max_size=6))
async def test_whatever_a_record_holds_it_is_written_or_filed(
    sink: AuroraSink, sql: Connection, drawn: list[dict[str, Any]]
) -> None:
    records = [msgspec.json.encode(each) for each in drawn]
    # One event may be drawn twice: that is one letter and two attempts.
    before = await sql.fetchval(FILINGS)
    whole = batch(*records, first=next(positions) * 10)
    result = await sink.write(whole, 1)
    assert sum(result) == whole.delivered
    assert await sql.fetchval(FILINGS) == before + result.rejected


async def test_names_too_long_for_an_index_are_filed_too(sink: AuroraSink, sql: Connection) -> None:
    # Random, so that the index cannot compress it, and four bytes for each character.
    long = "".join(map(chr, random.Random(5).choices(range(0x10000, 0x10FFFF), k=4_000)))
    changed = {name: long for name in ("event_id", "source", "entity", "stage", "reason", "message", "key")}
    foreign = msgspec.structs.replace(change(long, 1, gadget("A"), entity=long), source=long)
    both = batch(msgspec.structs.replace(quarantined("A"), **changed), foreign)
    assert await sink.write(both, 1) == WriteResult(rejected=2)
    assert await rows(sql, OPEN) == [(long[:512],)] * 2


async def test_a_record_without_a_bottom_is_filed(sink: AuroraSink) -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    record = codec.encode(change("A", 1, gadget("A"))).replace(b'"pieces":3', b'"pieces":' + deep)
    assert await sink.write(batch(record, change("B", 1, gadget("B"))), 1) == WriteResult(applied=1, rejected=1)
