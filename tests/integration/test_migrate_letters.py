"""The operational tables after migrations are those of the code, and letters of an older release keep their meaning."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import msgspec
import pytest
import pytest_asyncio
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from local import provision
from local.postgres import Postgres
from tests.integration.letters_stack import cli, environment
from tests.integration.worker_rows import NOW, change, gadget
from tidegate import access, bubble, codec, migrate, tables
from tidegate.letter import event_identity
from tidegate.migrate import history

pytestmark = pytest.mark.asyncio(loop_scope="module")

BUBBLE = "examples.parcels.bubble"
FOLDER = Path("examples/parcels/migrations")
OFFICE = {
    "number": "O1", "name": "n", "city": "c", "postal_code": "3000", "kind": "counter",
    "changed_at": "2026-11-21T00:00:00Z",
}  # fmt: skip
INSERT = """
INSERT INTO tidegate.dead_letter (stream, shard_id, sequence_number, sub_sequence, stage, reason, message, entity, key,
                                  source, event_id, payload, observed_at)
VALUES ('s', 'shard-0', $1, $2, $3, $4, 'why 1', $5, $6, $7, 'e', $8, $9)
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Postgres]:
    async with Postgres() as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def dsn(server: Postgres, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """An empty database of the test's own."""
    name = f"test_{abs(hash(request.node.name))}"
    connection = await asyncpg.connect(server.dsn)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    yield server.dsn.removesuffix("/postgres") + f"/{name}"


async def before_letters(dsn: str) -> None:
    """The schema as it was before letters had identities."""

    def upgrade(connection: Connection) -> None:
        connection.exec_driver_sql(f"CREATE SCHEMA {tables.SCHEMA}")
        connection.commit()
        history.own().upgrade(connection, "0002")

    engine = create_async_engine(dsn.replace("postgresql://", "postgresql+asyncpg://", 1))
    async with engine.connect() as connection:
        await connection.run_sync(upgrade)
    await engine.dispose()


async def test_letters_of_the_release_before_are_named_and_none_is_lost(dsn: str) -> None:
    await before_letters(dsn)
    event = codec.encode(change("A", 1, gadget("A")))
    connection = await asyncpg.connect(dsn)
    filed = [
        (1, 0, "decode", "invalid", "gadget", "A", "gadgets", event, None),
        (7, 0, "decode", "invalid", "gadget", "A", "gadgets", event, None),
        (2, 0, "decode", "undecodable", None, None, None, b"garbage", None),
        (3, 0, "decode", "undecodable", None, None, None, b"garbage", None),
        (4, 0, "translate", "invalid", "gadget", "B", "gadgets", b"row", NOW),
        (5, -1, "read", "gap", None, None, None, b"", None),
    ]
    for letter in filed:
        await connection.execute(INSERT, *letter)
    await asyncio.to_thread(migrate.upgrade, dsn, bubble.load(BUBBLE), FOLDER)
    rows = await connection.fetch(
        "SELECT sequence_number::int, kind, identity, fingerprint, replays FROM tidegate.dead_letter ORDER BY 1"
    )
    await connection.close()
    assert [(row[0], row["kind"]) for row in rows] == [
        (1, "event"), (2, "event"), (3, "event"), (4, "row"), (5, "gap"), (7, "event"),
    ]  # fmt: skip
    assert rows[-1]["identity"] == event_identity(event), "what is filed again from now on is the newest of them"
    assert len({row["identity"] for row in rows}) == len(rows)
    assert [row["fingerprint"] == rows[0]["fingerprint"] for row in rows] == [True, False, False, False, False, True]


async def test_the_operational_tables_are_those_of_the_code(dsn: str) -> None:
    await asyncio.to_thread(migrate.upgrade, dsn, bubble.load(BUBBLE), FOLDER)

    def compare(connection: Connection) -> list[object]:
        options = {
            "compare_type": True,
            "include_schemas": True,
            "include_name": lambda name, kind, _: kind != "schema" or name == tables.SCHEMA,
            "include_object": lambda found, name, kind, *_: kind != "table" or not name.endswith("_version"),
        }
        found: list[object] = compare_metadata(MigrationContext.configure(connection, opts=options), tables.operational)
        # The tables' comments are for readers of the code.
        return [each for each in found if not (isinstance(each, tuple) and str(each[0]).endswith("_table_comment"))]

    engine = create_async_engine(dsn.replace("postgresql://", "postgresql+asyncpg://", 1))
    async with engine.begin() as connection:
        differences = await connection.run_sync(compare)
        await connection.exec_driver_sql("ALTER TABLE tidegate.dead_letter DROP COLUMN replays")
        caught = await connection.run_sync(compare)
    await engine.dispose()
    assert differences == []
    assert len(caught) == 1, "a difference is seen"


async def test_the_logins_of_a_deployment_may_do_their_verbs_and_no_more(server: Postgres, tmp_path: Path) -> None:
    office = tmp_path / "office.json"
    office.write_bytes(msgspec.json.encode(OFFICE))
    passwords = dict.fromkeys((provision.OWNER, *provision.LOGINS), "secret")
    owner = server.dsn_for(provision.OWNER, "secret", provision.DATABASE)
    await provision.make_database(server.dsn, owner, passwords)
    await provision.migrate_database(owner, bubble.load(BUBBLE), BUBBLE)
    await provision.make_logins(server.dsn, passwords)
    worker, operator = (
        {
            "TIDEGATE_DATABASE_URL": server.dsn_for(f"{name}_login", "secret", provision.DATABASE),
            "TIDEGATE_BUBBLE": BUBBLE,
        }
        for name in ("worker", "operator")
    )
    connection = await asyncpg.connect(worker["TIDEGATE_DATABASE_URL"])
    await connection.execute(
        "INSERT INTO tidegate.dead_letter (stream, shard_id, sequence_number, sub_sequence, stage, reason, message, entity, "
        "key, source, event_id, payload, observed_at, kind, identity, fingerprint) VALUES ('s', 'shard-0', 1, 0, 'translate', "
        "'invalid', 'why', 'office', 'O1', 'offices', 'e', '{}', now(), 'row', 'i', 'f')"
    )
    await connection.close()
    with environment(operator):
        [letter] = (await cli("dead-letters", "list", "--each", "--json")).json["each"]
        edited = await cli("dead-letters", "edit", letter["id"], "--file", FOLDER.parent / "__init__.py")
        assert "the data must be one JSON object" in edited.err
        assert (await cli("dead-letters", "edit", letter["id"], "--file", office, "--json")).json["edited"]
        assert (await cli("dead-letters", "replay", letter["id"], "--dry-run", "--json")).json["would_replay"] == 1
        assert (await cli("dead-letters", "drop", letter["id"], "--json")).json["dropped"] == 1
        refused = await cli("erase", "office", "O1", "--yes")
        assert (refused.code, "check the user of TIDEGATE_DATABASE_URL and its role" in refused.err) == (1, True)
    with environment(worker):
        erased = (await cli("erase", "office", "O1", "--yes", "--json")).json["erased"]
        assert (erased["row"], erased["dead_letters"]) == ("none", 1)
        assert "let in again" in (await cli("erase", "office", "O1", "--undo", "--yes")).out


async def test_an_operator_may_work_on_letters_and_not_on_what_they_hold(dsn: str) -> None:
    await asyncio.to_thread(migrate.upgrade, dsn, bubble.load(BUBBLE), FOLDER)
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(f"SET ROLE {access.OPERATOR}")
        await connection.execute(
            "UPDATE tidegate.dead_letter SET edited_payload = '', replays = replays + 1, version = NULL"
        )
        for forbidden in (
            "UPDATE tidegate.dead_letter SET payload = ''",
            "UPDATE tidegate.dead_letter SET identity = ''",
            "INSERT INTO tidegate.erasure (entity, key_hash, erased_by) VALUES ('e', '', 'me')",
            "DELETE FROM parcels",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(forbidden)
    finally:
        await connection.close()
