"""The upgrade as a whole: plan, refuse or apply, look at the result, and set what is derived from the entities."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path

from msgspec import Struct
from sqlalchemy.engine import Connection

from tidegate import access, columns, tables, tracking
from tidegate.bubble import Bubble
from tidegate.entity import EntityShape
from tidegate.errors import Fatal
from tidegate.migrate import history
from tidegate.migrate.generate import difference
from tidegate.migrate.judge import Hazard
from tidegate.migrate.plan import RULES, Step, facts_of, rules_of, steps_of
from tidegate.migrate.run import Limits, Session, connected

# Everybody may see these columns of everybody's sessions.
_WORKERS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'tidegate-worker%' AND application_name <> $1
"""


class Permission(Struct, frozen=True, kw_only=True):
    """What a person has allowed.

    destructive  steps after which values are gone
    running      steps that need the previous release stopped, although workers are connected
    expand_only  do what is safe under the previous release, leave the rest for later
    """

    destructive: bool = False
    running: bool = False
    expand_only: bool = False


class Plan(Struct, frozen=True):
    """The pending steps, and how many connections workers of other releases have to the database now."""

    steps: list[Step]
    workers: int


def plan(url: str, bubble: Bubble, folder: Path) -> Plan:
    """What `upgrade` would do; changes nothing. `url` is a `postgresql://` address of the owner.

    Raises:
        Fatal: the database cannot be reached, or the migrations do not lead to the tables of the bubble.
    """
    return asyncio.run(_plan(url, bubble, folder))


def upgrade(
    url: str, bubble: Bubble, folder: Path, permission: Permission | None = None, limits: Limits | None = None
) -> list[Step]:
    """Apply what is pending and set the access rules; returns what was applied.

    Each revision is a transaction of its own: when one fails, those before it stay, and the next run goes on there.

    Nothing is allowed that `permission` does not say.

    Raises:
        Fatal: the database cannot be reached; the migrations do not lead to the tables of the bubble; a step is not
            allowed, then nothing was done; or a step failed.
    """
    return asyncio.run(_upgrade(url, bubble, folder, permission or Permission(), limits or Limits()))


def refusals(found: Plan, permission: Permission) -> Iterator[str]:
    """Why the plan must not be carried out, in words for the person who wants to."""
    if permission.expand_only:
        return
    for step in found.steps:
        if Hazard.DESTRUCTIVE in step.hazards and not permission.destructive:
            yield f"{step.name} is destructive; apply it with --allow-destructive, or leave it for later with --expand"
        if Hazard.STOP_FIRST in step.hazards and found.workers and not permission.running:
            yield (
                f"{step.name} needs the previous release stopped, and its workers have {found.workers} connections: stop them; "
                "or leave it for later with --expand; or accept what the plan says of it with --allow-running"
            )


async def _plan(url: str, bubble: Bubble, folder: Path) -> Plan:
    async with connected(url, Limits(), [shape.table for shape in bubble.shapes]) as session:
        _check_history(bubble, folder)
        return await session.look(partial(_planned, bubble, folder))


def _planned(bubble: Bubble, folder: Path, connection: Connection) -> Plan:
    steps = steps_of(connection, _histories(bubble, folder), bubble.shapes)
    ours = f"tidegate-worker {tables.fingerprint(bubble.shapes)}"
    return Plan(steps, connection.exec_driver_sql(_WORKERS, (ours,)).scalar_one())


async def _upgrade(url: str, bubble: Bubble, folder: Path, permission: Permission, limits: Limits) -> list[Step]:
    async with connected(url, limits, [shape.table for shape in bubble.shapes]) as session:
        _check_history(bubble, folder)
        await session.alone()
        found = await session.look(partial(_planned, bubble, folder))
        if reasons := list(refusals(found, permission)):
            raise Fatal("; ".join(reasons))
        await session.do("create the schema", _statements([f"CREATE SCHEMA IF NOT EXISTS {tables.SCHEMA}"]))
        done = await _Upgrade(session, bubble, folder, permission).apply(found.steps)
        if len(done) == len(found.steps):
            await session.look(partial(_check_tables, bubble))
        return done


class _Upgrade:
    """The steps that are allowed, and what follows from the entities."""

    def __init__(self, session: Session, bubble: Bubble, folder: Path, permission: Permission) -> None:
        self._session = session
        self._bubble = bubble
        self._histories = {past.name: past for past in _histories(bubble, folder)}
        self._permission = permission

    async def apply(self, steps: Sequence[Step]) -> list[Step]:
        allowed = chosen(steps, self._permission)
        expansion = list(takewhile(lambda step: Hazard.DESTRUCTIVE not in step.hazards, allowed))
        await self._revisions(expansion)
        await self._set_derived()
        if contraction := allowed[len(expansion) :]:
            # Policies may name a column that goes only until they are set to those of the entities now.
            await self._revisions(contraction)
            await self._set_derived()
        return allowed

    async def _revisions(self, steps: Iterable[Step]) -> None:
        for step in steps:
            if past := self._histories.get(step.history):
                await self._session.do(step.name, partial(past.upgrade, revision=step.revision))

    async def _set_derived(self) -> None:
        tracks = not await self._session.look(self._histories[history.OWN].pending)
        if tracks:
            await self._session.do("set functions and grants", _statements(_common_statements()))
        facts = await self._session.look(facts_of)
        for shape in self._bubble.shapes:
            if all((shape.table, field.name) in facts.types for field in shape.fields):
                await self._session.do(f"set the rules of {shape.table}", partial(self._set_rules, shape))
                await self._build(f"{shape.table}{tables.TOMBSTONE_INDEX}", tables.tombstone_index(shape))
                if tracks:
                    await self._track(shape, (shape.table, tracking.CHANGED) in facts.types)

    def _set_rules(self, shape: EntityShape, connection: Connection) -> None:
        for rule in rules_of(connection, [shape]):
            wanted = rule.wanted
            if self._permission.expand_only and rule.before is not None:
                wanted &= rule.before
            if wanted != rule.before:
                _statements([tables.no_completeness(shape), *tables.completeness(shape, wanted)])(connection)
        _statements(access.entity_access(shape))(connection)

    async def _track(self, shape: EntityShape, is_there: bool) -> None:
        # The column first and alone: it wants a lock that even readers wait for, if only for a moment.
        if not is_there:
            await self._session.do(f"add a column to {shape.table}", _statements([tracking.column(shape)]))
        await self._build(f"{shape.table}{tracking.CHANGED}", tracking.index(shape))
        await self._session.do(f"watch the changes of {shape.table}", _statements([tracking.trigger(shape)]))

    async def _build(self, index: str, statement: str) -> None:
        """An index that is no part of a migration, beside the work, unless it is there."""
        found = f"SELECT to_regclass('\"{index}\"') IS NOT NULL"
        if not await self._session.look(lambda connection: connection.exec_driver_sql(found).scalar_one()):
            await self._session.do_beside(statement)


def chosen(steps: Sequence[Step], permission: Permission) -> list[Step]:
    """All steps; or of each history those before the first that the previous release does not survive."""
    if not permission.expand_only:
        return list(steps)
    kept: list[Step] = []
    for name in dict.fromkeys(step.history for step in steps):
        of_history = [step for step in steps if step.history == name]
        # Rules stand beside one another, revisions build on one another.
        kept += filter(_is_survived, of_history) if name == RULES else takewhile(_is_survived, of_history)
    return kept


def _is_survived(step: Step) -> bool:
    return not {Hazard.DESTRUCTIVE, Hazard.STOP_FIRST} & set(step.hazards)


def _histories(bubble: Bubble, folder: Path) -> tuple[history.History, ...]:
    return history.own(), history.of_bubble(bubble.name, folder)


def _common_statements() -> Iterator[str]:
    yield from (access.create_role(role) for role in access.ROLES)
    yield from access.FUNCTIONS
    yield from tracking.FUNCTIONS
    yield from access.operational_grants()
    yield from tracking.access()


def _statements(texts: Iterable[str]) -> Callable[[Connection], None]:
    """These in one transaction."""
    whole = list(texts)

    def run(connection: Connection) -> None:
        for text in whole:
            connection.exec_driver_sql(text)

    return run


def _check_history(bubble: Bubble, folder: Path) -> None:
    """Before the database is touched: whether the migrations lead to the entities at all."""
    if found := difference(bubble, folder):
        raise Fatal(
            f"the migrations in {folder.name}/ do not lead to the tables of the bubble {bubble.name!r} "
            f'(first difference: {found.first()}); run `tidegate migrate --generate "what changed"`, review what it writes, '
            "and migrate again"
        )


def _check_tables(bubble: Bubble, connection: Connection) -> None:
    """When all of it is applied: whether somebody changed the tables by hand."""
    names = [shape.table for shape in bubble.shapes]
    stored = [columns.Column(*row) for row in connection.exec_driver_sql(columns.LOOK, (names,))]
    if found := list(columns.faults(bubble.shapes, stored, exactly=True)):
        raise Fatal(
            f"the tables are not those that the migrations of {bubble.name!r} make: {'; '.join(found)}. Somebody changed "
            "them by hand: change them back, or write a migration for it"
        )
