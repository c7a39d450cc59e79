"""Batches: what is written together, and which version of a key goes into it.  (pure)

A batch closes by count, by bytes or by age, whichever comes first. Every record of it is kept: only the entity
table sees the newest version of each key, because one ON CONFLICT statement may not touch a row twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from msgspec import Struct

from tidegate.event import ChangeEvent, EntityKey, Version, Watermark


class Position(NamedTuple):
    """A place in a shard: the record's sequence number, and the number of a user record inside an aggregate."""

    sequence: int
    sub: int


class Change(Struct, frozen=True):
    """A decoded change. `key` is the typed key, `values` the entity's fields in order (None: deleted)."""

    position: Position
    event: ChangeEvent
    key: Any
    values: tuple[Any, ...] | None
    data: bytes


class Mark(Struct, frozen=True):
    """A watermark, with its place."""

    position: Position
    watermark: Watermark


class DeadLetter(Struct, frozen=True, kw_only=True):
    """A record that cannot be handled, whole. `stage` is where it failed, `reason` a stable word.

    `version` is that of a change; a row that the poller could not translate has none, only `observed_at`. By them a
    later change of the key is told from a replay of an earlier one.
    """

    position: Position
    stage: str
    reason: str
    message: str
    payload: bytes
    entity: str | None = None
    key: str | None = None
    source: str | None = None
    event_id: str | None = None
    version: Version | None = None
    observed_at: datetime | None = None


Item = Change | Mark | DeadLetter


class Batch(Struct, frozen=True, kw_only=True):
    """What one transaction writes for one shard, up to and including `last`."""

    shard_id: str
    last: Position
    changes: tuple[Change, ...] = ()
    marks: tuple[Mark, ...] = ()
    dead: tuple[DeadLetter, ...] = ()

    @property
    def delivered(self) -> int:
        """Changes and rejected records: what a WriteResult sums to. Watermarks change no row and are not counted."""
        return len(self.changes) + len(self.dead)


class BatchLimits(Struct, frozen=True, kw_only=True):
    max_records: int
    max_bytes: int
    max_age_s: float


class BatchBuilder:
    """Collects items until a limit is reached. Times are seconds of one monotonic clock, passed in."""

    def __init__(self, shard_id: str, limits: BatchLimits) -> None:
        self._shard_id = shard_id
        self._limits = limits
        self._clear()

    def _clear(self) -> None:
        self._items: list[Item] = []
        self._size_bytes = 0
        self._opened_s: float | None = None
        self._last: Position | None = None

    def add(self, item: Item, size_bytes: int, now_s: float) -> None:
        """Positions must rise: `last` is what the checkpoint will say."""
        if self._last is not None and item.position <= self._last:
            raise ValueError(f"position {item.position} comes after {self._last}")
        if self._opened_s is None:
            self._opened_s = now_s
        self._items.append(item)
        self._size_bytes += size_bytes
        self._last = item.position

    @property
    def is_empty(self) -> bool:
        return not self._items

    @property
    def is_full(self) -> bool:
        return len(self._items) >= self._limits.max_records or self._size_bytes >= self._limits.max_bytes

    @property
    def due_s(self) -> float | None:
        """The moment at which the batch has waited long enough; None when it is empty."""
        return None if self._opened_s is None else self._opened_s + self._limits.max_age_s

    def close(self) -> Batch:
        """The batch so far; the builder starts anew. Raises ValueError when it is empty."""
        if self._last is None:
            raise ValueError("an empty batch has no position")
        items = self._items
        batch = Batch(
            shard_id=self._shard_id,
            last=self._last,
            changes=tuple(item for item in items if isinstance(item, Change)),
            marks=tuple(item for item in items if isinstance(item, Mark)),
            dead=tuple(item for item in items if isinstance(item, DeadLetter)),
        )
        self._clear()
        return batch


class Coalesced(NamedTuple):
    """`kept`: by entity, one change of each key, sorted by key. `dropped`: the others, as they came."""

    kept: dict[str, list[Change]]
    dropped: list[Change]


def coalesce(changes: Sequence[Change]) -> Coalesced:
    """Keep the newest version of each key; of two equal versions the first, as the table does.

    Sorted by key, so that two workers that touch the same rows lock them in the same order.
    """
    newest: dict[EntityKey, Change] = {}
    dropped: list[Change] = []
    for change in changes:
        known = newest.get(change.event.key)
        if known is None:
            newest[change.event.key] = change
        elif known.event.version < change.event.version:
            newest[change.event.key] = change
            dropped.append(known)
        else:
            dropped.append(change)
    kept: dict[str, list[Change]] = {}
    for change in newest.values():
        kept.setdefault(change.event.key.entity, []).append(change)
    for rows in kept.values():
        rows.sort(key=lambda change: change.key)
    return Coalesced(dict(sorted(kept.items())), dropped)


def newest_marks(marks: Iterable[Mark]) -> dict[str, Watermark]:
    """The furthest watermark of each source."""
    furthest: dict[str, Watermark] = {}
    for mark in marks:
        known = furthest.get(mark.watermark.source)
        if known is None or known.as_of < mark.watermark.as_of:
            furthest[mark.watermark.source] = mark.watermark
    return dict(sorted(furthest.items()))
