"""What is needed no more goes: old tombstones, resolved dead letters, departures, arrivals that nobody fetched. In small
steps, on one worker at a time.

A tombstone keeps late events of its row out, so it must outlive every event that could still come: what the stream
holds, what somebody puts on it again. The settings refuse anything shorter, and before each round the stream itself is
asked how long it keeps records; while that is longer than the settings reckon with, tombstones stay. So do those of a
key with an open dead letter, or with one that was replayed so lately that the stream still holds it; and those of
erased rows, for ever.

The projection comes first: a step is one short transaction with a time-out, takes only rows that nobody has locked, and
pauses after. An advisory lock, held for the step, keeps the others' steps away; who does not get it leaves the round to
its holder.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

from tidegate import telemetry
from tidegate.database import Connection, Database
from tidegate.entity import EntityShape, Kind
from tidegate.errors import TidegateError, Transient
from tidegate.letter import NAME_CHARACTERS
from worker.settings import RetentionSettings

log = telemetry.get_logger(__name__)

_BEGIN = """
SELECT pg_try_advisory_xact_lock(hashtextextended('tidegate.housekeeping', 0)),
       set_config('statement_timeout', $1, true), set_config('lock_timeout', $1, true)
"""

_LETTERS = """
WITH gone AS (
    DELETE FROM tidegate.dead_letter WHERE id = ANY (ARRAY(
        SELECT id FROM tidegate.dead_letter WHERE resolved_at < now() - $1::interval
        ORDER BY resolved_at LIMIT $2 FOR UPDATE SKIP LOCKED))
    RETURNING id)
SELECT count(*) FROM gone
"""

_DEPARTURES = """
WITH gone AS (
    DELETE FROM tidegate.departure WHERE id = ANY (ARRAY(
        SELECT id FROM tidegate.departure WHERE left_at < now() - $1::interval
        ORDER BY left_at LIMIT $2 FOR UPDATE SKIP LOCKED))
    RETURNING id)
SELECT count(*) FROM gone
"""

_ARRIVALS = """
WITH gone AS (
    DELETE FROM tidegate.inbound WHERE id = ANY (ARRAY(
        SELECT oldest.id FROM (SELECT id, filed_at FROM tidegate.inbound ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED) AS oldest
        WHERE oldest.filed_at < now() - $1::interval))
    RETURNING id)
SELECT count(*) FROM gone
"""
"""Ids rise with time, so the oldest are looked at and no others; there is no index by age."""

_KEY_TYPES = {Kind.TEXT: "text", Kind.INTEGER: "bigint", Kind.UUID: "uuid"}


def _tombstones(shape: EntityShape) -> str:
    """$1 the key that the last step came to, or NULL; $2 how many to look at, $3 age, $4 of a replay that still counts.

    Answers the key that this step came to (NULL at the end), and how many are gone. Names come from checked entity
    classes.
    """
    table, key, kind = f'"{shape.table}"', f'"{shape.key.name}"', _KEY_TYPES[shape.key.kind]
    # As a letter has it.
    named = f"left(stored.{key}::text, {NAME_CHARACTERS})"
    return f"""
    WITH seen AS (
        SELECT {key} AS key FROM {table} WHERE "_deleted" AND ($1::{kind} IS NULL OR {key} > $1) ORDER BY {key} LIMIT $2),
    old AS (
        SELECT stored.{key} AS key FROM {table} AS stored JOIN seen ON seen.key = stored.{key}
        WHERE stored."_deleted" AND stored."_projected_at" < now() - $3::interval
        AND stored."_generation" < 9223372036854775807
        AND NOT EXISTS (
            SELECT FROM tidegate.dead_letter AS letter WHERE letter.resolved_at IS NULL
            AND letter.entity = '{shape.name}' AND letter.key = {named})
        AND NOT EXISTS (
            SELECT FROM tidegate.dead_letter AS letter WHERE letter.replayed_at > now() - $4::interval
            AND letter.entity = '{shape.name}' AND letter.key = {named})
        FOR UPDATE OF stored SKIP LOCKED),
    gone AS (DELETE FROM {table} AS stored USING old WHERE stored.{key} = old.key RETURNING 1)
    SELECT (SELECT key FROM seen ORDER BY key DESC LIMIT 1), (SELECT count(*) FROM gone)
    """


class Step(NamedTuple):
    """What one transaction did. `has_more`: it met its limit."""

    deleted: int
    has_more: bool
    reached: Any = None


class Housekeeping:
    """`stream_hours` asks the stream how long it keeps records."""

    def __init__(
        self,
        database: Database,
        shapes: Iterable[EntityShape],
        settings: RetentionSettings,
        stream_hours: Callable[[], Awaitable[int]],
    ) -> None:
        self._database = database
        self._settings = settings
        self._stream_hours = stream_hours
        self._tombstones = {shape.name: _tombstones(shape) for shape in shapes}
        telemetry.STREAM_RETENTION_SECONDS.set(settings.stream_hours * 3600)

    @asynccontextmanager
    async def keeping(self, stop: asyncio.Event) -> AsyncIterator[None]:
        """Keep house beside the block, until `stop`. Raises Fatal for a database that was not migrated."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.run(stop))
            yield

    async def run(self, stop: asyncio.Event) -> None:
        """One round every interval. A round that fails for now is left to the next."""
        # Workers that start together look at different times.
        wait_s = random.uniform(0, self._settings.interval_s)
        while not await _stopped(stop, wait_s):
            try:
                await self.round(stop)
            except Transient as error:
                log.warning(telemetry.HOUSEKEEPING_FAILED, error=str(error))
            wait_s = self._settings.interval_s

    async def round(self, stop: asyncio.Event) -> dict[str, int]:
        """Delete all that is due, step by step; answers how much of what, by name. Raises Transient or Fatal."""
        deleted = {
            "dead_letter": await self._all(stop, self._letters),
            "departure": await self._all(stop, self._departures),
            "inbound": await self._all(stop, self._arrivals),
        }
        if await self._may_forget():
            for name, text in self._tombstones.items():
                deleted[name] = await self._all(stop, partial(self._forget, text))
        if any(deleted.values()):
            log.info(telemetry.HOUSEKEEPING_DONE, **deleted)
        return deleted

    async def _may_forget(self) -> bool:
        """Whether tombstones live longer than any event that they keep out."""
        settings = self._settings
        try:
            hours = await self._stream_hours()
        except TidegateError as error:
            # Who may not ask cannot know; keeping them costs space only.
            hours, why = None, str(error)
        else:
            why = (
                f"the stream keeps records for {hours} h, TIDEGATE_RETENTION_STREAM_HOURS says {settings.stream_hours}"
            )
        if hours is not None:
            telemetry.STREAM_RETENTION_SECONDS.set(hours * 3600)
        may = hours is not None and hours <= settings.stream_hours
        telemetry.TOMBSTONES_KEPT.set(not may)
        if not may:
            log.error(telemetry.TOMBSTONES_STAY, why=why)
        return may

    async def _all(self, stop: asyncio.Event, step: Callable[[Connection, Any], Awaitable[Step]]) -> int:
        """Steps until nothing is left, somebody else keeps house, or it is time to stop."""
        total, at = 0, None
        while not stop.is_set():
            with telemetry.HOUSEKEEPING_SECONDS.time():
                done = await self._step(step, at)
            if done is None:
                break
            total, at = total + done.deleted, done.reached
            if not done.has_more or await _stopped(stop, self._settings.pause_ms / 1000):
                break
        return total

    async def _step(self, step: Callable[[Connection, Any], Awaitable[Step]], at: Any) -> Step | None:
        """One transaction; None when another worker keeps house."""
        async with self._database.transaction("keep house") as connection:
            is_ours = await connection.fetchval(_BEGIN, str(self._settings.statement_timeout_ms))
            return await step(connection, at) if is_ours else None

    async def _letters(self, connection: Connection, at: Any) -> Step:
        return await self._aged(connection, "dead_letter", _LETTERS, self._settings.letters_hours)

    async def _departures(self, connection: Connection, at: Any) -> Step:
        return await self._aged(connection, "departure", _DEPARTURES, self._settings.departures_hours)

    async def _arrivals(self, connection: Connection, at: Any) -> Step:
        return await self._aged(connection, "inbound", _ARRIVALS, self._settings.inbound_hours)

    async def _aged(self, connection: Connection, what: str, text: str, hours: int) -> Step:
        rows = self._settings.step_rows
        deleted = await connection.fetchval(text, timedelta(hours=hours), rows)
        telemetry.HOUSEKEEPING_DELETED.labels(what).inc(deleted)
        return Step(deleted, deleted == rows)

    async def _forget(self, text: str, connection: Connection, at: Any) -> Step:
        settings = self._settings
        age, replay = (timedelta(hours=hours) for hours in (settings.tombstones_hours, settings.stream_hours))
        [(reached, deleted)] = await connection.fetch(text, at, settings.step_rows, age, replay)
        telemetry.HOUSEKEEPING_DELETED.labels("tombstone").inc(deleted)
        return Step(deleted, reached is not None, reached)


async def _stopped(stop: asyncio.Event, wait_s: float) -> bool:
    """Wait so long, or until asked to stop; whether we were."""
    try:
        async with asyncio.timeout(wait_s):
            await stop.wait()
    except TimeoutError:
        return False
    return True
