"""The parcels and customers back offices over HTTP: what the legacy API shows is what the truth says."""

import argparse
import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import aiohttp
import msgspec
import pytest

from local.legacy.customers import CustomerOffice
from local.legacy.manners import Night, Rules
from local.legacy.office import BackOffice
from local.legacy.parcels import ParcelOffice
from local.legacy.server import Settings, serving

KEY = "a-key"
ZURICH = ZoneInfo("Europe/Zurich")
PATIENT = Rules(patient=True)
Json = Any  # answers of an API that is under test


@dataclass
class Caller:
    """An HTTP client of one back office."""

    session: aiohttp.ClientSession
    address: str

    async def sim(self, path: str, body: object = None) -> Json:
        """A control call; POST when there is a body."""
        method = "GET" if body is None else "POST"
        async with self.session.request(method, f"{self.address}/_sim/{path}", json=body) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def truth(self, entity: str, viewer: str | None = None) -> dict[str, Json]:
        params = {"entity": entity} | ({"viewer": viewer} if viewer else {})
        async with self.session.get(f"{self.address}/_sim/truth", params=params) as response:
            assert response.status == 200
            lines = [msgspec.json.decode(line) for line in (await response.read()).splitlines()]
        assert [line["key"] for line in lines] == sorted(line["key"] for line in lines)
        return {line["key"]: line["row"] for line in lines}

    async def get(self, path: str, params: object = None) -> tuple[int, Json]:
        async with self.session.get(self.address + path, params=params) as response:  # type: ignore[arg-type]
            return response.status, await response.json()


@asynccontextmanager
async def calling(
    kind: type[BackOffice], folder: Path, rules: Rules = PATIENT, rows: int = 300, key: str = KEY
) -> AsyncIterator[Caller]:
    office = kind(argparse.Namespace())
    headers = {"X-Api-Key": key, "Authorization": f"ApiKey {key}"}
    async with (
        serving(office, Settings(folder=folder, api_key=KEY, rows=rows, rules=rules)) as address,
        aiohttp.ClientSession(headers=headers) as session,
    ):
        yield Caller(session, address)


@pytest.fixture
async def parcels(tmp_path: Path) -> AsyncIterator[Caller]:
    async with calling(ParcelOffice, tmp_path) as caller:
        yield caller


@pytest.fixture
async def customers(tmp_path: Path) -> AsyncIterator[Caller]:
    async with calling(CustomerOffice, tmp_path, rows=250) as caller:
        yield caller


STATUSES = {10: "booked", 20: "accepted", 30: "in_transit", 35: "delayed", 40: "out_for_delivery", 50: "delivered",
            90: "returned"}  # fmt: skip


def utc_of(local: str) -> str:
    at = datetime.strptime(local, "%Y-%m-%d %H:%M:%S").replace(tzinfo=ZURICH).astimezone(UTC)
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


def parcel_of(row: dict[str, Json]) -> dict[str, Json]:
    """Written here a second time, so that rendering and truth check each other."""
    day = row["ZUSTDAT"]
    return {
        "number": row["PNR"],
        "status": STATUSES[row["STAT_CD"]],
        "origin_office": row["FIL_ABG"],
        "current_office": row["FIL_AKT"] or None,
        "destination_office": row["FIL_EMPF"],
        "sender": row["KD_ABS"],
        "recipient": row["KD_EMPF"],
        "partner_shop": row["PARTNER"] or None,
        "shipping_cost": row["PREIS"].replace(",", "."),
        "weight_kg": row["GEW"].replace(",", "."),
        "express": row["EXPR_KZ"] == "J",
        "booked_at": utc_of(row["ERFZEIT"]),
        "promised_on": f"{day[6:]}-{day[3:5]}-{day[:2]}" if day else None,
        "changed_at": utc_of(row["AENDZEIT"]),
    }


def customer_of(item: dict[str, Json]) -> dict[str, Json]:
    about = item["attributes"]
    return {
        "number": str(item["clientId"]),
        "name": about["displayName"],
        "email": about["contact"]["mail"],
        "phone": about["contact"]["phone"] or None,
        "street": about["address"]["street"],
        "postal_code": about["address"]["zip"],
        "city": about["address"]["town"],
        "segment": {"P": "private", "B": "business"}[about["segment"]],
        "vip": about["vipFlag"] == 1,
        "language": about["language"],
        "revision": item["rev"],
    }


async def walk(parcels: Caller, path: str, **params: object) -> list[Json]:
    rows: list[Json] = []
    page, pages = 1, 1
    while page <= pages:
        status, answer = await parcels.get(path, {**params, "SEITE": page, "ANZAHL": 70})
        assert status == 200
        pages, page = answer["ANZ_SEITEN"], page + 1
        rows += answer["SAETZE"]
    assert len(rows) == answer["ANZ_TOTAL"]
    return rows


async def test_the_full_walk_is_the_truth(parcels: Caller) -> None:
    await parcels.sim("burst", {"creates": 60, "updates": 300, "corrections": 90, "deletes": 40})
    rows = await walk(parcels, "/PAKET/LISTE")
    assert [row["PNR"] for row in rows] == sorted(row["PNR"] for row in rows)
    assert {row["PNR"]: parcel_of(row) for row in rows} == await parcels.truth("parcel")
    assert len(rows) == 320
    offices = await walk(parcels, "/FILIALE/LISTE")
    truth = await parcels.truth("office")
    assert len(truth) == 40
    assert {row["FIL_NR"]: (row["BEZ"], row["ORT"], row["PLZ"]) for row in offices} == {
        number: (office["name"], office["city"], office["postal_code"]) for number, office in truth.items()
    }
    assert {row["FIL_TYP"] for row in offices} == {1, 2, 3}


async def test_a_burst_ties_many_rows_in_a_second_and_the_delta_has_them_all(parcels: Caller) -> None:
    before = await parcels.truth("parcel")
    since = datetime.now(ZURICH)
    await parcels.sim("burst", {"creates": 50, "updates": 200, "corrections": 50})
    rows = await walk(parcels, "/PAKET/LISTE", GEAEND_AB=f"{since:%Y-%m-%d %H:%M:%S}")
    places = [(row["AENDZEIT"], row["PNR"]) for row in rows]
    assert places == sorted(places)
    assert max(Counter(at for at, _ in places).values()) > 50
    after = await parcels.truth("parcel")
    assert {row["PNR"] for row in rows} == {key for key in after if after[key] != before.get(key)}
    status, answer = await parcels.get("/PAKET/LISTE", {"GEAEND_AB": "2099-01-01 00:00:00"})
    assert (status, answer["ANZ_TOTAL"], answer["ANZ_SEITEN"], answer["SAETZE"]) == (200, 0, 1, [])


async def test_keyed_reads_give_what_exists(parcels: Caller) -> None:
    _, answer = await parcels.get("/PAKET/EINZEL", [("PNR", "P0000007"), ("PNR", "nope"), ("PNR", "P0000003")])
    truth = await parcels.truth("parcel")
    assert [parcel_of(row) for row in answer["SAETZE"]] == [truth["P0000007"], truth["P0000003"]]
    _, answer = await parcels.get("/FILIALE/EINZEL", {"FIL_NR": "101"})
    assert [row["FIL_NR"] for row in answer["SAETZE"]] == ["101"]
    for params in ([], [("PNR", "x")] * 51):
        status, answer = await parcels.get("/PAKET/EINZEL", params)
        assert (status, answer["FEHLER"]) == (400, 400)


@pytest.mark.parametrize("query", ["ANZAHL=501", "ANZAHL=0", "SEITE=0", "SEITE=x", "GEAEND_AB=gestern"])
async def test_nonsense_is_refused_in_the_dialect(parcels: Caller, query: str) -> None:
    status, answer = await parcels.get(f"/PAKET/LISTE?{query}")
    assert (status, answer["FEHLER"]) == (400, 400)


async def test_each_viewer_sees_its_rows(parcels: Caller) -> None:
    whole = await parcels.truth("parcel")
    one = whole["P0000001"]
    for viewer, columns in {
        f"customer:{one['sender']}": ("sender", "recipient"),
        f"office:{one['origin_office']}": ("origin_office", "current_office", "destination_office"),
        "partner:S02": ("partner_shop",),
    }.items():
        ident = viewer.partition(":")[2]
        expected = {key: row for key, row in whole.items() if ident in [row[column] for column in columns]}
        assert await parcels.truth("parcel", viewer) == expected
        assert 0 < len(expected) < len(whole)
        assert len(await parcels.truth("office", viewer)) == 40
    assert await parcels.truth("parcel", "stranger:1") == {}


async def test_edits_are_commits_with_a_log_row(parcels: Caller) -> None:
    named = {"entity": "parcel", "key": "P0000005"}
    fields = {"shipping_cost": "99.5", "promised_on": None, "express": True, "partner_shop": ""}
    before_ms = time.time_ns() // 1_000_000
    row = (await parcels.sim("edit", {**named, "fields": fields}))["row"]
    assert (row["shipping_cost"], row["promised_on"], row["express"], row["partner_shop"]) == (
        "99.50",
        None,
        True,
        None,
    )
    [change] = await parcels.sim("changes?after=0&limit=5")
    assert before_ms <= change.pop("committed_at_ms") <= time.time_ns() // 1_000_000
    assert change == {"no": 1, **named, "operation": "upsert", "row": row}
    _, answer = await parcels.get("/PAKET/EINZEL", {"PNR": "P0000005"})
    assert (answer["SAETZE"][0]["PREIS"], answer["SAETZE"][0]["ZUSTDAT"]) == ("99,50", "")
    await parcels.sim("delete", named)
    assert "P0000005" not in await parcels.truth("parcel")
    restored = await parcels.sim("restore", named)
    assert restored["row"]["shipping_cost"] == "99.50"
    assert [change["operation"] for change in await parcels.sim("changes")] == ["upsert", "delete", "upsert"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("edit", {"entity": "parcel", "key": "P0000001", "fields": {"number": "P9"}}, 400),
        ("edit", {"entity": "parcel", "key": "P0000001", "fields": {"status": "lost"}}, 400),
        ("edit", {"entity": "parcel", "key": "P0000001", "fields": {"weight_kg": "-1"}}, 400),
        ("edit", {"entity": "parcel", "key": "P0000001", "fields": {"weight_kg": "NaN"}}, 400),
        ("edit", {"entity": "parcel", "key": "P9999999", "fields": {}}, 404),
        ("delete", {"entity": "letter", "key": "1"}, 404),
        ("restore", {"entity": "parcel", "key": "P0000001"}, 409),
        ("burst", {"creates": -1}, 400),
        ("life", {"on": True, "changes_per_s": 0}, 400),
        ("outage", {}, 400),
    ],
)
async def test_impossible_orders_change_nothing(parcels: Caller, path: str, body: object, status: int) -> None:
    async with parcels.session.post(f"{parcels.address}/_sim/{path}", json=body) as response:
        assert response.status == status
        assert "error" in await response.json()
    assert (await parcels.sim("stats"))["changes"] == 0


async def test_without_the_key_nobody_gets_in(tmp_path: Path) -> None:
    async with calling(ParcelOffice, tmp_path, key="wrong-ü") as caller:
        assert await caller.get("/PAKET/LISTE") == (401, {"FEHLER": 401, "TEXT": "API KEY MISSING OR WRONG"})
        assert (await caller.sim("health")) == {"ok": True}
        assert (await caller.sim("stats"))["requests"]["unauthorized"] == 1


async def test_above_the_budget_comes_429(tmp_path: Path) -> None:
    rules = Rules(requests_per_s=5, slow_share=0)
    async with calling(ParcelOffice, tmp_path, rules) as caller:
        asked = [caller.session.get(f"{caller.address}/FILIALE/LISTE") for _ in range(12)]
        answers = await asyncio.gather(*asked)
        assert Counter(answer.status for answer in answers) == {200: 5, 429: 7}
        assert {answer.headers.get("Retry-After") for answer in answers if answer.status == 429} == {"1"}
        assert all("Date" in answer.headers for answer in answers)


async def test_outage_and_night_answer_503(tmp_path: Path) -> None:
    now = datetime.now(ZURICH)
    night = Night(now.time(), (now + timedelta(minutes=10)).time())
    async with (
        calling(ParcelOffice, tmp_path / "night", Rules(night=night)) as caller,
        caller.session.get(f"{caller.address}/PAKET/LISTE") as response,
    ):
        assert response.status == 503
        assert 0 < int(response.headers["Retry-After"]) <= 300
    async with calling(CustomerOffice, tmp_path / "outage", Rules(slow_share=0)) as caller:
        await caller.sim("outage", {"on": True})
        results = [await status_or_drop(caller, "/api/v2/clients") for _ in range(4)]
        assert sorted(results) == ["503", "503", "503", "dropped"]
        assert (await caller.sim("stats"))["outage"] is True
        await caller.sim("outage", {"on": False})
        assert (await caller.get("/api/v2/clients"))[0] == 200


async def status_or_drop(caller: Caller, path: str) -> str:
    # Without the HTTP client, which would quietly ask a second time.
    reader, writer = await asyncio.open_connection("127.0.0.1", int(caller.address.rpartition(":")[2]))
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: legacy\r\n\r\n".encode())
        first_line = (await reader.readline()).decode()
    except ConnectionResetError:
        return "dropped"
    finally:
        writer.close()
    return first_line.split(" ")[1] if first_line else "dropped"


async def test_life_goes_on_by_itself_until_it_is_switched_off(parcels: Caller) -> None:
    await parcels.sim("life", {"on": True, "changes_per_s": 400})
    deadline = time.monotonic() + 5
    while (await parcels.sim("stats"))["changes"] < 40:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    await parcels.sim("life", {"on": False})
    still = await parcels.sim("stats")
    await asyncio.sleep(0.1)
    assert (await parcels.sim("stats"))["changes"] == still["changes"]
    assert {parcel["PNR"] for parcel in await walk(parcels, "/PAKET/LISTE")} == set(await parcels.truth("parcel"))


async def test_a_big_burst_takes_seconds_and_counts_right(tmp_path: Path) -> None:
    async with calling(ParcelOffice, tmp_path, rows=2000) as caller:
        started = time.monotonic()
        order = {"creates": 1500, "updates": 2400, "corrections": 600, "deletes": 700}
        assert await caller.sim("burst", order) == {"applied": order, "last_change": 5200}
        assert time.monotonic() - started < 5
        changes = await caller.sim("changes?limit=10000")
        assert [change["no"] for change in changes] == list(range(1, 5201))
        times = [change["committed_at_ms"] for change in changes]
        assert times == sorted(times)
        assert (await caller.sim("stats"))["rows"]["parcel"] == 2800
        applied = (await caller.sim("burst", {"deletes": 4000}))["applied"]
        assert applied["deletes"] == 2800


async def test_customers_walk_and_delta(customers: Caller) -> None:
    await customers.sim("burst", {"creates": 20, "updates": 60, "corrections": 30, "deletes": 10})
    items: list[Json] = []
    offset: int | None = 0
    while offset is not None:
        _, answer = await customers.get("/api/v2/clients", {"offset": offset, "limit": 40})
        items += answer["items"]
        offset = answer["nextOffset"]
    assert len(items) == answer["total"] == 260
    assert [item["clientId"] for item in items] == sorted(item["clientId"] for item in items)
    assert {str(item["clientId"]): customer_of(item) for item in items} == await customers.truth("customer")
    since = max(item["modified"] for item in items)
    _, answer = await customers.get("/api/v2/clients", {"modified_since": since, "limit": 500})
    places = [(item["modified"], item["clientId"]) for item in answer["items"]]
    assert places == sorted(places)
    assert {place[0] for place in places} == {since}
    _, answer = await customers.get("/api/v2/clients/by-ids", {"ids": "1001,1,x"})
    assert [item["clientId"] for item in answer["items"]] in ([1001], [])
    assert (await customers.get("/api/v2/clients/by-ids"))[0] == 400


async def test_a_customer_sees_itself_and_its_revision_counts(customers: Caller) -> None:
    named = {"entity": "customer", "key": "1003"}
    first = (await customers.truth("customer", "customer:1003"))["1003"]
    assert len(await customers.truth("customer", "customer:1003")) == 1
    assert await customers.truth("customer", "office:1003") == {}
    row = (await customers.sim("edit", {**named, "fields": {"name": "Zoë", "phone": ""}}))["row"]
    assert row == first | {"name": "Zoë", "phone": None, "revision": first["revision"] + 1}
    await customers.sim("delete", named)
    # A restore from a backup: the revisions of this system start again.
    assert (await customers.sim("restore", named))["row"]["revision"] == 1


async def test_the_screen_is_served_with_what_it_needs(parcels: Caller) -> None:
    for path, kind in {"/": "html", "/app.js": "javascript", "/style.css": "css"}.items():
        async with parcels.session.get(parcels.address + path) as response:
            assert response.status == 200
            assert response.content_type.endswith(kind)
    described = await parcels.sim("describe")
    assert [entity["name"] for entity in described["entities"]] == ["parcel", "office"]
    found = await parcels.sim("rows?entity=parcel&q=P000012&limit=5")
    assert {row["key"] for row in found["rows"]} == {f"P000012{digit}" for digit in range(5)}
    assert found["total"] == 10
    assert (await parcels.sim("rows?entity=parcel&q=%25"))["total"] == 0
    await parcels.sim("edit", {"entity": "parcel", "key": "P0000077", "fields": {"recipient": "1004"}})
    newest = await parcels.sim("rows?entity=parcel&order=recent&limit=1")
    assert newest["rows"][0]["key"] == "P0000077"
