"""The customers back office: younger than the parcels one, and odd in its own way.

Legacy API (header `Authorization: ApiKey <key>`; times in ISO 8601 with the offset of Europe/Zurich):

    GET /api/v2/clients?modified_since=2026-11-21T06:55:03+01:00&offset=0&limit=100
        → {"items": [{…}], "total": n, "nextOffset": 100 or null}
        With modified_since: modified at or after it, by (modified, clientId). Without: everything, by clientId.
        limit 1..500 (100).
    GET /api/v2/clients/by-ids?ids=1001,1002   (1..100) → {"items": [{…}]}, only those that exist
    item: {"clientId": 1001, "attributes": {"displayName", "contact": {"mail", "phone": "" for none},
           "address": {"street", "zip", "town"}, "segment": "P" or "B", "vipFlag": 0 or 1,
           "language": "de", "fr", "it" or "en"}, "rev": 7, "modified": "2026-11-21T06:55:03+01:00"}
    Errors: {"errors": [{"status": "401", "title": text}]}

`rev` is the revision number of the row: +1 at each change. A row that is deleted and restored starts at 1 again.

Clean truth (`/_sim/truth`):
    customer {"number": "1001", "name", "email", "phone": null if blank, "street", "postal_code", "city",
              "segment": "private" or "business", "vip": bool, "language", "revision": 7}

Who sees what: customer:<id> its own row; nobody else sees any.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import ClassVar, Literal
from zoneinfo import ZoneInfo

from aiohttp import web
from msgspec.structs import replace

from local.legacy.desk import Desk
from local.legacy.dialect import BadQuery, offset_floor, offset_text, whole
from local.legacy.manners import Handler
from local.legacy.office import Answer, BackOffice, Deed, reply
from local.legacy.record import NEVER, Record, Viewer
from local.legacy.switzerland import FIRST_NAMES, FORMS, LAST_NAMES, STREETS, TOWNS, TRADES

ZONE = ZoneInfo("Europe/Zurich")
FIRST_NUMBER = 1001

Segment = Literal["private", "business"]
Language = Literal["de", "fr", "it", "en"]

_ASCII = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "é": "e", "è": "e", "ë": "e", "î": "i", "ô": "o", "ò": "o",
                        "ç": "c", "É": "e", "à": "a", "'": "", " ": "-", "&": "und"})  # fmt: skip


class Customer(Record, frozen=True, kw_only=True):
    """Somebody who sends or receives parcels."""

    entity: ClassVar[str] = "customer"
    hidden: ClassVar[frozenset[str]] = frozenset({"changed_at"})
    editable: ClassVar[tuple[str, ...]] = (
        "name",
        "email",
        "phone",
        "street",
        "postal_code",
        "city",
        "segment",
        "vip",
        "language",
    )
    number: str
    name: str
    email: str
    phone: str | None
    street: str
    postal_code: str
    city: str
    segment: Segment
    vip: bool
    language: Language
    revision: int = 0
    changed_at: datetime = NEVER

    def checked(self) -> "Customer":
        return replace(self, phone=self.phone or None)

    def seen_by(self, viewer: Viewer) -> bool:
        return viewer == Viewer("customer", self.number)

    def legacy(self) -> dict[str, object]:
        return {
            "clientId": int(self.number),
            "attributes": {
                "displayName": self.name,
                "contact": {"mail": self.email, "phone": self.phone or ""},
                "address": {"street": self.street, "zip": self.postal_code, "town": self.city},
                "segment": "B" if self.segment == "business" else "P",
                "vipFlag": int(self.vip),
                "language": self.language,
            },
            "rev": self.revision,
            "modified": offset_text(self.changed_at, ZONE),
        }


class CustomerOffice(BackOffice):
    """Customers move, change their phone, become important, and leave."""

    kind: ClassVar[str] = "customers"
    title: ClassVar[str] = "ClientBase 2.7"
    records: Sequence[type[Record]] = (Customer,)
    default_rows: ClassVar[int] = 800
    zone: ClassVar[ZoneInfo] = ZONE
    life_mix: ClassVar[Mapping[Deed, int]] = {"creates": 8, "updates": 60, "corrections": 25, "deletes": 7}

    # --- rows ----------------------------------------------------------------------------------

    def seed(self, kind: type[Record], desk: Desk, rows: int) -> Iterable[Record]:
        for _ in range(rows):
            age = timedelta(days=desk.rng.randint(1, 700), seconds=desk.rng.randrange(86_400))
            yield replace(_new(desk), revision=desk.rng.randint(1, 9), changed_at=desk.now - age)

    def create(self, desk: Desk) -> bool:
        desk.put(_new(desk))
        return True

    def update(self, desk: Desk) -> bool:
        customer = desk.pick(Customer)
        if customer is None:
            return False
        match desk.rng.randrange(3):
            case 0:
                desk.put(replace(customer, phone=_phone(desk) if customer.phone is None else None))
            case 1:
                desk.put(replace(customer, **_address(desk, customer.language)))
            case _:
                desk.put(replace(customer, vip=not customer.vip))
        return True

    def correct(self, desk: Desk) -> bool:
        customer = desk.pick(Customer)
        if customer is None:
            return False
        if desk.rng.random() < 0.5:
            language: Language = desk.rng.choice([each for each in _LANGUAGES if each != customer.language])
            desk.put(replace(customer, language=language))
        else:
            desk.put(replace(customer, email=_other_mail(customer.email)))
        return True

    # --- legacy API ----------------------------------------------------------------------------

    def routes(self) -> Mapping[str, Handler]:
        return {"/api/v2/clients": self._clients, "/api/v2/clients/by-ids": self._by_ids}

    def api_key(self, request: web.Request) -> str:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        return key.strip() if scheme.lower() == "apikey" else ""

    def refusal(self, status: int, text: str) -> Answer:
        return {"errors": [{"status": str(status), "title": text}]}

    async def _clients(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        offset, limit = whole(query, "offset", 0, 0, 10**9), whole(query, "limit", 100, 1, 500)
        bound = query.get("modified_since")
        since = offset_floor(bound) if bound else None
        order: Literal["number", "version"] = "number" if since is None else "version"
        total = self.store.count(Customer, since)
        rows = self.store.page(Customer, order, offset, limit, since)
        following = offset + limit
        return reply(
            {
                "items": [row.legacy() for row in rows],
                "total": total,
                "nextOffset": following if following < total else None,
            }
        )

    async def _by_ids(self, request: web.Request) -> web.StreamResponse:
        ids = [ident for ident in request.query.get("ids", "").split(",") if ident]
        if not 1 <= len(ids) <= 100:
            raise BadQuery("ids must name 1 to 100 clients")
        return reply({"items": [row.legacy() for row in self.store.named(Customer, ids)]})


_LANGUAGES: tuple[Language, ...] = ("de", "fr", "it", "en")


def _new(desk: Desk) -> Customer:
    rng = desk.rng
    language: Language = rng.choices(_LANGUAGES, weights=(62, 23, 10, 5))[0]
    business = rng.random() < 0.2
    last = rng.choice(LAST_NAMES)
    person = f"{rng.choice(FIRST_NAMES[language])} {last}"
    name = f"{rng.choice(TRADES)} {last} {rng.choice(FORMS)}" if business else person
    number = str(FIRST_NUMBER - 1 + desk.next("customer"))
    address = _address(desk, language)
    return Customer(
        number=number,
        name=name,
        email=f"{name.lower().translate(_ASCII).replace('-', '.')}.{number}@example.ch",
        phone=_phone(desk) if rng.random() < 0.85 else None,
        segment="business" if business else "private",
        vip=rng.random() < 0.05,
        language=language,
        street=address["street"],
        postal_code=address["postal_code"],
        city=address["city"],
    )


def _other_mail(email: str) -> str:
    old, new = "@example.ch", "@example.com"
    return email.replace(old, new) if email.endswith(old) else email.replace(new, old)


def _phone(desk: Desk) -> str:
    digits = desk.rng.randrange(10_000_000)
    area = desk.rng.choice(("44", "31", "22", "61", "76", "78", "79"))
    return f"+41 {area} {digits // 10_000:03d} {digits // 100 % 100:02d} {digits % 100:02d}"


def _address(desk: Desk, language: Language) -> dict[str, str]:
    town = desk.rng.choice([town for town in TOWNS if town.language == language] or TOWNS)
    street = desk.rng.choice(STREETS.get(language, STREETS["de"]))
    return {"street": f"{street} {desk.rng.randint(1, 140)}", "postal_code": town.postal_code, "city": town.name}
