"""What goes wrong between a worker and its database, done to a real one: every fault is waited out, none is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest
import pytest_asyncio
from msgspec.structs import replace

from local.postgres import Postgres
from tests.integration.cable import Cable
from tests.integration.worker_rows import SHAPES, batch, change, create_tables, gadget, rows
from tests.integration.worker_stack import Stack, Worker, free_port, query, running, wait_for
from tidegate.database import Connection, Database, DatabaseSettings, connect
from tidegate.errors import Fatal, Rejected, Transient
from worker import dead_letter
from worker.aurora import AuroraSink
from worker.batch import Batch
from worker.ports import WriteResult

pytestmark = pytest.mark.asyncio(loop_scope="module")
Raw: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

QUICK = DatabaseSettings(
    connections=2, connect_timeout_s=1, statement_timeout_s=2, acquire_timeout_s=1, idle_transaction_timeout_s=0.3
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Postgres]:
    async with Postgres(port=free_port()) as made:
        await create_tables(made.dsn)
        connection = await asyncpg.connect(made.dsn)
        await connection.execute("ALTER SYSTEM SET deadlock_timeout = '20ms'")
        await connection.execute("SELECT pg_reload_conf()")
        await connection.close()
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def sql(server: Postgres) -> AsyncIterator[Raw]:
    connection = await asyncpg.connect(server.dsn)
    await connection.execute("TRUNCATE gadgets, counters, tidegate.shard, tidegate.watermark, tidegate.dead_letter")
    yield connection
    await connection.close()


@pytest_asyncio.fixture(loop_scope="module")
async def cable(server: Postgres) -> AsyncIterator[Cable]:
    async with Cable(server.port).plugged() as made:
        yield made


@asynccontextmanager
async def connected(dsn: str, settings: DatabaseSettings = QUICK) -> AsyncIterator[Database]:
    async with connect(dsn, settings, "worker") as database:
        yield database


@asynccontextmanager
async def sinking(dsn: str, settings: DatabaseSettings = QUICK) -> AsyncIterator[tuple[AuroraSink, Database]]:
    async with connected(dsn, settings) as database:
        sink = AuroraSink(database, "stream", SHAPES, dead_letter.file)
        await sink.check()
        await sink.register(["shard-0"], [], [])
        await sink.open("shard-0", 1)
        yield sink, database


def through(cable: Cable, server: Postgres) -> str:
    return server.dsn.replace(f":{server.port}/", f":{cable.port}/")


async def written(sink: AuroraSink, whole: Batch) -> int:
    """Write it as the consumer does; how many tries it took."""
    async with asyncio.timeout(20):
        for tries in range(1, 10_000):
            try:
                await sink.write(whole, 1)
            except Transient:
                await asyncio.sleep(0.01)
            else:
                return tries
    raise AssertionError("never written")


# Done by the server itself.


async def statement_timeout(connection: Connection, sql: Raw) -> None:
    await connection.execute("SET LOCAL statement_timeout = '20ms'")
    await connection.execute("SELECT pg_sleep(5)")


async def lock_timeout(connection: Connection, sql: Raw) -> None:
    async with sql.transaction():
        await sql.execute("LOCK TABLE counters")
        await connection.execute("SET LOCAL lock_timeout = '20ms'")
        await connection.execute("SELECT FROM counters")


async def deadlock(connection: Connection, sql: Raw) -> None:
    async with sql.transaction():
        await sql.execute("LOCK TABLE gadgets")
        await sql.execute("SET LOCAL deadlock_timeout = '20s'")
        await connection.execute("LOCK TABLE counters")
        other = asyncio.create_task(sql.execute("LOCK TABLE counters"))
        await asyncio.sleep(0)
        try:
            await connection.execute("LOCK TABLE gadgets")
        finally:
            await connection.execute("ROLLBACK")
            await other


async def serialization(connection: Connection, sql: Raw) -> None:
    await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    await connection.execute("SELECT FROM tidegate.shard")
    await sql.execute("UPDATE tidegate.shard SET committed_at = now()")
    await connection.execute("UPDATE tidegate.shard SET committed_at = now()")


async def admin_shutdown(connection: Connection, sql: Raw) -> None:
    await sql.execute("SELECT pg_terminate_backend($1)", await connection.fetchval("SELECT pg_backend_pid()"))
    await connection.execute("SELECT 1")


async def idle_in_transaction(connection: Connection, sql: Raw) -> None:
    pid = await connection.fetchval("SELECT pg_backend_pid()")
    while await sql.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid):
        await asyncio.sleep(0.02)
    await connection.execute("SELECT 1")


async def read_only(connection: Connection, sql: Raw) -> None:
    await connection.execute("SET TRANSACTION READ ONLY")
    await connection.execute("DELETE FROM counters")


FAULTS = [statement_timeout, lock_timeout, deadlock, serialization, admin_shutdown, idle_in_transaction, read_only]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_a_fault_of_the_server_passes_and_the_next_transaction_works(
    server: Postgres, sql: Raw, fault: Callable[[Connection, Raw], Awaitable[None]]
) -> None:
    async with sinking(server.dsn) as (sink, database):
        with pytest.raises(Transient, match="could not try"):
            async with database.transaction("try") as connection:
                await fault(connection, sql)
        assert await sink.write(batch(change("A", 1, gadget("A"))), 1) == WriteResult(applied=1)
    assert await rows(sql, "SELECT number FROM gadgets") == [("A",)]


RAISED = {
    "53100": Transient, "53200": Transient, "53300": Transient, "57P01": Transient, "57P02": Transient, "57P03": Transient,
    "57P05": Transient, "40001": Transient, "40P01": Transient, "55P03": Transient, "25006": Transient, "08006": Transient,
    "58030": Transient, "26000": Transient, "22003": Rejected, "23514": Rejected, "23505": Rejected, "23502": Fatal,
    "42703": Fatal, "42P01": Fatal, "42501": Fatal, "28P01": Fatal, "21000": Fatal, "XX000": Fatal, "XX001": Fatal,
    "ZZ999": Fatal,
}  # fmt: skip


@pytest.mark.parametrize(("code", "kind"), RAISED.items())
async def test_a_code_that_the_server_says_is_of_its_class_also_inside_of_a_savepoint(
    server: Postgres, sql: Raw, code: str, kind: type[Exception]
) -> None:
    raising = f"DO $$ BEGIN RAISE EXCEPTION 'injected' USING ERRCODE = '{code}'; END $$"
    async with connected(server.dsn) as database:
        with pytest.raises(kind, match="injected"):
            async with database.transaction("try") as connection:
                await connection.execute(raising)
        with pytest.raises(kind, match="injected"):
            async with database.transaction("try") as connection, connection.transaction():
                await connection.execute(raising)
        async with database.transaction("go on") as connection:
            assert await connection.fetchval("SELECT 1") == 1


async def test_too_many_connections_are_waited_out(server: Postgres, sql: Raw) -> None:
    await sql.execute("CREATE ROLE crowded LOGIN PASSWORD 'x' CONNECTION LIMIT 1")
    first = await asyncpg.connect(server.dsn_for("crowded", "x"))
    async with connected(server.dsn_for("crowded", "x")) as database:
        with pytest.raises(Transient, match="too many connections"):
            await database.probe(5)
        await first.close()
        await wait_until_probed(database)


async def wait_until_probed(database: Database) -> None:
    async def answers() -> bool:
        try:
            await database.probe(5)
        except Transient:
            return False
        return True

    await wait_for(answers)


async def test_nobody_there_is_transient_whatever_is_missing(server: Postgres, cable: Cable) -> None:
    dead = Cable(server.port)
    dead.is_dead = True
    async with dead.plugged():
        for dsn, words in (
            (server.dsn.replace(f":{server.port}/", f":{free_port()}/"), "ConnectionRefused|OSError"),
            ("postgresql://u:p@no-such-host.invalid/db", "gaierror"),
            (through(dead, server), "no connection within 1 s"),
        ):
            async with connected(dsn) as database:
                with pytest.raises(Transient, match=words):
                    async with database.transaction("try"):
                        pass


async def test_when_all_connections_are_in_use_it_says_so(server: Postgres) -> None:
    async with connected(server.dsn, replace(QUICK, connections=1, acquire_timeout_s=0.05)) as database:
        async with database.transaction("hold"):
            with pytest.raises(Transient, match=r"all 1 connections are in use.*TIDEGATE_DATABASE_CONNECTIONS"):
                async with database.transaction("try"):
                    pass
        await database.probe(5)


async def is_refused(sink: AuroraSink, words: str) -> bool:
    try:
        await sink.write(batch(change("A", 1, gadget("A"))), 1)
    except Transient as error:
        return words in str(error)
    return False


async def test_after_a_failover_no_connection_to_the_reader_is_kept(server: Postgres, sql: Raw) -> None:
    async with sinking(server.dsn) as (sink, database):
        async with database.transaction("look") as connection:
            before = await connection.fetchval("SELECT pg_backend_pid()")
        await sql.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        await sql.execute("SELECT pg_reload_conf()")
        try:
            # The server tells its sessions of the new setting one by one, as it tells them of a failover.
            await wait_for(lambda: is_refused(sink, "ReadOnlySQLTransactionError"))
            with pytest.raises(Transient, match="read-only: a standby"):
                await database.probe(5)
            silent_s = database.silence_s
            async with database.transaction("read") as connection:
                await connection.fetchval("SELECT 1")
            assert database.silence_s >= silent_s, "who only reads does not know whether it could write"
        finally:
            await sql.execute("SET transaction_read_only = off")
            await sql.execute("ALTER SYSTEM RESET default_transaction_read_only")
            await sql.execute("SELECT pg_reload_conf()")
        await written(sink, batch(change("B", 1, gadget("B"))))
        async with database.transaction("look") as connection:
            assert await connection.fetchval("SELECT pg_backend_pid()") != before


async def test_a_network_that_breaks_at_random_loses_and_doubles_nothing(
    server: Postgres, sql: Raw, cable: Cable
) -> None:
    async with sinking(through(cable, server)) as (sink, _):
        cable.cut_one_in = 12
        for number in range(16):
            whole = batch(
                *(change(f"G{n}", number + 1, gadget(f"G{n}", pieces=number)) for n in range(3)), first=number + 1
            )
            await written(sink, whole)
    assert cable.cuts > 3
    assert await rows(sql, "SELECT count(*), min(pieces), max(pieces), min(_source_version) FROM gadgets") == [
        (3, 15, 15, 16)
    ]
    assert await rows(sql, "SELECT count(*) FROM tidegate.dead_letter") == [(0,)]


async def test_a_host_that_dies_silently_is_given_up_and_its_locks_are_freed(
    server: Postgres, sql: Raw, cable: Cable
) -> None:
    """The client waits for its own time-outs; the server ends the transaction that nobody finishes."""
    async with sinking(through(cable, server)) as (sink, database):
        fenced = asyncio.Event()

        async def half_done() -> None:
            async with database.transaction("write half") as connection:
                await connection.execute("UPDATE tidegate.shard SET lease_counter = 1")
                cable.is_dead = True
                fenced.set()
                await connection.execute("SELECT 1")

        lost = asyncio.create_task(half_done())
        await fenced.wait()
        async with sinking(server.dsn) as (other, _):
            await written(other, batch(change("A", 1, gadget("A"))))
        with pytest.raises(Transient, match=r"no answer within 0\.1 s"):
            await database.probe(0.1)
        lost.cancel()
        async with asyncio.timeout(1):
            with pytest.raises(asyncio.CancelledError):
                await lost
        cable.is_dead = False
        cable.cut()
        await written(sink, batch(change("B", 1, gadget("B")), first=2))
    assert await rows(sql, "SELECT number FROM gadgets ORDER BY 1") == [("A",), ("B",)]


async def test_a_transaction_leaves_nothing_in_its_session(server: Postgres, sql: Raw) -> None:
    """As a proxy wants it that lends a session for a transaction: no named statement, no setting, no advisory lock."""
    before = "SELECT name, setting FROM pg_settings WHERE source = 'session' AND name <> 'transaction_read_only'"
    async with sinking(server.dsn, replace(QUICK, connections=1, through_proxy=True)) as (sink, database):
        async with database.transaction("look") as connection:
            settings = await rows(connection, before)
        assert await sink.write(batch(change("A", 1, gadget("A")), b"poison"), 1) == WriteResult(applied=1, rejected=1)
        await sink.end("shard-0", 1, ["shard-1"])
        async with database.transaction("look") as connection:
            assert await connection.fetch("SELECT * FROM pg_prepared_statements") == []
            given = await rows(connection, "SELECT name FROM pg_settings WHERE source = 'client'")
            assert {name for (name,) in given} <= {"application_name", "client_encoding"}
            assert (
                await connection.fetch("SELECT * FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()")
                == []
            )
            assert await rows(connection, before) == settings


LIMIT_BYTES, ROWS = 200_000, 1_200


async def metric(worker: Worker, name: str) -> float:
    return (await worker.metrics())[name]


async def is_red(worker: Worker) -> bool:
    return not await worker.is_ready()


async def holds(stack: Stack, count: int) -> bool:
    return await query(stack, "SELECT count(*) FROM gadgets") == [(count,)]


async def reads_no_more(worker: Worker, since: float) -> bool:
    """Something was read ahead, and nothing more while several tries to write it failed."""
    before = await metric(worker, "tidegate_records_read_total")
    retried = await metric(worker, "tidegate_writes_retried_total")

    async def failed_again() -> bool:
        return await metric(worker, "tidegate_writes_retried_total") >= retried + 3

    await wait_for(failed_again)
    return since < before == await metric(worker, "tidegate_records_read_total")


async def set_read_only(stack: Stack, value: str) -> None:
    """What writers find in the first seconds after a failover, and its end."""
    connection = await asyncpg.connect(stack.postgres.dsn)
    await connection.execute("SET default_transaction_read_only = off")
    await connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()


async def test_a_worker_outlives_its_database_reads_no_more_meanwhile_and_says_so_on_readyz(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.fresh_stream("faults", 4)
        worker = await stack.start_worker(
            TIDEGATE_WATCH_INTERVAL_S="0.2", TIDEGATE_WATCH_TIMEOUT_S="1", TIDEGATE_DATABASE_CONNECT_TIMEOUT_S="1",
            TIDEGATE_READ_MEMORY_BYTES=str(LIMIT_BYTES), TIDEGATE_READ_LIMIT_RECORDS="100",
            TIDEGATE_CONSUMER_RETRY_MAX_MS="300",
        )  # fmt: skip
        await stack.put([change(f"G{n}", 1, gadget(f"G{n}")) for n in range(100)])
        await wait_for(lambda: holds(stack, 100))
        read_before = await metric(worker, "tidegate_records_read_total")
        await stack.postgres.kill()
        await wait_for(lambda: is_red(worker))
        await stack.put([change(f"G{n}", 2, gadget(f"G{n}", note="x" * 500)) for n in range(100, ROWS)])
        await wait_for(lambda: reads_no_more(worker, read_before))
        assert await metric(worker, "tidegate_records_read_total") < ROWS
        assert await metric(worker, "tidegate_read_memory_bytes") <= LIMIT_BYTES
        assert await metric(worker, "tidegate_database_up") == 0
        await stack.postgres.start()
        await wait_for(worker.is_ready)
        await wait_for(lambda: holds(stack, ROWS))

        await query(
            stack,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'tidegate-worker%'",
        )
        await set_read_only(stack, "on")
        await wait_for(lambda: is_red(worker))
        await set_read_only(stack, "DEFAULT")
        await wait_for(worker.is_ready)
        await stack.put([change("LAST", 1, gadget("LAST"))])
        await wait_for(lambda: holds(stack, ROWS + 1))
        assert worker.log.read_text().count("database_lost") >= 2
        assert await worker.stop() == 0
