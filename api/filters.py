"""Filters: `status=delivered`, `changed_at.gte=2026-01-01T00:00:00Z`, `status.in=booked,accepted`, `city.prefix=Zü`.  (pure)

A filter names a field that its entity declares in `meta.filters`, and an operator that the field's type has; `eq` may be
left out. The value is checked here and becomes JSON, which travels to PostgreSQL as an argument and is never
part of a statement. `null` asks whether there is a value at all. The values of `in` have commas between them; a comma
that is part of a value is written as `\\,` and a backslash as `\\\\`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from uuid import UUID

import msgspec

from api.answer import Refused, Where, rfc3339
from tidegate.entity import Field, Kind

MOST_FILTERS = 20
MOST_VALUES = 50
LONGEST_VALUE = 250
LONGEST_SHOWN = 40
"""Characters of a caller's own text that an answer repeats."""

SMALLEST_BIGINT, LARGEST_BIGINT = -(2**63), 2**63 - 1
INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}", re.ASCII)
_DECIMAL = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?", re.ASCII)
_FLOAT = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?", re.ASCII)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)

Value = str | int | float | bool
"""One value as JSON; decimals, dates, times and UUIDs are texts."""

_ORDERED = ("eq", "in", "lt", "lte", "gt", "gte")


class Filter(msgspec.Struct, frozen=True):
    """One condition; `value` is what `in` gets as a tuple, a bool for `null`."""

    field: Field
    operator: str
    value: Value | tuple[Value, ...]


def operators_of(field: Field) -> tuple[str, ...]:
    """What a field can be asked, in the order of the documents."""
    if field.choices or field.kind is Kind.UUID:
        operators: tuple[str, ...] = ("eq", "in")
    elif field.kind is Kind.BOOLEAN:
        operators = ("eq",)
    elif field.kind is Kind.TEXT:
        operators = (*_ORDERED, "prefix")
    else:
        operators = _ORDERED
    return (*operators, "null") if field.nullable else operators


def shown(text: str) -> str:
    """A caller's text as an answer may repeat it: short, and without what JSON or a terminal cannot take."""
    return repr(text[:LONGEST_SHOWN])


def in_query(name: str) -> Where:
    """The place of a parameter; a name that cannot be written as it came is shown as it is in the text."""
    return Where("query", name if name.isprintable() and len(name) <= LONGEST_SHOWN else shown(name))


def filters_of(allowed: Iterable[Field], query: Mapping[str, str], reserved: Sequence[str]) -> tuple[Filter, ...]:
    """Every parameter that is not reserved as a filter, in the order of their names, so that one query is one query.

    Raises:
        Refused: the parameter, the operator or the value is none; the problem details say which.
    """
    fields = {field.name: field for field in allowed}
    wanted = [name for name in sorted(query) if name not in reserved]
    if len(wanted) > MOST_FILTERS:
        detail = f"there are {len(wanted)} filters; {MOST_FILTERS} are the most"
        raise Refused(400, "bad-filter", "Bad filter", detail, where=in_query(wanted[-1]))
    return tuple(_filter(name, query[name], fields, reserved) for name in wanted)


def _filter(name: str, text: str, fields: Mapping[str, Field], reserved: Sequence[str]) -> Filter:
    stem, dot, operator = name.partition(".")
    field = fields.get(stem)
    if field is None:
        raise _unknown(name, [*reserved, *(f"{each}.{'|'.join(operators_of(fields[each]))}" for each in fields)])
    operator = operator if dot else "eq"
    if operator not in operators_of(field):
        detail = f"{stem} has no operator {shown(operator)}; it has {', '.join(operators_of(field))}"
        raise Refused(400, "bad-filter", "Bad filter", detail, where=in_query(name))
    try:
        return Filter(field, operator, _value(field, operator, text))
    except ValueError as error:
        detail = f"{name} is {shown(text)}; {error}"
        raise Refused(400, "bad-filter", "Bad filter", detail, where=in_query(name)) from error


def _unknown(name: str, known: Sequence[str]) -> Refused:
    """A misspelt parameter must not look as if it had worked."""
    allowed = f"there are {', '.join(known)}" if known else "this address takes none"
    detail = f"there is no parameter {shown(name)}; {allowed}"
    return Refused(400, "unknown-parameter", "Unknown parameter", detail, where=in_query(name))


def only(query: Mapping[str, str], known: Sequence[str]) -> None:
    """Raises Refused for a parameter that nothing reads."""
    for name in query:
        if name not in known:
            raise _unknown(name, known)


def _value(field: Field, operator: str, text: str) -> Value | tuple[Value, ...]:
    """Raises ValueError with what is expected."""
    if len(text) > LONGEST_VALUE * (MOST_VALUES if operator == "in" else 1):
        raise ValueError(f"it must not be longer than {LONGEST_VALUE} characters")
    if operator == "null":
        return _boolean(text)
    if operator != "in":
        return parsed(field, text)
    parts = split(text)
    if len(parts) > MOST_VALUES:
        raise ValueError(f"at most {MOST_VALUES} values can be asked for")
    # As a set in one order: the same values are the same query.
    return tuple(sorted({parsed(field, part) for part in parts}, key=str))


def split(text: str) -> list[str]:
    """At the commas that no backslash stands before."""
    parts, letters = [], iter(text)
    part = ""
    for letter in letters:
        if letter == "\\":
            part += next(letters, "\\")
        elif letter == ",":
            parts.append(part)
            part = ""
        else:
            part += letter
    return [*parts, part]


def parsed(field: Field, text: str) -> Value:
    """One value of the field's type. Raises ValueError with what is expected."""
    if field.choices:
        if text not in field.choices:
            raise ValueError(f"it must be one of {', '.join(field.choices)}")
        return text
    return _PARSERS[field.kind](text)


def _text(text: str) -> str:
    if len(text) > LONGEST_VALUE:
        raise ValueError(f"it must not be longer than {LONGEST_VALUE} characters")
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("it holds a character that no row can hold")
    return text


def _integer(text: str) -> int:
    if INTEGER.fullmatch(text) is None or not SMALLEST_BIGINT <= int(text) <= LARGEST_BIGINT:
        raise ValueError("it must be a whole number of at most 64 bits")
    return int(text)


def _float(text: str) -> float:
    if _FLOAT.fullmatch(text) is None or not math.isfinite(float(text)):
        raise ValueError("it must be a number")
    return float(text)


def _decimal(text: str) -> str:
    if _DECIMAL.fullmatch(text) is None:
        raise ValueError("it must be a decimal number, such as 12.50")
    return text


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("it must be true or false")
    return text == "true"


def _day(text: str) -> str:
    if _DATE.fullmatch(text) is None:
        raise ValueError("it must be a date, such as 2026-11-21")
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise ValueError("there is no such date") from error


def _time(text: str) -> str:
    hint = "it must be a time with its offset, such as 2026-11-21T05:55:03Z; in a URL a plus sign is written as %2B"
    try:
        time = msgspec.convert(text, datetime)
    except msgspec.ValidationError as error:
        raise ValueError(hint) from error
    if time.tzinfo is None:
        raise ValueError(hint)
    try:
        return rfc3339(time.astimezone(UTC))
    except OverflowError as error:
        raise ValueError("there is no such time") from error


def _uuid(text: str) -> str:
    try:
        value = str(UUID(text))
    except ValueError as error:
        raise ValueError("it must be a UUID") from error
    if value != text.lower():
        raise ValueError("it must be a UUID with its four dashes")
    return value


_PARSERS: Mapping[Kind, Callable[[str], Value]] = {
    Kind.TEXT: _text,
    Kind.INTEGER: _integer,
    Kind.FLOAT: _float,
    Kind.BOOLEAN: _boolean,
    Kind.DECIMAL: _decimal,
    Kind.DATE: _day,
    Kind.TIMESTAMP: _time,
    Kind.UUID: _uuid,
}
