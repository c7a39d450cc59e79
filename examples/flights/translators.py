"""From the operations centre's rows and three units' CSV files to clean entities. Pure: raw row in, entity out."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal
from zoneinfo import ZoneInfo

from examples.flights.entities import Airline, Airport, Flight, Plane
from tidegate.bubble import RawRow

_NEW_YORK = ZoneInfo("America/New_York")
_STATUS: dict[str, Literal["scheduled", "departed", "arrived", "cancelled"]] = {
    "S": "scheduled",
    "D": "departed",
    "A": "arrived",
    "X": "cancelled",
}


def flight(row: RawRow) -> Flight:
    departure = datetime.strptime(row["STD"], "%Y-%m-%d %H:%M").replace(tzinfo=_NEW_YORK)
    return Flight(
        id=row["ID"],
        carrier=row["CARR"],
        number=int(row["FLT_NO"]),
        origin=row["ORIG"],
        destination=row["DEST"],
        tail_number=row["TAIL"] or None,
        scheduled_departure=departure.astimezone(UTC),
        status=_STATUS[row["ST"]],
        departure_delay_min=row["DEP_DLY"],
        arrival_delay_min=row["ARR_DLY"],
        air_time_min=row["AIR_MIN"],
        distance_miles=row["DIST_MI"],
        gate=row["GATE"] or None,
        revision=row["REV"],
    )


def airline(row: RawRow) -> Airline:
    return Airline(code=row["KURZZEICHEN"], name=row["BEZEICHNUNG"])


def airport(row: RawRow) -> Airport:
    return Airport(
        code=row["FLUGHAFEN"],
        name=row["NAME"],
        latitude=_comma(row["BREITE"]),
        longitude=_comma(row["LAENGE"]),
        altitude_ft=int(row["HOEHE_FT"]),
        tz_offset_h=int(row["ZEITVERSCH_H"]),
        dst=row["SOMMERZEIT"],
    )


def plane(row: RawRow) -> Plane:
    return Plane(
        tail_number=row["tailnum"],
        year=None if row["year"] in ("", "NA") else int(row["year"]),
        type=row["type"],
        manufacturer=row["manufacturer"],
        model=row["model"],
        engines=int(row["engines"]),
        seats=int(row["seats"]),
        engine=row["engine"],
    )


def _comma(text: str) -> float:
    return float(text.replace(",", "."))
