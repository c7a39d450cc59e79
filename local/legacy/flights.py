"""The flights back office: a replay of real flights out of New York City, 2013 (see flight_plan).

With `--rows N` the first N/2 flights by scheduled departure are there in their final state. From then on a
create is the next flight of the plan (scheduled); an update lets a flight depart, then arrive, or cancels it; a
correction changes a gate or minutes of delay; a delete is hard. When no flight is on its way an update is a late
correction. The gates are made up; all else is from the records.

Legacy API (header X-Api-Key; times in New York local time without zone; rows are arrays):

    GET /ops/flights.json?since_rev=N&page_token=…&size=500
        → {"columns": ["ID", …], "data": [[…], …], "next_page_token": text or null, "rev": highest given so far}
        With since_rev: rows with REV > N, by REV. Without: everything, by ID. size 1..1000 (500).
        The token belongs to the query that it came from.
    GET /ops/flights.json?ids=a;b   (1..100) → the same form, only those that exist, next_page_token null
    Errors: {"status": 400, "error": text}
    columns: ID id · REV revision · CARR carrier · FLT_NO number (text, "0042") · ORIG origin · DEST destination ·
    TAIL tail_number (blank for none) · STD scheduled_departure "2013-01-01 05:15" · ST status (S scheduled,
    D departed, A arrived, X cancelled) · DEP_DLY departure_delay_min · ARR_DLY arrival_delay_min · AIR_MIN air_time_min
    (null until known) · DIST_MI distance_miles · GATE gate (blank for none)

REV counts all changes of this back office; each changed row gets the next number, so no two rows share one.
ID is "2013-01-01-UA-1545-EWR": local date, carrier, flight number, origin; unique in the data.

Clean truth (`/_sim/truth`):
    flight {"id", "carrier", "number": int, "origin", "destination", "tail_number": null, "scheduled_departure":
            "2013-01-01T10:15:00Z", "status": "scheduled", "departed", "arrived" or "cancelled",
            "departure_delay_min": null until departed, "arrival_delay_min": null until arrived (or never known),
            "air_time_min": null likewise, "distance_miles": int, "gate": null, "revision": int}

Who sees what: partner:<carrier> its own flights; airport:<code> flights from or to it; nobody else sees any.

With `--drops DIR` or `--drops s3 --drops-bucket NAME` there are airlines, airports and planes too (see fleet), which
leave the house as CSV files (see csv_drops). The S3 endpoint and credentials come from the AWS_… environment.
"""

import argparse
import base64
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Literal, Self
from zoneinfo import ZoneInfo

from aiohttp import web
from msgspec.structs import asdict, replace

from local.legacy import fleet
from local.legacy.csv_drops import Destination, Dropper
from local.legacy.desk import Desk
from local.legacy.dialect import BadQuery, whole
from local.legacy.flight_plan import NEW_YORK, FlightPlan, Planned, data_folder
from local.legacy.manners import Handler
from local.legacy.office import Answer, BackOffice, Deed, reply
from local.legacy.record import Record, Stamp, Viewer

Status = Literal["scheduled", "departed", "arrived", "cancelled"]
STATUS_LETTERS: Mapping[Status, str] = {"scheduled": "S", "departed": "D", "arrived": "A", "cancelled": "X"}
COLUMNS = ("ID", "REV", "CARR", "FLT_NO", "ORIG", "DEST", "TAIL", "STD", "ST", "DEP_DLY", "ARR_DLY", "AIR_MIN",
           "DIST_MI", "GATE")  # fmt: skip


class Flight(Record, frozen=True, kw_only=True):
    """A flight as far as it has come; the `final_…` fields are how it will turn out."""

    entity: ClassVar[str] = "flight"
    hidden: ClassVar[frozenset[str]] = frozenset(
        {"final_departure_delay_min", "final_arrival_delay_min", "final_air_time_min"}
    )
    editable: ClassVar[tuple[str, ...]] = (
        "status",
        "tail_number",
        "departure_delay_min",
        "arrival_delay_min",
        "air_time_min",
        "gate",
    )
    id: str
    carrier: str
    number: int
    origin: str
    destination: str
    tail_number: str | None
    scheduled_departure: datetime
    status: Status = "scheduled"
    departure_delay_min: int | None = None
    arrival_delay_min: int | None = None
    air_time_min: int | None = None
    distance_miles: int
    gate: str | None = None
    revision: int = 0
    final_departure_delay_min: int | None = None
    final_arrival_delay_min: int | None = None
    final_air_time_min: int | None = None

    def lane(self) -> str:
        return "open" if self.status in ("scheduled", "departed") else "closed"

    def stamped(self, stamp: Stamp, previous: Self | None) -> Self:
        return replace(self, revision=stamp.revision)

    def checked(self) -> Self:
        return replace(self, tail_number=self.tail_number or None, gate=self.gate or None)

    def seen_by(self, viewer: Viewer) -> bool:
        match viewer.kind:
            case "partner":
                return viewer.id == self.carrier
            case "airport":
                return viewer.id in (self.origin, self.destination)
            case _:
                return False

    def legacy(self) -> list[str | int | None]:
        return [
            self.id,
            self.revision,
            self.carrier,
            f"{self.number:04d}",
            self.origin,
            self.destination,
            self.tail_number or "",
            f"{self.scheduled_departure.astimezone(NEW_YORK):%Y-%m-%d %H:%M}",
            STATUS_LETTERS[self.status],
            self.departure_delay_min,
            self.arrival_delay_min,
            self.air_time_min,
            self.distance_miles,
            self.gate or "",
        ]


class FlightOffice(BackOffice):
    """Flights in the order of their departure; see the module for what the changes are."""

    kind: ClassVar[str] = "flights"
    title: ClassVar[str] = "OPS-CTRL NYC"
    records: Sequence[type[Record]] = (Flight,)
    zone: ClassVar[ZoneInfo] = NEW_YORK
    life_mix: ClassVar[Mapping[Deed, int]] = {"creates": 22, "updates": 50, "corrections": 12, "deletes": 16}

    def __init__(self, options: argparse.Namespace) -> None:
        self._folder = data_folder()
        self._plan = FlightPlan(self._folder)
        self._to = _destination(options)
        if self._to is not None:
            self.records = (Flight, *fleet.DROPPED)

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--drops", default=None, metavar="DIR|s3", help="write CSV drops into DIR, or only to S3")
        parser.add_argument("--drops-bucket", default=None, metavar="NAME", help="put CSV drops into this bucket")
        parser.add_argument("--drops-prefix", default="drops/")
        parser.add_argument("--drops-pause-s", type=float, default=2.0, help="at most one extract per entity in it")

    # --- rows ----------------------------------------------------------------------------------

    def seed(self, kind: type[Record], desk: Desk, rows: int) -> Iterable[Record]:
        return self._flights(desk, rows // 2) if kind is Flight else fleet.seeded(kind, self._folder)

    def create(self, desk: Desk) -> bool:
        planned = self._plan.flight(desk.next("flight") - 1)
        if planned is not None:
            desk.put(_scheduled(planned))
        return planned is not None

    def update(self, desk: Desk) -> bool:
        flight = desk.pick(Flight, "open")
        if flight is None:
            return self._correct_flight(desk)
        desk.put(_moved(flight))
        return True

    def correct(self, desk: Desk) -> bool:
        if self._to is not None and desk.rng.random() < 0.04 and fleet.corrected(desk):
            return True
        return self._correct_flight(desk)

    def delete(self, desk: Desk) -> bool:
        if self._to is not None and desk.rng.random() < 0.04 and fleet.retired(desk):
            return True
        flight = desk.pick(Flight, "closed") or desk.pick(Flight)
        if flight is None:
            return False
        desk.delete(flight)
        return True

    async def work_beside(self, is_out: Callable[[], bool]) -> None:
        if self._to is None:
            await super().work_beside(is_out)
        else:
            await Dropper(self.store, fleet.DROPPED, self._to).run(is_out)

    def _flights(self, desk: Desk, count: int) -> Iterator[Record]:
        for revision in range(1, count + 1):
            planned = self._plan.flight(desk.next("flight") - 1)
            if planned is None:
                return
            flight = _scheduled(planned)
            while flight.lane() == "open":
                flight = _moved(flight)
            yield replace(flight, revision=revision)

    def _correct_flight(self, desk: Desk) -> bool:
        flight = desk.pick(Flight, "closed") or desk.pick(Flight)
        if flight is None:
            return False
        minutes = desk.rng.choice((-3, -2, -1, 1, 2, 3))
        if flight.departure_delay_min is not None and desk.rng.random() < 0.6:
            desk.put(replace(flight, departure_delay_min=flight.departure_delay_min + minutes))
        else:
            desk.put(replace(flight, gate=_gate(f"{flight.id}/{flight.gate}/{desk.rng.random()}", flight.gate)))
        return True

    # --- legacy API ----------------------------------------------------------------------------

    def routes(self) -> Mapping[str, Handler]:
        return {"/ops/flights.json": self._list}

    def refusal(self, status: int, text: str) -> Answer:
        return {"status": status, "error": text}

    async def _list(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        if "ids" in query:
            ids = [ident for ident in query["ids"].split(";") if ident]
            if not 1 <= len(ids) <= 100:
                raise BadQuery("ids must name 1 to 100 flights")
            return self._page(self.store.named(Flight, ids), None)
        size = whole(query, "size", 500, 1, 1000)
        token = query.get("page_token", "")
        # One row more than asked tells whether there is a next page.
        if "since_rev" in query:
            since = whole(query, "since_rev", 0, 0, 2**62)
            after = int(_opened(token, "r") or since) if token else since
            rows = self.store.after_version(Flight, after, size + 1)
            more = _token("r", str(rows[size - 1].revision)) if len(rows) > size else None
        else:
            rows = self.store.after_key(Flight, _opened(token, "k") if token else "", size + 1)
            more = _token("k", rows[size - 1].id) if len(rows) > size else None
        return self._page(rows[:size], more)

    def _page(self, rows: Sequence[Flight], token: str | None) -> web.Response:
        return reply(
            {
                "columns": COLUMNS,
                "data": [row.legacy() for row in rows],
                "next_page_token": token,
                "rev": self.store.revision,
            }
        )


def _destination(options: argparse.Namespace) -> Destination | None:
    where: str | None = options.drops
    bucket: str | None = options.drops_bucket
    if where == "s3" and bucket is None:
        raise ValueError("--drops s3 needs --drops-bucket")
    if where is None and bucket is None:
        return None
    folder = Path(where) if where is not None and where != "s3" else None
    return Destination(folder, bucket, options.drops_prefix, options.drops_pause_s)


def _scheduled(planned: Planned) -> Flight:
    fields = asdict(planned)
    final = {f"final_{name}": fields.pop(name) for name in ("departure_delay_min", "arrival_delay_min", "air_time_min")}
    return Flight(**fields, **final)


def _moved(flight: Flight) -> Flight:
    """The next step of an open flight."""
    if flight.status == "departed":
        return replace(
            flight,
            status="arrived",
            arrival_delay_min=flight.final_arrival_delay_min,
            air_time_min=flight.final_air_time_min,
        )
    if flight.final_departure_delay_min is None:
        return replace(flight, status="cancelled")
    gate = flight.gate or _gate(flight.id, None)
    return replace(flight, status="departed", departure_delay_min=flight.final_departure_delay_min, gate=gate)


def _gate(seed: str, not_this: str | None) -> str:
    number = zlib.crc32(seed.encode()) % 240
    gate = f"{'ABCD'[number // 60]}{number % 60 + 1}"
    return gate if gate != not_this else "E1"


def _token(kind: str, after: str) -> str:
    return base64.urlsafe_b64encode(f"{kind}{after}".encode()).decode()


def _opened(token: str, kind: str) -> str:
    try:
        text = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except ValueError:
        raise BadQuery("page_token is not one of ours") from None
    if text[:1] != kind or (kind == "r" and not text[1:].isdigit()):
        raise BadQuery("page_token belongs to another query")
    return text[1:]
