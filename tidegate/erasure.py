"""One row's data is removed everywhere and kept out: what the law calls erasure.

The row becomes a tombstone without content under the highest version there is, so the guard that every write passes
keeps it out: events that are still in the stream, replays, and whatever a poller sends later. That costs the
projection nothing, it already compares versions. Dead letters are the other way in; what is filed looks the key up in
`tidegate.erasure`, and filing is rare.

The transaction takes its locks in the worker's order: the row first, then the dead letters. It holds the whole table of
dead letters against writers, or a letter of the key that is being filed at this moment would slip by. With strict order a
worker files first, so the two may lock each other out; the database then ends one of them, which is Transient.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct

from tidegate.database import Connection, Database
from tidegate.entity import EntityShape, Field, Kind
from tidegate.errors import Fatal
from tidegate.event import Version
from tidegate.tables import VERSION_COLUMNS

MOST = 2**63 - 1
HIGHEST = Version(MOST, MOST, MOST, MOST, MOST)
"""No event can have a greater one."""

_NONE = Version(-1, 0, 0, 0, 0)
"""Of a row that is made to be locked only; no event's."""
_OWN = (*VERSION_COLUMNS, "_deleted", "_event_id", "_occurred_at", "_projected_at")

_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '10s'"
_LOCK_LETTERS = "LOCK TABLE tidegate.dead_letter IN SHARE ROW EXCLUSIVE MODE"

_STANDING = """
SELECT id, erased_at, version, was_deleted FROM tidegate.erasure
WHERE entity = $1 AND key_hash = $2 AND undone_at IS NULL
"""
_RECORD = "INSERT INTO tidegate.erasure (entity, key_hash, erased_by, version, was_deleted) VALUES ($1, $2, $3, $4, $5)"
_UNDO = "UPDATE tidegate.erasure SET undone_at = now(), undone_by = $2 WHERE id = $1"


class Erased(Struct, frozen=True, kw_only=True):
    """What was found and removed. `row` is `content`, `tombstone`, `none` or `erased` (by an earlier run).

    `mentions` are dead letters of no key that hold the key's text: a person has to look at them.
    """

    entity: str
    key: str
    row: str
    dead_letters: int
    outbox: int
    mentions: list[int]
    since: datetime | None


class Reference(Struct, frozen=True, kw_only=True):
    """A field of another entity that may hold the key; `rows`: how many do, None when nobody looked."""

    entity: str
    field: str
    rows: int | None


class Erasure:
    """Erases one row of one entity."""

    def __init__(self, database: Database, shape: EntityShape, key: str) -> None:
        self._database = database
        self._shape = shape
        self._key = key
        self._typed = typed_key(shape.key, key)
        # As SQL makes it in the worker's statement: SHA-256 of the text in UTF-8.
        self._hash = hashlib.sha256(key.encode()).digest()
        self._own = (shape.name, shape.key.name)
        self._table, self._column = f'"{shape.table}"', f'"{shape.key.name}"'

    async def look(self) -> Erased:
        """What there is to be erased; changes nothing."""
        async with self._database.transaction(f"look at {self._shape.name}") as connection:
            return await self._look(connection)

    async def erase(self, by: str) -> Erased:
        """Remove everything of the key. Twice is once, and removes what came in between. Answers what it found.

        Raises Transient when a worker is in the way: try again.
        """
        async with self._database.transaction(f"erase {self._shape.name}") as connection:
            await connection.execute(_LOCK_TIMEOUT)
            # A row that can be locked, or an event that lands at this moment would hide its version from the record.
            await connection.execute(self._bury("NOTHING"), self._typed, *_NONE)
            version, is_deleted = await self._row(connection, "FOR UPDATE")
            await connection.execute(_LOCK_LETTERS)
            found = await self._look(connection)
            if found.since is None:
                known = version not in (None, _NONE, HIGHEST)
                given = list(version) if version is not None and known else None
                await connection.execute(_RECORD, self._shape.name, self._hash, by, given, is_deleted)
            await connection.execute(self._bury(f"UPDATE SET {self._emptied()}"), self._typed, *HIGHEST)
            for table in ("dead_letter", "outbox"):
                await connection.execute(
                    f"DELETE FROM tidegate.{table} WHERE entity = $1 AND key = $2", self._shape.name, self._key
                )
        return found

    async def undo(self, by: str) -> bool:
        """Let the key in again, from the state it had; False when it is not erased. The content does not come back.

        The row stays a tombstone one step below what it was, so that the same state lands once more and an older one
        does not.
        """
        async with self._database.transaction(f"undo the erasure of {self._shape.name}") as connection:
            await connection.execute(_LOCK_TIMEOUT)
            await self._row(connection, "FOR UPDATE")
            row = await connection.fetchrow(_STANDING, self._shape.name, self._hash)
            if row is None:
                return False
            await connection.execute(_UNDO, row["id"], by)
            if row["version"] is None:
                await connection.execute(f"DELETE FROM {self._table} WHERE {self._column} = $1", self._typed)
                return True
            version = Version._make(row["version"])
            if not row["was_deleted"]:
                version = version._replace(translation=version.translation - 1)
            await connection.execute(self._bury(f"UPDATE SET {self._emptied()}"), self._typed, *version)
            return True

    async def references(self, shapes: Sequence[EntityShape], *, look: bool) -> list[Reference]:
        """Fields that may hold the key: those by which viewers are told, or with `look`, all in which it is found.

        Looking reads whole tables.
        """
        found: list[Reference] = []
        for shape in shapes:
            names = [name for name in _texts(shape, self._shape.key) if (shape.name, name) != self._own]
            if look and names:
                counts = await self._counts(shape, names)
                found += [Reference(entity=shape.name, field=name, rows=rows) for name, rows in counts.items() if rows]
            elif not look:
                told = {name for reader in shape.readers for name in reader.fields}
                found += [Reference(entity=shape.name, field=name, rows=None) for name in names if name in told]
        return found

    async def streams(self) -> list[str]:
        """The streams that this database is filled from."""
        async with self._database.transaction("list the streams") as connection:
            rows = await connection.fetch("SELECT DISTINCT stream FROM tidegate.shard ORDER BY 1")
        return [row["stream"] for row in rows]

    async def _counts(self, shape: EntityShape, names: Sequence[str]) -> dict[str, int]:
        counted = ", ".join(f'count(*) FILTER (WHERE "{name}" = $1)' for name in names)
        async with self._database.transaction(f"look through {shape.name}") as connection:
            row = await connection.fetchrow(f'SELECT {counted} FROM "{shape.table}" WHERE NOT "_deleted"', self._typed)
        return dict(zip(names, row or (), strict=True))

    async def _row(self, connection: Connection, lock: str = "") -> tuple[Version | None, bool]:
        columns = ", ".join(f'"{name}"' for name in (*VERSION_COLUMNS, "_deleted"))
        text = f"SELECT {columns} FROM {self._table} WHERE {self._column} = $1 {lock}"
        row = await connection.fetchrow(text, self._typed)
        return (None, False) if row is None else (Version._make(row[:5]), row["_deleted"])

    async def _look(self, connection: Connection) -> Erased:
        name, key = self._shape.name, self._key
        version, is_deleted = await self._row(connection)
        standing = await connection.fetchrow(_STANDING, name, self._hash)
        row = (
            "none"
            if version in (None, _NONE)
            else "erased"
            if version == HIGHEST
            else "tombstone"
            if is_deleted
            else "content"
        )
        letters = "SELECT count(*) FROM tidegate.dead_letter WHERE entity = $1 AND key = $2"
        outbox = "SELECT count(*) FROM tidegate.outbox WHERE entity = $1 AND key = $2"
        mentions = (
            "SELECT id FROM tidegate.dead_letter WHERE key IS NULL "
            "AND (position($1::bytea IN payload) > 0 OR position($1::bytea IN edited_payload) > 0) ORDER BY id"
        )
        return Erased(
            entity=name,
            key=key,
            row=row,
            dead_letters=await connection.fetchval(letters, name, key),
            outbox=await connection.fetchval(outbox, name, key),
            mentions=[found["id"] for found in await connection.fetch(mentions, key.encode())],
            since=None if standing is None else standing["erased_at"],
        )

    def _bury(self, where_there_is_one: str) -> str:
        """A tombstone without content, at the version in $2 to $6."""
        values = [*(f"${number}::bigint" for number in range(2, 7)), "true", "'erased'", "now()", "now()"]
        names = ", ".join(f'"{name}"' for name in (self._shape.key.name, *_OWN))
        return (
            f"INSERT INTO {self._table} ({names}) VALUES ($1, {', '.join(values)}) "
            f"ON CONFLICT ({self._column}) DO {where_there_is_one}"
        )

    def _emptied(self) -> str:
        content = [f'"{field.name}" = NULL' for field in self._shape.fields if field != self._shape.key]
        return ", ".join([*content, *(f'"{name}" = excluded."{name}"' for name in _OWN)])


def _texts(shape: EntityShape, key: Field) -> list[str]:
    """The fields that could hold a key of that kind."""
    return [field.name for field in shape.fields if field.kind is key.kind and not field.choices]


def shape_of(shapes: Sequence[EntityShape], name: str) -> EntityShape:
    """Raises Fatal when there is no such entity."""
    for shape in shapes:
        if shape.name == name:
            return shape
    raise Fatal(f"the bubble has no entity {name!r}; it has {', '.join(shape.name for shape in shapes)}")


def typed_key(field: Field, text: str) -> Any:
    """The key as the driver wants it. Raises Fatal when it is no key of this entity."""
    try:
        value: str | int | UUID = text
        if field.kind is Kind.INTEGER:
            value = int(text)
        elif field.kind is Kind.UUID:
            value = UUID(text)
    except ValueError:
        raise Fatal(f"{text!r} is no key: {field.name} is {field.kind}") from None
    if not text or str(value) != text:
        raise Fatal(f"{text!r} is no key as the events write it; did you mean {str(value)!r}?")
    return value
