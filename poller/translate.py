"""Raw row → the entity's payload, or the reason why not.  (pure)

The bubble's translator is somebody else's code over somebody else's rows: whatever the row's content makes it
raise is the row's fault and goes to quarantine; the next row is not touched by it. What it made is checked for many rows
at once; when that finds a fault, they are checked one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import isfinite
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from poller.drift import ShapeWatch
from poller.source import FileRow
from tidegate.bubble import CsvDrop, RawRow, Source
from tidegate.entity import Entity, EntityShape, Kind, describe
from tidegate.errors import Rejected

_FAULTS = (ValueError, LookupError, TypeError, ArithmeticError, AttributeError, RecursionError)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
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


class Translated(msgspec.Struct, frozen=True, gc=False):
    """`changed_at` is the back office's own time of the change, aware; None when it has none."""

    payload: dict[str, Any]
    source_version: int
    changed_at: datetime | None


def dig(value: object, path: tuple[str, ...]) -> object:
    """The value at a dotted path; None when it is not there."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def column(rows: Iterable[RawRow], path: tuple[str, ...]) -> list[Any]:
    """The value at a dotted path in each row; None where it is not there."""
    if len(path) == 1:
        [name] = path
        return [row.get(name) for row in rows]
    return [dig(row, path) for row in rows]


def raw_key(row: RawRow, path: tuple[str, ...]) -> str | None:
    """The key's text in a raw row; None when there is none that can be used."""
    return _key_text(dig(row, path))


def raw_keys(rows: Iterable[RawRow], path: tuple[str, ...]) -> Sequence[str | None]:
    """As `raw_key`, of each row."""
    values = column(rows, path)
    if set(map(type, values)) == {str}:
        lengths = set(map(len, values))
        if min(lengths) > 0 and max(lengths) <= _MOST_KEY_CHARACTERS:
            return values
    return list(map(_key_text, values))


def _key_text(value: object) -> str | None:
    if value is None or isinstance(value, bool | float | dict | list):
        return None
    text = str(value)
    return text if 0 < len(text) <= _MOST_KEY_CHARACTERS else None


def translate(row: RawRow, key: str | None, reading: Reading) -> Translated:
    """The row as the front office will show it.

    Raises Rejected: reason `no_key`, `untranslatable` (the translator gave up) or `invalid` (what it made does not
    fit the entity); `unreadable` for a line of a file that is no row; `drift` for one of another shape.
    """
    [found] = translate_all([row], [key], reading)
    if isinstance(found, Rejected):
        raise found
    return found


def translate_all(
    rows: Iterable[RawRow], keys: Sequence[str | None], reading: Reading
) -> Sequence[Translated | Rejected]:
    """What `translate` answers or raises for each row."""
    faults: dict[int, Rejected] = {}
    entities: list[object] = []
    for at, (row, key) in enumerate(zip(rows, keys, strict=True)):
        try:
            entities.append(_entity(row, key, reading))
        except Rejected as fault:
            # Its traceback would hold on to itself.
            faults[at] = fault.with_traceback(None)
    if not faults:
        return _checked_all(entities, keys, reading)
    good = [key for at, key in enumerate(keys) if at not in faults]
    checked = iter(_checked_all(entities, good, reading))
    return [faults.get(at) or next(checked) for at in range(len(keys))]


def _entity(row: RawRow, key: str | None, reading: Reading) -> object:
    """What the translator makes of a row. Raises Rejected."""
    if isinstance(row, FileRow) and row.fault:
        raise Rejected("unreadable", row.fault)
    if reading.watch is not None and reading.watch.judges and (drift := reading.watch.fault(row)):
        raise Rejected("drift", drift)
    if key is None:
        raise Rejected("no_key", f"nothing usable as a key at {'.'.join(reading.key_path)}")
    try:
        return reading.source.translate(row)
    except _FAULTS as error:
        raise Rejected("untranslatable", f"{type(error).__name__}: {error}") from error


def _checked_all(
    entities: Sequence[object], keys: Sequence[str | None], reading: Reading
) -> Sequence[Translated | Rejected]:
    try:
        return _checked(entities, keys, reading)
    except _FAULTS as error:
        if len(entities) == 1:
            return [Rejected("invalid", str(error))]
    return [_checked_all([entity], [key], reading)[0] for entity, key in zip(entities, keys, strict=True)]


def _checked(entities: Sequence[object], keys: Sequence[str | None], reading: Reading) -> list[Translated]:
    """Raises one of _FAULTS when any of them is not as it should be."""
    cls, shape = reading.source.entity, reading.shape
    for entity in entities:
        if type(entity) is not cls:
            raise TypeError(f"the translator made a {type(entity).__name__}, not a {cls.__name__}")
    payloads: list[dict[str, Any]] = msgspec.to_builtins(entities)
    # The class does not check its own field types when built by hand; reading it back does.
    typed = [msgspec.convert(payload, cls) for payload in payloads]
    for name, kind in _doubtful_fields(cls):
        values = list(map(attrgetter(name), typed))
        if not _are_plain(values, kind):
            _settle(payloads, values, name, kind)
    for own, key in zip(map(attrgetter(shape.key.name), typed), keys, strict=True):
        if str(own) != key:
            raise ValueError(f"the entity's key is {str(own)!r}, but the raw row's is {key!r}")
    if shape.version is None:
        return [Translated(payload, 0, None) for payload in payloads]
    versions = map(attrgetter(shape.version.name), typed)
    return [_versioned(payload, version) for payload, version in zip(payloads, versions, strict=True)]


def _versioned(payload: dict[str, Any], version: Any) -> Translated:
    if isinstance(version, datetime):
        # Blank dates of old systems lie before 1970; among those the order of observation decides.
        return Translated(payload, max(0, (version - _EPOCH) // _MICROSECOND), version)
    return Translated(payload, max(0, version or 0), None)


@lru_cache(maxsize=1024)
def _doubtful_fields(cls: type[Entity]) -> tuple[tuple[str, Kind], ...]:
    """The fields whose values may be of the right type and wrong all the same."""
    kinds = (Kind.TIMESTAMP, Kind.FLOAT, Kind.DECIMAL, Kind.INTEGER)
    return tuple((field.name, field.kind) for field in describe(cls).fields if field.kind in kinds)


def _are_plain(values: list[Any], kind: Kind) -> bool:
    """Whether it is quickly told that nothing about them needs a second look."""
    if None in values or not values:
        return False
    match kind:
        case Kind.TIMESTAMP:
            return {value.tzinfo for value in values} == {UTC}
        case Kind.INTEGER:
            return bool(-_BIGINT <= min(values) <= max(values) < _BIGINT)
        case Kind.FLOAT:
            return all(map(isfinite, values))
    return False


def _settle(payloads: Iterable[dict[str, Any]], values: Iterable[Any], name: str, kind: Kind) -> None:
    """Look at one field of many entities, and write its times in UTC. Raises ValueError."""
    for payload, value in zip(payloads, values, strict=True):
        if value is None:
            continue
        if kind is Kind.TIMESTAMP:
            if value.tzinfo is None:
                raise ValueError(f"{name} is {value.isoformat()}, a time without a zone")
            # What is in UTC already was written so.
            if value.tzinfo is not UTC:
                payload[name] = msgspec.to_builtins(value.astimezone(UTC))
        elif kind is Kind.INTEGER:
            if not -_BIGINT <= value < _BIGINT:
                raise ValueError(f"{name} is {value}, which no column can hold")
        elif not (value.is_finite() if kind is Kind.DECIMAL else isfinite(value)):
            raise ValueError(f"{name} is {value}, not a finite number")
