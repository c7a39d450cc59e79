"""Raw row → the entity's payload, or the reason why not.  (pure)

The bubble's translator is somebody else's code over somebody else's rows: whatever the row's content makes it
raise is the row's fault and goes to quarantine; the next row is not touched by it. What it made is checked for many rows
at once; when that finds a fault, they are checked one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import isfinite
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple, cast

import msgspec
from msgspec.structs import force_setattr

from poller.drift import ShapeWatch
from poller.source import FileRow
from tidegate.bubble import CsvDrop, Fields, RawRow, Source, Translator
from tidegate.entity import Entity, EntityShape, Kind, describe
from tidegate.errors import Rejected

_FAULTS = (ValueError, LookupError, TypeError, ArithmeticError, AttributeError, RecursionError)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_BIGINT = 2**63
_encoder = msgspec.json.Encoder()
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
    """`payload` is the entity as a JSON object; `changed_at` the back office's own time of the change, aware, or None."""

    payload: bytes
    source_version: int
    changed_at: datetime | None


def dig(value: object, path: tuple[str, ...]) -> object:
    """The value at a dotted path; None when it is not there."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def column(rows: Sequence[RawRow], path: tuple[str, ...]) -> list[Any]:
    """The value at a dotted path in each row; None where it is not there."""
    if len(path) == 1:
        [name] = path
        try:
            return list(map(itemgetter(name), rows))
        except KeyError:
            return [row.get(name) for row in rows]
    return [dig(row, path) for row in rows]


def raw_key(row: RawRow, path: tuple[str, ...]) -> str | None:
    """The key's text in a raw row; None when there is none that can be used."""
    return _key_text(dig(row, path))


def raw_keys(rows: Sequence[RawRow], path: tuple[str, ...]) -> Sequence[str | None]:
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
    rows: Sequence[RawRow], keys: Sequence[str | None], reading: Reading
) -> Sequence[Translated | Rejected]:
    """What `translate` answers or raises for each row."""
    faults = _refused(rows, keys, reading)
    good = [at for at in range(len(rows)) if at not in faults]
    made = _made([rows[at] for at in good] if faults else rows, reading.source.translate)
    if Rejected in set(map(type, made)):
        faults |= {at: found for at, found in zip(good, made, strict=True) if isinstance(found, Rejected)}
        made = [found for found in made if not isinstance(found, Rejected)]
    if not faults:
        return _checked_all(made, keys, reading)
    checked = iter(_checked_all(made, [key for at, key in enumerate(keys) if at not in faults], reading))
    return [faults.get(at) or next(checked) for at in range(len(keys))]


def _made(rows: Sequence[RawRow], translator: Translator) -> Sequence[object]:
    """What the translator makes of each row, or the reason why it gave up."""
    if isinstance(translator, Fields):
        try:
            return translator.all(rows)
        except _FAULTS:
            # Each alone says which, and why.
            pass
    made: list[object] = []
    for row in rows:
        try:
            made.append(translator(row))
        except _FAULTS as error:
            made.append(Rejected("untranslatable", f"{type(error).__name__}: {error}"))
    return made


def _refused(rows: Sequence[RawRow], keys: Sequence[str | None], reading: Reading) -> dict[int, Rejected]:
    """The rows that are not for the translator to see, by their place."""
    watch = reading.watch
    judging = watch if watch is not None and watch.judges else None
    if judging is None and None not in keys and set(map(type, rows)) == {dict}:
        return {}
    found: dict[int, Rejected] = {}
    for at, (row, key) in enumerate(zip(rows, keys, strict=True)):
        if isinstance(row, FileRow) and row.fault:
            found[at] = Rejected("unreadable", row.fault)
        elif judging is not None and (drift := judging.fault(row)):
            found[at] = Rejected("drift", drift)
        elif key is None:
            found[at] = Rejected("no_key", f"nothing usable as a key at {'.'.join(reading.key_path)}")
    return found


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
    for kind in set(map(type, entities)) - {cls}:
        raise TypeError(f"the translator made a {kind.__name__}, not a {cls.__name__}")
    for name in _fields_of(cls, Kind.FLOAT):
        # JSON has no such number, and would say null.
        _check_finite(list(map(attrgetter(name), entities)), name)
    text = _encoder.encode_lines(entities)
    # The class does not check its own field types when built by hand; reading it back does.
    by_hand = not isinstance(reading.source.translate, Fields)
    typed = _decoder(cls).decode_lines(text) if by_hand else cast("Sequence[Entity]", entities)
    if _settle(typed, cls):
        text = _encoder.encode_lines(typed)
    owns = list(map(attrgetter(shape.key.name), typed))
    for own, key in zip(owns, keys, strict=True):
        if own != key and str(own) != key:
            raise ValueError(f"the entity's key is {str(own)!r}, but the raw row's is {key!r}")
    # JSON has no line feed inside of a text.
    payloads = text.split(b"\n")[:-1]
    if shape.version is None:
        return [Translated(payload, 0, None) for payload in payloads]
    versions = map(attrgetter(shape.version.name), typed)
    if shape.version.kind is Kind.INTEGER:
        return [
            Translated(payload, max(0, version or 0), None) for payload, version in zip(payloads, versions, strict=True)
        ]
    return [_timed(payload, version) for payload, version in zip(payloads, versions, strict=True)]


def _timed(payload: bytes, version: datetime | None) -> Translated:
    # Blank dates of old systems lie before 1970; among those the order of observation decides.
    return Translated(payload, 0 if version is None else max(0, (version - _EPOCH) // _MICROSECOND), version)


@lru_cache(maxsize=1024)
def _decoder(cls: type[Entity]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(cls)


@lru_cache(maxsize=1024)
def _fields_of(cls: type[Entity], kind: Kind) -> tuple[str, ...]:
    return tuple(field.name for field in describe(cls).fields if field.kind is kind)


def _check_finite(values: Sequence[Any], name: str) -> None:
    """Raises ValueError. What is no number at all is for the entity's types to tell."""
    try:
        if all(map(isfinite, values)):
            return
    except TypeError:
        pass
    for value in values:
        if isinstance(value, float) and not isfinite(value):
            raise ValueError(f"{name} is {value}, not a finite number")


def _settle(typed: Sequence[Entity], cls: type[Entity]) -> bool:
    """Look at values that may be of the right type and wrong all the same, and put times in UTC; True if any was not.

    Raises ValueError.
    """
    for name in _fields_of(cls, Kind.DECIMAL):
        for number in _values(typed, name):
            if not number.is_finite():
                raise ValueError(f"{name} is {number}, not a finite number")
    for name in _fields_of(cls, Kind.INTEGER):
        numbers = _values(typed, name)
        for number in (min(numbers), max(numbers)) if numbers else ():
            if not -_BIGINT <= number < _BIGINT:
                raise ValueError(f"{name} is {number}, which no column can hold")
    is_changed = False
    for name in _fields_of(cls, Kind.TIMESTAMP):
        # What is in UTC already was written so.
        if {time.tzinfo for time in _values(typed, name)} <= {UTC}:
            continue
        is_changed = True
        for entity in typed:
            _put_in_utc(entity, name)
    return is_changed


def _values(typed: Sequence[Entity], name: str) -> list[Any]:
    return [value for value in map(attrgetter(name), typed) if value is not None]


def _put_in_utc(entity: Entity, name: str) -> None:
    time = getattr(entity, name)
    if time is None:
        return
    if time.tzinfo is None:
        raise ValueError(f"{name} is {time.isoformat()}, a time without a zone")
    force_setattr(entity, name, time.astimezone(UTC))
