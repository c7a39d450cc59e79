"""The flights back office: replay of the real flights, revisions, and the CSV drops of three business units."""

import argparse
import asyncio
import csv
import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import aiohttp
import msgspec
import pytest
from aiohttp import web

from local.legacy.flight_plan import FlightPlan, data_folder
from local.legacy.flights import FlightOffice
from local.legacy.manners import Rules
from local.legacy.server import Settings, serving

Json = Any  # answers of an API that is under test
NEW_YORK = ZoneInfo("America/New_York")
STATUSES = {"S": "scheduled", "D": "departed", "A": "arrived", "X": "cancelled"}


class Caller:
    def __init__(self, session: aiohttp.ClientSession, address: str) -> None:
        self.session = session
        self.address = address

    async def get(self, **params: str | int) -> Json:
        async with self.session.get(f"{self.address}/ops/flights.json", params=params) as response:
            return await response.json()

    async def sim(self, path: str, body: object = None) -> Json:
        method = "GET" if body is None else "POST"
        async with self.session.request(method, f"{self.address}/_sim/{path}", json=body) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def truth(self, entity: str, viewer: str = "") -> dict[str, Json]:
        path = f"{self.address}/_sim/truth?entity={entity}" + (f"&viewer={viewer}" if viewer else "")
        async with self.session.get(path) as response:
            lines = [msgspec.json.decode(line) for line in (await response.read()).splitlines()]
        return {line["key"]: line["row"] for line in lines}

    async def walk(self, **params: str | int) -> list[dict[str, Json]]:
        rows: list[dict[str, Json]] = []
        answer = await self.get(**params)
        while True:
            rows += [dict(zip(answer["columns"], row, strict=True)) for row in answer["data"]]
            if answer["next_page_token"] is None:
                return rows
            answer = await self.get(**params, page_token=answer["next_page_token"])


@asynccontextmanager
async def calling(folder: Path, rows: int = 400, **options: object) -> AsyncIterator[Caller]:
    defaults = {"drops": None, "drops_bucket": None, "drops_prefix": "drops/", "drops_pause_s": 0.02}
    office = FlightOffice(argparse.Namespace(**(defaults | options)))
    settings = Settings(folder=folder, api_key="k", rows=rows, rules=Rules(patient=True))
    async with (
        serving(office, settings) as address,
        aiohttp.ClientSession(headers={"X-Api-Key": "k"}) as session,
    ):
        yield Caller(session, address)


@pytest.fixture
async def flights(tmp_path: Path) -> AsyncIterator[Caller]:
    async with calling(tmp_path) as caller:
        yield caller


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + 10
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def flight_of(row: dict[str, Json]) -> dict[str, Json]:
    local = datetime.strptime(row["STD"], "%Y-%m-%d %H:%M").replace(tzinfo=NEW_YORK)
    return {
        "id": row["ID"],
        "carrier": row["CARR"],
        "number": int(row["FLT_NO"]),
        "origin": row["ORIG"],
        "destination": row["DEST"],
        "tail_number": row["TAIL"] or None,
        "scheduled_departure": f"{local.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "status": STATUSES[row["ST"]],
        "departure_delay_min": row["DEP_DLY"],
        "arrival_delay_min": row["ARR_DLY"],
        "air_time_min": row["AIR_MIN"],
        "distance_miles": row["DIST_MI"],
        "gate": row["GATE"] or None,
        "revision": row["REV"],
    }


async def test_the_replay_starts_with_the_first_half_in_its_final_state(flights: Caller) -> None:
    truth = await flights.truth("flight")
    assert len(truth) == 200
    assert {row["status"] for row in truth.values()} <= {"arrived", "cancelled"}
    # The first flight of the year in the records: 2 minutes late out, 11 minutes late in.
    first = truth["2013-01-01-UA-1545-EWR"]
    assert (first["departure_delay_min"], first["arrival_delay_min"], first["air_time_min"]) == (2, 11, 227)
    assert first["scheduled_departure"] == "2013-01-01T10:15:00Z"
    assert (first["destination"], first["tail_number"], first["distance_miles"]) == ("IAH", "N14228", 1400)


async def test_walk_delta_and_keyed_read_agree_with_the_truth(flights: Caller) -> None:
    start = (await flights.get(size=1))["rev"]
    assert start == 200
    await flights.sim("burst", {"creates": 60, "updates": 90, "corrections": 30, "deletes": 20})
    truth = await flights.truth("flight")
    rows = await flights.walk(size=70)
    assert [row["ID"] for row in rows] == sorted(truth)
    assert {row["ID"]: flight_of(row) for row in rows} == truth
    delta = await flights.walk(size=25, since_rev=start)
    revisions = [row["REV"] for row in delta]
    assert revisions == sorted(set(revisions))
    assert {row["ID"] for row in delta} == {key for key, row in truth.items() if row["revision"] > start}
    assert (await flights.get())["rev"] == start + 200
    some = sorted(truth)[3]
    assert [row["ID"] for row in await flights.walk(ids=f"{some};nope")] == [some]


async def test_a_flight_goes_its_way_step_by_step(flights: Caller) -> None:
    await flights.sim("burst", {"creates": 1})
    [change] = await flights.sim("changes")
    key = change["key"]
    seen = [change["row"]]
    for after in (1, 2):
        await flights.sim("burst", {"updates": 1})
        [change] = await flights.sim(f"changes?after={after}")
        assert change["key"] == key
        seen.append(change["row"])
    assert [row["status"] for row in seen] == ["scheduled", "departed", "arrived"]
    assert [row["departure_delay_min"] is None for row in seen] == [True, False, False]
    assert [row["arrival_delay_min"] is None for row in seen] == [True, True, False]


async def test_page_tokens_belong_to_their_query(flights: Caller) -> None:
    by_id = (await flights.get(size=5))["next_page_token"]
    by_revision = (await flights.get(size=5, since_rev=0))["next_page_token"]
    for params in ({"page_token": by_revision}, {"page_token": by_id, "since_rev": 0}, {"page_token": "%%"}):
        assert (await flights.get(**params))["status"] == 400
    for wrong in ({"since_rev": "x"}, {"size": 1001}, {"ids": ""}):
        assert (await flights.get(**wrong))["status"] == 400


async def test_viewers_see_their_flights(flights: Caller) -> None:
    truth = await flights.truth("flight")
    mine = {key for key, row in truth.items() if row["carrier"] == "UA"}
    here = {key for key, row in truth.items() if "ATL" in (row["origin"], row["destination"])}
    assert set(await flights.truth("flight", "partner:UA")) == mine
    assert set(await flights.truth("flight", "airport:ATL")) == here
    assert mine
    assert here
    assert await flights.truth("flight", "customer:UA") == {}


def test_the_plan_is_in_order_over_the_months_and_has_an_end() -> None:
    plan = FlightPlan(data_folder())
    last_of_january, first_of_february = plan.flight(27_003), plan.flight(27_004)
    assert last_of_january is not None
    assert first_of_february is not None
    assert last_of_january.scheduled_departure < first_of_february.scheduled_departure
    assert (last_of_january.id[:7], first_of_february.id[:7]) == ("2013-01", "2013-02")


def read_drop(path: Path) -> list[dict[str, str]]:
    encoding, delimiter = {
        "airline": ("latin-1", ";"),
        "airport": ("utf-8-sig", "\t"),
        "plane": ("utf-8", ","),
    }[path.name.partition("-")[0]]
    text = path.read_bytes().decode(encoding)
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))


async def test_three_units_drop_full_extracts_in_three_dialects(tmp_path: Path) -> None:
    drops = tmp_path / "drops"

    async def dropped(unit: str, count: int) -> list[Path]:
        async def there() -> bool:
            return len(list((drops / unit).glob("*.csv"))) >= count

        await until(there)
        return sorted((drops / unit).glob("*.csv"))

    async with calling(tmp_path, drops=str(drops)) as caller:
        [airlines], [airports], [planes] = [await dropped(unit, 1) for unit in ("commercial", "network", "fleet")]
        truth = await caller.truth("airline", "customer:1")
        assert {row["KURZZEICHEN"]: row["BEZEICHNUNG"] for row in read_drop(airlines)} == {
            key: row["name"] for key, row in truth.items()
        }
        assert {row["FLUGHAFEN"]: float(row["BREITE"].replace(",", ".")) for row in read_drop(airports)} == {
            key: row["latitude"] for key, row in (await caller.truth("airport")).items()
        }
        years = {row["tailnum"]: row["year"] for row in read_drop(planes)}
        assert {key: None if year in ("", "NA") else int(year) for key, year in years.items()} == {
            key: row["year"] for key, row in (await caller.truth("plane")).items()
        }
        assert {"", "NA"} <= set(years.values())
        assert b"\r\n" in planes.read_bytes()
        name = {"entity": "airline", "key": "UA", "fields": {"name": "Aérolignes Ünies"}}
        await caller.sim("edit", name)
        _, second = await dropped("commercial", 2)
        assert {row["KURZZEICHEN"]: row["BEZEICHNUNG"] for row in read_drop(second)}["UA"] == "Aérolignes Ünies"
        assert len(await dropped("fleet", 1)) == 1
        async with caller.session.post(
            f"{caller.address}/_sim/edit", json={**name, "fields": {"name": "Łódź"}}
        ) as response:
            assert response.status == 400
        await caller.sim("outage", {"on": True})
        await caller.sim("delete", {"entity": "plane", "key": "N10156"})
    # What it still owed when it stopped comes after the restart.
    async with calling(tmp_path, drops=str(drops)):
        _, second = await dropped("fleet", 2)
        assert "N10156" not in {row["tailnum"] for row in read_drop(second)}
        assert len(await dropped("commercial", 2)) == 2


async def test_drops_go_to_a_bucket_that_may_come_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored: dict[str, bytes] = {}
    refusals = iter([503])

    async def put(request: web.Request) -> web.Response:
        body = await request.read()
        if next(refusals, None):
            return web.Response(status=403)
        stored[request.path] = body
        return web.Response(headers={"ETag": '"1"'})

    app = web.Application()
    app.router.add_put("/{name:.+}", put)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    for name, value in {
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{runner.addresses[0][1]}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_REGION": "eu-central-1",
        "AWS_DEFAULT_REGION": "eu-central-1",
    }.items():
        monkeypatch.setenv(name, value)

    async def all_there() -> bool:
        return len(stored) == 3

    try:
        async with calling(tmp_path, drops="s3", drops_bucket="landing"):
            await until(all_there)
    finally:
        await runner.cleanup()
    assert sorted(path.rpartition("-")[0] for path in stored) == [
        "/landing/drops/commercial/airline",
        "/landing/drops/fleet/plane",
        "/landing/drops/network/airport",
    ]
    assert all(path.endswith("Z.csv") for path in stored)
    assert any(b"BEZEICHNUNG" in body for body in stored.values())
