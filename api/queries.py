"""The SELECTs, one function each, made from an entity's shape.  (pure)

A `Query` is the text that `tidegate.read` runs and the values it gets as $1. The text holds only names that
`tidegate.entity` admitted and is the same for every caller; values never become part of it. PostgreSQL renders
the rows to JSON, so a row passes through here as one text that nobody parses.

Only the entity's own fields are selected. Which rows are seen is not decided here but by the table's policies.
"""

from __future__ import annotations

import base64
import binascii
import re
from functools import lru_cache
from uuid import UUID

import msgspec

from tidegate.access import quoted
from tidegate.entity import EntityShape, Field, Kind

_SMALLEST_BIGINT, _LARGEST_BIGINT = -(2**63), 2**63 - 1
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")


class Query(msgspec.Struct, frozen=True):
    statement: str
    arguments: dict[str, str | int]


def page(shape: EntityShape, *, limit: int, after: str | None) -> Query:
    """Up to `limit` rows by key, those beyond the key `after`."""
    arguments: dict[str, str | int] = {"limit": limit}
    if after is not None:
        arguments["after"] = after
    return Query(_page_statement(shape, after is not None), arguments)


def row(shape: EntityShape, key: str) -> Query:
    """The row of one key, if there is one."""
    return Query(_row_statement(shape), {"key": key})


def key_fits(shape: EntityShape, text: str) -> bool:
    """Whether `text` can be a key at all; PostgreSQL would answer the others with an error."""
    if shape.key.kind is Kind.INTEGER:
        # One spelling for each number: 007 is not another address of row 7.
        return _INTEGER.fullmatch(text) is not None and _SMALLEST_BIGINT <= int(text) <= _LARGEST_BIGINT
    if shape.key.kind is Kind.UUID:
        try:
            return str(UUID(text)) == text.lower()
        except ValueError:
            return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return bool(text) and "\0" not in text


def key_of(shape: EntityShape, item: str) -> str:
    """The key of a row that PostgreSQL rendered."""
    fields: dict[str, object] = msgspec.json.decode(item)
    return str(fields[shape.key.name])


def encode_cursor(shape: EntityShape, key: str) -> str:
    """Opaque to the caller: where the next page of this collection starts."""
    return base64.urlsafe_b64encode(msgspec.json.encode((shape.collection, key))).rstrip(b"=").decode()


def decode_cursor(shape: EntityShape, cursor: str) -> str:
    """The key after which to go on. Raises ValueError, with a text for the caller."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        collection, key = msgspec.json.decode(raw, type=tuple[str, str])
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise ValueError("the cursor is not one that this API gave; start again without a cursor") from error
    if collection != shape.collection:
        raise ValueError(f"the cursor is of another collection than {shape.collection}; start again without a cursor")
    if not key_fits(shape, key):
        raise ValueError("the cursor holds no key of this collection; start again without a cursor")
    return key


@lru_cache(maxsize=256)
def _page_statement(shape: EntityShape, goes_on: bool) -> str:
    key = f"stored.{quoted(shape.key.name)}"
    beyond = f"WHERE {key} > {_argument('after', shape.key)} " if goes_on else ""
    return _array(shape, f"{beyond}ORDER BY {key} LIMIT ($1 ->> 'limit')::bigint")


@lru_cache(maxsize=128)
def _row_statement(shape: EntityShape) -> str:
    return _array(shape, f"WHERE stored.{quoted(shape.key.name)} = {_argument('key', shape.key)}")


def _array(shape: EntityShape, tail: str) -> str:
    # ARRAY(…) keeps the order of its query, which an aggregate does not promise.
    columns = ", ".join(f"{_rendered(field)} AS {quoted(field.name)}" for field in shape.fields)
    return (
        # Names only, all admitted by tidegate.entity.
        f"SELECT ARRAY(SELECT row_to_json(shown)::text FROM {quoted(shape.table)} AS stored "
        f"CROSS JOIN LATERAL (SELECT {columns}) AS shown {tail})"
    )


def _argument(name: str, key: Field) -> str:
    casts = {Kind.INTEGER: "bigint", Kind.UUID: "uuid"}
    return f"($1 ->> '{name}')::{casts.get(key.kind, 'text')}"


def _rendered(field: Field) -> str:
    """One field as the JSON form of the contract, whatever the session's settings: decimals keep their scale."""
    column = f"stored.{quoted(field.name)}"
    if field.kind is Kind.DECIMAL:
        return f"{column}::text"
    if field.kind is Kind.TIMESTAMP:
        micros = f"to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
        return f"replace({micros}, '.000000Z', 'Z')"
    return column
