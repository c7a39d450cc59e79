"""How rows travel to the table, and how they are counted there, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from local.postgres import Postgres
from tests.integration.worker_rows import DECODER, SHAPES, Colour, batch, change, create_tables, gadget, rows
from tidegate.database import Database, DatabaseSettings, connect
from tidegate.event import ChangeEvent
from worker import dead_letter
from worker.aurora import AuroraSink
from worker.batch import Item, Record
from worker.literals import array
from worker.ports import WriteResult

pytestmark = pytest.mark.asyncio(loop_scope="module")
module_fixture = pytest_asyncio.fixture(scope="module", loop_scope="module")
fixture = pytest_asyncio.fixture(loop_scope="module")
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

EMPTY = "TRUNCATE gadgets, counters, tidegate.shard, tidegate.watermark, tidegate.dead_letter"
SHOWN = "SELECT number, pieces, _source_version, _read, _deleted, _event_id, _occurred_at FROM gadgets ORDER BY number"


@module_fixture
async def dsn() -> AsyncIterator[str]:
    async with Postgres() as postgres:
        await create_tables(postgres.dsn)
        yield postgres.dsn


@module_fixture
async def sql(dsn: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


@module_fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    async with connect(dsn, DatabaseSettings(), "test") as made:
        yield made


async def opened(database: Database, sql: Connection) -> AuroraSink:
    await sql.execute(EMPTY)
    sink = AuroraSink(database, "stream", SHAPES, dead_letter.file)
    await sink.register(["shard-0"], [], [])
    await sink.open("shard-0", 1)
    return sink


# PostgreSQL's text has no NUL, and UTF-8 no surrogates; what is not of this list a decoder refuses before.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])) | st.text('"\\,{}\n\r\tnul NUL')
times = st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-9, minutes=-30))]))
COLUMNS: dict[str, st.SearchStrategy[Any]] = {
    "text": texts,
    "bigint": st.integers(-(2**63), 2**63 - 1),
    "double precision": st.floats(allow_nan=False, allow_infinity=False),
    "boolean": st.booleans(),
    "numeric": st.decimals(allow_nan=False, allow_infinity=False),
    "date": st.dates(),
    # Elsewhere the first and the last day of all are beyond what Python can say in UTC.
    "timestamptz": times.filter(lambda time: 2 <= time.year <= 9998),
    "uuid": st.uuids(),
}


async def test_a_literal_says_what_the_values_say(sql: Connection) -> None:
    loop = asyncio.get_running_loop()
    asked: list[tuple[str, list[Any]]] = []

    def collect(kind: str) -> None:
        @given(st.lists(COLUMNS[kind] | st.none(), min_size=1, max_size=20))
        @settings(max_examples=60, deadline=None)
        def note(values: list[Any]) -> None:
            asked.append((kind, values))

        note()

    for kind in COLUMNS:
        await loop.run_in_executor(None, collect, kind)
    for kind, values in asked:
        stored = await sql.fetchval(f"SELECT $1::text::{kind}[]", array(values))
        assert stored == values, kind
        if kind == "numeric":
            assert list(map(_plain, stored)) == list(map(_plain, values)), "as many decimals as were sent"


def _plain(value: Decimal | None) -> str:
    """With all its decimals and without an exponent. PostgreSQL's zero has no sign."""
    return "None" if value is None else format(abs(value) if value == 0 else value, "f")


async def test_choices_are_stored_as_their_values(sql: Connection) -> None:
    assert await sql.fetchval("SELECT $1::text::text[]", array([Colour.RED, None])) == ["red", None]


def history(dice: random.Random) -> list[list[ChangeEvent]]:
    """Some batches, in which keys come more than once, late, again, and with nothing new."""
    batches = []
    for _ in range(12):
        events = []
        for _ in range(dice.randrange(1, 30)):
            key = f"K{dice.randrange(15)}"
            payload = gadget(key, pieces=dice.randrange(2)) if dice.random() < 0.8 else None
            events.append(change(key, dice.randrange(1, 6), payload, read=dice.randrange(3)))
        batches.append(events)
        if dice.random() < 0.5:
            batches.append(batches[dice.randrange(len(batches))])
    return batches


async def written(sink: AuroraSink, batches: Sequence[list[ChangeEvent]]) -> list[WriteResult]:
    first, results = 1, []
    for events in batches:
        results.append(await sink.write(batch(*events, first=first), 1))
        first += len(events)
    return results


@pytest.mark.parametrize("seed", range(8))
async def test_counted_rows_and_named_rows_are_the_same(database: Database, sql: Connection, seed: int) -> None:
    """Once a dead letter is open every row is named; before, rows are only counted."""
    batches = history(random.Random(seed))
    counted = await written(await opened(database, sql), batches)
    shown = await rows(sql, SHOWN)
    sink = await opened(database, sql)
    bad = batch(change("bad", 1, gadget("bad", name="\0")))
    assert await sink.write(bad, 1) == WriteResult(rejected=1)
    assert await written(sink, batches) == counted
    assert await rows(sql, SHOWN) == shown
    assert [sum(result) for result in counted] == [len(events) for events in batches]
    totals = [sum(column) for column in zip(*counted, strict=True)]
    assert min(totals[:4]) > 0, "applied, unchanged, stale and coalesced all occur"


async def test_a_replay_is_found_out_without_touching_a_row(database: Database, sql: Connection) -> None:
    sink = await opened(database, sql)
    first = [change(f"G{n}", 2, gadget(f"G{n}")) for n in range(50)]
    older = [change(f"G{n}", 1, gadget(f"G{n}")) for n in range(20)]
    assert await sink.write(batch(*first), 1) == WriteResult(applied=50)
    # Who takes the shard over may begin with what is there.
    await sink.open("shard-0", 2)
    assert await sink.write(batch(*first[:30]), 2) == WriteResult(unchanged=30)
    assert await sink.write(batch(*older, *first[40:], first=31), 2) == WriteResult(unchanged=10, stale=20)
    assert await sql.fetchval("SELECT count(*) FROM gadgets WHERE xmax <> 0") == 0, "no row was locked"
    more = [*first[40:], change("new", 1, gadget("new")), change("G0", 3, None)]
    assert await sink.write(batch(*more, first=61), 2) == WriteResult(applied=2, unchanged=10)
    assert await sql.fetchval("SELECT _deleted FROM gadgets WHERE number = 'G0'")


async def test_changes_are_decoded_again_only_when_their_rows_must_be_named(
    database: Database, sql: Connection
) -> None:
    decoded: list[int] = []

    def decode(records: Sequence[Record]) -> list[Item]:
        decoded.append(len(records))
        return DECODER.decode_all(records)

    sink = await opened(database, sql)
    # The first batch of a shard is looked for before it is written.
    await sink.write(batch(change("first", 1, gadget("first"))), 1)
    two = batch(change("A", 1, gadget("A")), change("B", 1, gadget("B")), first=2, decode=decode)
    assert await sink.write(two, 1) == WriteResult(applied=2)
    assert decoded == [1, 1]
    late = batch(change("A", 1, gadget("A")), change("C", 1, gadget("C")), first=4, decode=decode)
    assert await sink.write(late, 1) == WriteResult(applied=1, unchanged=1)
    assert decoded == [1] * 4, "what the table holds already is judged by the arguments"
    spoilt = batch(change("D", 1, gadget("D", name="\0")), change("E", 1, gadget("E")), first=6, decode=decode)
    assert await sink.write(spoilt, 1) == WriteResult(applied=1, rejected=1)
    assert decoded == [*[1] * 6, 2]
    await sink.write(batch(change("F", 1, gadget("F")), first=8, decode=decode), 1)
    assert decoded == [*[1] * 6, 2, 1, 1], "a letter was open that nobody knew of"
    await sink.write(batch(change("G", 1, gadget("G")), first=9, decode=decode), 1)
    assert decoded == [*[1] * 6, 2, 1, 1, 1]


async def test_entities_of_a_batch_are_counted_together(database: Database, sql: Connection) -> None:
    sink = await opened(database, sql)
    events = [change("A", 1, gadget("A")), change("7", 1, {"number": 7, "total": 1}, entity="counter")]
    assert await sink.write(batch(*events), 1) == WriteResult(applied=2)
    again = [*events, change("7", 2, {"number": 7, "total": 1}, entity="counter")]
    assert await sink.write(batch(*again, first=3), 1) == WriteResult(unchanged=2, coalesced=1)
    assert await rows(sql, "SELECT number, total, _source_version FROM counters") == [(7, 1, 2)]


async def test_values_at_the_edge_are_stored_as_they_came(database: Database, sql: Connection) -> None:
    sink = await opened(database, sql)
    edge = {
        "name": 'tab\t, line\n, "quoted", back\\slash, {braces}, NULL and \u2028', "pieces": -(2**63), "ratio": 5e-324,
        "price": "-1E-30", "made_on": "0001-01-01", "changed_at": "0001-01-01T00:00:00Z", "note": "NULL",
        "serial": "00000000-0000-0000-0000-000000000000",
    }  # fmt: skip
    assert await sink.write(batch(change("A", 1, gadget("A", **edge)), change("null", 1, None)), 1) == WriteResult(2)
    found = await sql.fetchrow("SELECT * FROM gadgets WHERE number = 'A'")
    assert found is not None
    assert (found["name"], found["note"], found["pieces"]) == (edge["name"], "NULL", -(2**63))
    assert math.isclose(found["ratio"], 5e-324, rel_tol=0)
    assert (found["price"], found["serial"]) == (Decimal("-1E-30"), UUID(int=0))
    assert (found["made_on"], found["changed_at"]) == (date(1, 1, 1), datetime(1, 1, 1, tzinfo=UTC))
    assert await rows(sql, "SELECT name, pieces FROM gadgets WHERE number = 'null'") == [(None, None)]
