"""Whether a database's tables can be written by this release, as a comparison of columns.  (pure)

The worker asks when it starts, so that a wrong schema is one clear text and not a failure of every batch; so does
`tidegate migrate` at its end. `LOOK` is the question to PostgreSQL, `faults` judges the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from tidegate.entity import EntityShape, Kind

TYPES: Mapping[Kind, str] = {
    Kind.TEXT: "text",
    Kind.INTEGER: "bigint",
    Kind.FLOAT: "double precision",
    Kind.BOOLEAN: "boolean",
    Kind.DECIMAL: "numeric",
    Kind.DATE: "date",
    Kind.TIMESTAMP: "timestamp with time zone",
    Kind.UUID: "uuid",
}
"""What `format_type` calls the column of each kind of field."""

OWN: Mapping[str, str] = {
    "_generation": "bigint", "_source_version": "bigint", "_epoch": "bigint", "_read": "bigint", "_translation": "bigint",
    "_deleted": "boolean", "_event_id": "text", "_occurred_at": "timestamp with time zone",
    "_projected_at": "timestamp with time zone", "_changed": "bigint",
}  # fmt: skip
"""The columns that every entity table has beside its fields."""

COMPLETENESS = "_complete"
"""What the name of the CHECK ends in that holds live rows to the entity's rules."""

LOOK = f"""
SELECT c.relname::text AS table, a.attname::text AS name, format_type(a.atttypid, NULL) AS type,
       a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AS is_required,
       EXISTS (SELECT FROM pg_catalog.pg_constraint AS r
               WHERE r.conrelid = c.oid AND r.contype = 'c' AND r.conname = c.relname || '{COMPLETENESS}'
               AND a.attnum = ANY (r.conkey)) AS is_in_rule
FROM unnest($1::text[]) AS wanted
JOIN pg_catalog.pg_class AS c ON c.oid = to_regclass(quote_ident(wanted))
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY c.relname, a.attnum
"""
"""$1 are the tables; one row for each column of those that exist."""


class Column(NamedTuple):
    """One column as it is. `is_required`: a row cannot be written without it. `is_in_rule`: nor a live one."""

    table: str
    name: str
    type: str
    is_required: bool = False
    is_in_rule: bool = False


_WIDENED = {
    ("integer", "bigint"), ("smallint", "bigint"), ("smallint", "integer"), ("bigint", "numeric"), ("integer", "numeric"),
    ("smallint", "numeric"), ("integer", "double precision"), ("real", "double precision"),
}  # fmt: skip
"""Every value of the first is one of the second, and PostgreSQL itself assigns and compares the one to the other.

A bigint is not always a double, and a double is no numeric of the same value; everything has a text, but compares otherwise.
"""

_SYNONYMS = {
    "timestamptz": "timestamp with time zone", "int8": "bigint", "int4": "integer", "int": "integer", "bool": "boolean",
    "float8": "double precision", "decimal": "numeric", "character varying": "text", "varchar": "text",
}  # fmt: skip


def type_name(text: str) -> str:
    """The type in a column's definition, in one spelling."""
    name = re.sub(r"\s+USING\s.*", "", text, flags=re.IGNORECASE).strip().lower()
    return _SYNONYMS.get(name, name)


def is_widened(before: str, after: str) -> bool:
    """Whether `after` holds every value of `before`, and takes what the statements of the previous release write."""
    return (type_name(before), type_name(after)) in _WIDENED


def wanted(shape: EntityShape) -> dict[str, str]:
    """The columns of an entity's table and their types."""
    return {**{field.name: TYPES[field.kind] for field in shape.fields}, **OWN}


def faults(shapes: Iterable[EntityShape], stored: Iterable[Column], *, exactly: bool = False) -> Iterator[str]:
    """Why the tables cannot be written, in words; nothing when they can.

    A table may be ahead of this release: columns that it does not know and need not give, and wider types. With
    `exactly`, the table must have these columns and no others.
    """
    tables: dict[str, dict[str, Column]] = {}
    for column in stored:
        tables.setdefault(column.table, {})[column.name] = column
    for shape in shapes:
        if (columns := tables.get(shape.table)) is None:
            yield f"the table {shape.table} is missing"
        else:
            yield from _faults(shape, columns, exactly)


def _faults(shape: EntityShape, columns: Mapping[str, Column], exactly: bool) -> Iterator[str]:
    known = wanted(shape)
    for name, kind in known.items():
        if name not in columns:
            yield f"the column {shape.table}.{name} ({kind}) is missing"
        elif (found := columns[name].type) != kind and (exactly or not is_widened(kind, found)):
            yield f"the column {shape.table}.{name} is of type {found} instead of {kind}"
    for name, column in columns.items():
        if name in known:
            continue
        if column.is_required or column.is_in_rule:
            yield f"the column {shape.table}.{name} must be given, and this release does not know it"
        elif exactly:
            yield f"the column {shape.table}.{name} belongs to no field"
