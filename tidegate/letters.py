"""The table of dead letters as people use it: select, group, edit, mark as replayed, drop.

The worker files and resolves letters (`worker.dead_letter`); here is what an operator does with them. Every function
works on a connection inside the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct

from tidegate.database import Connection
from tidegate.errors import Fatal
from tidegate.event import ChangeEvent, Version
from tidegate.letter import LetterKind, Resolution


class Selection(Struct, frozen=True, kw_only=True):
    """Which letters: those that meet every part. `since`, `until`: it was met at some time in between.

    `parked`: only those that wait for others of their key (True), only the others (False), or both (None).
    """

    ids: tuple[int, ...] = ()
    groups: tuple[str, ...] = ()
    entity: str | None = None
    key: str | None = None
    source: str | None = None
    stage: str | None = None
    reason: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    parked: bool | None = None
    resolved: bool = False

    @property
    def is_everything(self) -> bool:
        """Whether nothing narrows it but that a letter be open, and does not wait for others."""
        return self == Selection(resolved=self.resolved, parked=self.parked) and not self.parked

    def where(self) -> tuple[str, list[Any]]:
        """The condition in SQL, and its arguments from $1 on."""
        parts: list[tuple[str, Any]] = [
            ("id = ANY ({}::bigint[])", list(self.ids) or None),
            ("fingerprint = ANY ({}::text[])", list(self.groups) or None),
            *((f"{name} = {{}}", getattr(self, name)) for name in ("entity", "key", "source", "stage", "reason")),
            ("last_seen_at >= {}", self.since),
            ("first_seen_at <= {}", self.until),
        ]
        given = [(text, value) for text, value in parts if value is not None]
        conditions = [text.format(f"${number}") for number, (text, _) in enumerate(given, 1)]
        if not self.resolved:
            conditions.append("resolved_at IS NULL")
        if self.parked is not None:
            conditions.append(f"parked_at IS {'NOT ' if self.parked else ''}NULL")
        return " AND ".join(conditions) or "true", [value for _, value in given]


class Group(Struct, frozen=True, kw_only=True):
    """Letters that failed for one reason. `example` is the newest of them, `waiting` how many changes wait for them."""

    fingerprint: str
    kind: LetterKind
    stage: str
    reason: str
    entity: str | None
    letters: int
    replayed: int
    waiting: int
    first_seen_at: datetime
    last_seen_at: datetime
    example: int
    message: str


class Letter(Struct, frozen=True, kw_only=True):
    """One row of the table. `payload` is as it came, `edited_payload` a whole record to be replayed in its place."""

    id: int
    stream: str
    shard_id: str
    sequence_number: int
    sub_sequence: int
    kind: LetterKind
    stage: str
    reason: str
    message: str
    entity: str | None
    key: str | None
    source: str | None
    event_id: str | None
    version: Version | None
    observed_at: datetime | None
    fingerprint: str
    attempts: int
    first_seen_at: datetime
    last_seen_at: datetime
    replayed_at: datetime | None
    replays: int
    edited_at: datetime | None
    edited_by: str | None
    parked_at: datetime | None
    resolved_at: datetime | None
    resolution: str | None
    resolved_by: str | None
    payload: bytes
    edited_payload: bytes | None

    @property
    def state(self) -> str:
        """`open`, `replayed` (not met since), `failed again`, `parked`, or why it is closed."""
        if self.resolved_at is not None:
            return self.resolution or "resolved"
        if self.parked_at is not None:
            return "parked"
        if self.replayed_at is None:
            return "open"
        return "replayed" if self.replayed_at > self.last_seen_at else "failed again"

    @property
    def record(self) -> bytes | None:
        """What a replay would send; None for what is no record."""
        return self.edited_payload or (self.payload if self.kind is LetterKind.EVENT else None)


_COLUMNS = ", ".join(Letter.__struct_fields__)


async def groups(connection: Connection, selection: Selection, limit: int) -> list[Group]:
    """The largest groups first."""
    where, arguments = selection.where()
    rows = await connection.fetch(
        f"""
        WITH chosen AS (SELECT * FROM tidegate.dead_letter WHERE {where}),
        held AS (SELECT DISTINCT fingerprint, entity, key FROM chosen
                 WHERE resolved_at IS NULL AND parked_at IS NULL AND key IS NOT NULL),
        behind AS (SELECT held.fingerprint, count(*) AS waiting FROM held
                   JOIN tidegate.dead_letter AS parked ON parked.resolved_at IS NULL AND parked.parked_at IS NOT NULL
                    AND parked.entity = held.entity AND parked.key = held.key
                   GROUP BY held.fingerprint)
        SELECT fingerprint, min(kind) AS kind, min(stage) AS stage, min(reason) AS reason, min(entity) AS entity,
               count(*) AS letters, count(*) FILTER (WHERE replayed_at > last_seen_at) AS replayed,
               coalesce(min(waiting), 0) AS waiting,
               min(first_seen_at) AS first_seen_at, max(last_seen_at) AS last_seen_at,
               (array_agg(id ORDER BY last_seen_at DESC, id DESC))[1] AS example,
               (array_agg(message ORDER BY last_seen_at DESC, id DESC))[1] AS message
        FROM chosen LEFT JOIN behind USING (fingerprint)
        GROUP BY fingerprint ORDER BY count(*) DESC, fingerprint LIMIT ${len(arguments) + 1}
        """,
        *arguments,
        limit,
    )
    return [Group(**{**row, "kind": LetterKind(row["kind"])}) for row in rows]


async def find(
    connection: Connection, selection: Selection, limit: int, after: int = 0, up_to: int | None = None
) -> list[Letter]:
    """Whole letters by rising id, from the one that follows `after`."""
    where, arguments = selection.where()
    number = len(arguments)
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM tidegate.dead_letter WHERE {where} "
        f"AND id > ${number + 1} AND id <= coalesce(${number + 2}, id) ORDER BY id LIMIT ${number + 3}",
        *arguments,
        after,
        up_to,
        limit,
    )
    return [_letter(dict(row)) for row in rows]


async def waiting(connection: Connection, found: Sequence[Letter]) -> dict[int, int]:
    """How many changes wait for each of the letters, by id; without those that nothing waits for."""
    rows = await connection.fetch(
        """
        SELECT failed.id, count(*) FROM tidegate.dead_letter AS failed
        JOIN tidegate.dead_letter AS parked ON parked.resolved_at IS NULL AND parked.parked_at IS NOT NULL
         AND parked.entity = failed.entity AND parked.key = failed.key
         AND (failed.version IS NULL OR parked.version > failed.version)
        WHERE failed.id = ANY ($1::bigint[]) AND failed.resolved_at IS NULL AND failed.parked_at IS NULL
        GROUP BY failed.id
        """,
        [letter.id for letter in found],
    )
    return {row["id"]: row["count"] for row in rows}


async def holding(connection: Connection, parked: Letter) -> list[int]:
    """The failures that a parked letter waits for, oldest first."""
    rows = await connection.fetch(
        "SELECT id FROM tidegate.dead_letter WHERE resolved_at IS NULL AND parked_at IS NULL AND entity = $1 AND key = $2 "
        "AND (version IS NULL OR version <= $3::bigint[]) ORDER BY version NULLS LAST, id",
        parked.entity,
        parked.key,
        None if parked.version is None else list(parked.version),
    )
    return [row["id"] for row in rows]


async def get(connection: Connection, number: int) -> Letter:
    """Raises Fatal when there is no such letter."""
    await check_ids(connection, [number])
    [found] = await find(connection, Selection(ids=(number,), resolved=True), 1)
    return found


async def check_ids(connection: Connection, ids: Sequence[int]) -> None:
    """Raises Fatal that names those that do not exist."""
    rows = await connection.fetch("SELECT id FROM tidegate.dead_letter WHERE id = ANY ($1::bigint[])", list(ids))
    if missing := sorted(set(ids) - {row["id"] for row in rows}):
        raise Fatal(
            f"there is no dead letter {', '.join(map(str, missing))}; "
            "`tidegate dead-letters list --each` shows their numbers"
        )


async def count(connection: Connection, selection: Selection) -> tuple[int, int]:
    """How many there are, and the highest id."""
    where, arguments = selection.where()
    row = await connection.fetchrow(
        f"SELECT count(*), coalesce(max(id), 0) FROM tidegate.dead_letter WHERE {where}", *arguments
    )
    return (0, 0) if row is None else (row[0], row[1])


async def drop(connection: Connection, selection: Selection, by: str, up_to: int) -> int:
    """Close open letters as not needed; answers how many. They stay readable until housekeeping takes them.

    `up_to` is the highest id that the person who decides was told of.
    """
    where, arguments = selection.where()
    number = len(arguments)
    done = await connection.fetch(
        f"UPDATE tidegate.dead_letter SET resolved_at = now(), resolution = ${number + 1}, resolved_by = ${number + 2} "
        f"WHERE {where} AND resolved_at IS NULL AND id <= ${number + 3} RETURNING id",
        *arguments,
        Resolution.DROPPED,
        by,
        up_to,
    )
    return len(done)


async def adopt(connection: Connection, number: int, event: ChangeEvent, identity: str) -> None:
    """A record that no release could read when it was filed turns out to be this event: let the worker find it by it."""
    await connection.execute(
        "UPDATE tidegate.dead_letter SET entity = $2, key = $3, version = $4, edited_identity = $5 WHERE id = $1",
        number,
        event.key.entity,
        event.key.key,
        list(event.version),
        identity,
    )


async def edit(connection: Connection, number: int, record: bytes, event: ChangeEvent, identity: str, by: str) -> None:
    """Keep what a person made of an open letter beside what came. Raises Fatal when it was resolved meanwhile."""
    done = await connection.fetch(
        """
        UPDATE tidegate.dead_letter
        SET edited_payload = $2, edited_identity = $3, edited_at = now(), edited_by = $4,
            entity = $5, key = $6, version = $7
        WHERE id = $1 AND resolved_at IS NULL RETURNING id
        """,
        number,
        record,
        identity,
        by,
        event.key.entity,
        event.key.key,
        list(event.version),
    )
    if not done:
        raise Fatal(f"dead letter {number} was resolved meanwhile; nothing was changed")


async def mark_replayed(connection: Connection, numbers: Sequence[int], at: datetime) -> None:
    """Note that the letters were put on the stream, not before `at`."""
    await connection.execute(
        "UPDATE tidegate.dead_letter SET replayed_at = $2, replays = replays + 1 WHERE id = ANY ($1::bigint[])",
        list(numbers),
        at,
    )


def _letter(row: dict[str, Any]) -> Letter:
    version = row["version"]
    return Letter(
        **{
            **row,
            "kind": LetterKind(row["kind"]),
            "sequence_number": int(row["sequence_number"]),
            "version": None if version is None else Version._make(version),
        }
    )
