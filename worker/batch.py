"""Batches: what is written together, and which version of a key goes into it.  (pure)

A batch closes by count, by bytes or by age, whichever comes first. Every record of it is kept: only the entity
table sees the newest version of each key, because one ON CONFLICT statement may not touch a row twice; it sees all
versions of a key, one statement after the other, where a destination wants to be told of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from datetime import datetime
from enum import Enum
from itertools import accumulate
from operator import lt
from typing import Any, NamedTuple
from uuid import UUID

from msgspec import Struct
from msgspec.structs import astuple, replace

from tidegate.codec import TypedChange
from tidegate.entity import Kind
from tidegate.event import EntityKey, Version, Watermark
from tidegate.inbound import Arrival
from tidegate.letter import LetterKind
from tidegate.record import Position, Record

__all__ = [
    "Arrived",
    "Batch",
    "BatchBuilder",
    "BatchLimits",
    "BatchSize",
    "Change",
    "Coalesced",
    "DeadLetter",
    "DecodeAll",
    "Item",
    "Mark",
    "Position",
    "Record",
    "coalesce",
    "newest_marks",
    "typed_key",
]

# Records that are taken in together: what is made of them stays in the processor's cache from one step to the next.
_AT_ONCE = 500
_TYPED_KEY: Mapping[Kind, Callable[[str], Any]] = {Kind.TEXT: str, Kind.INTEGER: int, Kind.UUID: UUID}


def typed_key(kind: Kind, text: str) -> Any:
    """A key as its column has it. Raises ValueError for a text that is none."""
    return _TYPED_KEY[kind](text)


class Change(Struct, frozen=True, gc=False):
    """A change and the record it stood in."""

    record: Record
    event: TypedChange

    @property
    def position(self) -> Position:
        return self.record.position

    @property
    def data(self) -> bytes:
        return self.record.data

    @property
    def key(self) -> Any:
        """The key as its column has it; `event.key` has it as text."""
        return typed_key(self.event.shape.key.kind, self.event.subject)

    @property
    def values(self) -> tuple[Any, ...] | None:
        """The entity's fields in order, as their columns have them; None when it is deleted."""
        if self.event.data is None:
            return None
        values = astuple(self.event.data)
        return tuple([value.value if isinstance(value, Enum) else value for value in values])


class Mark(Struct, frozen=True):
    """A watermark, with its place."""

    position: Position
    watermark: Watermark


class DeadLetter(Struct, frozen=True, kw_only=True):
    """A record that cannot be handled, whole. `stage` is where it failed, `reason` a stable word.

    `version` is that of a change; a row that the poller could not translate has none, only `observed_at`. By them a
    later change of the key is told from a replay of an earlier one.

    `is_parked`: there is nothing wrong with the record, it waits for older letters of its key (`worker.parking`).
    """

    position: Position
    stage: str
    reason: str
    message: str
    payload: bytes
    kind: LetterKind = LetterKind.EVENT
    entity: str | None = None
    key: str | None = None
    source: str | None = None
    event_id: str | None = None
    version: Version | None = None
    observed_at: datetime | None = None
    is_parked: bool = False


class Arrived(Struct, frozen=True):
    """An event that came in at the edge, and the record it stood in. Never in one stream with changes."""

    record: Record
    event: Arrival

    @property
    def position(self) -> Position:
        return self.record.position


Item = TypedChange | Mark | DeadLetter | Arrived
DecodeAll = Callable[[Sequence[Record]], Sequence[Item]]
"""What makes one item of each record, always the same one."""


class Span(NamedTuple):
    """Records that stand beside each other in `among`: those from `start` to before `stop`."""

    among: Sequence[Record]
    start: int
    stop: int


class Batch:
    """What one transaction writes for one shard, up to and including `last`.

    `events` are its changes, `spans` the records, and `places` say which of those the changes stood in; None: in all of
    them. `decode` is what made items of the records.

    Nearly always the events are all that anybody wants to see: so the records are looked for only when somebody asks for
    `changes`. An event is some twenty objects. Once they are in the words of a statement they can be let go of as well:
    the next records then get memory that is still in the processor's caches, which makes all steps a third quicker. Should
    somebody look at them after that, as when the database has to be tried again, they are decoded once more.
    """

    def __init__(
        self,
        *,
        shard_id: str,
        last: Position,
        events: Sequence[TypedChange] = (),
        spans: Sequence[Span] = (),
        places: Sequence[int] | None = None,
        marks: Sequence[Mark] = (),
        dead: Sequence[DeadLetter] = (),
        arrivals: Sequence[Arrived] = (),
        decode: DecodeAll | None = None,
    ) -> None:
        self.shard_id = shard_id
        self.last = last
        self.marks = marks
        self.dead = dead
        self.arrivals = arrivals
        self._events = events
        self._spans = spans
        self._places = places
        self._decode = decode
        self._count = len(events)

    @property
    def events(self) -> Sequence[TypedChange]:
        """The changes, without the records they stood in."""
        if len(self._events) < self._count and self._decode is not None:
            # What a record becomes does not depend on the others, nor on when: each was a change, and is one again.
            records = self._records()
            parts = [records[at : at + _AT_ONCE] for at in range(0, len(records), _AT_ONCE)]
            items = [item for part in parts for item in self._decode(part)]
            self._events = [item for item in items if isinstance(item, TypedChange)]
        return self._events

    @property
    def changes(self) -> Sequence[Change]:
        """The changes with their records. Made anew each time."""
        records = self._records()
        if self._places is not None:
            records = [records[place] for place in self._places]
        return [Change(record, event) for record, event in zip(records, self.events, strict=True)]

    def _records(self) -> list[Record]:
        return [record for span in self._spans for record in span.among[span.start : span.stop]]

    def let_go(self) -> None:
        """Free the memory of the events, as far as nobody else holds them."""
        if self._decode is not None:
            self._events = ()

    @property
    def delivered(self) -> int:
        """Changes, arrivals and rejected records: what a WriteResult sums to. Watermarks change no row, nor count."""
        return self._count + len(self.arrivals) + len(self.dead)

    @property
    def size(self) -> int:
        """Records."""
        return self.delivered + len(self.marks)


class BatchLimits(Struct, frozen=True, kw_only=True):
    max_records: int
    max_bytes: int
    max_age_s: float


class BatchSize:
    """How many records the next batch may hold: as many as one commit takes in the time that it should take.

    Many at once are written faster, and few are visible sooner, hold their locks for less long, and are less to repeat.
    So a batch grows while full ones are committed quickly, and shrinks when one takes too long. At the tip nobody waits
    for a batch to fill, so there its size is what has come.
    """

    def __init__(self, least: int, most: int, target_s: float) -> None:
        self._least = min(least, most)
        self._most = most
        self._target_s = target_s
        self.records = self._least

    def note(self, records: int, took_s: float) -> None:
        """A batch of so many records was committed."""
        if took_s > self._target_s:
            self.records = max(self._least, min(records, self.records) // 2)
        elif records >= self.records and took_s <= self._target_s / 2:
            self.records = min(self._most, self.records * 2)


class BatchBuilder:
    """Collects items until a limit is reached. Times are seconds of one monotonic clock, passed in."""

    def __init__(self, shard_id: str, limits: BatchLimits) -> None:
        self._shard_id = shard_id
        self._limits = limits
        self._clear()

    def _clear(self) -> None:
        self._items: list[Item] = []
        self._spans: list[Span] = []
        self._size_bytes = 0
        self._opened_s: float | None = None
        self._last: Position | None = None
        self._decode: DecodeAll | None = None

    def fill(self, records: Sequence[Record], start: int, decode: DecodeAll, now_s: float) -> int:
        """Take in some records from `start` on, one at least while there are any; answer where the rest begins.

        Raises ValueError when positions do not rise: `last` is what the checkpoint will say.
        """
        part, size_bytes = self._fitting(records, start)
        last = part[-1].position
        if (self._last is not None and part[0].position <= self._last) or not _rise(part):
            raise ValueError(f"the positions up to {last} do not rise, or not from {self._last}")
        if self._opened_s is None:
            self._opened_s = now_s
        stop = start + len(part)
        self._items += decode(part)
        self._spans.append(Span(records, start, stop))
        self._decode = decode
        self._size_bytes += size_bytes
        self._last = last
        return stop

    def _fitting(self, records: Sequence[Record], start: int) -> tuple[Sequence[Record], int]:
        """Some records and their bytes. The one that fills the batch is the last one in it."""
        room = min(_AT_ONCE, self._limits.max_records - len(self._items))
        part = records[start : start + max(1, room)]
        room_bytes = self._limits.max_bytes - self._size_bytes
        payloads = [record.data for record in part]
        if (size_bytes := sum(map(len, payloads))) < room_bytes:
            return part, size_bytes
        sizes = list(map(len, payloads))
        count = bisect_left(list(accumulate(sizes)), room_bytes) + 1
        return part[:count], sum(sizes[:count])

    def limit(self, max_records: int) -> None:
        """So many close a batch, from now on."""
        self._limits = replace(self._limits, max_records=max_records)

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
        contents = self._changes() or self._sorted()
        batch = Batch(shard_id=self._shard_id, last=self._last, spans=self._spans, decode=self._decode, **contents)
        self._clear()
        return batch

    def _changes(self) -> dict[str, Any] | None:
        """What the batch holds, if that is nothing but changes, as it nearly always is."""
        kinds: set[type[Item]] = set(map(type, self._items))
        return {"events": self._items} if all(issubclass(kind, TypedChange) for kind in kinds) else None

    def _sorted(self) -> dict[str, Any]:
        kinds = {"events": TypedChange, "marks": Mark, "dead": DeadLetter, "arrivals": Arrived}
        found = {name: [item for item in self._items if isinstance(item, kind)] for name, kind in kinds.items()}
        return {**found, "places": [at for at, item in enumerate(self._items) if isinstance(item, TypedChange)]}


def _rise(records: Sequence[Record]) -> bool:
    """Whether each stands behind the one before."""
    sequences = [record.sequence_number for record in records]
    # Texts of digits, all of one length, are ordered as their numbers are.
    if all(map(lt, sequences, sequences[1:])) and len(set(map(len, sequences))) == 1:
        return True
    positions = [record.position for record in records]
    return all(map(lt, positions, positions[1:]))


class Coalesced(NamedTuple):
    """Places in the events that were coalesced.

    `kept`: by entity, layers sorted by key, to be written one after the other. `dropped`: the others, as they came.
    A layer has one change of a key; each further layer holds the next newer ones of some of the keys.
    """

    kept: dict[str, list[list[int]]]
    dropped: list[int]


def coalesce(events: Sequence[TypedChange], whole: Set[EntityKey] = frozenset()) -> Coalesced:
    """Keep the newest version of each key; of two equal versions the first, as the table does.

    Of the keys in `whole` every version is kept. A destination wants to be told of one of them, and whether it changes
    anything only the table can say, when it has seen those before.
    Sorted by key, so that two workers that touch the same rows lock them in the same order. The first layer has all keys.
    """
    if not whole and (alone := _each_alone(events)) is not None:
        return alone
    newest: dict[EntityKey, int] = {}
    chains: dict[EntityKey, list[int]] = {}
    dropped: list[int] = []
    for place, event in enumerate(events):
        key = event.key
        if key in whole:
            chains.setdefault(key, []).append(place)
        elif (known := newest.setdefault(key, place)) == place:
            continue
        elif events[known].version < event.version:
            newest[key] = place
            dropped.append(known)
        else:
            dropped.append(place)
    layers = {key: [place] for key, place in newest.items()}
    layers |= {key: _rising(events, chain, dropped) for key, chain in chains.items()}
    return Coalesced(_layered(events, layers), dropped)


def _each_alone(events: Sequence[TypedChange]) -> Coalesced | None:
    """The quick answer where all are of one entity and no key comes twice, which is the rule."""
    shapes = {event.shape.name: event.shape for event in {type(event): event for event in events}.values()}
    if len(shapes) != 1:
        return None
    [(name, shape)] = shapes.items()
    keys: list[Any] = list(map(_TYPED_KEY[shape.key.kind], [event.subject for event in events]))
    if len(set(keys)) < len(keys):
        return None
    return Coalesced({name: [sorted(range(len(keys)), key=keys.__getitem__)]}, [])


def _rising(events: Sequence[TypedChange], chain: Sequence[int], dropped: list[int]) -> list[int]:
    """The changes of one key from the oldest version to the newest, each version once."""
    rising: list[int] = []
    for place in sorted(chain, key=lambda place: events[place].version):
        if rising and events[rising[-1]].version == events[place].version:
            dropped.append(place)
        else:
            rising.append(place)
    return rising


def _layered(events: Sequence[TypedChange], chains: Mapping[EntityKey, Sequence[int]]) -> dict[str, list[list[int]]]:
    """By entity: the first of each key's changes, then the second ones, and so on; each layer sorted by key."""
    kept: dict[str, list[list[int]]] = {}
    for key, chain in chains.items():
        layers = kept.setdefault(key.entity, [])
        layers += [[] for _ in chain[len(layers) :]]
        for layer, place in zip(layers, chain, strict=False):
            layer.append(place)
    for layer in (layer for layers in kept.values() for layer in layers):
        layer.sort(key=lambda place: typed_key(events[place].shape.key.kind, events[place].subject))
    return dict(sorted(kept.items()))


def newest_marks(marks: Iterable[Mark]) -> dict[str, Watermark]:
    """The furthest watermark of each source."""
    furthest: dict[str, Watermark] = {}
    for mark in marks:
        known = furthest.get(mark.watermark.source)
        if known is None or known.as_of < mark.watermark.as_of:
            furthest[mark.watermark.source] = mark.watermark
    return dict(sorted(furthest.items()))
