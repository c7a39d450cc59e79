"""The SQL of the projection, made from an entity's shape, and the arrays that go with it.  (pure)

One statement writes all rows of one entity: arrays in, `unnest`, ON CONFLICT. The guard compares the stored
version with the new one as a row of five numbers. Content that is the same moves only the version, so that
`_event_id`, `_occurred_at` and `_projected_at` keep saying when the row last changed to its reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tidegate.entity import EntityShape, Kind
from tidegate.event import Operation, Version
from tidegate.tables import VERSION_COLUMNS
from worker.batch import Change

_TYPES = {
    Kind.TEXT: "text",
    Kind.INTEGER: "bigint",
    Kind.FLOAT: "double precision",
    Kind.BOOLEAN: "boolean",
    Kind.DECIMAL: "numeric",
    Kind.DATE: "date",
    Kind.TIMESTAMP: "timestamptz",
    Kind.UUID: "uuid",
}
_OWN = {"_deleted": "boolean", "_event_id": "text", "_occurred_at": "timestamptz"}


class EntityStatements:
    """`upsert` answers the rows that it wrote: their key, and the event whose content they now hold.

    `same` counts the rows that stand at exactly the given versions: what a replay finds done already.
    """

    def __init__(self, shape: EntityShape) -> None:
        self._shape = shape
        self._key_index = shape.fields.index(shape.key)
        self.upsert = _upsert(shape)
        self.same = _same(shape)

    def rows(self, changes: Sequence[Change]) -> list[list[Any]]:
        """The arguments of `upsert`: one array for each column."""
        empty = [None] * len(self._shape.fields)
        contents = []
        for change in changes:
            values = list(change.values) if change.values is not None else empty.copy()
            values[self._key_index] = change.key
            contents.append(values)
        columns = [list(column) for column in zip(*contents, strict=True)]
        events = [change.event for change in changes]
        columns += [list(part) for part in zip(*(event.version for event in events), strict=True)]
        columns.append([event.operation is Operation.DELETE for event in events])
        columns.append([event.event_id for event in events])
        columns.append([event.occurred_at for event in events])
        return columns

    def versions(self, changes: Sequence[Change]) -> list[list[Any]]:
        """The arguments of `same`."""
        versions = zip(*(change.event.version for change in changes), strict=True)
        return [[change.key for change in changes], *(list(part) for part in versions)]


def _upsert(shape: EntityShape) -> str:
    content = [field.name for field in shape.fields if field != shape.key]
    columns = [field.name for field in shape.fields] + [*VERSION_COLUMNS, *_OWN]
    types = [_TYPES[field.kind] for field in shape.fields] + ["bigint"] * len(VERSION_COLUMNS) + [*_OWN.values()]
    arrays = ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(types, 1))
    compared = [*content, "_deleted"]
    unchanged = f"{_row('stored', compared)} IS NOT DISTINCT FROM {_row('excluded', compared)}"
    moved = [f'"{name}" = excluded."{name}"' for name in (*content, *VERSION_COLUMNS, "_deleted")]
    kept = [
        f'"{name}" = CASE WHEN {unchanged} THEN stored."{name}" ELSE {new} END'
        for name, new in (
            ("_event_id", 'excluded."_event_id"'),
            ("_occurred_at", 'excluded."_occurred_at"'),
            ("_projected_at", "now()"),
        )
    ]
    return (
        f'INSERT INTO "{shape.table}" AS stored ({_list(columns)})\n'
        f"SELECT * FROM unnest({arrays})\n"
        f'ON CONFLICT ("{shape.key.name}") DO UPDATE SET {", ".join([*moved, *kept])}\n'
        f"WHERE {_row('stored', VERSION_COLUMNS)} < {_row('excluded', VERSION_COLUMNS)}\n"
        f'RETURNING "{shape.key.name}", "_event_id"'
    )


def _same(shape: EntityShape) -> str:
    names = [shape.key.name, *VERSION_COLUMNS]
    types = [_TYPES[shape.key.kind]] + ["bigint"] * len(VERSION_COLUMNS)
    arrays = ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(types, 1))
    # Names come from checked entity classes, values travel as arguments.
    return (
        f'SELECT count(*) FROM "{shape.table}" AS stored\n'
        f"JOIN unnest({arrays}) AS given ({_list(names)}) ON {_row('stored', names)} = {_row('given', names)}"
    )


def version_text(version: Version) -> str:
    """A version as an array of PostgreSQL, which compares arrays as we compare versions. For FILE and RESOLVE."""
    return "{" + ",".join(map(str, version)) + "}"


def resolving(changes: Sequence[Change]) -> list[list[Any]]:
    """The arguments of RESOLVE after the stream."""
    events = [change.event for change in changes]
    return [
        [event.key.entity for event in events],
        [event.key.key for event in events],
        [version_text(event.version) for event in events],
        [event.observed_at for event in events],
        [change.position.sequence for change in changes],
        [change.position.sub for change in changes],
    ]


def _list(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _row(table: str, names: Sequence[str]) -> str:
    return "ROW(" + ", ".join(f'{table}."{name}"' for name in names) + ")"


# The operational tables. $1 is the stream, $2 the shard.

LOCK_FAMILY = """
SELECT pg_advisory_xact_lock(hashtextextended('tidegate.shard ' || $1::text, 0))
"""
"""Which shards the stream has is changed by one transaction at a time."""

ADD = """
INSERT INTO tidegate.shard (stream, shard_id) SELECT $1, * FROM unnest($2::text[]) ON CONFLICT DO NOTHING
"""

REGISTER = """
INSERT INTO tidegate.shard (stream, shard_id)
SELECT $1, wanted FROM unnest($2::text[]) AS wanted
WHERE NOT EXISTS (
    SELECT FROM unnest($3::text[], $4::text[]) AS line (parent, child)
    JOIN tidegate.shard AS known ON known.stream = $1 AND known.shard_id = line.child
    WHERE line.parent = wanted)
ON CONFLICT DO NOTHING
"""
"""$3, $4 pairs of parent and child: a shard whose child is there has ended, whatever the caller's list of leases says."""

RETIRE = """
DELETE FROM tidegate.shard WHERE stream = $1 AND shard_id = ANY ($2::text[]) AND sequence_number IS NULL
"""
"""A finished shard that was registered once more by somebody who did not know: it was read by nobody since."""

UNFINISHED = """
SELECT shard_id FROM tidegate.shard WHERE stream = $1 AND shard_id = ANY ($2::text[]) ORDER BY shard_id
"""

OPEN = """
UPDATE tidegate.shard SET lease_counter = $3
WHERE stream = $1 AND shard_id = $2 AND (lease_counter <= $3 OR lease_counter = $4)
"""
"""$3 my counter, $4 a higher one that is proven to be of another life of the lease table, else NULL."""

STATE = """
SELECT sequence_number, sub_sequence, lease_counter FROM tidegate.shard WHERE stream = $1 AND shard_id = $2
"""

FENCE = """
UPDATE tidegate.shard
SET (sequence_number, sub_sequence) = (
        SELECT sequence_number, sub_sequence
        FROM (VALUES (sequence_number, sub_sequence), ($3::numeric, $4::bigint)) AS p (sequence_number, sub_sequence)
        WHERE p.sequence_number IS NOT NULL
        ORDER BY p.sequence_number DESC, p.sub_sequence DESC LIMIT 1),
    lease_counter = $5, committed_at = now()
WHERE stream = $1 AND shard_id = $2 AND lease_counter <= $5
RETURNING EXISTS (SELECT FROM tidegate.dead_letter WHERE resolved_at IS NULL AND key IS NOT NULL)
"""
"""$3, $4 the batch's last position, $5 my counter. The position never falls: a replay does not undo what is done.

Answers whether a later change could resolve any letter; nothing when a newer holder has the shard, or it ended.
"""

MARKS = """
INSERT INTO tidegate.watermark AS stored (stream, shard_id, source, as_of)
SELECT $1, $2, source, least(as_of, now()) FROM unnest($3::text[], $4::timestamptz[]) AS given (source, as_of)
ON CONFLICT (stream, shard_id, source) DO UPDATE SET as_of = excluded.as_of WHERE stored.as_of < excluded.as_of
"""
"""Nothing is fresher than now: a back office whose clock ran ahead must not look fresh for as long afterwards."""

LOCK_SHARD = """
SELECT lease_counter FROM tidegate.shard WHERE stream = $1 AND shard_id = $2 FOR UPDATE
"""

INHERIT = """
INSERT INTO tidegate.watermark AS stored (stream, shard_id, source, as_of)
SELECT stream, child, source, as_of FROM tidegate.watermark CROSS JOIN unnest($3::text[]) AS child
WHERE stream = $1 AND shard_id = $2
ON CONFLICT (stream, shard_id, source) DO UPDATE SET as_of = least(stored.as_of, excluded.as_of)
"""

REMOVE_SHARD = """
DELETE FROM tidegate.shard WHERE stream = $1 AND shard_id = $2
"""

FILE = """
INSERT INTO tidegate.dead_letter AS stored
    (stream, shard_id, sequence_number, sub_sequence, stage, reason, message, entity, key, source, event_id, payload,
     version, observed_at)
SELECT $1, $2, sequence_number, sub_sequence, stage, reason, message, entity, key, source, event_id, payload,
       version::bigint[], observed_at
FROM unnest($3::numeric[], $4::bigint[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[],
            $11::text[], $12::bytea[], $13::text[], $14::timestamptz[])
     AS given (sequence_number, sub_sequence, stage, reason, message, entity, key, source, event_id, payload,
               version, observed_at)
ON CONFLICT (stream, shard_id, sequence_number, sub_sequence) DO UPDATE
SET attempts = stored.attempts + 1, last_seen_at = now(), stage = excluded.stage, reason = excluded.reason,
    message = excluded.message
"""
"""A letter that was resolved stays so: what is filed once more was replaced before, or judged by a person."""

RESOLVE = """
UPDATE tidegate.dead_letter AS letter SET resolved_at = now()
FROM unnest($2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::numeric[], $7::bigint[])
     AS given (entity, key, version, observed_at, sequence_number, sub_sequence)
WHERE letter.resolved_at IS NULL AND letter.entity = given.entity AND letter.key = given.key
AND CASE WHEN letter.version IS NOT NULL THEN letter.version <= given.version::bigint[]
         ELSE letter.stream = $1 AND letter.observed_at <= given.observed_at
              AND (letter.sequence_number, letter.sub_sequence) < (given.sequence_number, given.sub_sequence) END
"""
"""A row that was written closes the letters of its key that are not newer.

A row that the poller could not translate has no version. It is older than a change that was read no earlier (which a
belated poller's was) and stands later in the stream (which a replayed one does not).
"""
