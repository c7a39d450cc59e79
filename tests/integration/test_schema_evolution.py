"""The schema changes under running workers: expansion first, both releases at work, contraction when the old one is gone."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from local.postgres import Postgres
from tests.integration.worker_rows import change
from tidegate import cli, codec, migrate, tables
from tidegate.bubble import Bubble, Viewer
from tidegate.database import DatabaseSettings, connect
from tidegate.entity import EVERYONE, Entity, Meta, Reader
from tidegate.errors import Fatal
from tidegate.migrate import Hazard, Limits, Permission, history
from tidegate.migrate.plan import steps_of
from worker import dead_letter
from worker.aurora import AuroraSink
from worker.batch import Batch, BatchBuilder, BatchLimits, Record
from worker.decode import Decoder
from worker.ports import WriteResult

pytestmark = pytest.mark.asyncio(loop_scope="module")

EVERYBODY = (Reader(EVERYONE),)
QUICK = Limits(lock_timeout_ms=50, pause_s=0.05, patience_s=20)
NAMES = itertools.count(1)


def releases() -> tuple[Bubble, Bubble]:
    """The same entity as two releases know it."""

    class Crate(Entity):
        meta = Meta(collection="crates", key="number", readers=EVERYBODY)
        number: str
        weight: int
        legacy: str | None

    old = Bubble(name="crates", entities=(Crate,), sources=())

    class Crate(Entity):  # type: ignore[no-redef]
        """A field less, one more that is looked up by readers, and a wider type."""

        meta = Meta(collection="crates", key="number", readers=(*EVERYBODY, Reader("owner", ("owner",))))
        number: str
        weight: Decimal
        owner: str | None

    class Lid(Entity):
        meta = Meta(collection="lids", key="number", readers=EVERYBODY)
        number: str

    return old, Bubble(name="crates", entities=(Crate, Lid), sources=(), viewers=(Viewer("owner", claim="sub"),))


def strict() -> Bubble:
    """The old release with one more required field."""

    class Crate(Entity):
        meta = Meta(collection="crates", key="number", readers=EVERYBODY)
        number: str
        weight: int
        legacy: str | None
        colour: str

    return Bubble(name="crates", entities=(Crate,), sources=())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Postgres]:
    async with Postgres() as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def dsn(server: Postgres) -> str:
    """An empty database of the test's own."""
    name = f"evolution_{next(NAMES)}"
    await execute(server.dsn, f"CREATE DATABASE {name}")
    return server.dsn.removesuffix("/postgres") + f"/{name}"


async def execute(dsn: str, *statements: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def fetch(dsn: str, query: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(dsn)
    found = [tuple(row) for row in await connection.fetch(query)]
    await connection.close()
    return found


async def upgrade(dsn: str, bubble: Bubble, folder: Path, **allowed: bool) -> list[str]:
    steps = await asyncio.to_thread(migrate.upgrade, dsn, bubble, folder, Permission(**allowed), QUICK)
    return [step.name for step in steps]


async def plan(dsn: str, bubble: Bubble, folder: Path) -> dict[str, list[Hazard]]:
    found = await asyncio.to_thread(migrate.plan, dsn, bubble, folder)
    return {step.name: step.hazards for step in found.steps}


class Worker:
    """A release's decoder and sink, as a worker process has them, on a shard of its own."""

    def __init__(self, sink: AuroraSink, bubble: Bubble, shard: str) -> None:
        self.sink = sink
        self._decoder = Decoder(bubble.entities)
        self._shard = shard
        self._position = itertools.count(1)

    def batch(self, key: str, version: int, data: dict[str, Any] | None) -> Batch:
        builder = BatchBuilder(self._shard, BatchLimits(max_records=10, max_bytes=10**6, max_age_s=1))
        record = codec.encode(change(key, version, data, entity="crate"))
        builder.fill([Record(str(next(self._position)), record)], 0, self._decoder.decode_all, 0.0)
        return builder.close()

    async def write(self, key: str, version: int, **data: Any) -> WriteResult:
        return await self.sink.write(self.batch(key, version, {"number": key, **data}), 1)


@asynccontextmanager
async def working(dsn: str, bubble: Bubble, shard: str) -> AsyncIterator[Worker]:
    async with connect(dsn, DatabaseSettings(), f"worker {tables.fingerprint(bubble.shapes)}") as database:
        sink = AuroraSink(database, "stream", bubble.shapes, dead_letter.file)
        await sink.check()
        await sink.register([shard], [], [])
        await sink.open(shard, 1)
        yield Worker(sink, bubble, shard)


@asynccontextmanager
async def writing(worker: Worker, prefix: str, **data: Any) -> AsyncIterator[list[str]]:
    """Write row after row for the block; yields the keys that are written."""
    done: list[str] = []
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            key = f"{prefix}{len(done)}"
            assert await worker.write(key, 1, **data) == WriteResult(applied=1)
            done.append(key)

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        yield done
        stop.set()


async def more(done: list[str]) -> None:
    """Wait until ten more rows are written."""
    wanted = len(done) + 10
    async with asyncio.timeout(20):
        while len(done) < wanted:
            await asyncio.sleep(0.01)


async def test_both_releases_work_on_the_expanded_schema_and_the_old_one_ends_before_the_contraction(
    dsn: str, tmp_path: Path
) -> None:
    old, new = releases()
    migrate.generate(old, tmp_path, "first tables")
    await upgrade(dsn, old, tmp_path)
    names = [path.name for path in migrate.generate(new, tmp_path, "owners", drop_and_add=True)]
    assert names == ["0002_owners.py", "0003_owners_contraction_to_be_applied_when_.py"]
    async with working(dsn, old, "shard-0") as before:
        async with writing(before, "A", weight=1, legacy="x") as written:
            await more(written)
            assert await plan(dsn, new, tmp_path) == {
                "crates 0002": [], "crates 0003": [Hazard.DESTRUCTIVE, Hazard.STOP_FIRST],
            }  # fmt: skip
            with pytest.raises(Fatal, match=r"0003 is destructive.*--allow-destructive"):
                await upgrade(dsn, new, tmp_path)
            with pytest.raises(Fatal, match="needs the previous release stopped, and its workers have 1 connection"):
                await upgrade(dsn, new, tmp_path, destructive=True)
            assert await upgrade(dsn, new, tmp_path, expand_only=True) == ["crates 0002"]
            await more(written)
            async with working(dsn, new, "shard-1") as after, writing(after, "B", weight="1.5", owner="me") as others:
                await asyncio.gather(more(written), more(others))
                await before.sink.check()
                # One row that both write: the newest version holds, whoever writes it.
                await after.write("C", 2, weight="2.5", owner="me")
                assert await before.write("C", 1, weight=9, legacy="x") == WriteResult(stale=1)
                assert await before.write("C", 3, weight=3, legacy="x") == WriteResult(applied=1)
        assert len(await fetch(dsn, "SELECT FROM crates")) == len(written) + len(others) + 1
        assert await fetch(dsn, "SELECT weight, legacy FROM crates WHERE number = 'C'") == [(Decimal(3), "x")]
        assert await upgrade(dsn, new, tmp_path, destructive=True, running=True) == ["crates 0003"]
        assert await upgrade(dsn, new, tmp_path) == []
        with pytest.raises(Fatal, match=r"the column crates\.legacy \(text\) is missing.*run `tidegate migrate`"):
            await before.sink.check()
        with pytest.raises(Fatal, match=r'"legacy".*"crates".*run `tidegate migrate`'):
            await before.write("D", 1, weight=1, legacy="x")
    async with working(dsn, new, "shard-2") as after:
        assert await after.write("C", 4, weight="4.5", owner=None) == WriteResult(applied=1)
        assert (await asyncio.to_thread(migrate.plan, dsn, new, tmp_path)).workers == 0, "they are of this release"
    assert await fetch(dsn, "SELECT number FROM crates WHERE number = 'D'") == []


async def test_a_field_that_becomes_required_stops_the_old_release_instead_of_filing_its_rows(
    dsn: str, tmp_path: Path
) -> None:
    old, new = releases()[0], strict()
    migrate.generate(old, tmp_path, "first tables")
    await upgrade(dsn, old, tmp_path)
    migrate.generate(new, tmp_path, "a colour")
    async with working(dsn, old, "shard-0") as before:
        assert (await plan(dsn, new, tmp_path)) == {"crates 0002": []} | {"live rows of crates": [Hazard.STOP_FIRST]}
        assert await upgrade(dsn, new, tmp_path, expand_only=True) == ["crates 0002"]
        assert await before.write("A", 1, weight=1, legacy=None) == WriteResult(applied=1)
        async with working(dsn, new, "shard-1") as after:
            assert await after.write("B", 1, weight=1, legacy=None, colour="red") == WriteResult(applied=1)
        assert await upgrade(dsn, new, tmp_path, running=True) == ["live rows of crates"]
        with pytest.raises(Fatal, match=r"crates_complete.*run `tidegate migrate`"):
            await before.write("A", 2, weight=2, legacy=None)
        with pytest.raises(Fatal, match=r"crates\.colour must be given, and this release does not know it"):
            await before.sink.check()
        await execute(dsn, "ALTER TABLE crates DROP CONSTRAINT crates_complete", "UPDATE crates SET colour = ''")
        await execute(dsn, "ALTER TABLE crates ALTER colour SET NOT NULL")
        with pytest.raises(Fatal, match=r"\(crates\.colour\).*run `tidegate migrate`"):
            await before.write("A", 3, weight=3, legacy=None)
    assert await fetch(dsn, "SELECT FROM tidegate.dead_letter") == []


async def test_a_migration_does_not_make_the_projection_wait_behind_a_long_reader(dsn: str, tmp_path: Path) -> None:
    old, new = releases()
    migrate.generate(old, tmp_path, "first tables")
    await upgrade(dsn, old, tmp_path)
    migrate.generate(new, tmp_path, "owners", drop_and_add=True)
    reader = await asyncpg.connect(dsn, server_settings={"application_name": "report"})
    async with working(dsn, old, "shard-0") as before:
        reading = reader.transaction()
        await reading.start()
        await reader.fetch("SELECT * FROM crates")
        impatient = Limits(lock_timeout_ms=50, pause_s=0.01, patience_s=0.3)
        with pytest.raises(Fatal, match=r"crates 0002 got no lock for 0.3 s.*\(report, idle in transaction"):
            await asyncio.to_thread(migrate.upgrade, dsn, new, tmp_path, Permission(expand_only=True), impatient)
        async with writing(before, "A", weight=1, legacy="x") as written, asyncio.TaskGroup() as group:
            upgrading = group.create_task(upgrade(dsn, new, tmp_path, expand_only=True))
            for _ in range(5):
                await more(written)
            assert not upgrading.done()
            await reading.rollback()
        assert upgrading.result() == ["crates 0002"]
    await reader.close()


async def test_an_index_of_a_filled_table_is_built_beside_and_a_broken_one_is_built_anew(
    dsn: str, tmp_path: Path
) -> None:
    old, new = releases()
    migrate.generate(old, tmp_path, "first tables")
    await upgrade(dsn, old, tmp_path)
    await execute(
        dsn,
        "INSERT INTO crates (number, weight, _generation, _source_version, _epoch, _read, _translation, _deleted, _event_id,"
        " _occurred_at) SELECT n, n, 0, 0, 0, 0, 0, false, 'e', now() FROM generate_series(1, 20000) AS n",
    )
    [expansion, _] = migrate.generate(new, tmp_path, "owners", drop_and_add=True)
    text = expansion.read_text()
    assert "postgresql_concurrently=True" in text
    assert "autocommit_block" in text
    # As a build leaves it that was killed.
    await execute(
        dsn,
        "CREATE INDEX crates_owner_key ON crates (weight)",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'crates_owner_key'::regclass",
    )
    assert (await plan(dsn, new, tmp_path))["crates 0002"] == [Hazard.LONG_LOCK], "the wider type rewrites the table"
    await upgrade(dsn, new, tmp_path, expand_only=True)
    [(definition, is_valid)] = await fetch(
        dsn,
        "SELECT pg_get_indexdef(indexrelid), indisvalid FROM pg_index WHERE indexrelid = 'crates_owner_key'::regclass",
    )
    assert definition.endswith("(owner, number)")
    assert is_valid


async def test_two_migrations_at_once_are_one_after_the_other(dsn: str, tmp_path: Path) -> None:
    old, _ = releases()
    migrate.generate(old, tmp_path, "first tables")
    both = await asyncio.gather(*(upgrade(dsn, old, tmp_path) for _ in range(2)))
    assert sorted(map(len, both)) == [0, 1 + len(history.own().revisions())]
    await execute(dsn, "ALTER TABLE crates ADD COLUMN mine TEXT")
    with pytest.raises(Fatal, match=r"crates\.mine belongs to no field.*changed them by hand"):
        await upgrade(dsn, old, tmp_path)


async def test_nothing_is_guessed(tmp_path: Path) -> None:
    old, new = releases()
    migrate.generate(old, tmp_path, "first tables")
    with pytest.raises(Fatal, match=r"crates: legacy \(text\) goes and owner \(text\) comes.*A rename cannot be told"):
        migrate.generate(new, tmp_path, "owners")
    assert migrate.generate(old, tmp_path, "nothing was written") == []
    wrong = {"number: int": "its key", "weight: str": "a column of type bigint cannot become text"}
    for declared, words in wrong.items():
        name, _, kind = declared.partition(": ")
        fields = {"number": str, "weight": int, "legacy": str | None, name: {"int": int, "str": str}[kind]}
        meta = Meta(collection="crates", key="number" if name == "weight" else "weight", readers=EVERYBODY)
        made = type("Crate", (Entity,), {"__annotations__": fields, "meta": meta})
        with pytest.raises(Fatal, match=words):
            migrate.generate(Bubble(name="crates", entities=(made,), sources=()), tmp_path, "wrong")


@pytest.fixture
def module(tmp_path: Path) -> Iterator[ModuleType]:
    """A bubble's module with its migrations beside it, as the command line wants it."""
    made = ModuleType("evolving_bubble")
    made.__file__ = str(tmp_path / "bubble.py")
    sys.modules[made.__name__] = made
    yield made
    del sys.modules[made.__name__]


async def test_the_plan_is_printed_with_its_judgements_and_its_exit_code_says_whether_it_may_be_done(
    dsn: str, module: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = releases()
    monkeypatch.setenv("TIDEGATE_DATABASE_URL", dsn)

    async def run(bubble: Bubble, *arguments: str) -> tuple[int, str]:
        module.bubble = bubble  # type: ignore[attr-defined]
        code = await asyncio.to_thread(cli.main, ["migrate", "--bubble", module.__name__, *arguments])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    assert (await run(old, "--generate", "first tables"))[0] == 0
    assert (await run(old))[0] == 0
    code, text = await run(new, "--generate", "owners")
    assert code == 1
    assert "--drop-and-add" in text
    assert (await run(new, "--generate", "owners", "--drop-and-add"))[0] == 0
    code, text = await run(new, "--plan")
    assert code == 1
    assert "would apply crates 0002: owners [safe under running workers]" in text
    assert "destructive: the values of crates.legacy are gone" in text
    assert "refused: crates 0003 is destructive" in text
    code, text = await run(new, "--plan", "--expand")
    assert (code, "would leave crates 0003" in text) == (0, True)
    assert (await run(new, "--plan", "--allow-destructive"))[0] == 0
    assert (await run(new))[0] == 1
    assert (await run(new, "--allow-destructive"))[0] == 0
    assert (await run(new, "--plan")) == (0, "nothing to apply\n")


TABLES = """
SELECT c.relname::text, array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE NOT a.atthasdef AND a.attidentity = ''),
       array_agg(format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum) FILTER (WHERE NOT a.atthasdef AND a.attidentity = '')
FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
WHERE c.relnamespace = 'tidegate'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
  AND c.relname NOT LIKE '%version' GROUP BY 1 ORDER BY 1
"""
SAMPLES = {
    "text": "'{n}'",
    "numeric": "{n}",
    "bigint": "{n}",
    "bytea": "'\\x{n:02}'",
    "jsonb": "'{{}}'",
    "timestamp with time zone": "now()",
}


async def test_what_the_previous_release_writes_to_tidegates_own_tables_is_written_or_the_plan_says_stop(
    dsn: str,
) -> None:
    """For each revision but the first: statements made from the tables before it, run on the tables after it."""
    own = history.own()
    revisions = [script.revision for script in own.revisions()]
    await execute(dsn, "CREATE SCHEMA tidegate")
    await raise_to(dsn, revisions[0])
    for revision in revisions[1:]:
        statements = {table: written(table, *columns) for table, *columns in await fetch(dsn, TABLES)}
        for statement in statements.values():
            await execute(dsn, "BEGIN", "SET session_replication_role = replica", statement, "ROLLBACK")
        stops = Hazard.STOP_FIRST in await hazards_of(dsn, revision)
        await raise_to(dsn, revision)
        refused = set()
        for table, statement in statements.items():
            try:
                await execute(dsn, "BEGIN", "SET session_replication_role = replica", statement, "ROLLBACK")
            except asyncpg.PostgresError as error:
                refused.add(f"{table}: {error}")
        assert stops or not refused, (revision, refused)


def written(table: str, columns: list[str], types: list[str]) -> str:
    values = [SAMPLES.get(kind, "NULL").format(n=number) for number, kind in enumerate(types, 1)]
    return f"INSERT INTO tidegate.{table} ({', '.join(columns)}) VALUES ({', '.join(values)})"


@asynccontextmanager
async def owner(dsn: str) -> AsyncIterator[AsyncConnection]:
    engine = create_async_engine(dsn.replace("postgresql://", "postgresql+asyncpg://", 1))
    async with engine.connect() as connection:
        yield connection
    await engine.dispose()


async def raise_to(dsn: str, revision: str) -> None:
    async with owner(dsn) as connection:
        await connection.run_sync(history.own().upgrade, revision)


async def hazards_of(dsn: str, revision: str) -> list[Hazard]:
    async with owner(dsn) as connection:
        steps = await connection.run_sync(steps_of, [history.own()], [])
    return next(step.hazards for step in steps if step.revision == revision)
