"""Bring a database to the schema of this release and this bubble, and write a bubble's next migration.

Two alembic histories share one `env.py`: tidegate's own operational tables (`tidegate/migrations/versions`) and
the bubble's entity tables (the folder `migrations` beside the bubble). Row-level security and the rule which fields a
live row must have are not part of a history: both are derived from the entities and set anew after every upgrade, in
the same transaction.
"""

from __future__ import annotations

import asyncio
import io
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from tidegate import access, access_sql, tables
from tidegate.bubble import Bubble
from tidegate.database import check_address
from tidegate.errors import Fatal

Result = TypeVar("Result")

_OWN = Path(__file__).parent / "migrations"
# One migration at a time: any constant will do, as long as every release uses the same.
_LOCK = "SELECT pg_advisory_xact_lock(7126001)"


class Step(NamedTuple):
    """One pending revision: which history it is of, its id and its first line."""

    history: str
    revision: str
    title: str


def migrations_of(module: ModuleType) -> Path:
    """The folder that holds the migrations of a bubble's module."""
    if module.__file__ is None:
        raise Fatal(f"{module.__name__}: it has no file, so there is no place for its migrations")
    return Path(module.__file__).parent / "migrations"


def upgrade(url: str, bubble: Bubble, folder: Path) -> list[Step]:
    """Apply what is pending and set the access rules; returns the revisions applied.

    `url` is a `postgresql://` address of the owner. Everything happens in one transaction.

    Raises:
        Fatal: the database cannot be reached, or after the upgrade its tables are not those of the bubble.
    """
    return _run(url, lambda connection: _upgrade(connection, bubble, folder))


def pending(url: str, bubble: Bubble, folder: Path) -> list[Step]:
    """What `upgrade` would apply; changes nothing."""
    return _run(url, lambda connection: _pending(connection, bubble, folder))


def generate(bubble: Bubble, folder: Path, title: str) -> Path | None:
    """Write the bubble's next migration; None when its tables are those of its history already.

    No database is needed: the history is replayed on an in-memory SQLite and compared with the entities.
    """
    folder.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine("sqlite://")
    try:
        with engine.connect() as connection:
            return _generate(connection, tables.entity_metadata(bubble.shapes), folder, title)
    finally:
        engine.dispose()


def _generate(connection: Connection, metadata: sa.MetaData, folder: Path, title: str) -> Path | None:
    config = _config(connection, metadata, folder, version_table="alembic_version", version_schema=None)
    command.upgrade(config, "head")
    if not compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata):
        return None
    number = len(list(folder.glob("[0-9]*.py"))) + 1
    script = command.revision(config, message=title, autogenerate=True, rev_id=f"{number:04d}")
    if script is None or isinstance(script, list):
        raise Fatal(f"{folder}: alembic wrote no single revision")
    return Path(script.path)


def _run(url: str, work: Callable[[Connection], Result]) -> Result:
    return asyncio.run(_connected(url, work))


async def _connected(url: str, work: Callable[[Connection], Result]) -> Result:
    check_address(url)
    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://", 1))
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(work)
    except (OSError, sa.exc.OperationalError, sa.exc.InterfaceError) as error:
        shown = sa.make_url(url).render_as_string(hide_password=True)
        raise Fatal(f"TIDEGATE_DATABASE_URL: cannot connect to {shown}: {error}; is the database up?") from error
    finally:
        await engine.dispose()


def _upgrade(connection: Connection, bubble: Bubble, folder: Path) -> list[Step]:
    connection.exec_driver_sql(_LOCK)
    connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {tables.SCHEMA}")
    steps = _pending(connection, bubble, folder)
    for shape in bubble.shapes:
        connection.exec_driver_sql(tables.no_completeness(shape))
    for config in _configs(connection, bubble, folder):
        command.upgrade(config, "head")
    _check_tables(connection, bubble, folder)
    for statement in _access_statements(bubble):
        connection.exec_driver_sql(statement)
    return steps


def _access_statements(bubble: Bubble) -> Iterator[str]:
    yield from (access.create_role(role) for role in access.ROLES)
    yield from access.FUNCTIONS
    yield from access.operational_grants()
    yield from access_sql.statements()
    for shape in bubble.shapes:
        yield from tables.completeness(shape)
        yield from access.entity_access(shape)


def _pending(connection: Connection, bubble: Bubble, folder: Path) -> list[Step]:
    return [
        step
        for config, history in zip(_configs(connection, bubble, folder), ("tidegate", bubble.name), strict=True)
        for step in _pending_of(connection, config, history)
    ]


def _pending_of(connection: Connection, config: Config, history: str) -> list[Step]:
    script = ScriptDirectory.from_config(config)
    attributes = config.attributes
    migration = MigrationContext.configure(
        connection,
        opts={"version_table": attributes["version_table"], "version_table_schema": attributes["version_schema"]},
    )
    done = migration.get_current_revision()
    steps = [
        Step(history, revision.revision, (revision.doc or "").strip())
        for revision in script.walk_revisions("base" if done is None else done, "heads")
        if revision.revision != done
    ]
    return steps[::-1]


def _check_tables(connection: Connection, bubble: Bubble, folder: Path) -> None:
    metadata = tables.entity_metadata(bubble.shapes)
    # Other tables in the database are none of ours.
    options = {"compare_type": True, "include_name": lambda name, kind, _: kind != "table" or name in metadata.tables}
    differences = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
    if differences:
        first = differences[0][0] if isinstance(differences[0], list) else differences[0]
        raise Fatal(
            f"the migrations in {folder.name}/ do not lead to the tables of the bubble {bubble.name!r} "
            f'(first difference: {first[0]} {first[-1]}); run `tidegate migrate --generate "what changed"`, review the '
            "file it writes, and migrate again"
        )


def _configs(connection: Connection, bubble: Bubble, folder: Path) -> tuple[Config, Config]:
    own = _config(connection, tables.operational, _OWN / "versions", version_table="alembic_version")
    metadata = tables.entity_metadata(bubble.shapes)
    return own, _config(connection, metadata, folder, version_table="bubble_version")


def _config(
    connection: Connection,
    metadata: sa.MetaData,
    folder: Path,
    *,
    version_table: str,
    version_schema: str | None = tables.SCHEMA,
) -> Config:
    config = Config(stdout=io.StringIO(), cmd_opts=Namespace(quiet=True))
    config.set_main_option("script_location", _escaped(_OWN))
    config.set_main_option("version_locations", _escaped(folder))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    config.attributes.update(
        connection=connection, metadata=metadata, version_table=version_table, version_schema=version_schema
    )
    return config


def _escaped(path: Path) -> str:
    # ConfigParser interpolates percent signs.
    return str(path).replace("%", "%%")
