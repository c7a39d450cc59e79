"""Alembic's part: two histories of revisions, which of them are pending, and what each of them would do.

What a revision would do is found by running its `upgrade()` on a connection that only writes down what it is given; the
database is not asked. Where a revision reads rows to decide, it finds none there, so what it does with each of them
is not in the plan.
"""

from __future__ import annotations

import io
from argparse import Namespace
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import MigrateOperation, Operations
from alembic.script import Script, ScriptDirectory
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.engine import Connection, IteratorResult
from sqlalchemy.engine.result import SimpleResultMetaData

from tidegate import tables

MIGRATIONS = Path(__file__).parent.parent / "migrations"
OWN = "tidegate"
"""The name of tidegate's own history; the other one has the bubble's."""

POSTGRESQL: sa.Dialect = PGDialect()  # type: ignore[no-untyped-call]


class History:
    """One history: the folder of its revisions, and the table that says how far a database is."""

    def __init__(self, name: str, folder: Path, version_table: str) -> None:
        self.name = name
        self.folder = folder
        self._version_table = version_table

    def pending(self, connection: Connection) -> list[Script]:
        """The revisions that the database does not have, in their order."""
        options = {"version_table": self._version_table, "version_table_schema": tables.SCHEMA}
        done = MigrationContext.configure(connection, opts=options).get_current_revision()
        return self.revisions(after=done)

    def revisions(self, after: str | None = None) -> list[Script]:
        script = ScriptDirectory.from_config(config(self.folder))
        found = script.walk_revisions("base" if after is None else after, "heads")
        return [revision for revision in found if revision.revision != after][::-1]

    def upgrade(self, connection: Connection, revision: str) -> None:
        """Bring the database to `revision`, each revision in a transaction of its own."""
        settings = config(self.folder)
        settings.attributes.update(
            connection=connection, version_table=self._version_table, version_schema=tables.SCHEMA
        )
        command.upgrade(settings, revision)


def own() -> History:
    return History(OWN, MIGRATIONS / "versions", "alembic_version")


def of_bubble(name: str, folder: Path) -> History:
    # The two must be told apart, whatever somebody calls his bubble.
    return History(f"bubble {name}" if name == OWN else name, folder, "bubble_version")


def title_of(revision: Script) -> str:
    return (revision.doc or "").strip()


def config(folder: Path) -> Config:
    made = Config(stdout=io.StringIO(), cmd_opts=Namespace(quiet=True))
    made.set_main_option("script_location", _escaped(MIGRATIONS))
    made.set_main_option("version_locations", _escaped(folder))
    made.set_main_option("path_separator", "newline")
    made.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    return made


def _escaped(path: Path) -> str:
    # ConfigParser interpolates percent signs.
    return str(path).replace("%", "%%")


def statements_of(revision: Script) -> list[str]:
    """The SQL that a revision would run."""
    notebook = _Notebook()
    with _operations(notebook):
        revision.module.upgrade()
    return notebook.written


def operations_of(revision: Script) -> list[MigrateOperation]:
    """What a revision would do, in alembic's terms; SQL that it would run as text is among them as such."""
    written: list[MigrateOperation] = []
    with _operations(_Notebook()) as operations:
        operations.invoke = written.append  # type: ignore[assignment]
        revision.module.upgrade()
    return written


def _operations(notebook: _Notebook) -> AbstractContextManager[Operations]:
    """What `op` in a revision means for the block."""
    connection: Any = notebook
    return Operations.context(MigrationContext.configure(connection))


class _Notebook:
    """Stands in for a connection: notes every statement, and finds no row."""

    def __init__(self) -> None:
        self.dialect = POSTGRESQL
        self.written: list[str] = []

    def execute(self, statement: Any, *_: object, **__: object) -> sa.Result[Any]:
        self.written.append(str(statement.compile(dialect=self.dialect)).strip())
        return IteratorResult(SimpleResultMetaData(()), iter(()))

    def exec_driver_sql(self, statement: str, *_: object, **__: object) -> sa.Result[Any]:
        return self.execute(sa.text(statement))

    # The rest is what a block without a transaction asks of a connection.

    def in_transaction(self) -> bool:
        return False

    def get_isolation_level(self) -> str:
        return "AUTOCOMMIT"

    def execution_options(self, **_: object) -> _Notebook:
        return self

    def begin(self) -> _Notebook:
        return self

    def commit(self) -> None:
        """Nothing was begun."""
