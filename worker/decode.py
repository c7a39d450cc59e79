"""A record's bytes → a change with typed values, a watermark, or a dead letter.  (pure)

Everything that can be judged without the database is judged here, one record at a time, so that a bad record
stands alone. What only the database can judge (a number out of range, a NUL in a text) it rejects itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import msgspec

from tidegate import codec
from tidegate.entity import Entity, EntityShape, Field, Kind, describe
from tidegate.errors import Rejected
from tidegate.event import ChangeEvent, QuarantineRecord, StreamEvent, Watermark
from worker.batch import Change, DeadLetter, Item, Mark, Position

_SOURCE_CHARACTERS = 512
_NUMERIC_DIGITS = 131_072
_NUMERIC_DECIMALS = 16_383


class Decoder:
    """Knows the bubble's entities."""

    def __init__(self, entities: Iterable[type[Entity]]) -> None:
        self._classes = {describe(cls).name: (cls, _Columns(describe(cls))) for cls in entities}

    def decode(self, position: Position, data: bytes) -> Item:
        """Never raises for what a record may hold; a record that is unusable becomes a DeadLetter."""
        try:
            event = codec.decode(data)
        except Rejected as error:
            return DeadLetter(
                position=position, stage="decode", reason=error.reason, message=str(error), payload=data
            )  # fmt: skip
        try:
            return self._item(position, event, data)
        except Rejected as error:
            return rejected(position, event, data, stage="decode", error=error)

    def _item(self, position: Position, event: StreamEvent, data: bytes) -> Item:
        if isinstance(event, Watermark):
            return Mark(position, _checked(event))
        if isinstance(event, QuarantineRecord):
            return _quarantined(position, event)
        if event.key.entity not in self._classes:
            raise Rejected("unknown_entity", f"the bubble has no entity {event.key.entity!r}")
        for name, time in (("time", event.occurred_at), ("tidegateobserved", event.observed_at)):
            if fault := _time_fault(time):
                raise Rejected("invalid", f"the event's {name}: {fault}")
        cls, columns = self._classes[event.key.entity]
        if event.payload is None:
            return Change(position, event, columns.key(event.key.key), None, data)
        values = columns.values(event, cls)
        return Change(position, event, values[columns.key_index], values, data)


def rejected(position: Position, event: StreamEvent, data: bytes, *, stage: str, error: Rejected) -> DeadLetter:
    """The dead letter of an event that decodes but cannot be used."""
    key = event.key if isinstance(event, ChangeEvent) else None
    return DeadLetter(
        position=position,
        stage=stage,
        reason=error.reason,
        message=str(error),
        payload=data,
        entity=key.entity if key else None,
        key=key.key if key else None,
        source=event.source,
        event_id=event.event_id,
        version=event.version if isinstance(event, ChangeEvent) else None,
    )


def _quarantined(position: Position, event: QuarantineRecord) -> DeadLetter:
    """What the poller could not translate; the payload is the raw row, as the back office gave it."""
    return DeadLetter(
        position=position,
        stage=event.stage,
        reason=event.reason,
        message=event.message,
        payload=event.raw,
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


class _Columns:
    """How an entity's fields become the values of its columns."""

    def __init__(self, shape: EntityShape) -> None:
        self._key = shape.key
        self.key_index = shape.fields.index(shape.key)
        self._enums = [index for index, field in enumerate(shape.fields) if field.choices]
        checked = (Kind.TIMESTAMP, Kind.DECIMAL)
        self._checked = [index for index, field in enumerate(shape.fields) if field.kind in checked]
        self._names = [field.name for field in shape.fields]

    def key(self, text: str) -> Any:
        return _typed_key(self._key, text)

    def values(self, event: ChangeEvent, cls: type[Entity]) -> tuple[Any, ...]:
        """The fields in order. Raises Rejected (`invalid`) when the payload is not the entity's."""
        try:
            entity = msgspec.convert(event.payload, cls)
        except (msgspec.ValidationError, RecursionError) as error:
            raise Rejected("invalid", f"{event.key.entity}: {error}") from error
        values = list(msgspec.structs.astuple(entity))
        for index in self._enums:
            if isinstance(values[index], Enum):
                values[index] = values[index].value
        for index in self._checked:
            if fault := _fault(values[index]):
                raise Rejected("invalid", f"{event.key.entity}.{self._names[index]}: {fault}")
        # Two texts for one key would be two rows for coalescing and one for the table.
        if str(values[self.key_index]) != event.key.key:
            raise Rejected("invalid", f"the subject {event.key.key!r} is not the key {values[self.key_index]!r}")
        return tuple(values)


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


def _typed_key(field: Field, text: str) -> Any:
    """The key's value from its text, for a deletion. Raises Rejected (`invalid`)."""
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
    return value
