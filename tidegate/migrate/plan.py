"""What a migration would do, step by step, each with its judgement.  (no effects: it reads the database and the files)"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from alembic.script import Script
from msgspec import Struct
from sqlalchemy.engine import Connection

from tidegate import tables
from tidegate.entity import EntityShape
from tidegate.migrate import history
from tidegate.migrate.judge import SAFE, Facts, Finding, Hazard, judge

RULES = "live rows of"
"""The history of steps that are not written but derived: which fields a live row must have. No bubble is called so."""

_ROWS = """
SELECT CASE n.nspname WHEN 'tidegate' THEN 'tidegate.' ELSE '' END || c.relname,
       CASE WHEN c.reltuples < 0 THEN pg_relation_size(c.oid) / 64 ELSE c.reltuples END::bigint
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND n.nspname IN ('tidegate', current_schema())
"""
_TYPES = """
SELECT CASE n.nspname WHEN 'tidegate' THEN 'tidegate.' ELSE '' END || c.relname, a.attname::text,
       format_type(a.atttypid, NULL)
FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND n.nspname IN ('tidegate', current_schema()) AND a.attnum > 0 AND NOT a.attisdropped
"""
_UNIQUES = """
SELECT c.relname::text FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE i.indisunique AND n.nspname IN ('tidegate', current_schema())
"""
_REQUIRED = """
SELECT r.relname::text, array_agg(a.attname::text)
FROM pg_constraint AS c JOIN pg_class AS r ON r.oid = c.conrelid
JOIN pg_attribute AS a ON a.attrelid = r.oid AND a.attnum = ANY (c.conkey)
WHERE c.contype = 'c' AND c.conname = r.relname || '_complete' AND r.relnamespace = current_schema()::regnamespace
GROUP BY r.relname
"""


class Judged(Struct, frozen=True):
    """One statement, and its hazards, the worst first."""

    statement: str
    findings: tuple[Finding, ...]


class Step(Struct, frozen=True):
    """One revision that is pending, or one rule that changes. `title` is its first line."""

    history: str
    revision: str
    title: str
    statements: tuple[Judged, ...] = ()

    @property
    def hazards(self) -> list[Hazard]:
        """Without repetition, the worst first."""
        found = {finding.hazard for judged in self.statements for finding in judged.findings}
        return [hazard for hazard in reversed(Hazard) if hazard in found]

    @property
    def judgement(self) -> str:
        return ", ".join(self.hazards) or SAFE

    @property
    def name(self) -> str:
        return f"{self.history} {self.revision}"


class Rule(Struct, frozen=True):
    """Which fields a live row of a table must have: before (None: there is no such rule yet), and by the entities now."""

    table: str
    before: frozenset[str] | None
    wanted: frozenset[str]


def steps_of(connection: Connection, histories: Iterable[history.History], shapes: Iterable[EntityShape]) -> list[Step]:
    """Everything that is pending, in the order in which it would be done."""
    facts = facts_of(connection)
    revisions = [
        _revision_step(past.name, revision, facts) for past in histories for revision in past.pending(connection)
    ]
    return [*revisions, *(step for rule in rules_of(connection, shapes) if (step := _rule_step(rule)))]


def facts_of(connection: Connection) -> Facts:
    def read(text: str) -> list[Any]:
        return list(connection.exec_driver_sql(text))

    return Facts(
        rows={table: int(rows) for table, rows in read(_ROWS)},
        types={(table, column): kind for table, column, kind in read(_TYPES)},
        uniques=frozenset(name for (name,) in read(_UNIQUES)),
    )


def rules_of(connection: Connection, shapes: Iterable[EntityShape]) -> Iterator[Rule]:
    """The rules of tables that exist."""
    stored: Mapping[str, frozenset[str]] = {
        table: frozenset(columns) - {"_deleted"} for table, columns in connection.exec_driver_sql(_REQUIRED)
    }
    there = facts_of(connection).rows
    for shape in shapes:
        if shape.table in there:
            yield Rule(shape.table, stored.get(shape.table), tables.required(shape))


def _revision_step(name: str, revision: Script, facts: Facts) -> Step:
    judged = [Judged(statement, judge(statement, facts)) for statement in history.statements_of(revision)]
    return Step(name, revision.revision, history.title_of(revision), tuple(judged))


def _rule_step(rule: Rule) -> Step | None:
    before = rule.before or frozenset()
    if before == rule.wanted:
        return None
    more, less = sorted(rule.wanted - before), sorted(before - rule.wanted)
    parts = [*(f"{field} is required" for field in more), *(f"{field} is not required any more" for field in less)]
    why = f"the previous release may write rows without {', '.join(more)}; it stops when one is refused"
    findings = (Finding(Hazard.STOP_FIRST, why),) if more else ()
    title = ", ".join(parts)
    return Step(RULES, rule.table, title, (Judged(title, findings),))
