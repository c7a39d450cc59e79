"""Airlines, airports and planes: what three business units know and hand over as CSV files.

Each drop is a full extract of one entity, in the dialect of its unit (key `<unit>/<entity>-<UTC time>.csv`):

    commercial/airline-…   latin-1, semicolons, everything quoted, LF
        "KURZZEICHEN" code · "BEZEICHNUNG" name
    network/airport-…      UTF-8 with byte order mark, tabs, LF, decimal commas
        FLUGHAFEN code · NAME name · BREITE latitude · LAENGE longitude · HOEHE_FT altitude_ft ·
        ZEITVERSCH_H tz_offset_h · SOMMERZEIT dst (A, U or N)
    fleet/plane-…          UTF-8, commas, CRLF; blank or NA for missing
        tailnum tail_number · year (text, may be missing) · type · manufacturer · model · engines · seats · engine

Clean truth: airline {"code", "name"}; airport {"code", "name", "latitude": float, "longitude": float,
"altitude_ft": int, "tz_offset_h": int, "dst"}; plane {"tail_number", "year": int or null, "type", "manufacturer",
"model", "engines": int, "seats": int, "engine"}. Everybody sees them.
"""

import csv
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal, Self

from msgspec.structs import replace

from local.legacy.desk import Desk
from local.legacy.dialect import comma
from local.legacy.flight_plan import table
from local.legacy.record import Record


class Dropped(Record, frozen=True, kw_only=True):
    """An entity that leaves the house as a file. `unit` is the business unit that writes it."""

    hidden: ClassVar[frozenset[str]] = frozenset({"revision"})
    unit: ClassVar[str] = ""
    revision: int = 0

    def key(self) -> str:
        return ""

    @classmethod
    def extract(cls, rows: Iterable[Self]) -> bytes:
        """The file with these rows."""
        return b""


class Airline(Dropped, frozen=True, kw_only=True):
    entity: ClassVar[str] = "airline"
    editable: ClassVar[tuple[str, ...]] = ("name",)
    unit: ClassVar[str] = "commercial"
    code: str
    name: str

    def key(self) -> str:
        return self.code

    def checked(self) -> Self:
        self.name.encode("latin-1")  # raises a ValueError: the unit's system knows no other letters
        return self

    @classmethod
    def extract(cls, rows: Iterable[Self]) -> bytes:
        lines = [("KURZZEICHEN", "BEZEICHNUNG"), *((row.code, row.name) for row in rows)]
        return _text(lines, delimiter=";", quoting=csv.QUOTE_ALL, newline="\n").encode("latin-1")


class Airport(Dropped, frozen=True, kw_only=True):
    entity: ClassVar[str] = "airport"
    editable: ClassVar[tuple[str, ...]] = ("name", "latitude", "longitude", "altitude_ft", "tz_offset_h", "dst")
    unit: ClassVar[str] = "network"
    code: str
    name: str
    latitude: float
    longitude: float
    altitude_ft: int
    tz_offset_h: int
    dst: Literal["A", "U", "N"]

    def key(self) -> str:
        return self.code

    @classmethod
    def extract(cls, rows: Iterable[Self]) -> bytes:
        head = ("FLUGHAFEN", "NAME", "BREITE", "LAENGE", "HOEHE_FT", "ZEITVERSCH_H", "SOMMERZEIT")
        lines = (
            (row.code, row.name, comma(row.latitude), comma(row.longitude), row.altitude_ft, row.tz_offset_h, row.dst)
            for row in rows
        )
        return _text([head, *lines], delimiter="\t", quoting=csv.QUOTE_MINIMAL, newline="\n").encode("utf-8-sig")


class Plane(Dropped, frozen=True, kw_only=True):
    entity: ClassVar[str] = "plane"
    editable: ClassVar[tuple[str, ...]] = ("year", "type", "manufacturer", "model", "engines", "seats", "engine")
    unit: ClassVar[str] = "fleet"
    tail_number: str
    year: int | None
    type: str
    manufacturer: str
    model: str
    engines: int
    seats: int
    engine: str

    def key(self) -> str:
        return self.tail_number

    @classmethod
    def extract(cls, rows: Iterable[Self]) -> bytes:
        head = ("tailnum", "year", "type", "manufacturer", "model", "engines", "seats", "engine")
        lines = (
            (
                row.tail_number,
                _or_missing(row),
                row.type,
                row.manufacturer,
                row.model,
                row.engines,
                row.seats,
                row.engine,
            )
            for row in rows
        )
        return _text([head, *lines], delimiter=",", quoting=csv.QUOTE_MINIMAL, newline="\r\n").encode()


DROPPED: Sequence[type[Dropped]] = (Airline, Airport, Plane)


def seeded(kind: type[Record], folder: Path) -> Iterator[Record]:
    """The first rows of one of the three entities."""
    if kind is Airline:
        for row in table(folder, "airlines.csv"):
            yield Airline(code=row["carrier"], name=row["name"])
    if kind is Airport:
        for row in table(folder, "airports.csv"):
            yield _airport(row)
    if kind is Plane:
        for row in table(folder, "planes.csv"):
            yield _plane(row)


def corrected(desk: Desk) -> bool:
    """Correct one row of one of the three; False when there is none."""
    match desk.rng.randrange(3):
        case 0:
            airline = desk.pick(Airline)
            if airline is not None:
                desk.put(replace(airline, name=_renamed(airline.name)))
            return airline is not None
        case 1:
            airport = desk.pick(Airport)
            if airport is not None:
                desk.put(replace(airport, altitude_ft=airport.altitude_ft + desk.rng.choice((-3, -2, -1, 1, 2, 3))))
            return airport is not None
        case _:
            plane = desk.pick(Plane)
            if plane is not None:
                desk.put(replace(plane, seats=plane.seats + desk.rng.choice((-4, -2, 2, 4))))
            return plane is not None


def retired(desk: Desk) -> bool:
    """Remove one plane; False when there is none."""
    plane = desk.pick(Plane)
    if plane is not None:
        desk.delete(plane)
    return plane is not None


def _renamed(name: str) -> str:
    # A letter beyond ASCII, so that the encoding of the file matters.
    suffix = " Société Aérienne"
    return name.removesuffix(suffix) if name.endswith(suffix) else name + suffix


def _or_missing(plane: Plane) -> str:
    if plane.year is not None:
        return str(plane.year)
    return "NA" if zlib.crc32(plane.tail_number.encode()) % 2 else ""


def _text(lines: Iterable[Sequence[str | int]], delimiter: str, quoting: Literal[0, 1], newline: str) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=newline).writerows(lines)
    return out.getvalue()


def _airport(row: dict[str, str]) -> Airport:
    dst = row["dst"]
    return Airport(
        code=row["faa"],
        name=row["name"],
        latitude=float(row["lat"]),
        longitude=float(row["lon"]),
        altitude_ft=int(row["alt"]),
        tz_offset_h=int(row["tz"]),
        dst="A" if dst == "A" else "U" if dst == "U" else "N",
    )


def _plane(row: dict[str, str]) -> Plane:
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
