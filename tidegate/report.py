"""Report: a declared aggregate over one entity, which becomes a resource of the API.  (pure)

    Report(name="shipping-cost", title="Shipping cost by office and month", entity=Parcel,
           by=("origin_office", Period("booked_at", "month", zone="Europe/Zurich")),
           measures=(Measure("parcels", "count"), Measure("cost", "sum", "shipping_cost")),
           filters=("origin_office", "booked_at"))

`GET /v1/reports/shipping-cost?booked_at.gte=2026-01-01T00:00:00Z` counts the rows that the caller may see, and no others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from tidegate.entity import Entity, EntityShape, Field, Kind, describe
from tidegate.errors import BubbleError

RESERVED = frozenset({"reports", "docs", "events", "user"})
"""Addresses of the API that no collection can have."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,57}")
_REPORT = re.compile(r"[a-z][a-z0-9-]{0,57}")
_NUMBERS = (Kind.INTEGER, Kind.FLOAT, Kind.DECIMAL)


class Period(msgspec.Struct, frozen=True):
    """A date or time of a row as the day, month or year that it falls into, by the calendar of `zone`: 2026-11."""

    field: str
    unit: Literal["day", "month", "year"]
    zone: str = "UTC"
    called: str = ""

    @property
    def name(self) -> str:
        return self.called or self.unit


class Measure(msgspec.Struct, frozen=True):
    """One figure of a line: how many rows, or something of one of their fields; what is None does not count."""

    name: str
    how: Literal["count", "sum", "avg", "min", "max"]
    field: str | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True, cache_hash=True):
    """One line for each combination of `by` that occurs, in their order, with its measures.

    most_rows  a report with more lines is refused, with the advice to filter
    """

    name: str
    title: str
    entity: type[Entity]
    by: tuple[str | Period, ...]
    measures: tuple[Measure, ...]
    filters: tuple[str, ...] = ()
    most_rows: int = 1000


def check_reports(reports: Iterable[Report], entities: Iterable[type[Entity]]) -> None:
    """Raises BubbleError, with the report, what is wrong and the remedy."""
    known, names = list(entities), set[str]()
    for entity in known:
        if describe(entity).collection in RESERVED:
            raise BubbleError(
                f"{entity.__name__}: its collection {describe(entity).collection!r} is an address of the API's own; "
                "give it another meta.collection"
            )
    for report in reports:
        said = f"report {report.name!r}"
        if not _REPORT.fullmatch(report.name) or report.name in names:
            raise BubbleError(f"{said}: name it in lower-case letters, digits and dashes, and each once")
        names.add(report.name)
        if report.entity not in known:
            raise BubbleError(f"{said}: {report.entity.__name__} is not among the bubble's entities; add it")
        if not report.measures or not 1 <= report.most_rows <= 10_000:
            raise BubbleError(f"{said}: it needs a measure, and most_rows from 1 to 10,000")
        _check_fields(said, report, describe(report.entity))


def _check_fields(said: str, report: Report, shape: EntityShape) -> None:
    fields = {field.name: field for field in shape.fields}
    columns = [each.name if isinstance(each, Period) else each for each in report.by]
    columns += [measure.name for measure in report.measures]
    for column in columns:
        if not _NAME.fullmatch(column) or columns.count(column) > 1:
            raise BubbleError(f"{said}: the column {column!r} needs a name of its own, in lower-case letters")
    for name in (*report.filters, *(each.field if isinstance(each, Period) else each for each in report.by)):
        _known(said, name, fields)
    for each in report.by:
        if isinstance(each, Period):
            _check_period(said, each, fields[each.field])
    for measure in report.measures:
        _check_measure(said, measure, fields)


def _known(said: str, name: str, fields: Mapping[str, Field]) -> Field:
    if name not in fields:
        raise BubbleError(f"{said}: there is no field {name!r}; there are {', '.join(fields)}")
    return fields[name]


def _check_period(said: str, period: Period, field: Field) -> None:
    if field.kind not in (Kind.DATE, Kind.TIMESTAMP):
        raise BubbleError(f"{said}: {field.name} is no date and no time, so it falls into no {period.unit}")
    try:
        ZoneInfo(period.zone)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise BubbleError(f"{said}: there is no zone {period.zone!r}; use one such as Europe/Zurich") from error
    if "'" in period.zone:
        raise BubbleError(f"{said}: there is no zone {period.zone!r}")


def _check_measure(said: str, measure: Measure, fields: Mapping[str, Field]) -> None:
    if (measure.field is None) != (measure.how == "count"):
        raise BubbleError(f"{said}: {measure.name!r} counts rows, or names the field of its {measure.how}")
    if measure.field is None:
        return
    field = _known(said, measure.field, fields)
    if measure.how in ("sum", "avg") and field.kind not in _NUMBERS:
        raise BubbleError(f"{said}: {field.name} is no number, so it has no {measure.how}")
    if measure.how in ("min", "max") and field.kind in (Kind.BOOLEAN, Kind.UUID):
        raise BubbleError(f"{said}: {field.name} has no {measure.how}")
