"""Reports: the SELECT of a declared aggregate, and what this process remembers of its answers.  (pure)

A report is remembered by its name, its filters and the caller's view; the data's version is asked of PostgreSQL in the same
statement that would compute it anew. That version is the transaction below which everything was seen, and the policies by
which it was seen: as long as these are the same, no row that the caller may see has changed since, and none has left the
caller's view, the answer is what it was, and PostgreSQL says `same` instead of adding up again. So an answer is never
older than the rows, however long it is kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache

import msgspec

from api.filters import Filter
from api.queries import Kinds, Query, Viewers, conditions, filter_arguments, given, kinds_of, narrowed, rendered
from tidegate.access import quoted
from tidegate.entity import EntityShape, Field, Kind
from tidegate.report import Measure, Period, Report
from tidegate.tracking import CHANGED

_FORMATS = {"day": "YYYY-MM-DD", "month": "YYYY-MM", "year": "YYYY"}
_SAME = "same"


def _policies(table: str) -> str:
    # Every upgrade makes them anew.
    return (
        "coalesce((SELECT string_agg(oid::text, ',' ORDER BY oid) FROM pg_catalog.pg_policy "
        f"WHERE polrelid = pg_catalog.to_regclass('{table}')), '')"
    )


class Result(msgspec.Struct, frozen=True):
    """A report's lines as one JSON text, the version of the data that they are of, and when they were computed."""

    lines: str
    version: str
    computed_at: datetime


class Results:
    """The results that this process remembers: some number of them, of some size together, for some time."""

    def __init__(self, most: int = 200, most_characters: int = 8_000_000, kept_s: float = 3_600) -> None:
        self._known: OrderedDict[str, Result] = OrderedDict()
        self._most = most
        self._most_characters = most_characters
        self._kept_s = kept_s
        self._characters = 0

    def get(self, key: str, now: datetime) -> Result | None:
        result = self._known.get(key)
        if result is None:
            return None
        if (now - result.computed_at).total_seconds() > self._kept_s:
            self._drop(key)
            return None
        self._known.move_to_end(key)
        return result

    def put(self, key: str, result: Result) -> None:
        self._drop(key)
        if len(result.lines) > self._most_characters:
            return
        self._known[key] = result
        self._characters += len(result.lines)
        while len(self._known) > self._most or self._characters > self._most_characters:
            self._drop(next(iter(self._known)))

    def _drop(self, key: str) -> None:
        if (dropped := self._known.pop(key, None)) is not None:
            self._characters -= len(dropped.lines)


def query(
    report: Report, shape: EntityShape, filters: Sequence[Filter], known: Result | None,
    viewers: Viewers | None,
) -> Query:  # fmt: skip
    """The report, or the word that it is what `known` is. `viewers` as in `api.queries.page`."""
    asked = tuple((each.field, each.operator) for each in filters)
    arguments = filter_arguments(filters)
    if known is not None:
        arguments["since"], arguments["policies"] = known.version.split(" ")
    return Query(_statement(report, shape, asked, kinds_of(viewers)), arguments)


def result(items: Sequence[str], known: Result | None, now: datetime, most_rows: int) -> Result | None:
    """What `query` found; None when there are more lines than there may be."""
    version, word, *lines = items
    if word == _SAME and known is not None:
        return known
    if len(lines) > most_rows:
        return None
    return Result(",".join(lines), version, now)


@lru_cache(maxsize=256)
def _statement(report: Report, shape: EntityShape, asked: Sequence[tuple[Field, str]], kinds: Kinds | None) -> str:
    table, changed, since = quoted(shape.table), quoted(CHANGED), f"{given('since')}::bigint"
    columns = [f"{_group(each, shape)} AS {quoted(_name(each))}" for each in report.by]
    columns += [f"{_measure(measure, shape)} AS {quoted(measure.name)}" for measure in report.measures]
    wanted = [*conditions(asked), *narrowed(shape, kinds)]
    where = f" WHERE {' AND '.join(wanted)}" if wanted else ""
    places = ", ".join(str(place) for place, _ in enumerate(report.by, 1))
    grouped = f" GROUP BY {places} ORDER BY {places}" if places else ""
    by = ", ".join(f"line.{quoted(_name(each))}" for each in report.by)
    order = f" ORDER BY {by}" if by else ""
    policies = _policies(table)
    version = f"pg_snapshot_xmin(pg_current_snapshot())::text || ' ' || {policies}"
    return (
        f"SELECT CASE WHEN {given('policies')} = {policies} AND {since} <= pg_snapshot_xmax(pg_current_snapshot())::text::bigint "
        f"AND NOT EXISTS (SELECT FROM {table} AS stored WHERE stored.{changed} >= {since}) "
        f"AND NOT EXISTS (SELECT FROM tidegate.departure AS gone WHERE gone.relation = '{shape.table}' AND gone.xid >= {since}) "
        f"THEN ARRAY[{version}, '{_SAME}'] ELSE ARRAY[{version}, ''] || ARRAY(SELECT row_to_json(line)::text FROM ("
        f"SELECT {', '.join(columns)} FROM {table} AS stored{where}{grouped} LIMIT {report.most_rows + 1:d}) AS line{order}) END"
    )


def _name(each: str | Period) -> str:
    return each.name if isinstance(each, Period) else each


def _group(each: str | Period, shape: EntityShape) -> str:
    if isinstance(each, str):
        return rendered(shape.field(each))
    column = f"stored.{quoted(each.field)}"
    if shape.field(each.field).kind is Kind.TIMESTAMP:
        # Checked at start to be a zone, without a quote.
        column = f"({column} AT TIME ZONE '{each.zone}')"
    return f"to_char({column}, '{_FORMATS[each.unit]}')"


def _measure(measure: Measure, shape: EntityShape) -> str:
    """Decimals stay texts with all their digits, an average with six; other averages are numbers."""
    if measure.field is None:
        return "count(*)"
    field = shape.field(measure.field)
    figure = f"{measure.how}(stored.{quoted(field.name)})"
    if field.kind is Kind.DECIMAL:
        return f"round({figure}, 6)::text" if measure.how == "avg" else f"{figure}::text"
    if field.kind is Kind.TIMESTAMP:
        micros = f"to_char({figure} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
        return f"replace({micros}, '.000000Z', 'Z')"
    return f"{figure}::float8" if measure.how == "avg" else figure
