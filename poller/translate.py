"""Raw row → the entity's payload, or the reason why not.  (pure)

The bubble's translator is somebody else's code over somebody else's rows: whatever the row's content makes it
raise is the row's fault and goes to quarantine; the next row is not touched by it.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from poller.drift import ShapeWatch
from poller.source import FileRow
from tidegate.bubble import CsvDrop, RawRow, Source
from tidegate.entity import Entity, EntityShape, Kind, describe
from tidegate.errors import Rejected

_FAULTS = (ValueError, LookupError, TypeError, ArithmeticError, AttributeError, RecursionError)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BIGINT = 2**63
_MOST_KEY_CHARACTERS = 190
"""With the entity's name before it, it is a partition key, and Kinesis takes 256 characters."""


class Reading(NamedTuple):
    """How the rows of one source are read: its declaration, looked at once. `watch`: over the shape of its rows."""

    source: Source
    shape: EntityShape
    key_path: tuple[str, ...]
    watch: ShapeWatch | None = None

    @classmethod
    def of(cls, source: Source) -> Reading:
        feed = source.feed
        # A CSV column may have a dot in its name; there is nothing to descend into.
        path = (feed.key,) if isinstance(feed, CsvDrop) else tuple(feed.key.split("."))
        return cls(source, describe(source.entity), path)


class Translated(NamedTuple):
    """`changed_at` is the back office's own time of the change, aware; None when it has none."""

    payload: dict[str, Any]
    source_version: int
    changed_at: datetime | None


def dig(value: object, path: tuple[str, ...]) -> object:
    """The value at a dotted path; None when it is not there."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def raw_key(row: RawRow, path: tuple[str, ...]) -> str | None:
    """The key's text in a raw row; None when there is none that can be used."""
    value = dig(row, path)
    if value is None or isinstance(value, bool | float | dict | list):
        return None
    text = str(value)
    return text if 0 < len(text) <= _MOST_KEY_CHARACTERS else None


def translate(row: RawRow, key: str | None, reading: Reading) -> Translated:
    """The row as the front office will show it.

    Raises Rejected: reason `no_key`, `untranslatable` (the translator gave up) or `invalid` (what it made does not
    fit the entity); `unreadable` for a line of a file that is no row; `drift` for one of another shape.
    """
    if isinstance(row, FileRow) and row.fault:
        raise Rejected("unreadable", row.fault)
    if reading.watch is not None and (drift := reading.watch.fault(row)):
        raise Rejected("drift", drift)
    if key is None:
        raise Rejected("no_key", f"nothing usable as a key at {'.'.join(reading.key_path)}")
    try:
        entity = reading.source.translate(row)
    except _FAULTS as error:
        raise Rejected("untranslatable", f"{type(error).__name__}: {error}") from error
    try:
        return _checked(entity, key, reading)
    except _FAULTS as error:
        raise Rejected("invalid", str(error)) from error


def _checked(entity: object, key: str, reading: Reading) -> Translated:
    cls = reading.source.entity
    if type(entity) is not cls:
        raise TypeError(f"the translator made a {type(entity).__name__}, not a {cls.__name__}")
    payload: dict[str, Any] = msgspec.to_builtins(entity)
    # The class does not check its own field types when built by hand; reading it back does.
    typed = msgspec.convert(payload, cls)
    for name, kind in _doubtful_fields(cls):
        payload[name] = _plain(name, kind, getattr(typed, name), payload[name])
    own = str(getattr(typed, reading.shape.key.name))
    if own != key:
        raise ValueError(f"the entity's key is {own!r}, but the raw row's is {key!r}")
    version = None if reading.shape.version is None else getattr(typed, reading.shape.version.name)
    if isinstance(version, datetime):
        # Blank dates of old systems lie before 1970; among those the order of observation decides.
        return Translated(payload, max(0, (version - _EPOCH) // timedelta(microseconds=1)), version)
    return Translated(payload, max(0, version or 0), None)


@lru_cache(maxsize=1024)
def _doubtful_fields(cls: type[Entity]) -> tuple[tuple[str, Kind], ...]:
    """The fields whose values may be of the right type and wrong all the same."""
    kinds = (Kind.TIMESTAMP, Kind.FLOAT, Kind.DECIMAL, Kind.INTEGER)
    return tuple((field.name, field.kind) for field in describe(cls).fields if field.kind in kinds)


def _plain(name: str, kind: Kind, value: object, plain: object) -> object:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError(f"{name} is {value.isoformat()}, a time without a zone")
        # What is in UTC already was written so.
        return plain if value.tzinfo is UTC else msgspec.to_builtins(value.astimezone(UTC))
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}, not a finite number")
    if kind is Kind.DECIMAL and value is not None and not value.is_finite():  # type: ignore[attr-defined]
        raise ValueError(f"{name} is {value}, not a finite number")
    if kind is Kind.INTEGER and isinstance(value, int) and not -_BIGINT <= value < _BIGINT:
        raise ValueError(f"{name} is {value}, which no column can hold")
    return plain
