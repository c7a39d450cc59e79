"""The SQL of the projection, made from an entity's shape, and the arrays that go with it.  (pure)

One statement writes all rows of one entity: arrays in, `unnest`, ON CONFLICT. The arrays travel as the text of
literals, see `worker.literals`. The guard compares the stored version with the new one as a row of five numbers.
Content that is the same moves only the version, so that `_event_id`, `_occurred_at` and `_projected_at` keep saying
when the row last changed to its reader.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

from msgspec.structs import astuple

from tidegate import tracking
from tidegate.codec import TypedChange
from tidegate.entity import EntityShape, Kind
from tidegate.event import EntityKey, Version
from tidegate.tables import VERSION_COLUMNS
from worker.batch import Change
from worker.literals import array
from worker.routes import Routes, effect_id, lane

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

    `count` writes as well, and answers only how many rows it wrote, and how many of them show something new. `held`
    writes nothing: it counts the given versions that the table has or is past, and those of them that it has. `same`
    answers the keys that stand at exactly the given versions: what a replay finds done already.
    """

    def __init__(self, shape: EntityShape) -> None:
        self._shape = shape
        self.name = shape.name
        self.is_strict = shape.is_strict
        self._key_index = shape.fields.index(shape.key)
        # The fields of a row that is gone.
        self._none = (None,) * len(shape.fields)
        upsert = _upsert(shape)
        self.upsert = f'{upsert}\nRETURNING "{shape.key.name}", "_event_id"'
        self.count = _count(upsert)
        self.held = _held(shape)
        self.same = _same(shape)

    def rows(self, events: Sequence[TypedChange]) -> list[str]:
        """The arguments of `upsert` and `count`: one array for each column."""
        entities = [event.data for event in events]
        gone = [entity is None for entity in entities]
        fields = [self._none if entity is None else astuple(entity) for entity in entities]
        columns: list[Sequence[Any]] = list(zip(*fields, strict=True))
        columns[self._key_index] = [event.subject for event in events]
        # Group by group, for what was just looked at is written fastest.
        arrays = list(map(array, columns))
        arrays += map(array, zip(*[event.version for event in events], strict=True))
        arrays += array(gone), array([event.event_id for event in events])
        arrays.append(array([event.occurred_at for event in events]))
        return arrays

    def versions(self, events: Sequence[TypedChange]) -> list[str]:
        """The arguments of `held` and `same`."""
        versions = zip(*[event.version for event in events], strict=True)
        return [array([event.subject for event in events]), *map(array, versions)]

    def versions_of(self, rows: Sequence[str]) -> list[str]:
        """The arguments of `held` and `same` for those that are `rows`."""
        first = len(self._none)
        return [rows[self._key_index], *rows[first : first + len(VERSION_COLUMNS)]]


def _upsert(shape: EntityShape) -> str:
    content = [field.name for field in shape.fields if field != shape.key]
    columns = [field.name for field in shape.fields] + [*VERSION_COLUMNS, *_OWN]
    types = [_TYPES[field.kind] for field in shape.fields] + ["bigint"] * len(VERSION_COLUMNS) + [*_OWN.values()]
    compared = [*content, "_deleted"]
    unchanged = f"{_row('stored', compared)} IS NOT DISTINCT FROM {_row('excluded', compared)}"
    moved = [f'"{name}" = excluded."{name}"' for name in (*content, *VERSION_COLUMNS, "_deleted")]
    kept = [
        f'"{name}" = CASE WHEN {unchanged} THEN stored."{name}" ELSE {new} END'
        for name, new in (
            ("_event_id", 'excluded."_event_id"'),
            ("_occurred_at", 'excluded."_occurred_at"'),
            ("_projected_at", "now()"),
            # Asked once for all rows. Fresh rows have it by default; see tidegate/tracking.py.
            (tracking.CHANGED, f"(SELECT {tracking.THIS})"),
        )
    ]
    return (
        # Beside each other in the select list the arrays give row after row; in FROM, each would be put by as a whole first.
        f'INSERT INTO "{shape.table}" AS stored ({_list(columns)})\n'
        f"SELECT {', '.join(f'unnest({each})' for each in _arrays(types))}\n"
        f'ON CONFLICT ("{shape.key.name}") DO UPDATE SET {", ".join([*moved, *kept])}\n'
        f"WHERE {_row('stored', VERSION_COLUMNS)} < {_row('excluded', VERSION_COLUMNS)}"
    )


def _count(upsert: str) -> str:
    # What showed the same before is still of an earlier transaction; see tidegate/tracking.py.
    return (
        f'WITH written AS (\n{upsert}\nRETURNING "{tracking.CHANGED}")\n'
        f'SELECT count(*) AS written, count(*) FILTER (WHERE "{tracking.CHANGED}" = (SELECT {tracking.THIS})) AS applied\n'
        "FROM written"
    )


def _held(shape: EntityShape) -> str:
    names, given = _given(shape)
    stored, wanted = _row("stored", VERSION_COLUMNS), _row("given", VERSION_COLUMNS)
    # OFFSET 0: one look into the key's index for each row, whatever the planner thinks of a table that was empty just now.
    return (
        "SELECT count(*) AS held, count(*) FILTER (WHERE found.is_same) AS same\n"
        f"FROM unnest({given}) AS given ({_list(names)})\n"
        f'CROSS JOIN LATERAL (SELECT {stored} = {wanted} AS is_same FROM "{shape.table}" AS stored\n'
        f'WHERE stored."{shape.key.name}" = given."{shape.key.name}" AND {stored} >= {wanted} OFFSET 0) AS found'
    )


def _same(shape: EntityShape) -> str:
    names, given = _given(shape)
    # Names come from checked entity classes, values travel as arguments.
    return (
        f'SELECT stored."{shape.key.name}" FROM "{shape.table}" AS stored\n'
        f"JOIN unnest({given}) AS given ({_list(names)}) ON {_row('stored', names)} = {_row('given', names)}"
    )


def _given(shape: EntityShape) -> tuple[list[str], str]:
    """The columns and the arrays of `EntityStatements.versions`."""
    arrays = _arrays([_TYPES[shape.key.kind]] + ["bigint"] * len(VERSION_COLUMNS))
    return [shape.key.name, *VERSION_COLUMNS], ", ".join(arrays)


def _arrays(types: Sequence[str]) -> list[str]:
    """The arguments from $1 on as arrays of these types. They travel as text, or the driver would write them one by one."""
    return [f"${number}::text::{kind}[]" for number, kind in enumerate(types, 1)]


def version_text(version: Version) -> str:
    """A version as an array of PostgreSQL, which compares arrays as we compare versions. For FILE and RESOLVE."""
    return "{" + ",".join(map(str, version)) + "}"


def resolving(changes: Sequence[Change], stale: Set[EntityKey]) -> list[list[Any]]:
    """The arguments of RESOLVE after the stream; of the keys in `stale` the table holds newer versions."""
    events = [change.event for change in changes]
    return [
        [event.key.entity for event in events],
        [event.key.key for event in events],
        [version_text(event.version) for event in events],
        [event.observed_at for event in events],
        [change.position.sequence for change in changes],
        [change.position.sub for change in changes],
        [event.key not in stale for event in events],
    ]


def queueing(changes: Sequence[Change], routes: Routes) -> list[list[Any]]:
    """The arguments of QUEUE, in the order of the changes."""
    told = [(name, change) for change in changes for name in routes.of(change.event)]
    return [
        [name for name, _ in told],
        [effect_id(change.event.event_id) for _, change in told],
        [lane(change.event.key) for _, change in told],
        [change.event.key.entity for _, change in told],
        [change.event.key.key for _, change in told],
        [change.data for _, change in told],
    ]


def _list(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _row(table: str, names: Sequence[str]) -> str:
    return "ROW(" + ", ".join(f'{table}."{name}"' for name in names) + ")"


# One savepoint at a time: a transaction within thousands of others would be slow.

SAVEPOINT = "SAVEPOINT rows"
NEXT_SAVEPOINT = "RELEASE SAVEPOINT rows; SAVEPOINT rows"
BACK_TO_SAVEPOINT = "ROLLBACK TO SAVEPOINT rows"
NO_SAVEPOINT = "RELEASE SAVEPOINT rows"


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

_OPEN_LETTERS = "EXISTS (SELECT FROM tidegate.dead_letter WHERE resolved_at IS NULL AND key IS NOT NULL)"

_MOVE = """
UPDATE tidegate.shard
SET (sequence_number, sub_sequence) = (
        SELECT sequence_number, sub_sequence
        FROM (VALUES (sequence_number, sub_sequence), ($3::numeric, $4::bigint)) AS p (sequence_number, sub_sequence)
        WHERE p.sequence_number IS NOT NULL
        ORDER BY p.sequence_number DESC, p.sub_sequence DESC LIMIT 1),
    lease_counter = $5, committed_at = now()
WHERE stream = $1 AND shard_id = $2 AND lease_counter <= $5
"""

FENCE = f"""{_MOVE}
RETURNING {_OPEN_LETTERS}, committed_at
"""
"""$3, $4 the batch's last position, $5 my counter. The position never falls: a replay does not undo what is done.

Answers whether a later change could resolve any letter, and the time by which the transaction is known (`worker.fence`);
nothing when a newer holder has the shard, or it ended.
"""

FENCE_IF = f"""{_MOVE}
AND NOT {_OPEN_LETTERS} AND {{}} RETURNING shard_id
"""
"""The same on a condition, and not when a later change could resolve any letter: then nothing is moved or answered."""

MARKS = """
INSERT INTO tidegate.watermark AS stored (stream, shard_id, source, as_of)
SELECT $1, $2, source, least(as_of, now()) FROM unnest($3::text[], $4::timestamptz[]) AS given (source, as_of)
ON CONFLICT (stream, shard_id, source) DO UPDATE SET as_of = excluded.as_of WHERE stored.as_of < excluded.as_of
"""
"""Nothing is fresher than now: a back office whose clock ran ahead must not look fresh for as long afterwards."""

LOCK_SHARD = """
SELECT lease_counter, committed_at FROM tidegate.shard WHERE stream = $1 AND shard_id = $2 FOR UPDATE
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
WITH given AS (
    SELECT given.*, coalesce(edited.identity, given.identity) AS own
    FROM unnest($3::numeric[], $4::bigint[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[],
                $11::text[], $12::bytea[], $13::text[], $14::timestamptz[], $15::text[], $16::text[], $17::text[],
                $18::boolean[])
         AS given (sequence_number, sub_sequence, stage, reason, message, entity, key, source, event_id, payload,
                   version, observed_at, kind, identity, fingerprint, is_parked)
    LEFT JOIN tidegate.dead_letter AS edited ON edited.stream = $1 AND edited.edited_identity = given.identity
    WHERE NOT EXISTS (
        SELECT FROM tidegate.erasure WHERE erasure.entity = given.entity AND erasure.undone_at IS NULL
        AND erasure.key_hash = sha256(convert_to(given.key, 'UTF8'))))
INSERT INTO tidegate.dead_letter AS stored
    (stream, shard_id, sequence_number, sub_sequence, stage, reason, message, entity, key, source, event_id, payload,
     version, observed_at, kind, identity, fingerprint, parked_at, attempts)
SELECT DISTINCT ON (own) $1, $2, sequence_number, sub_sequence, stage, reason, message, entity, key, source, event_id,
       payload, version::bigint[], observed_at, kind, own, fingerprint, CASE WHEN is_parked THEN now() END,
       count(*) OVER (PARTITION BY own)
FROM given ORDER BY own, sequence_number DESC, sub_sequence DESC
ON CONFLICT (stream, identity) DO UPDATE
SET attempts = stored.attempts + excluded.attempts, last_seen_at = now(), stage = excluded.stage,
    reason = excluded.reason, message = excluded.message, fingerprint = excluded.fingerprint,
    parked_at = CASE WHEN excluded.parked_at IS NOT NULL THEN coalesce(stored.parked_at, excluded.parked_at) END,
    observed_at = greatest(stored.observed_at, excluded.observed_at),
    (shard_id, sequence_number, sub_sequence) = (
        SELECT p.* FROM (VALUES (stored.shard_id, stored.sequence_number, stored.sub_sequence),
                                (excluded.shard_id, excluded.sequence_number, excluded.sub_sequence))
                        AS p (shard_id, sequence_number, sub_sequence)
        ORDER BY p.sequence_number DESC, p.sub_sequence DESC LIMIT 1),
    (resolved_at, resolution, resolved_by, version, edited_payload, edited_identity, edited_at, edited_by) = (
        SELECT stored.resolved_at, stored.resolution, stored.resolved_by, stored.version,
               stored.edited_payload, stored.edited_identity, stored.edited_at, stored.edited_by
        WHERE (stored.version IS NOT NULL AND stored.kind = 'event')
           OR (excluded.sequence_number, excluded.sub_sequence) <= (stored.sequence_number, stored.sub_sequence)
           OR excluded.observed_at <= stored.observed_at OR excluded.kind <> stored.kind)
"""
"""A letter is one however often it is filed; `own` leads what was edited and replayed back to what it was made of (both,
if a person made one thing of two letters).

What was resolved stays so when a version is filed once more: it was replaced before, or judged by a person. A raw row
has no version: when a later answer of the back office shows it, it is open again and what was made of it is void, for
between the two the row may have had another content. What a person made of it is an event, and tells nothing new.

A parked letter is one of a change that was not tried ($18). It and the letter of a failure become each other as the
change waits, fails, and waits once more.
"""

RESOLVE = """
UPDATE tidegate.dead_letter AS letter
SET resolved_at = now(),
    resolution = CASE WHEN given.is_there AND letter.version = given.version::bigint[] THEN 'written'
                      ELSE 'superseded' END
FROM unnest($2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::numeric[], $7::bigint[], $8::boolean[])
     AS given (entity, key, version, observed_at, sequence_number, sub_sequence, is_there)
WHERE letter.resolved_at IS NULL AND letter.entity = given.entity AND letter.key = given.key
AND CASE WHEN letter.version IS NOT NULL THEN letter.version <= given.version::bigint[]
         ELSE letter.stream = $1 AND letter.observed_at <= given.observed_at
              AND (letter.sequence_number, letter.sub_sequence) < (given.sequence_number, given.sub_sequence) END
"""
"""A row that was written closes the letters of its key that are not newer; so does one that is newer already.

A row that the poller could not translate has no version. It is older than a change that was read no earlier (which a
belated poller's was) and stands later in the stream (which a replayed one does not).
"""


# The outbox. $1 is the destination where there is one.

QUEUE = """
INSERT INTO tidegate.outbox (destination, event_id, lane, entity, key, payload)
SELECT destination, event_id, lane, entity, key, payload
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::bytea[]) WITH ORDINALITY
     AS given (destination, event_id, lane, entity, key, payload, place)
ORDER BY place
ON CONFLICT (destination, event_id) DO NOTHING
RETURNING destination
"""
"""Written by who holds the locks of the changed rows, so within a lane the ids rise as the versions do."""

CLAIM = """
WITH head AS MATERIALIZED (
    SELECT id, lane FROM tidegate.outbox AS mine
    WHERE destination = $1 AND state = 'waiting' AND due_at <= now()
      AND id = (SELECT earlier.id FROM tidegate.outbox AS earlier
                WHERE earlier.destination = $1 AND earlier.lane = mine.lane AND earlier.state = 'waiting'
                ORDER BY earlier.id LIMIT 1)
    ORDER BY due_at LIMIT $2
    FOR NO KEY UPDATE SKIP LOCKED),
aside AS (
    UPDATE tidegate.outbox SET due_at = now() + interval '1 hour' WHERE id IN (
        SELECT later.id FROM tidegate.outbox AS later JOIN head USING (lane)
        WHERE later.destination = $1 AND later.state = 'waiting' AND later.id > head.id AND later.due_at <= now()
        LIMIT 5000))
UPDATE tidegate.outbox AS claimed
SET attempts = attempts + 1, due_at = now() + $3 * interval '1 second', tried_since = coalesce(tried_since, now())
FROM head WHERE claimed.id = head.id
RETURNING claimed.id, claimed.event_id, claimed.attempts, claimed.payload
"""
"""$2 how many, $3 for how many seconds. Only the oldest waiting change of a lane can be claimed, and one claim at a time.

A claim that is not answered in time, because its worker is gone, ends by itself. Only the database's clock counts.
What stands behind a claimed change is put aside, as behind one that failed: else every claim would look at all of it.
"""

_NEXT = """
, following AS (
    UPDATE tidegate.outbox SET due_at = now()
    WHERE due_at > now() AND id = (
        SELECT later.id FROM tidegate.outbox AS later JOIN answered USING (destination, lane)
        WHERE answered.state <> 'waiting' AND later.state = 'waiting' AND later.id > answered.id
        ORDER BY later.id LIMIT 1))
"""
"""The next one of the lane is due now, should it have been put aside."""

SENT = f"""
WITH answered AS (
    UPDATE tidegate.outbox SET state = 'sent', answered_at = now(), reason = NULL, message = NULL
    WHERE id = $1 AND attempts = $2 AND state = 'waiting'
    RETURNING id, destination, lane, state)
{_NEXT}
SELECT state FROM answered
"""
"""$1 id, $2 the claim. Nothing when the claim ended meanwhile: somebody else sends the change once more."""

FAILED = f"""
WITH answered AS (
    UPDATE tidegate.outbox
    SET reason = $3, message = $4, answered_at = now(), due_at = now() + $5 * interval '1 second',
        state = CASE WHEN $6 OR tried_since <= now() - $7 * interval '1 second' THEN 'dead' ELSE 'waiting' END
    WHERE id = $1 AND attempts = $2 AND state = 'waiting'
    RETURNING id, destination, lane, state)
{_NEXT}
, blocked AS (
    UPDATE tidegate.outbox AS later SET due_at = now() + interval '1 hour'
    FROM answered
    WHERE answered.state = 'waiting' AND later.destination = answered.destination AND later.lane = answered.lane
      AND later.state = 'waiting' AND later.id > answered.id AND later.due_at <= now())
SELECT state FROM answered
"""
"""$1 id, $2 the claim, $3 reason, $4 message, $5 wait in seconds, $6 refused for good, $7 how long it may be tried.

What stands behind a change that failed is put aside, or every claim would have to look at it. It comes back when the
change is done; or after an hour, should somebody have taken the change away by hand.
"""

SWEEP = """
DELETE FROM tidegate.outbox WHERE id IN (
    SELECT id FROM tidegate.outbox
    WHERE state IN ('sent', 'discarded') AND answered_at < now() - $1 * interval '1 second'
    ORDER BY answered_at LIMIT $2 FOR UPDATE SKIP LOCKED)
"""
"""$1 kept for seconds, $2 rows. Locks nothing that the projection or a claim wants."""

LOOK = """
SELECT coalesce((SELECT extract(epoch FROM now() - queued_at) FROM tidegate.outbox
                 WHERE destination = $1 AND state = 'waiting' ORDER BY id LIMIT 1), 0)::double precision AS age_s,
       (SELECT count(*) FROM tidegate.outbox WHERE destination = $1 AND state = 'dead') AS dead
"""
