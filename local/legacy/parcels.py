"""The parcels back office: parcels and the offices they go through.

Legacy API (header X-Api-Key; times in Europe/Zurich local time without zone; decimal commas):

    GET /PAKET/LISTE?GEAEND_AB=2026-11-21 06:55:03&SEITE=1&ANZAHL=200
        → {"SEITE": 1, "ANZ_SEITEN": n, "ANZ_TOTAL": m, "SAETZE": [{…}]}
        With GEAEND_AB: changed at or after it, by (AENDZEIT, PNR). Without: everything, by PNR.
        ANZAHL 1..500 (200), SEITE from 1; a page behind the last one is empty.
    GET /PAKET/EINZEL?PNR=a&PNR=b   (1..50) → {"SAETZE": [{…}]}, only those that exist
    GET /FILIALE/LISTE, /FILIALE/EINZEL?FIL_NR=   the same for offices, by FIL_NR
    Errors: {"FEHLER": status, "TEXT": text}

PAKET, legacy column ← clean field:
    PNR number "P0001234" · STAT_CD status (10 booked, 20 accepted, 30 in_transit, 35 delayed, 40 out_for_delivery,
    50 delivered, 90 returned) · FIL_ABG origin_office · FIL_AKT current_office (may be blank) ·
    FIL_EMPF destination_office · KD_ABS sender · KD_EMPF recipient · PARTNER partner_shop (S01..S05 or blank) ·
    PREIS shipping_cost "12,50" · GEW weight_kg "0,850" · EXPR_KZ express J/N · ERFZEIT booked_at ·
    ZUSTDAT promised_on "21.11.2026" or blank · AENDZEIT changed_at
FILIALE: FIL_NR number · BEZ name · ORT city · PLZ postal_code · FIL_TYP kind (1 counter, 2 sorting_centre,
    3 partner_shop) · AENDZEIT changed_at

Clean truth (`/_sim/truth`):
    parcel {"number", "status", "origin_office", "current_office": null if blank, "destination_office", "sender",
            "recipient", "partner_shop": null if blank, "shipping_cost": "12.50", "weight_kg": "0.850",
            "express": bool, "booked_at": "2026-11-21T05:55:03Z", "promised_on": "2026-11-21" or null, "changed_at"}
    office {"number", "name", "city", "postal_code", "kind", "changed_at"}

Who sees what: customer:<id> parcels with sender or recipient = id; office:<nr> parcels with origin, current or
destination office = nr; partner:<shop> parcels with that partner_shop; offices: everybody.

AENDZEIT has whole seconds: several changes of a row within one second leave it the same. Deletes are hard.
In the hour that the end of summer time repeats, AENDZEIT and ERFZEIT are ambiguous, as in the real thing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import ClassVar, Literal, TypeVar
from zoneinfo import ZoneInfo

from aiohttp import web
from msgspec.structs import replace

from local.legacy.desk import Desk
from local.legacy.dialect import BadQuery, comma, local_floor, local_text, swiss_date, unambiguous, whole, zoned
from local.legacy.manners import Handler
from local.legacy.office import Answer, BackOffice, reply
from local.legacy.record import NEVER, Record, Viewer
from local.legacy.switzerland import TOWNS

ZONE = ZoneInfo("Europe/Zurich")
CUSTOMERS = range(1001, 1801)
"""The numbers that the customers office starts with; the two offices do not talk to each other."""
SHOPS = ("S01", "S02", "S03", "S04", "S05")

Status = Literal["booked", "accepted", "in_transit", "delayed", "out_for_delivery", "delivered", "returned"]
OfficeKind = Literal["counter", "sorting_centre", "partner_shop"]

STATUS_CODES: Mapping[Status, int] = {
    "booked": 10,
    "accepted": 20,
    "in_transit": 30,
    "delayed": 35,
    "out_for_delivery": 40,
    "delivered": 50,
    "returned": 90,
}
KIND_CODES: Mapping[OfficeKind, int] = {"counter": 1, "sorting_centre": 2, "partner_shop": 3}
CENT = Decimal("0.01")
GRAM = Decimal("0.001")


class Office(Record, frozen=True, kw_only=True):
    """A counter, a sorting centre or a partner shop."""

    entity: ClassVar[str] = "office"
    editable: ClassVar[tuple[str, ...]] = ("name", "city", "postal_code", "kind")
    number: str
    name: str
    city: str
    postal_code: str
    kind: OfficeKind
    changed_at: datetime = NEVER

    def legacy(self) -> dict[str, str | int]:
        return {
            "FIL_NR": self.number,
            "BEZ": self.name,
            "ORT": self.city,
            "PLZ": self.postal_code,
            "FIL_TYP": KIND_CODES[self.kind],
            "AENDZEIT": local_text(self.changed_at, ZONE),
        }


class Parcel(Record, frozen=True, kw_only=True):
    """A parcel on its way from one customer to another."""

    entity: ClassVar[str] = "parcel"
    editable: ClassVar[tuple[str, ...]] = (
        "status",
        "current_office",
        "recipient",
        "partner_shop",
        "shipping_cost",
        "weight_kg",
        "express",
        "promised_on",
    )
    number: str
    status: Status
    origin_office: str
    current_office: str | None
    destination_office: str
    sender: str
    recipient: str
    partner_shop: str | None
    shipping_cost: Decimal
    weight_kg: Decimal
    express: bool
    booked_at: datetime
    promised_on: date | None
    changed_at: datetime = NEVER

    def lane(self) -> str:
        return "closed" if self.status in ("delivered", "returned") else "open"

    def checked(self) -> "Parcel":
        amounts = (self.shipping_cost, self.weight_kg)
        if not all(amount.is_finite() and 0 <= amount < 100_000 for amount in amounts):
            raise ValueError("shipping_cost and weight_kg must be from 0 to 99999")
        return replace(
            self,
            shipping_cost=self.shipping_cost.quantize(CENT, ROUND_HALF_EVEN),
            weight_kg=self.weight_kg.quantize(GRAM, ROUND_HALF_EVEN),
            current_office=self.current_office or None,
            partner_shop=self.partner_shop or None,
        )

    def seen_by(self, viewer: Viewer) -> bool:
        match viewer.kind:
            case "customer":
                return viewer.id in (self.sender, self.recipient)
            case "office":
                return viewer.id in (self.origin_office, self.current_office, self.destination_office)
            case "partner":
                return viewer.id == self.partner_shop
            case _:
                return False

    def legacy(self) -> dict[str, str | int]:
        return {
            "PNR": self.number,
            "STAT_CD": STATUS_CODES[self.status],
            "FIL_ABG": self.origin_office,
            "FIL_AKT": self.current_office or "",
            "FIL_EMPF": self.destination_office,
            "KD_ABS": self.sender,
            "KD_EMPF": self.recipient,
            "PARTNER": self.partner_shop or "",
            "PREIS": comma(self.shipping_cost),
            "GEW": comma(self.weight_kg),
            "EXPR_KZ": "J" if self.express else "N",
            "ERFZEIT": local_text(self.booked_at, ZONE),
            "ZUSTDAT": swiss_date(self.promised_on),
            "AENDZEIT": local_text(self.changed_at, ZONE),
        }


R = TypeVar("R", Office, Parcel)


class ParcelOffice(BackOffice):
    """Parcels live from booking to delivery; offices change their name once in a while."""

    kind: ClassVar[str] = "parcels"
    title: ClassVar[str] = "Paketverwaltung PAKDAT/2"
    records: Sequence[type[Record]] = (Parcel, Office)
    zone: ClassVar[ZoneInfo] = ZONE

    # --- rows ----------------------------------------------------------------------------------

    def seed(self, kind: type[Record], desk: Desk, rows: int) -> Iterable[Record]:
        return _offices(desk) if kind is Office else self._parcels(desk, rows)

    def create(self, desk: Desk) -> bool:
        ends = desk.pick(Office), desk.pick(Office)
        if ends[0] is None or ends[1] is None:
            return False
        desk.put(_booked(desk, ends[0].number, ends[1].number, desk.now))
        return True

    def update(self, desk: Desk) -> bool:
        parcel = desk.pick(Parcel, "open") or desk.pick(Parcel)
        if parcel is None:
            return False
        desk.put(_moved(parcel, desk))
        return True

    def correct(self, desk: Desk) -> bool:
        office = desk.pick(Office) if desk.rng.random() < 0.02 else None
        if office is not None:
            desk.put(replace(office, name=_renamed(office.name)))
            return True
        parcel = desk.pick(Parcel)
        if parcel is None:
            return False
        desk.put(_corrected(parcel, desk))
        return True

    def delete(self, desk: Desk) -> bool:
        # Mostly what is long delivered; now and then a parcel on its way, booked by mistake.
        parcel = (desk.pick(Parcel, "closed") if desk.rng.random() < 0.8 else None) or desk.pick(Parcel)
        if parcel is None:
            return False
        desk.delete(parcel)
        return True

    def _parcels(self, desk: Desk, rows: int) -> Iterator[Record]:
        offices = [f"{101 + index}" for index in range(_OFFICE_COUNT)]
        today = desk.now.astimezone(ZONE).replace(hour=0, minute=0, second=0, tzinfo=None)
        for _ in range(rows):
            # Booked in working hours, which the change of the clocks never touches.
            into_day = timedelta(seconds=desk.rng.randint(7 * 3600, 19 * 3600))
            booked_at = zoned(today - timedelta(days=desk.rng.randint(1, 20)) + into_day, ZONE)
            parcel = _booked(desk, desk.rng.choice(offices), desk.rng.choice(offices), booked_at)
            for _ in range(desk.rng.choice((0, 1, 2, 3, 4, 5, 6, 7))):
                if parcel.lane() == "open":
                    parcel = _moved(parcel, desk, offices)
            age_s = int((desk.now - booked_at).total_seconds())
            changed_at = booked_at + timedelta(seconds=desk.rng.randrange(age_s))
            yield replace(parcel, changed_at=unambiguous(changed_at, ZONE))

    # --- legacy API ----------------------------------------------------------------------------

    def routes(self) -> Mapping[str, Handler]:
        return {
            "/PAKET/LISTE": self._listing(Parcel),
            "/PAKET/EINZEL": self._single(Parcel, "PNR"),
            "/FILIALE/LISTE": self._listing(Office),
            "/FILIALE/EINZEL": self._single(Office, "FIL_NR"),
        }

    def refusal(self, status: int, text: str) -> Answer:
        return {"FEHLER": status, "TEXT": text.upper()}

    def _listing(self, kind: type[R]) -> Handler:
        async def listing(request: web.Request) -> web.StreamResponse:
            query = request.query
            size = whole(query, "ANZAHL", 200, 1, 500)
            page = whole(query, "SEITE", 1, 1, 10**9)
            bound = query.get("GEAEND_AB")
            since = local_floor(bound, ZONE) if bound else None
            total = self.store.count(kind, since)
            order: Literal["key", "version"] = "key" if since is None else "version"
            rows = self.store.page(kind, order, (page - 1) * size, size, since)
            return reply(
                {
                    "SEITE": page,
                    "ANZ_SEITEN": max(1, -(-total // size)),
                    "ANZ_TOTAL": total,
                    "SAETZE": [row.legacy() for row in rows],
                }
            )

        return listing

    def _single(self, kind: type[R], column: str) -> Handler:
        async def single(request: web.Request) -> web.StreamResponse:
            keys = request.query.getall(column, [])
            if not 1 <= len(keys) <= 50:
                raise BadQuery(f"{column} must be given 1 to 50 times")
            return reply({"SAETZE": [row.legacy() for row in self.store.named(kind, keys)]})

        return single


_OFFICE_COUNT = 40


def _offices(desk: Desk) -> Iterator[Record]:
    for index in range(_OFFICE_COUNT):
        town = TOWNS[index % len(TOWNS)]
        kind: OfficeKind = "partner_shop" if index >= 35 else "sorting_centre" if index % 9 == 0 else "counter"
        words = {"counter": "Filiale", "sorting_centre": "Paketzentrum", "partner_shop": "Partnerladen"}
        suffix = " 2" if index >= len(TOWNS) else ""
        age = timedelta(days=desk.rng.randint(30, 900), seconds=desk.rng.randrange(86400))
        yield Office(
            number=f"{101 + index}",
            name=f"{words[kind]} {town.name}{suffix}",
            city=town.name,
            postal_code=town.postal_code,
            kind=kind,
            changed_at=unambiguous(desk.now - age, ZONE),
        )


def _booked(desk: Desk, origin: str, destination: str, booked_at: datetime) -> Parcel:
    rng = desk.rng
    express = rng.random() < 0.2
    weight = Decimal(rng.randint(50, 30_000)) * GRAM
    cost = Decimal(rng.randrange(700, 3900, 5)) * CENT + (Decimal(9) if express else 0)
    days = 1 if express else rng.randint(2, 5)
    return Parcel(
        number=f"P{desk.next('parcel'):07d}",
        status="booked",
        origin_office=origin,
        current_office=None,
        destination_office=destination,
        sender=str(rng.choice(CUSTOMERS)),
        recipient=str(rng.choice(CUSTOMERS)),
        partner_shop=rng.choice(SHOPS) if rng.random() < 0.3 else None,
        shipping_cost=cost,
        weight_kg=weight,
        express=express,
        booked_at=booked_at.astimezone(UTC),
        promised_on=booked_at.astimezone(ZONE).date() + timedelta(days=days) if rng.random() < 0.95 else None,
    )


def _moved(parcel: Parcel, desk: Desk, offices: Sequence[str] = ()) -> Parcel:
    """The next step of a parcel's way; a closed parcel comes back or goes out again."""
    dice = desk.rng.random()
    match parcel.status:
        case "booked":
            return replace(parcel, status="accepted", current_office=parcel.origin_office)
        case "accepted" | "delayed":
            return replace(parcel, status="in_transit", current_office=None)
        case "in_transit" if dice < 0.15:
            later = (parcel.promised_on or desk.now.date()) + timedelta(days=1)
            return replace(parcel, status="delayed", promised_on=later)
        case "in_transit" if dice < 0.45:
            return replace(parcel, current_office=_elsewhere(parcel, desk, offices))
        case "in_transit":
            return replace(parcel, status="out_for_delivery", current_office=parcel.destination_office)
        case "out_for_delivery" if dice < 0.07:
            return replace(parcel, status="delayed")
        case "out_for_delivery":
            return replace(parcel, status="delivered")
        case "delivered":
            return replace(parcel, status="returned", current_office=parcel.origin_office)
        case "returned":
            return replace(parcel, status="in_transit", current_office=None)


def _elsewhere(parcel: Parcel, desk: Desk, offices: Sequence[str]) -> str | None:
    if offices:
        return desk.rng.choice([number for number in offices if number != parcel.current_office])
    office = desk.pick(Office)
    if office is not None and office.number != parcel.current_office:
        return office.number
    return None if parcel.current_office else parcel.origin_office


def _corrected(parcel: Parcel, desk: Desk) -> Parcel:
    rng = desk.rng
    match rng.randrange(4):
        case 0:
            return replace(parcel, weight_kg=parcel.weight_kg + Decimal(rng.randint(1, 400)) * GRAM)
        case 1:
            others = [number for number in rng.sample(CUSTOMERS, 2) if str(number) != parcel.recipient]
            return replace(parcel, recipient=str(others[0]))
        case 2:
            return replace(parcel, express=not parcel.express)
        case _:
            return replace(parcel, shipping_cost=parcel.shipping_cost + Decimal(rng.randrange(5, 500, 5)) * CENT)


def _renamed(name: str) -> str:
    return name.removesuffix(" (neu)") if name.endswith(" (neu)") else f"{name} (neu)"
