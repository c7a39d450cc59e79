"""A record's bytes → a change with typed values, a watermark, or a dead letter.  (pure)

Everything that can be judged without the database is judged here. What only the database can judge (a number out of
range, a NUL in a text) it rejects itself.

There is a quick way and a careful one, and the quick one knows only one answer: that all of some records are plainly
good. It reads hundreds of them in one step and looks at whole columns. Where it does not say yes, the records are read
one by one, quickly if possible; what is left is read carefully, with a reason for everything that is not as it should
be. So a bad record stands alone, and what a record becomes does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from operator import attrgetter
from typing import Any, cast
from uuid import UUID

import msgspec

from tidegate import codec
from tidegate.codec import TypedChange
from tidegate.entity import Entity, Field, Kind, describe, tolerant
from tidegate.errors import Rejected
from tidegate.event import AnyChange, ChangeEvent, QuarantineRecord, StreamEvent, Watermark
from tidegate.letter import LetterKind
from worker.batch import DeadLetter, Item, Mark, Position, Record

_SOURCE_CHARACTERS = 512
_NUMERIC_DIGITS = 131_072
_NUMERIC_DECIMALS = 16_383
# In a record this short no decimal has more than _NUMERIC_DECIMALS if its first digit is where _PLAIN_EXPONENT says.
_PLAIN_BYTES = 8_000
_PLAIN_EXPONENT = 8_000


class Decoder:
    """Knows the bubble's entities."""

    def __init__(self, entities: Iterable[type[Entity]]) -> None:
        entities = tuple(entities)
        self._typed = codec.TypedDecoder(entities)
        self._judges = {describe(cls).name: _Judge(cls) for cls in entities}

    def decode(self, record: Record) -> Item:
        """Never raises for what a record may hold; a record that is unusable becomes a DeadLetter."""
        if items := self._quickly((record,)):
            return items[0]
        return self._carefully(record)

    def decode_all(self, records: Sequence[Record]) -> list[Item]:
        """One item for each record, the same that `decode` makes of it alone. Some hundreds at once are quickest."""
        return self._quickly(records) or [self.decode(record) for record in records]

    def _quickly(self, records: Sequence[Record]) -> list[Item] | None:
        """None unless all are plainly good."""
        payloads = [record.data for record in records]
        read = self._typed.decode(payloads)
        if read is None:
            return None
        longest_bytes = max(map(len, payloads))
        for kind, changes in read.alike.items():
            if not self._judges[kind.shape.name].are_plain(changes, longest_bytes):
                return None
        if not read.others:
            return cast("list[Item]", read.events)
        return [event or self._carefully(record) for record, event in zip(records, read.events, strict=True)]

    def _carefully(self, record: Record) -> Item:
        try:
            event = codec.decode(record.data)
        except Rejected as error:
            return DeadLetter(
                position=record.position, stage="decode", reason=error.reason, message=str(error), payload=record.data
            )
        try:
            return self._item(record, event)
        except Rejected as error:
            return rejected(record.position, event, record.data, stage="decode", error=error)

    def _item(self, record: Record, event: StreamEvent) -> Item:
        if isinstance(event, Watermark):
            return Mark(record.position, _checked(event))
        if isinstance(event, QuarantineRecord):
            return _quarantined(record.position, event)
        if event.key.entity not in self._judges:
            raise Rejected("unknown_entity", f"the bubble has no entity {event.key.entity!r}")
        for name, time in (("time", event.occurred_at), ("tidegateobserved", event.observed_at)):
            if fault := _time_fault(time):
                raise Rejected("invalid", f"the event's {name}: {fault}")
        entity = self._judges[event.key.entity].judged(event, record.data)
        return self._typed.typed(event, entity)


def rejected(
    position: Position, event: AnyChange | Watermark | QuarantineRecord, data: bytes, *, stage: str, error: Rejected
) -> DeadLetter:
    """The dead letter of an event that decodes but cannot be used."""
    change = None if isinstance(event, Watermark | QuarantineRecord) else event
    return DeadLetter(
        position=position,
        stage=stage,
        reason=error.reason,
        message=str(error),
        payload=data,
        entity=change.key.entity if change else None,
        key=change.key.key if change else None,
        source=event.source,
        event_id=event.event_id,
        version=change.version if change else None,
    )


def _quarantined(position: Position, event: QuarantineRecord) -> DeadLetter:
    """What the poller could not translate; the payload is the raw row, as the back office gave it."""
    return DeadLetter(
        position=position,
        stage=event.stage,
        reason=event.reason,
        message=event.message,
        payload=event.raw,
        kind=LetterKind.ROW,
        entity=event.entity,
        key=event.key,
        source=event.source,
        event_id=event.event_id,
        observed_at=None if _time_fault(event.observed_at) else event.observed_at,
    )


def _checked(event: Watermark) -> Watermark:
    """A watermark that the database would refuse must not take the batch with it."""
    if fault := _time_fault(event.as_of):
        raise Rejected("invalid", f"the watermark's time: {fault}")
    if "\0" in event.source or len(event.source) > _SOURCE_CHARACTERS:
        raise Rejected("invalid", "the watermark's source is no usable name")
    return event


class _Judge:
    """Whether an event's data is an entity that its table can hold."""

    def __init__(self, cls: type[Entity]) -> None:
        self._shape = shape = describe(cls)
        self._key_of = attrgetter(shape.key.name)
        self._times = [_Column(field) for field in shape.fields if field.kind is Kind.TIMESTAMP]
        self._decimals = [_Column(field) for field in shape.fields if field.kind is Kind.DECIMAL]
        alone = msgspec.defstruct(f"{cls.__name__}Alone", [("data", tolerant(cls))])
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(alone)

    def are_plain(self, changes: Sequence[TypedChange], longest_bytes: int) -> bool:
        """Whether nothing about the changes, which are all of one kind, needs a closer look."""
        if not (
            _are_utc([change.occurred_at.tzinfo for change in changes])
            and _are_utc([change.observed_at.tzinfo for change in changes])
        ):
            return False
        entities = [change.data for change in changes if change.data is not None]
        keys = list(map(self._key_of, entities))
        subjects = [change.subject for change in changes]
        if not entities:
            return all(_is_key(self._shape.key, subject) for subject in subjects)
        return (
            (keys if self._shape.key.kind is Kind.TEXT else list(map(str, keys))) == subjects
            and all(_are_utc([time.tzinfo for time in column.stated(entities)]) for column in self._times)
            and all(_are_plain_decimals(column.stated(entities), longest_bytes) for column in self._decimals)
        )

    def judged(self, event: ChangeEvent, record: bytes) -> Entity | None:
        """The entity; None for a deletion. Raises Rejected (`invalid`) when it is none, or not of this key."""
        if event.payload is None:
            _check_key(self._shape.key, event.key.key)
            return None
        try:
            entity: Entity = self._decoder.decode(record).data
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Rejected("invalid", f"{self._shape.name}: {error}") from error
        for field in self._shape.fields:
            if fault := _fault(getattr(entity, field.name)):
                raise Rejected("invalid", f"{self._shape.name}.{field.name}: {fault}")
        # Two texts for one key would be two rows for coalescing and one for the table.
        key = self._key_of(entity)
        if str(key) != event.key.key:
            raise Rejected("invalid", f"the subject {event.key.key!r} is not the key {key!r}")
        return entity


class _Column:
    """One field of many entities."""

    def __init__(self, field: Field) -> None:
        self._of = attrgetter(field.name)
        self._is_nullable = field.nullable

    def stated(self, entities: Sequence[Entity]) -> list[Any]:
        """The values, as far as there are any."""
        values = list(map(self._of, entities))
        return [value for value in values if value is not None] if self._is_nullable else values


def _are_utc(zones: list[tzinfo | None]) -> bool:
    # Counting asks each whether it is that very object, which is quicker than a set's hashes.
    return zones.count(UTC) == len(zones)


def _are_plain_decimals(values: Sequence[Decimal], longest_bytes: int) -> bool:
    """Whether no value can be beyond PostgreSQL's limits, judged by the place of its first digit."""
    if not values:
        return True
    if longest_bytes > _PLAIN_BYTES:
        return not any(map(_fault, values))
    exponents = set(map(Decimal.adjusted, values))
    in_reach = min(exponents) > -_PLAIN_EXPONENT and max(exponents) < _PLAIN_EXPONENT
    return in_reach and all(map(Decimal.is_finite, values))


def _fault(value: Any) -> str | None:
    """What is wrong with a value that the driver would silently store as another one."""
    if isinstance(value, datetime):
        return _time_fault(value)
    if isinstance(value, Decimal):
        # PostgreSQL's own limits; beyond them the driver's digit count wraps around and it stores 0.
        exponent = value.as_tuple().exponent
        if not isinstance(exponent, int):
            return f"{value} is no number"
        if value.adjusted() >= _NUMERIC_DIGITS or exponent < -_NUMERIC_DECIMALS:
            return "more digits than the database can hold"
    return None


def _time_fault(time: datetime) -> str | None:
    if time.tzinfo is None:
        # It would be taken for this machine's local time.
        return "a time without offset from UTC"
    try:
        time.astimezone(UTC)
    except OverflowError:
        return "a time that in UTC is outside of the years 1 to 9999"
    return None


def _check_key(field: Field, text: str) -> None:
    """Raises Rejected (`invalid`) unless the text is what a key's value reads."""
    try:
        value: str | int | UUID = text
        if field.kind is Kind.INTEGER:
            value = int(text)
        elif field.kind is Kind.UUID:
            value = UUID(text)
    except ValueError as error:
        raise Rejected("invalid", f"{text!r} is no {field.kind} key") from error
    if str(value) != text:
        raise Rejected("invalid", f"the key {text!r} is not written as {str(value)!r}")


def _is_key(field: Field, text: str) -> bool:
    try:
        _check_key(field, text)
    except Rejected:
        return False
    return True
