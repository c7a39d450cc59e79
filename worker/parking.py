"""Strict order per key: which changes must wait behind dead letters, and the SQL that knows.  (pure)

An entity may ask (`Meta.strict_order`) that no change of a row be applied while an older one of it is a dead letter.
So every change of such a row is tried, also where a newer one in the same batch would take its place.
Later changes are then *parked*: filed whole as letters of their own, in the transaction that passes them by. Whether
one must wait is judged by versions, which alone order two changes, wherever they stand in the stream: it waits while an
open letter of its key has a lower version, be that one a failure or parked itself. So what comes in the meantime
cannot overtake what waits, and the replay of the failed record itself, whose version is the lowest, passes.

A row that its poller could not translate has no version. Behind its letter waits what was observed no earlier and
stands later in the stream.

When the failures are gone, what waits is written in the order of versions, by whichever worker comes first
(`worker.drain`). The letters are the only state, so restarts, hand-overs and resharding change nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from datetime import datetime
from itertools import takewhile
from typing import Any, NamedTuple

from tidegate.codec import TypedChange
from tidegate.event import EntityKey, Version
from tidegate.letter import NAME_CHARACTERS, storable
from worker.batch import Change, DeadLetter, Position, Record
from worker.ports import Decode
from worker.routes import lane

_STRIPES = 64


class Hold(NamedTuple):
    """What holds a key up: its oldest open letter, and the first of those that have no version."""

    version: Version | None = None
    observed_at: datetime | None = None
    position: Position = Position(0, 0)

    def holds(self, change: Change) -> bool:
        """Whether the change must wait."""
        if self.version is not None and self.version < change.event.version:
            return True
        if self.observed_at is None or change.event.observed_at < self.observed_at:
            return False
        return self.position < change.position


class Split(NamedTuple):
    """The changes of a batch, in their order: those that may be written now, and those that must wait."""

    passing: Sequence[Change]
    waiting: Sequence[Change]


def strict_keys(changes: Iterable[Change], strict: Set[str]) -> list[EntityKey]:
    """The keys of entities with strict order, each once."""
    keys = dict.fromkeys(change.event.key for change in changes)
    return [key for key in keys if key.entity in strict]


def repeated(events: Iterable[TypedChange], strict: Set[str]) -> Set[EntityKey]:
    """The keys of entities with strict order that have several changes: each must be tried, or a failure is passed over."""
    if not strict:
        return frozenset()
    counts = Counter(event.key for event in events if event.shape.name in strict)
    return {key for key, count in counts.items() if count > 1}


def split(changes: Sequence[Change], keys: Sequence[EntityKey], rows: Iterable[Sequence[Any]]) -> Split:
    """`rows` are HOLDS' answer for the keys."""
    holds = {keys[place - 1]: _hold(*parts) for place, *parts in rows}
    if not holds:
        return Split(changes, ())
    passing: list[Change] = []
    waiting: list[Change] = []
    for change in changes:
        hold = holds.get(change.event.key)
        (waiting if hold is not None and hold.holds(change) else passing).append(change)
    return Split(passing, waiting)


def in_turn(changes: Sequence[Change], refused: Iterable[DeadLetter]) -> Split:
    """With strict order: the changes that are not newer than a refused one of their key, and the others."""
    oldest: dict[EntityKey, Version] = {}
    for letter in refused:
        if letter.version is not None:
            key = EntityKey(letter.entity or "", letter.key or "")
            oldest[key] = min(letter.version, oldest.get(key, letter.version))
    waiting = [
        change for change in changes if oldest.get(change.event.key, change.event.version) < change.event.version
    ]
    held = set(map(id, waiting))
    return Split([change for change in changes if id(change) not in held], waiting)


def _hold(version: Sequence[int] | None, observed_at: datetime | None, sequence: Any, sub: int | None) -> Hold:
    position = Position(0, 0) if sequence is None else Position(int(sequence), sub or 0)
    return Hold(None if version is None else Version._make(version), observed_at, position)


def letter(change: Change) -> DeadLetter:
    """The letter of a change that must wait."""
    event = change.event
    return DeadLetter(
        position=change.position,
        stage="order",
        reason="parked",
        message="it waits for the older dead letters of its key, and follows by itself when they are closed",
        payload=change.data,
        entity=event.key.entity,
        key=event.key.key,
        source=event.source,
        event_id=event.event_id,
        version=event.version,
        is_parked=True,
    )


def asking(keys: Collection[EntityKey]) -> list[list[str]]:
    """The arguments of HOLDS after the stream: keys as letters have them."""
    return [[key.entity for key in keys], [storable(key.key, NAME_CHARACTERS) for key in keys]]


def sifted(letters: Sequence[DeadLetter], strict: Set[str]) -> tuple[list[DeadLetter], Sequence[DeadLetter]]:
    """The letters that can hold up a key, and the others."""
    if not (strict and letters):
        return [], letters
    holding = [letter for letter in letters if letter.entity in strict and letter.key is not None]
    return holding, [letter for letter in letters if letter.entity not in strict or letter.key is None]


def stripes(letters: Sequence[DeadLetter], strict: Set[str]) -> list[int]:
    """The locks of the keys that these failures can hold up."""
    failed, _ = sifted([letter for letter in letters if not letter.is_parked] if strict else (), strict)
    return sorted({stripe(EntityKey(letter.entity or "", letter.key or "")) for letter in failed})


def stripe(key: EntityKey) -> int:
    """The lock of a key. There are few, whatever the number of keys: PostgreSQL's table of locks is not large."""
    return lane(EntityKey(key.entity, storable(key.key, NAME_CHARACTERS))) % _STRIPES


class Waited(NamedTuple):
    """Parked letters of one key, read once more.

    changes  those that are good, from the oldest on
    dead     the first that is not; nothing after it is looked at
    tried    the letters' ids and when they were edited, as arrays
    places   stream and shard of each
    """

    changes: list[Change]
    dead: list[DeadLetter]
    tried: tuple[list[int], list[datetime | None]]
    places: dict[Position, tuple[str, str]]

    @classmethod
    def read(cls, rows: Sequence[Mapping[str, Any]], decode: Decode) -> Waited:
        """`rows` are those of NEXT."""
        records = [Record(str(int(row["sequence_number"])), row["record"], row["sub_sequence"]) for row in rows]
        items = decode(records) if records else ()
        # As far as all are good.
        pairs = takewhile(lambda pair: isinstance(pair[1], TypedChange), zip(records, items, strict=True))
        changes = [Change(record, item) for record, item in pairs if isinstance(item, TypedChange)]
        failed = items[len(changes) : len(changes) + 1]
        tried = rows[: len(changes) + len(failed)]
        return cls(
            changes,
            [item for item in failed if isinstance(item, DeadLetter)],
            ([row["id"] for row in tried], [row["edited_at"] for row in tried]),
            {record.position: (row["stream"], row["shard_id"]) for record, row in zip(records, rows, strict=True)},
        )


HOLDS = """
SELECT held.place, oldest.version, untold.observed_at, untold.sequence_number, untold.sub_sequence
FROM (SELECT * FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS given (entity, key, place)
      WHERE EXISTS (SELECT FROM tidegate.dead_letter AS letter WHERE letter.resolved_at IS NULL
                    AND letter.entity = given.entity AND letter.key = given.key)) AS held
LEFT JOIN LATERAL (
    SELECT version FROM tidegate.dead_letter AS letter
    WHERE letter.resolved_at IS NULL AND letter.entity = held.entity AND letter.key = held.key
      AND letter.version IS NOT NULL
    ORDER BY version LIMIT 1) AS oldest ON true
LEFT JOIN LATERAL (
    SELECT observed_at, sequence_number, sub_sequence FROM tidegate.dead_letter AS letter
    WHERE letter.resolved_at IS NULL AND letter.entity = held.entity AND letter.key = held.key
      AND letter.version IS NULL AND letter.observed_at IS NOT NULL AND letter.stream = $1
    ORDER BY observed_at, sequence_number, sub_sequence LIMIT 1) AS untold ON true
"""
"""What holds up the keys in $2 and $3, by their place among them. $1 is the stream."""

LOCK = """
SELECT pg_advisory_xact_lock(hashtextextended('tidegate.parking ' || stripe, 0))
FROM (SELECT stripe FROM unnest($1::int[]) AS stripe ORDER BY stripe) AS sorted
"""
"""Who files a failure of a key that asks for strict order, and who drains it, wait for each other: else a failure could
be filed as open that the drain is just passing.
"""

TRY_LOCK = """
SELECT pg_try_advisory_xact_lock(hashtextextended('tidegate.parking ' || $1::int, 0))
"""

READY = """
SELECT parked.entity, parked.key
FROM (SELECT DISTINCT entity, key FROM tidegate.dead_letter
      WHERE resolved_at IS NULL AND parked_at IS NOT NULL AND entity = ANY ($1::text[])) AS parked
CROSS JOIN LATERAL (
    SELECT parked_at FROM tidegate.dead_letter AS letter
    WHERE letter.resolved_at IS NULL AND letter.entity = parked.entity AND letter.key = parked.key
      AND letter.version IS NOT NULL
    ORDER BY version, parked_at NULLS FIRST LIMIT 1) AS oldest
WHERE oldest.parked_at IS NOT NULL
  AND NOT EXISTS (SELECT FROM tidegate.dead_letter AS letter
                  WHERE letter.resolved_at IS NULL AND letter.entity = parked.entity AND letter.key = parked.key
                    AND letter.version IS NULL AND letter.observed_at IS NOT NULL)
LIMIT $2
"""
"""Keys of the entities in $1 whose oldest letter is parked: nothing holds it up any more."""

NEXT = """
SELECT id, stream, shard_id, sequence_number, sub_sequence, record, edited_at
FROM (SELECT *, sum(octet_length(record)) OVER (ORDER BY version, id) - octet_length(record) AS before_bytes
      FROM (SELECT *, coalesce(edited_payload, payload) AS record FROM tidegate.dead_letter AS waiting
            WHERE resolved_at IS NULL AND entity = $1 AND key = $2 AND parked_at IS NOT NULL AND version IS NOT NULL
              AND NOT EXISTS (
                SELECT FROM tidegate.dead_letter AS failed
                WHERE failed.resolved_at IS NULL AND failed.entity = $1 AND failed.key = $2 AND failed.parked_at IS NULL
                  AND (failed.version <= waiting.version OR failed.version IS NULL AND failed.observed_at IS NOT NULL))
            ORDER BY version, id LIMIT $3) AS first) AS counted
WHERE before_bytes < $4
ORDER BY version, id
"""
"""The oldest parked letters of a key, up to its oldest failure; at most $3, and about $4 bytes."""

UNTOUCHED = """
SELECT count(*) FROM (
    SELECT FROM tidegate.dead_letter AS letter
    JOIN unnest($1::bigint[], $2::timestamptz[]) AS given (id, edited_at) USING (id)
    WHERE letter.resolved_at IS NULL AND letter.edited_at IS NOT DISTINCT FROM given.edited_at
    FOR UPDATE OF letter) AS mine
"""
"""How many of the letters are as they were read, and locked now."""

STUCK = """
SELECT DISTINCT failed.entity, failed.key FROM tidegate.dead_letter AS failed
WHERE failed.resolved_at IS NULL AND failed.parked_at IS NULL AND failed.version IS NOT NULL
  AND failed.entity = ANY ($1::text[])
  AND EXISTS (SELECT FROM tidegate.dead_letter AS parked
              WHERE parked.resolved_at IS NULL AND parked.parked_at IS NOT NULL
                AND parked.entity = failed.entity AND parked.key = failed.key)
LIMIT 10000
"""
"""Keys of the entities in $1 of which a failure holds something up."""

LOOK = """
SELECT entity, count(*), extract(epoch FROM now() - min(parked_at))::double precision
FROM tidegate.dead_letter WHERE resolved_at IS NULL AND parked_at IS NOT NULL AND entity = ANY ($1::text[])
GROUP BY entity
"""
"""How many changes of each entity wait, and for how many seconds the first of them has."""
