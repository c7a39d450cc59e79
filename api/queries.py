"""The SELECTs, one function each, made from an entity's shape.  (pure)

A `Query` is the text that `tidegate.access_sql.read_statement` completes and the values that it gets as $1. The text holds
only names that `tidegate.entity` admitted, and the number of rows: the planner must know it. It is the same for all
callers of one kind, so a connection plans it once; no caller's value ever becomes part of it. PostgreSQL renders the rows
to JSON, so a row passes through here as one text that nobody parses. Embedded rows are sub-selects of the same
statement, under the policies of their own tables.

Only the entity's own fields are selected. Which rows are seen is not decided here but by the table's policies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from uuid import UUID

import msgspec

from api.cursor import Position
from api.filters import INTEGER, LARGEST_BIGINT, SMALLEST_BIGINT, Filter
from api.selection import Join, Selection, Term
from tidegate.access import quoted
from tidegate.entity import EntityShape, Field, Kind

TYPES: Mapping[Kind, str] = {
    Kind.TEXT: "text",
    Kind.INTEGER: "bigint",
    Kind.FLOAT: "float8",
    Kind.BOOLEAN: "boolean",
    Kind.DECIMAL: "numeric",
    Kind.DATE: "date",
    Kind.TIMESTAMP: "timestamptz",
    Kind.UUID: "uuid",
}
_COMPARISONS = {"eq": "=", "lt": "<", "lte": "<=", "gt": ">", "gte": ">="}


class Query(msgspec.Struct, frozen=True):
    """What to read. `keeps_plan`: any arguments are best read in the same way, so it need not be planned for these.

    Where arguments decide how many rows there are (a filter, a span of changes), a plan for whichever values takes a rare
    one for a frequent one and reads a large table through.
    """

    statement: str
    arguments: dict[str, object]
    keeps_plan: bool = False


class PlacedRow(msgspec.Struct, frozen=True):
    """A row as JSON, and its place in the order."""

    place: str
    row: str

    def position(self) -> Position:
        position: Position = msgspec.json.decode(self.place)
        return position


Viewers = Mapping[str, Sequence[str]]
"""Whom the policies take the caller for: kind of viewer → ids."""

Kinds = tuple[tuple[str, bool], ...]
"""The caller's kinds of viewer, each with whether it has one id only."""


def page(
    shape: EntityShape, selection: Selection, *, limit: int, after: Position | None,
    viewers: Viewers | None = None,
) -> Query:  # fmt: skip
    """Up to `limit` rows in order, those beyond the position `after`, and one more that tells whether there is a next page.

    Each item is a row as JSON; the last that is shown, the item `limit`, is a `placed` one. `viewers` are the caller's kinds
    and ids, if they are known; see `narrowed`.
    """
    asked = tuple((each.field, each.operator) for each in selection.filters)
    nulls = None if after is None else tuple(value is None for value in after)
    kinds = kinds_of(viewers)
    statement = _page_statement(shape, selection.fields, selection.joins, asked, selection.order, nulls, kinds, limit)
    arguments = filter_arguments(selection.filters)
    if after is not None:
        arguments["after"] = after
    return Query(statement, arguments, keeps_plan=not arguments)


def kinds_of(viewers: Viewers | None) -> Kinds | None:
    """What a statement may depend on of its caller."""
    return None if viewers is None else tuple((kind, len(ids) == 1) for kind, ids in viewers.items())


def placed(item: str) -> PlacedRow:
    # JSON as PostgreSQL writes it holds no line feed in front of a row.
    place, _, row = item.partition("\n")
    return PlacedRow(place, row)


def row(shape: EntityShape, key: str, selection: Selection) -> Query:
    """The row of one key, if there is one."""
    return Query(_row_statement(shape, selection.fields, selection.joins), {"key": key}, keeps_plan=True)


def key_fits(shape: EntityShape, text: str) -> bool:
    """Whether `text` can be a key at all; PostgreSQL would answer the others with an error."""
    if shape.key.kind is Kind.INTEGER:
        # One spelling for each number: 007 is not another address of row 7.
        return INTEGER.fullmatch(text) is not None and SMALLEST_BIGINT <= int(text) <= LARGEST_BIGINT
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


def given(name: str) -> str:
    """The SQL of one argument, as a text."""
    return f"($1::jsonb ->> '{name}')"


def filter_arguments(filters: Sequence[Filter]) -> dict[str, object]:
    return {f"f{number}": each.value for number, each in enumerate(filters)}


def conditions(asked: Sequence[tuple[Field, str]]) -> list[str]:
    """The SQL of filters, whose values are `filter_arguments`."""
    return [_condition(field, operator, f"f{number}") for number, (field, operator) in enumerate(asked)]


def narrowed(shape: EntityShape, kinds: Kinds | None) -> list[str]:
    """What the policies allow these kinds of viewer, said once more, as a condition; none where it would be no help.

    It takes no row away and adds none: the policies hold in any case. But they name all kinds of viewer, and PostgreSQL
    cannot know when it plans that a customer has no office, so it would rather read a large table than look by six indexes.
    Nor how many ids there will be: of one, compared as one, it knows how few rows it has, and other rows are passed over
    before their policies are looked at.
    """
    if kinds is None:
        return []
    ways = []
    for kind, is_one in kinds:
        ids = (
            f"(SELECT $1::jsonb -> 'viewers' -> '{kind}' ->> 0)"
            if is_one
            else f"ANY ((SELECT tidegate.viewer_ids('{kind}'))::text[])"
        )
        for reader in shape.readers:
            if reader.kind == kind and not reader.fields:
                return []
            if reader.kind == kind:
                ways += [f"stored.{quoted(name)}::text = {ids}" for name in reader.fields]
    return [f"({' OR '.join(ways)})" if ways else "false"]


def shown_row(fields: Sequence[Field], joins: Sequence[Join], key: Field) -> str:
    """A lateral `shown` beside `stored`: what a row shows, in the entity's order, embedded rows at its end."""
    columns = [f"{rendered(field)} AS {quoted(field.name)}" for field in fields]
    columns += [f"{_embedded(join, key)} AS {quoted(join.embed.name)}" for join in joins]
    return f"CROSS JOIN LATERAL (SELECT {', '.join(columns)}) AS shown"


@lru_cache(maxsize=512)
def _page_statement(
    shape: EntityShape,
    fields: Sequence[Field],
    joins: Sequence[Join],
    asked: Sequence[tuple[Field, str]],
    order: Sequence[Term],
    nulls: Sequence[bool] | None,
    kinds: Kinds | None,
    limit: int,
) -> str:
    wanted = [*conditions(asked), *narrowed(shape, kinds)]
    if nulls is not None:
        wanted.append(_beyond(order, nulls))
    where = f"WHERE {' AND '.join(wanted)} " if wanted else ""
    by = "ORDER BY " + ", ".join(f"{_column(term.field)}{' DESC' if term.descending else ''}" for term in order)
    stored = ", ".join(_column(field) for field in shape.fields)
    place = f"json_build_array({', '.join(rendered(term.field) for term in order)})::text || E'\\n'"
    return (
        # The page first, then its JSON: nothing is rendered that is not shown. ARRAY(…) keeps the order of its
        # query, which an aggregate does not promise.
        f"SELECT ARRAY(SELECT CASE row_number() OVER ({by}) WHEN {limit:d} THEN {place} ELSE '' END || row_to_json(shown)::text "
        f"FROM (SELECT {stored} FROM {quoted(shape.table)} AS stored {where}{by} LIMIT {limit + 1:d}) AS stored "
        f"{shown_row(fields, joins, shape.key)} {by})"
    )


@lru_cache(maxsize=256)
def _row_statement(shape: EntityShape, fields: Sequence[Field], joins: Sequence[Join]) -> str:
    return (
        f"SELECT ARRAY(SELECT row_to_json(shown)::text FROM {quoted(shape.table)} AS stored "
        f"{shown_row(fields, joins, shape.key)} WHERE {_column(shape.key)} = {given('key')}::{TYPES[shape.key.kind]})"
    )


def _embedded(join: Join, key: Field) -> str:
    embed, other = join.embed, join.shape
    columns = ", ".join(f"{rendered(field, 'related')} AS {quoted(field.name)}" for field in other.fields)
    rows = f"FROM {quoted(other.table)} AS related CROSS JOIN LATERAL (SELECT {columns}) AS embedded"
    if embed.field is not None:
        return f"(SELECT row_to_json(embedded) {rows} WHERE related.{quoted(other.key.name)} = stored.{quoted(embed.field)})"
    some = f"WHERE related.{quoted(embed.by or '')} = {_column(key)} ORDER BY related.{quoted(other.key.name)}"
    return f"array_to_json(ARRAY(SELECT row_to_json(embedded) {rows} {some} LIMIT {embed.most:d}))"


def _condition(field: Field, operator: str, name: str) -> str:
    column, kind = _column(field), TYPES[field.kind]
    if operator == "null":
        return f"({column} IS NULL) = {given(name)}::boolean"
    if operator == "in":
        return f"{column} = ANY (ARRAY(SELECT jsonb_array_elements_text($1::jsonb -> '{name}'))::{kind}[])"
    value = _cast(given(name), field)
    return f"starts_with({column}, {value})" if operator == "prefix" else f"{column} {_COMPARISONS[operator]} {value}"


def _beyond(order: Sequence[Term], nulls: Sequence[bool]) -> str:
    """The rows that come after the position $1 → after. NULL is the largest value, as in PostgreSQL's own order."""
    columns = [_column(term.field) for term in order]
    values = [_cast(f"($1::jsonb -> 'after' ->> {place})", term.field) for place, term in enumerate(order)]
    if not any(nulls) and all(term.descending for term in order):
        # As a row, so that an index leads there. Rows with NULL came before, and are unknown here: not beyond.
        return f"({', '.join(columns)}) < ({', '.join(values)})"
    ways = []
    for place, term in enumerate(order):
        same = [
            f"{columns[before]} IS NULL" if nulls[before] else f"{columns[before]} = {values[before]}"
            for before in range(place)
        ]
        if later := _later(term, columns[place], values[place], is_null=nulls[place], is_key=place == len(order) - 1):
            ways.append(" AND ".join([*same, later]))
    return "(" + " OR ".join(f"({way})" for way in ways) + ")"


def _later(term: Term, column: str, value: str, *, is_null: bool, is_key: bool) -> str | None:
    """The values after the one of the position; None when there are none."""
    if term.descending:
        return f"{column} IS NOT NULL" if is_null else f"{column} < {value}"
    if is_null:
        return None
    # A field that is never None may be NULL in rows from before it was declared.
    return f"{column} > {value}" if is_key else f"({column} > {value} OR {column} IS NULL)"


def _column(field: Field) -> str:
    return f"stored.{quoted(field.name)}"


def _cast(text: str, field: Field) -> str:
    return f"{text}::{TYPES[field.kind]}"


def rendered(field: Field, table: str = "stored") -> str:
    """One field as the JSON form of the contract, whatever the session's settings: decimals keep their scale."""
    column = f"{table}.{quoted(field.name)}"
    if field.kind is Kind.DECIMAL:
        return f"{column}::text"
    if field.kind is Kind.TIMESTAMP:
        micros = f"to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
        return f"replace({micros}, '.000000Z', 'Z')"
    return column
