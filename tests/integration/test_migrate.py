"""Migrations on a real PostgreSQL: generated, planned, applied, checked, and row-level security set after them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from local.postgres import Postgres
from tidegate import access, bubble, migrate
from tidegate.bubble import Bubble
from tidegate.entity import EVERYONE, Entity, Meta, Reader
from tidegate.errors import Fatal


class Thing(Entity):
    meta = Meta(collection="things", key="number", readers=(Reader(EVERYONE),))
    number: int
    order: str


class RelaxedThing(Entity):
    """The same table: the order may be missing now."""

    meta = Meta(collection="things", key="number", readers=(Reader(EVERYONE),))
    number: int
    order: str | None


class StricterThing(RelaxedThing):
    """The same table once more, with a field that every row must have from now on."""

    colour: str


NUMBERS = itertools.count(1)
INSERT_THING = (
    'INSERT INTO things (number, "order", _generation, _source_version, _epoch, _read, _translation, _deleted, '
    "_event_id, _occurred_at) VALUES ($1, $2, 0, 0, 0, 0, 1, $3, 'e', now())"
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Postgres]:
    async with Postgres() as made:
        yield made


@pytest.fixture
async def dsn(server: Postgres) -> str:
    """An empty database of the test's own."""
    name = f"migrate_{next(NUMBERS)}"
    connection = await asyncpg.connect(server.dsn)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    return server.dsn.removesuffix("/postgres") + f"/{name}"


async def upgrade(dsn: str, wanted: Bubble, folder: Path) -> list[migrate.Step]:
    return await asyncio.to_thread(migrate.upgrade, dsn, wanted, folder)


async def test_the_sample_bubble_is_planned_applied_and_then_there_is_nothing_to_do(dsn: str) -> None:
    parcels = bubble.load("examples.parcels.bubble")
    folder = Path("examples/parcels/migrations")
    planned = (await asyncio.to_thread(migrate.plan, dsn, parcels, folder)).steps
    assert {step.judgement for step in planned} == {migrate.SAFE}, "nobody works on what is not there"
    ours = [step.revision for step in planned if step.history == "tidegate"]
    assert ours == [f"{number:04d}" for number in range(1, len(ours) + 1)]
    assert [(step.history, step.revision) for step in planned[len(ours) :]] == [("parcels", "0001")]
    assert await upgrade(dsn, parcels, folder) == planned
    assert await upgrade(dsn, parcels, folder) == []


async def test_every_entity_table_has_forced_policies_and_the_reader_is_weak(dsn: str) -> None:
    parcels = bubble.load("examples.parcels.bubble")
    await upgrade(dsn, parcels, Path("examples/parcels/migrations"))
    connection = await asyncpg.connect(dsn)
    try:
        tables = await connection.fetch(
            "SELECT relname, relrowsecurity AND relforcerowsecurity AS forced FROM pg_class "
            "WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
        )
        assert {row["relname"]: row["forced"] for row in tables} == dict.fromkeys(
            ("parcels", "offices", "customers"), True
        )
        role = await connection.fetchrow(
            "SELECT rolsuper, rolbypassrls, rolcanlogin FROM pg_roles WHERE rolname = $1", access.READER
        )
        assert tuple(role) == (False, False, False)
        for table in ("shard", "watermark", "dead_letter", "erasure", "outbox", "alembic_version", "bubble_version"):
            granted = "SELECT has_table_privilege($1, 'tidegate.' || $2, 'SELECT')"
            assert await connection.fetchval(granted, access.READER, table) is False
    finally:
        await connection.close()


async def test_a_tombstone_needs_no_content_and_a_live_row_needs_all(dsn: str, tmp_path: Path) -> None:
    things = Bubble(name="things", entities=(Thing,), sources=())
    migrate.generate(things, tmp_path / "migrations", "first tables")
    await upgrade(dsn, things, tmp_path / "migrations")
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(INSERT_THING, 1, None, True)
        await connection.execute(INSERT_THING, 2, "second", False)
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute(INSERT_THING, 3, None, False)
    finally:
        await connection.close()


async def test_which_fields_a_live_row_needs_follows_the_entity_and_old_rows_stay(dsn: str, tmp_path: Path) -> None:
    folder = tmp_path / "migrations"
    first, second, third = (
        Bubble(name="things", entities=(entity,), sources=()) for entity in (Thing, RelaxedThing, StricterThing)
    )
    migrate.generate(first, folder, "first tables")
    assert "_complete" not in (folder / "0001_first_tables.py").read_text()
    await upgrade(dsn, first, folder)
    connection = await asyncpg.connect(dsn)
    try:
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute(INSERT_THING, 1, None, False)
        assert migrate.generate(second, folder, "nothing to write") == []
        await upgrade(dsn, second, folder)
        await connection.execute(INSERT_THING, 1, None, False)
        assert len(migrate.generate(third, folder, "a colour")) == 1
        await upgrade(dsn, third, folder)
        with pytest.raises(asyncpg.CheckViolationError, match="things_complete"):
            await connection.execute(INSERT_THING, 2, "second", False)
        await connection.execute("UPDATE things SET colour = 'red'")
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute("UPDATE things SET colour = NULL")
        assert await upgrade(dsn, third, folder) == []
    finally:
        await connection.close()


async def test_an_operator_may_resolve_a_dead_letter_and_change_nothing_else(dsn: str) -> None:
    await upgrade(dsn, bubble.load("examples.parcels.bubble"), Path("examples/parcels/migrations"))
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(f"SET ROLE {access.OPERATOR}")
        await connection.execute("UPDATE tidegate.dead_letter SET resolved_at = now() WHERE resolved_at IS NULL")
        await connection.execute("UPDATE tidegate.outbox SET state = 'waiting', due_at = now(), tried_since = NULL")
        tables = ("dead_letter SET source = 'x'", "outbox SET payload = ''")
        deletions = [f"DELETE FROM tidegate.{table}" for table in ("dead_letter", "outbox")]
        for forbidden in (*(f"UPDATE tidegate.{table}" for table in tables), *deletions):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(forbidden)
    finally:
        await connection.close()


@pytest.mark.parametrize("address", ["postgresql://owner:gehe#im@127.0.0.1/db", "postgresql://owner:gehe@h:im/db"])
def test_an_address_that_cannot_be_read_is_one_clear_text_without_the_password(address: str, tmp_path: Path) -> None:
    things = Bubble(name="things", entities=(Thing,), sources=())
    with pytest.raises(Fatal, match="percent escapes") as caught:
        migrate.upgrade(address, things, tmp_path)
    assert "gehe" not in str(caught.value)


async def test_an_entity_without_its_migration_is_refused(dsn: str, tmp_path: Path) -> None:
    things = Bubble(name="things", entities=(Thing,), sources=())
    with pytest.raises(Fatal, match=r"do not lead to the tables of the bubble 'things'.*tidegate migrate --generate"):
        await upgrade(dsn, things, tmp_path / "migrations")


def test_what_is_up_to_date_generates_nothing(tmp_path: Path) -> None:
    things = Bubble(name="things", entities=(Thing,), sources=())
    folder = tmp_path / "migrations"
    assert migrate.generate(things, folder, "first tables") == [folder / "0001_first_tables.py"]
    assert migrate.generate(things, folder, "again") == []


def test_an_unreachable_database_is_one_clear_text_without_the_password(tmp_path: Path) -> None:
    things = Bubble(name="things", entities=(Thing,), sources=())
    with pytest.raises(Fatal, match=r"cannot connect to .*127\.0\.0\.1:1/") as caught:
        migrate.upgrade("postgresql://owner:geheim@127.0.0.1:1/db", things, tmp_path)
    assert "geheim" not in str(caught.value)
