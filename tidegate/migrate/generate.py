"""Write a bubble's next migration: what the entities have and the history does not, and what the history has too much.

No database is needed: the history is replayed in memory. What is new is one revision, safe under the workers of the
previous release (the expansion); what goes is another one after it, for when that release is gone (the contraction).
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import render_op_text
from alembic.migration import MigrationContext
from alembic.operations import MigrateOperation, ops
from alembic.script import ScriptDirectory

from tidegate import tables
from tidegate.bubble import Bubble
from tidegate.columns import is_widened, type_name
from tidegate.errors import Fatal
from tidegate.migrate import history

_CONTRACTION = "to be applied when the previous release is gone"
# Whoever builds an index beside the work waits for transactions, and nobody waits for him.
_BESIDE = """\
with op.get_context().autocommit_block():
    op.execute("SET lock_timeout = 0")
{body}
    op.execute("RESET lock_timeout")"""


@dataclass(slots=True)
class Replayed:
    """One table as a history leaves it."""

    columns: dict[str, sa.Column[object]] = field(default_factory=dict)
    key: tuple[str, ...] = ()
    indexes: dict[str, sa.Index] = field(default_factory=dict)


@dataclass(slots=True)
class Difference:
    """From a history to the entities, as alembic's operations, each with its way back.

    expand    to be done first; the statements of the previous release go on
    beside    indexes of tables that are there, built while they are written to
    contract  what the previous release still needs
    """

    expand: list[MigrateOperation] = field(default_factory=list)
    beside: list[ops.CreateIndexOp] = field(default_factory=list)
    contract: list[MigrateOperation] = field(default_factory=list)
    renamed: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.expand or self.beside or self.contract)

    def first(self) -> str:
        """One of the differences in words."""
        operation = [*self.expand, *self.beside, *self.contract][0]
        return " ".join(str(part) for part in operation.to_diff_tuple()[:1]) + f" {_subject(operation)}"


def difference(bubble: Bubble, folder: Path) -> Difference:
    """What the bubble's history lacks. Raises Fatal for a change that no migration can make under running workers."""
    return _difference(_replayed(history.of_bubble(bubble.name, folder)), tables.entity_metadata(bubble.shapes))


def generate(bubble: Bubble, folder: Path, title: str, *, drop_and_add: bool = False) -> list[Path]:
    """Write the bubble's next migrations, one or two files; none when its tables are those of its history already.

    Raises:
        Fatal: a table loses one column and gains another, which may be meant as a rename, and `drop_and_add` is not
            set; the key of a table changes; or a type changes to one that cannot hold every value of the old one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = difference(bubble, folder)
    if found.renamed and not drop_and_add:
        raise Fatal(
            f"{'; '.join(found.renamed)}. A rename cannot be told from that, and is none that running workers survive. "
            "If it is meant so, pass --drop-and-add: the new one is added now, the old one goes in a migration of its own. "
            "No values are carried over; raise the `translation` of the sources, and the poller publishes them anew. "
            "If the values must be carried over, write the migration by hand"
        )
    paths = []
    if found.expand or found.beside:
        paths.append(_write(folder, title, found.expand, found.beside))
    if found.contract:
        paths.append(_write(folder, f"{title}, contraction: {_CONTRACTION}", found.contract, ()))
    return paths


def _replayed(past: history.History) -> dict[str, Replayed]:
    made: dict[str, Replayed] = {}
    for revision in past.revisions():
        for operation in history.operations_of(revision):
            _apply(made, operation)
    return made


def _apply(made: dict[str, Replayed], operation: MigrateOperation) -> None:
    match operation:
        case ops.CreateTableOp():
            made[operation.table_name] = _of_table(operation.to_table())
        case ops.DropTableOp():
            made.pop(operation.table_name, None)
        case ops.RenameTableOp():
            made[operation.new_table_name] = made.pop(operation.table_name)
        case ops.AddColumnOp():
            made[operation.table_name].columns[operation.column.name] = operation.column
        case ops.DropColumnOp():
            made[operation.table_name].columns.pop(operation.column_name)
        case ops.AlterColumnOp():
            _alter(made[operation.table_name], operation)
        case ops.CreateIndexOp():
            index = operation.to_index()
            made[operation.table_name].indexes[str(index.name)] = index
        case ops.DropIndexOp():
            for table in made.values():
                table.indexes.pop(str(operation.index_name), None)
        case _:
            # Constraints and texts of SQL are not what the entities declare.
            pass


def _alter(table: Replayed, operation: ops.AlterColumnOp) -> None:
    column = table.columns.pop(operation.column_name)
    name = operation.modify_name or operation.column_name
    kind = column.type if operation.modify_type is None else sa.types.to_instance(operation.modify_type)
    nullable = column.nullable if operation.modify_nullable is None else operation.modify_nullable
    table.columns[name] = sa.Column(name, kind, nullable=nullable)
    table.key = tuple(name if each == operation.column_name else each for each in table.key)


def _of_table(table: sa.Table) -> Replayed:
    indexes = {str(index.name): index for index in table.indexes}
    return Replayed(dict(table.columns), tuple(column.name for column in table.primary_key), indexes)


def _difference(past: dict[str, Replayed], wanted: sa.MetaData) -> Difference:
    found = Difference()
    new = [table for table in wanted.sorted_tables if table.name not in past]
    gone = sorted(past.keys() - wanted.tables.keys())
    for table in new:
        found.expand.append(ops.CreateTableOp.from_table(table))
        found.expand += [ops.CreateIndexOp.from_index(index) for index in _sorted(table.indexes)]
    for name in gone:
        table = sa.Table(name, sa.MetaData(), *(column._copy() for column in past[name].columns.values()))
        found.contract.append(ops.DropTableOp.from_table(table))
    if new and gone:
        names = ", ".join(table.name for table in new)
        found.renamed.append(f"the tables {', '.join(gone)} go and {names} come")
    for table in wanted.sorted_tables:
        if table.name in past:
            _compare(table, past[table.name], found)
    return found


def _compare(table: sa.Table, past: Replayed, found: Difference) -> None:
    if past.key != (key := tuple(column.name for column in table.primary_key)):
        raise Fatal(
            f"{table.name}: its key was {', '.join(past.key)} and is {', '.join(key)} now; rows cannot change their key "
            "under running workers: give the entity another collection, so that it gets a table of its own"
        )
    added = [column for column in table.columns if column.name not in past.columns]
    dropped = [column for column in past.columns.values() if column.name not in table.columns]
    found.expand += [ops.AddColumnOp.from_column(column) for column in added]
    for column in table.columns:
        if column.name in past.columns:
            found.expand += _widen(table.name, past.columns[column.name], column)
    for index in _sorted(table.indexes):
        if str(index.name) not in past.indexes:
            built = sa.Index(index.name, *index.columns, unique=index.unique, postgresql_concurrently=True)
            found.beside.append(ops.CreateIndexOp.from_index(built))
    for name, index in past.indexes.items():
        # The index of a dropped column goes with it.
        if name not in {str(each.name) for each in table.indexes}:
            found.contract.append(
                ops.DropIndexOp(name, table.name, if_exists=True, _reverse=ops.CreateIndexOp.from_index(index))
            )
    for column in dropped:
        back = ops.AddColumnOp(table.name, column._copy())
        found.contract.append(ops.DropColumnOp(table.name, column.name, _reverse=back))
    if added and dropped:
        gone, come = (", ".join(_shown(column) for column in columns) for columns in (dropped, added))
        found.renamed.append(f"{table.name}: {gone} goes and {come} comes")


def _widen(table: str, past: sa.Column[object], wanted: sa.Column[object]) -> Iterator[MigrateOperation]:
    before, after = _type(past), _type(wanted)
    if before == after:
        return
    if not is_widened(before, after):
        raise Fatal(
            f"{table}.{wanted.name}: a column of type {before} cannot become {after} under running workers; "
            "declare a new field beside it, and let the old one go in a later release"
        )
    yield ops.AlterColumnOp(
        table, wanted.name, existing_type=past.type, existing_nullable=past.nullable, modify_type=wanted.type
    )


def _type(column: sa.Column[object]) -> str:
    return type_name(column.type.compile(dialect=history.POSTGRESQL))


def _shown(column: sa.Column[object]) -> str:
    return f"{column.name} ({_type(column)})"


def _sorted(indexes: Iterable[sa.Index]) -> list[sa.Index]:
    return sorted(indexes, key=lambda index: str(index.name))


def _subject(operation: MigrateOperation) -> str:
    parts = (getattr(operation, name, None) for name in ("table_name", "column_name", "index_name"))
    column = getattr(operation, "column", None)
    return ".".join(str(part) for part in (*parts, getattr(column, "name", None)) if part)


def _write(
    folder: Path, title: str, operations: Sequence[MigrateOperation], beside: Sequence[ops.CreateIndexOp]
) -> Path:
    number = len(list(folder.glob("[0-9]*.py"))) + 1
    back = [operation.reverse() for operation in (*operations, *beside)]
    upgrades = [_rendered(operations), _rendered_beside(beside)]
    script = ScriptDirectory.from_config(history.config(folder)).generate_revision(
        f"{number:04d}",
        title,
        upgrades=_body(upgrades),
        downgrades=_body([_rendered(back[::-1])]),
    )
    if script is None:
        raise Fatal(f"{folder}: alembic wrote no revision")
    return Path(script.path)


def _rendered(operations: Sequence[MigrateOperation]) -> str:
    context = AutogenContext(
        MigrationContext.configure(dialect=history.POSTGRESQL),
        opts={"sqlalchemy_module_prefix": "sa.", "alembic_module_prefix": "op.", "user_module_prefix": None,
              "render_as_batch": False, "render_item": None},
    )  # fmt: skip
    return "\n".join(render_op_text(context, operation) for operation in operations)


def _rendered_beside(indexes: Sequence[ops.CreateIndexOp]) -> str:
    if not indexes:
        return ""
    return _BESIDE.format(body=textwrap.indent(_rendered(indexes), "    "))


def _body(parts: Sequence[str]) -> str:
    # The template indents the first line.
    return textwrap.indent("\n".join(part for part in parts if part), "    ").lstrip()
