"""Erasing a row on a real PostgreSQL: nothing of it is left, nothing of it comes back, and who did it is on record."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeAlias

import asyncpg
import msgspec
import pytest
import pytest_asyncio
from msgspec.structs import replace

from local.kinesis.server import serving
from local.kinesis.settings import Settings
from local.postgres import Postgres
from tests.integration.letters_stack import cli, environment
from tests.integration.worker_rows import SHAPES, batch, change, create_tables, gadget, quarantined, rows
from tidegate import erasure
from tidegate.database import Connection as Filing
from tidegate.database import DatabaseSettings, connect
from tidegate.errors import Transient
from tidegate.event import Version
from worker import dead_letter
from worker.aurora import AuroraSink
from worker.ports import WriteResult

pytestmark = pytest.mark.asyncio(loop_scope="module")
module_fixture = pytest_asyncio.fixture(scope="module", loop_scope="module")
fixture = pytest_asyncio.fixture(loop_scope="module")
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

ERASE = ("erase", "gadget", "A", "--bubble", "tests.integration.worker_bubble")
CONTENT = "SELECT * FROM gadgets WHERE number = 'A'"


@module_fixture
async def dsn() -> AsyncIterator[str]:
    async with Postgres() as postgres:
        await create_tables(postgres.dsn)
        yield postgres.dsn


@module_fixture
async def kinesis(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """A Kinesis that does not have the stream."""
    async with serving(Settings(tmp_path_factory.mktemp("kinesis"), port=0, region="eu-central-1")) as url:
        yield url


@pytest.fixture(autouse=True)
def variables(dsn: str, kinesis: str) -> Iterator[None]:
    aws = {"AWS_ENDPOINT_URL_KINESIS": kinesis, "AWS_REGION": "eu-central-1", "AWS_ACCESS_KEY_ID": "local",
           "AWS_SECRET_ACCESS_KEY": "local"}  # fmt: skip
    with environment({"TIDEGATE_DATABASE_URL": dsn, **aws}):
        yield


@fixture
async def sql(dsn: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        "TRUNCATE gadgets, counters, tidegate.shard, tidegate.watermark, tidegate.dead_letter, tidegate.outbox, "
        "tidegate.erasure"
    )
    yield connection
    await connection.close()


@fixture
async def sink(dsn: str, sql: Connection) -> AsyncIterator[AuroraSink]:
    async with connect(dsn, DatabaseSettings(), "test") as database:
        made = AuroraSink(database, "stream", SHAPES, dead_letter.file)
        await made.register(["shard-0"], [], [])
        await made.open("shard-0", 1)
        yield made


async def everything(sql: Connection) -> str:
    """All that the database holds, as text."""
    tables = ("gadgets", "counters", "tidegate.dead_letter", "tidegate.outbox", "tidegate.erasure")
    return "\n".join([str(await rows(sql, f"SELECT t::text FROM {table} AS t")) for table in tables])


async def test_nothing_is_left_of_the_row_but_its_key(sink: AuroraSink, sql: Connection) -> None:
    await sink.write(batch(change("A", 3, gadget("A", name="Secret", note="Secret"))), 1)
    invalid = change("A", 4, gadget("A", name="Secret", pieces="many"))
    raw = msgspec.structs.replace(quarantined("A"), raw=b"Secret", message="Secret")
    await sink.write(batch(invalid, raw, change("B", 1, gadget("B")), b"Secret A", first=2), 1)
    await sql.execute(
        "INSERT INTO tidegate.outbox (destination, event_id, lane, entity, key, payload) "
        "VALUES ('d', 'e', 1, 'gadget', 'A', 'Secret')"
    )
    before = await everything(sql)
    dry = (await cli(*ERASE, "--dry-run", "--json")).json
    assert await everything(sql) == before
    done = (await cli(*ERASE, "--yes", "--json")).json
    assert done["erased"] == dry["erased"]
    [mention] = done["erased"]["mentions"]
    assert done["erased"] == {
        "entity": "gadget", "key": "A", "row": "content", "dead_letters": 2, "outbox": 1, "mentions": [mention],
        "since": None,
    }  # fmt: skip
    assert (await cli("dead-letters", "drop", mention)).code == 0
    await sql.execute("DELETE FROM tidegate.dead_letter")
    assert "Secret" not in await everything(sql)
    row = dict((await sql.fetch(CONTENT))[0])
    assert {name for name, value in row.items() if value is not None and not name.startswith("_")} == {"number"}
    assert await rows(sql, "SELECT number, _deleted FROM gadgets ORDER BY 1") == [("A", True), ("B", False)]


async def test_neither_an_older_nor_a_newer_event_brings_it_back_until_that_is_undone(
    sink: AuroraSink, sql: Connection
) -> None:
    old = change("A", 3, gadget("A"))
    await sink.write(batch(old), 1)
    await cli(*ERASE, "--yes")
    highest = msgspec.structs.replace(old, version=Version(2**62, 2**62, 2**62, 2**62, 2**62))
    late = batch(old, change("A", 9, gadget("A")), change("A", 10, None), highest, first=2)
    assert await sink.write(late, 1) == WriteResult(stale=1, coalesced=3)
    assert (await sql.fetchrow(CONTENT))["name"] is None
    assert await sink.write(batch(change("A", 11, gadget("A", pieces="x")), first=9), 1) == WriteResult(rejected=1)
    assert await rows(sql, "SELECT id FROM tidegate.dead_letter") == []
    assert "let in again" in (await cli(*ERASE, "--undo", "--yes")).out
    older = batch(change("A", 2, gadget("A", pieces=2)), first=12)
    assert await sink.write(older, 1) == WriteResult(stale=1), "older than what it was"
    assert await sink.write(batch(old, first=13), 1) == WriteResult(applied=1), "what it was lands once more"
    assert await sink.write(batch(change("A", 11, gadget("A", pieces="x")), first=14), 1) == WriteResult(rejected=1)
    assert await rows(sql, "SELECT key FROM tidegate.dead_letter") == [("A",)]


async def test_a_row_that_was_deleted_or_never_seen_is_kept_out_too(sink: AuroraSink, sql: Connection) -> None:
    await sink.write(batch(change("A", 3, None)), 1)
    assert (await cli(*ERASE, "--yes", "--json")).json["erased"]["row"] == "tombstone"
    assert (await cli("erase", "counter", "5", *ERASE[3:], "--yes", "--json")).json["erased"]["row"] == "none"
    back = batch(change("A", 4, gadget("A")), change("5", 1, {"number": 5, "total": 1}, entity="counter"), first=2)
    assert await sink.write(back, 1) == WriteResult(stale=2)
    await cli(*ERASE, "--undo", "--yes")
    await cli("erase", "counter", "5", *ERASE[3:], "--undo", "--yes")
    assert await sink.write(batch(change("A", 3, gadget("A")), first=4), 1) == WriteResult(unchanged=1)
    assert (await sql.fetchrow(CONTENT))["_deleted"], "it was deleted before, and an old event does not change that"
    assert await sink.write(back, 1) == WriteResult(applied=2)


async def test_twice_is_once_and_takes_what_came_in_between(sink: AuroraSink, sql: Connection) -> None:
    await sink.write(batch(change("A", 3, gadget("A"))), 1)
    await cli(*ERASE, "--yes")
    record = "SELECT erased_at, erased_by, version, undone_at FROM tidegate.erasure"
    before = await rows(sql, record)
    # What a restored backup or a hand may bring.
    await sql.execute("UPDATE gadgets SET name = 'Secret'")
    again = (await cli(*ERASE, "--yes", "--json")).json["erased"]
    assert (again["row"], again["since"] is not None) == ("erased", True)
    assert await rows(sql, record) == before
    assert "Secret" not in await everything(sql)
    await cli(*ERASE, "--undo", "--yes")
    assert (await cli(*ERASE, "--undo", "--yes")).out == "gadget A is not erased; nothing to undo\n"
    await cli(*ERASE, "--yes")
    standing = await rows(sql, "SELECT undone_by IS NULL, version FROM tidegate.erasure ORDER BY id")
    assert standing == [(False, [0, 3, 1, 1, 1]), (True, [0, 3, 1, 1, 0])], "each is on record"


async def test_the_record_says_who_and_holds_the_key_only_as_a_hash(sink: AuroraSink, sql: Connection) -> None:
    await cli(*ERASE, "--yes")
    [(key_hash, erased_by)] = await rows(sql, "SELECT key_hash, erased_by FROM tidegate.erasure")
    assert key_hash == hashlib.sha256(b"A").digest()
    assert erased_by.endswith(" as postgres")


async def test_a_letter_that_is_being_filed_at_that_moment_does_not_slip_by(
    dsn: str, sink: AuroraSink, sql: Connection
) -> None:
    await sink.write(batch(change("A", 3, gadget("A"))), 1)
    shape = erasure.shape_of(SHAPES, "gadget")
    async with connect(dsn, DatabaseSettings(), "test") as database:
        writer = await asyncpg.connect(dsn)
        filing = writer.transaction()
        await filing.start()
        # As FILE does it, before the erasure commits.
        await writer.execute(
            "INSERT INTO tidegate.dead_letter (stream, shard_id, sequence_number, sub_sequence, stage, reason, message, "
            "entity, key, payload, kind, identity, fingerprint) VALUES "
            "('stream', 's', 1, 0, 'decode', 'invalid', '', 'gadget', 'A', 'Secret', 'event', 'i', 'f')"
        )
        erasing = asyncio.create_task(erasure.Erasure(database, shape, "A").erase("me"))
        await until_waiting(sql)
        await filing.commit()
        assert (await erasing).dead_letters == 1
        await writer.close()
    assert await rows(sql, "SELECT id FROM tidegate.dead_letter") == []


async def test_a_letter_that_is_filed_while_its_row_is_erased_is_not_filed(
    dsn: str, sink: AuroraSink, sql: Connection
) -> None:
    # The second time the statement's plan is a kept one.
    await sink.write(batch(change("B", 1, gadget("B", pieces="x"))), 1)
    other = await asyncpg.connect(dsn)
    # As `erase` does it: the lock, and the record in the same transaction.
    async with other.transaction():
        await other.execute("LOCK TABLE tidegate.dead_letter IN SHARE ROW EXCLUSIVE MODE")
        filing = asyncio.create_task(sink.write(batch(change("A", 1, gadget("A", pieces="x")), first=2), 1))
        await until_waiting(sql)
        record = "INSERT INTO tidegate.erasure (entity, key_hash, erased_by) VALUES ('gadget', sha256('A'), 'me')"
        await other.execute(record)
    assert await filing == WriteResult(rejected=1)
    await other.close()
    assert await rows(sql, "SELECT key FROM tidegate.dead_letter") == [("B",)]


@pytest.mark.parametrize(("patience", "victim"), [("10ms", "worker"), ("20s", "erasure")])
async def test_an_erasure_and_a_failure_with_strict_order_that_lock_each_other_out_both_come_through(
    dsn: str, sink: AuroraSink, sql: Connection, patience: str, victim: str
) -> None:
    """With strict order a failure is filed before its row is touched; so the database has to choose a victim."""
    strict = [replace(shape, is_strict=True) for shape in SHAPES]
    whole = batch(change("A", 1, gadget("A", note="Secret")), change("A", 2, gadget("A", pieces="Secret")))
    tries = 0

    async def file_slowly(connection: Filing, *given: Any) -> None:
        nonlocal tries
        await dead_letter.file(connection, *given)
        tries += 1
        if tries == 1:
            await connection.execute(f"SET LOCAL deadlock_timeout = '{patience}'")
            # The erasure has locked the row by then, and waits for the letters.
            await until_waiting(sql)

    async with connect(dsn, DatabaseSettings(), "test") as database:
        slow = AuroraSink(database, "stream", strict, file_slowly)

        async def write() -> WriteResult:
            async with asyncio.timeout(20):
                while True:
                    try:
                        return await slow.write(whole, 1)
                    except Transient:
                        # As the consumer does it.
                        await asyncio.sleep(0.05)

        writing = asyncio.create_task(write())
        async with asyncio.timeout(10):
            while not tries:
                await asyncio.sleep(0.01)
        said = await cli(*ERASE, "--yes")
        assert said.code == 0, said.err
        assert sum(await writing) == 2
    assert tries == (2 if victim == "worker" else 1)
    assert "Secret" not in await everything(sql)


async def until_waiting(sql: Connection) -> None:
    async with asyncio.timeout(10):
        while not await sql.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"):
            await asyncio.sleep(0.02)


async def test_what_it_cannot_reach_it_lists(sink: AuroraSink, sql: Connection) -> None:
    await sink.write(batch(change("A", 3, gadget("A")), change("B", 1, gadget("B", note="A"))), 1)
    said = (await cli(*ERASE, "--yes", "--related")).out
    for words in (
        "its content is removed; the tombstone stays", "the stream stream: nobody knows until when", "the back office",
        "archives: tidegate keeps none", "gadget.note: 1 rows name it",
    ):  # fmt: skip
        assert words in said
    assert (await sql.fetchrow("SELECT note FROM gadgets WHERE number = 'B'"))["note"] == "A", (
        "that is not ours to decide"
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("erase", "person", "A", *ERASE[3:]), "the bubble has no entity 'person'; it has gadget, counter"),
        (("erase", "counter", "A", *ERASE[3:]), "'A' is no key: number is integer"),
        (("erase", "counter", "07", *ERASE[3:]), "did you mean '7'?"),
        (ERASE, "Erase gadget A for good? Nobody is here to answer; add --yes if that is meant"),
    ],
    ids=("entity", "key", "spelling", "yes"),
)
async def test_a_mistake_is_one_clear_text_and_changes_nothing(
    sql: Connection, arguments: tuple[str, ...], text: str
) -> None:
    said = await cli(*arguments)
    assert (said.code, text in said.err) == (1, True), said
    assert await rows(sql, "SELECT id FROM tidegate.erasure") == []
