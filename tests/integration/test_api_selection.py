"""Filters, orders, sparse fields, embedded rows and cursors on a real PostgreSQL, compared with the same rows as values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.app import App
from api.cursor import Cursors
from tests.integration.harbour import KEY, MASTER, NOW, OWNER_1, OWNER_2, Harbour, Row, opened
from tests.integration.harbour_bubble import bubble
from tests.unit.test_api_cursor import forgeries


@pytest.fixture(scope="module")
def harbour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harbour]:
    with opened(tmp_path_factory.mktemp("harbour") / "migrations") as made:
        yield made


def imos(harbour: Harbour, query: Mapping[str, str], who: Mapping[str, object] = MASTER) -> list[str]:
    return [row["imo"] for items in harbour.walk("/v1/ships", who, query) for row in items]


# --- filters ---------------------------------------------------------------------------------------

Holds = Callable[[Row], bool]
FILTERS: list[tuple[dict[str, str], Holds]] = [
    ({"flag": "ch"}, lambda row: row["flag"] == "ch"),
    ({"flag.in": "ch,pa"}, lambda row: row["flag"] in ("ch", "pa")),
    ({"name": "Brise"}, lambda row: row["name"] == "Brise"),
    ({"name.in": "B\\, c\\\\d,b"}, lambda row: row["name"] in ("B, c\\d", "b")),
    ({"name.prefix": "Bri"}, lambda row: row["name"].startswith("Bri")),
    ({"name.prefix": "%"}, lambda row: False),
    ({"name.prefix": ""}, lambda row: True),
    ({"agent.null": "true"}, lambda row: row["agent"] is None),
    ({"agent.null": "false", "quay.in": "1,3"}, lambda row: row["agent"] is not None and row["quay"] in (1, 3)),
    ({"tonnage": "9007199254740993"}, lambda row: row["tonnage"] == 9_007_199_254_740_993),
    ({"tonnage.lt": "0"}, lambda row: row["tonnage"] < 0),
    ({"tonnage.gte": "-5", "tonnage.lte": "0"}, lambda row: -5 <= row["tonnage"] <= 0),
    ({"draught_m": "2.5"}, lambda row: row["draught_m"] == Decimal("2.5")),
    ({"draught_m.in": "2.500,-0.001"}, lambda row: row["draught_m"] in (Decimal("2.5"), Decimal("-0.001"))),
    ({"draught_m.gt": "2.5"}, lambda row: row["draught_m"] is not None and row["draught_m"] > Decimal("2.5")),
    ({"speed_kn": "0.1"}, lambda row: row["speed_kn"] == 0.1),
    ({"speed_kn.lt": "1e1"}, lambda row: row["speed_kn"] < 10),
    ({"piloted": "true"}, lambda row: bool(row["piloted"])),
    ({"built_on.gte": "2000-01-01"}, lambda row: row["built_on"] is not None and row["built_on"] >= date(2000, 1, 1)),
    ({"eta.gt": "2026-11-21T07:00:00+01:00"}, lambda row: row["eta"] is not None and row["eta"] > NOW),
    ({"eta": "2026-11-21T06:00:00Z"}, lambda row: row["eta"] == NOW),
    ({"quay.lt": "2", "flag": "fr"}, lambda row: row["quay"] == 1 and row["flag"] == "fr"),
]  # fmt: skip


@pytest.mark.parametrize(("query", "holds"), FILTERS, ids=[str(query) for query, _ in FILTERS])
def test_a_filter_shows_what_it_says(harbour: Harbour, query: dict[str, str], holds: Holds) -> None:
    assert imos(harbour, query) == sorted(imo for imo, row in harbour.ships.items() if holds(row))


def test_a_uuid_is_found_in_either_case(harbour: Harbour) -> None:
    imo, ship = next(iter(harbour.ships.items()))
    for text in (str(ship["transponder"]), str(ship["transponder"]).upper()):
        assert imos(harbour, {"transponder": text}) == [imo]


def test_filters_are_under_the_same_policies(harbour: Harbour) -> None:
    mine = {imo for imo, row in harbour.ships.items() if "o1" in (row["owner"], row["agent"])}
    assert set(imos(harbour, {}, OWNER_1)) == mine != set(harbour.ships)
    assert set(imos(harbour, {"owner": "o2"}, OWNER_1)) < mine, "as agent only"


WRONG = [
    ({"nme": "x"}, "unknown-parameter", "nme"),
    ({"name.like": "x"}, "bad-filter", "name.like"),
    ({"name.": "x"}, "bad-filter", "name."),
    ({"flag.gt": "ch"}, "bad-filter", "flag.gt"),
    ({"flag": "de"}, "bad-filter", "flag"),
    ({"flag.in": "ch,de"}, "bad-filter", "flag.in"),
    ({"flag.null": "true"}, "bad-filter", "flag.null"),
    ({"agent.null": "yes"}, "bad-filter", "agent.null"),
    ({"name": "a\0"}, "bad-filter", "name"),
    ({"name": "\ud800"}, "bad-filter", "name"),
    ({"name": "x" * 251}, "bad-filter", "name"),
    ({"name.in": ",".join(map(str, range(51)))}, "bad-filter", "name.in"),
    ({"tonnage": "9223372036854775808"}, "bad-filter", "tonnage"),
    ({"tonnage": "1.0"}, "bad-filter", "tonnage"),
    ({"draught_m": "NaN"}, "bad-filter", "draught_m"),
    ({"draught_m": "1e5"}, "bad-filter", "draught_m"),
    ({"speed_kn": "1e999"}, "bad-filter", "speed_kn"),
    ({"speed_kn": "inf"}, "bad-filter", "speed_kn"),
    ({"built_on": "2026-02-30"}, "bad-filter", "built_on"),
    ({"built_on": "2026-2-3"}, "bad-filter", "built_on"),
    ({"eta": "2026-11-21T06:00:00"}, "bad-filter", "eta"),
    ({"eta": "2026-11-21T06:00:00 01:00"}, "bad-filter", "eta"),
    ({"eta": "0001-01-01T00:00:00+14:00"}, "bad-filter", "eta"),
    ({"transponder": "1"}, "bad-filter", "transponder"),
    ({"piloted": "1"}, "bad-filter", "piloted"),
    ({"sort": "owner"}, "bad-sort", "sort"),
    ({"sort": ""}, "bad-sort", "sort"),
    ({"sort": "name,-name"}, "bad-sort", "sort"),
    ({"sort": "name,eta,tonnage,piloted"}, "bad-sort", "sort"),
    ({"fields": "name,_deleted"}, "bad-fields", "fields"),
    ({"fields": "name,name"}, "bad-fields", "fields"),
    ({"embed": "owner"}, "bad-embed", "embed"),
]  # fmt: skip


@pytest.mark.parametrize(("query", "kind", "name"), WRONG, ids=[str(query)[:60] for query, *_ in WRONG])
def test_what_is_wrong_is_said_and_where(harbour: Harbour, query: dict[str, str], kind: str, name: str) -> None:
    reply = harbour.ask("/v1/ships", MASTER, query)
    assert reply.status == 400, reply.text
    assert reply.json["type"] == f"urn:tidegate:problem:{kind}"
    assert reply.json["where"] == {"in": "query", "name": name}
    assert len(reply.text) < 1_000


TEXTS = st.text(max_size=30) | st.sampled_from(
    [
        "1",
        "-1",
        "true",
        "2026-11-21",
        "2026-11-21T06:00:00Z",
        "9" * 30,
        "1e5",
        "a,b\\",
        "\\",
        ",",
        "NaN",
        "null",
        "9999-12-31",
    ]
)
NAMES = st.sampled_from(
    [f"{field}{operator}" for field in ("imo", "name", "flag", "quay", "tonnage", "draught_m", "speed_kn", "piloted", "built_on",
                                        "eta", "transponder", "nothing")
     for operator in ("", ".eq", ".in", ".lt", ".gte", ".prefix", ".null", ".x")]
)  # fmt: skip
SORTS = st.lists(st.sampled_from(["name", "-eta", "imo", "-imo", "tonnage", "draught_m", "-x", ""]), max_size=4).map(
    ",".join
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(filters=st.dictionaries(NAMES, TEXTS, max_size=3), sort=st.none() | SORTS, after=TEXTS | st.none())
def test_no_query_makes_a_server_error(
    harbour: Harbour, filters: dict[str, str], sort: str | None, after: str | None
) -> None:
    query = filters | ({"sort": sort} if sort is not None else {}) | ({"cursor": after} if after is not None else {})
    reply = harbour.ask("/v1/ships", OWNER_1, query)
    assert reply.status in {200, 400}, reply.text


# --- order and pages -------------------------------------------------------------------------------


def ordered(harbour: Harbour, terms: list[tuple[str, bool]]) -> list[str]:
    """PostgreSQL's own order of the same terms, read in one piece."""
    by = ", ".join(f"{name} {'DESC' if is_descending else 'ASC'}" for name, is_descending in terms)
    rows = harbour.run(fetch(harbour, f"SELECT imo FROM ships ORDER BY {by}"))
    return [row["imo"] for row in rows]


async def fetch(harbour: Harbour, statement: str) -> list[Any]:
    connection = await asyncpg.connect(harbour.postgres.dsn)
    try:
        return list(await connection.fetch(statement))
    finally:
        await connection.close()


FIELDS = ("name", "tonnage", "draught_m", "speed_kn", "piloted", "built_on", "eta", "imo")


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("dash", ["", "-"])
def test_pages_in_any_order_show_every_row_once(harbour: Harbour, field: str, dash: str) -> None:
    wanted = ordered(harbour, [(field, bool(dash)), ("imo", bool(dash))])
    assert imos(harbour, {"sort": f"{dash}{field}", "limit": "7"}) == wanted


@pytest.mark.parametrize(
    "sort", ["eta,-name", "-eta,name", "-eta,-draught_m", "piloted,-built_on,name", "draught_m,-imo,eta"]
)
def test_mixed_orders_too(harbour: Harbour, sort: str) -> None:
    terms = [(name.removeprefix("-"), name.startswith("-")) for name in sort.split(",")]
    wanted = ordered(harbour, [*terms, ("imo", terms[-1][1])])
    assert imos(harbour, {"sort": sort, "limit": "4"}) == wanted


def test_pages_go_on_while_rows_come_and_go(harbour: Harbour) -> None:
    pages = harbour.walk("/v1/ships", MASTER, {"sort": "-name", "limit": "10", "flag": "fr"})
    seen = [row["imo"] for row in next(pages)]
    last = seen[-1]
    try:
        harbour.execute(f"UPDATE ships SET _deleted = true WHERE imo = '{last}'")
        seen += [row["imo"] for items in pages for row in items]
    finally:
        harbour.execute(f"UPDATE ships SET _deleted = false WHERE imo = '{last}'")
    assert sorted(seen) == sorted(imo for imo, row in harbour.ships.items() if row["flag"] == "fr")


# --- what is shown ---------------------------------------------------------------------------------


def test_sparse_fields_keep_the_key_and_the_order(harbour: Harbour) -> None:
    row = harbour.ask("/v1/ships/imo0000", MASTER, {"fields": "eta,name"})
    assert list(row.json) == ["imo", "name", "eta"]
    page = harbour.ask("/v1/ships", MASTER, {"fields": "flag", "sort": "-eta", "limit": "3"}).json
    assert all(list(item) == ["imo", "flag"] for item in page["items"])
    again = harbour.ask(
        "/v1/ships", MASTER, {"fields": "flag", "sort": "-eta", "limit": "3", "cursor": page["next_cursor"]}
    )
    assert len(again.json["items"]) == 3, "a page goes on by fields that it does not show"


def test_embedded_rows_come_in_the_same_statement(harbour: Harbour) -> None:
    query = {"embed": "visits,berth", "limit": "200"}
    rows = {row["imo"]: row for items in harbour.walk("/v1/ships", MASTER, query) for row in items}
    for imo, ship in harbour.ships.items():
        row = rows[imo]
        assert list(row)[-2:] == ["berth", "visits"], "in the order of their declaration"
        # Quay 3 is none that anybody may see: it does not exist.
        assert row["berth"] == (
            {"number": ship["quay"], "name": f"Quay {ship['quay']}"} if ship["quay"] in (1, 2) else None
        )
        assert len(row["visits"]) == (3 if imo <= "imo0009" else 0), "at most as many as are declared"
    assert list(rows["imo0000"]["visits"][0]) == ["id", "ship", "payer", "paid", "at"]
    assert [visit["id"][-1] for visit in rows["imo0000"]["visits"]] == ["0", "1", "2"]
    assert rows["imo0000"]["visits"][1]["paid"].startswith("0.25")


def test_embedded_rows_are_under_their_own_policies(harbour: Harbour) -> None:
    for who, payer in ((OWNER_1, "o1"), (OWNER_2, "o2")):
        for items in harbour.walk("/v1/ships", who, {"embed": "visits"}):
            assert {visit["payer"] for row in items for visit in row["visits"]} <= {payer}
    quay = harbour.ask("/v1/quays/1", OWNER_1, {"embed": "ships"}).json
    assert quay["ships"]
    assert all("o1" in (ship["owner"], ship["agent"]) for ship in quay["ships"])


def test_a_row_embeds_too_and_its_etag_follows(harbour: Harbour) -> None:
    imo = next(imo for imo, row in harbour.ships.items() if row["quay"] == 1)
    first = harbour.ask(f"/v1/ships/{imo}", MASTER, {"embed": "berth"})
    plain = harbour.ask(f"/v1/ships/{imo}", MASTER)
    assert first.json["berth"] == {"number": 1, "name": "Quay 1"}
    try:
        harbour.execute("UPDATE quays SET name = 'North quay' WHERE number = 1")
        changed = harbour.ask(f"/v1/ships/{imo}", MASTER, {"embed": "berth"}, {"if-none-match": first.headers["etag"]})
        assert changed.status == 200
        assert changed.json["berth"]["name"] == "North quay"
        same = harbour.ask(f"/v1/ships/{imo}", MASTER, headers={"if-none-match": plain.headers["etag"]})
        assert same.status == 304, "what is not shown does not count"
    finally:
        harbour.execute("UPDATE quays SET name = 'Quay 1' WHERE number = 1")
    back = harbour.ask(f"/v1/ships/{imo}", MASTER, {"embed": "berth"}, {"if-none-match": first.headers["etag"]})
    assert back.status == 304


def test_a_list_s_etag_follows_departures_arrivals_and_policies(harbour: Harbour) -> None:
    query = {"flag": "fr", "limit": "200"}
    first = harbour.ask("/v1/ships", OWNER_1, query)
    imo = first.json["items"][-1]["imo"]
    ship = harbour.ships[imo]
    tag = {"if-none-match": first.headers["etag"]}
    assert harbour.ask("/v1/ships", OWNER_1, query, tag).status == 304
    try:
        harbour.execute(f"UPDATE ships SET owner = 'o2', agent = NULL WHERE imo = '{imo}'")
        left = harbour.ask("/v1/ships", OWNER_1, query, tag)
        assert left.status == 200
        assert imo not in left.text
    finally:
        agent = "NULL" if ship["agent"] is None else f"'{ship['agent']}'"
        harbour.execute(f"UPDATE ships SET owner = '{ship['owner']}', agent = {agent} WHERE imo = '{imo}'")
    assert harbour.ask("/v1/ships", OWNER_1, query, tag).status == 304
    assert harbour.ask("/v1/ships", OWNER_2, query, tag).status == 200, "nobody gets another's 304"


# --- how fresh it is -------------------------------------------------------------------------------


def test_freshness_is_of_all_that_is_shown(harbour: Harbour) -> None:
    plain, with_visits, with_berth = (
        harbour.ask("/v1/ships", MASTER, query).headers for query in ({}, {"embed": "visits"}, {"embed": "berth"})
    )
    assert plain["data-as-of"] == with_berth["data-as-of"] == "2026-11-21T05:55:00Z"
    assert with_visits["data-as-of"] == "2026-11-21T05:30:00Z"
    assert "data-unwatermarked" not in plain
    assert with_berth["data-unwatermarked"] == "quay_plan"


@pytest.mark.parametrize(
    ("as_of", "is_stale"), [("2026-11-21T05:49:59Z", True), ("2026-11-21T05:50:00Z", False), ("NULL", True)]
)
def test_what_is_older_than_promised_is_named(harbour: Harbour, as_of: str, is_stale: bool) -> None:
    """The register promises ten minutes, the till nothing, and the clock says 06:00."""
    try:
        change = f"as_of = '{as_of}'" if as_of != "NULL" else "source = 'gone'"
        harbour.execute(f"UPDATE tidegate.watermark SET {change} WHERE source = 'register'")
        headers = harbour.ask("/v1/ships", MASTER, {"embed": "visits"}).headers
    finally:
        harbour.execute(
            "UPDATE tidegate.watermark SET source = 'register', as_of = '2026-11-21T05:55:00Z' WHERE source <> 'till'"
        )
    assert headers.get("data-stale") == ("register" if is_stale else None)
    assert ("data-incomplete" in headers) is (as_of == "NULL")


def test_what_browsers_may_keep(harbour: Harbour) -> None:
    assert harbour.ask("/v1/ships").headers["cache-control"] == "private, no-cache"
    lenient = App(bubble, harbour.database, harbour.options(stale_while_revalidate_s=30))
    kept = harbour.ask("/v1/ships", app=lenient)
    assert kept.headers["cache-control"] == "private, max-age=0, stale-while-revalidate=30"
    assert (kept.headers["age"], kept.headers["vary"]) == ("0", "Authorization")
    wrong = harbour.ask("/v1/ships", query={"x": "y"}, app=lenient)
    assert wrong.headers["cache-control"] == "private, no-cache", "a mistake is not worth keeping"


def _dated(value: object) -> datetime:
    assert isinstance(value, str)
    return datetime.fromisoformat(value)


def test_times_go_back_as_they_came(harbour: Harbour) -> None:
    """A value that was shown, sent back as a filter, finds its row."""
    for items in harbour.walk("/v1/ships", MASTER, {"eta.null": "false", "limit": "20"}):
        for row in items:
            assert _dated(row["eta"]) == harbour.ships[row["imo"]]["eta"]
            assert row["imo"] in imos(harbour, {"eta": row["eta"]})
        break


# --- cursors in the wrong hands --------------------------------------------------------------------

QUERY = {"sort": "-eta", "limit": "5"}


def cursor(harbour: Harbour) -> str:
    given: str = harbour.ask("/v1/ships", OWNER_1, QUERY).json["next_cursor"]
    return given


def test_a_thousand_forged_cursors_are_refused_in_words(harbour: Harbour) -> None:
    genuine = cursor(harbour)
    for forged in forgeries(genuine, 1_000, seed=1):
        reply = harbour.ask("/v1/ships", OWNER_1, QUERY | {"cursor": forged})
        assert reply.status == 400, forged
        assert reply.json["type"] == "urn:tidegate:problem:bad-cursor"
        assert reply.json["where"] == {"in": "query", "name": "cursor"}
    assert harbour.ask("/v1/ships", OWNER_1, QUERY | {"cursor": genuine}).status == 200


@pytest.mark.parametrize("who", [OWNER_2, MASTER, {**OWNER_1, "sub": "s9"}, {**OWNER_1, "client_id": "other"}])
def test_a_cursor_belongs_to_its_caller(harbour: Harbour, who: dict[str, object]) -> None:
    assert harbour.ask("/v1/ships", who, QUERY | {"cursor": cursor(harbour)}).status == 400


def test_a_caller_whose_view_has_changed_starts_again(harbour: Harbour) -> None:
    more = {**OWNER_1, "cognito:groups": ["master-north"]}
    assert harbour.ask("/v1/ships", more, QUERY | {"cursor": cursor(harbour)}).status == 400


@pytest.mark.parametrize(
    "change", [{"sort": "eta"}, {"flag": "ch"}, {"fields": "name"}, {"embed": "berth"}, {"sort": "-eta,-name"}]
)
def test_a_cursor_belongs_to_its_query(harbour: Harbour, change: dict[str, str]) -> None:
    reply = harbour.ask("/v1/ships", OWNER_1, QUERY | change | {"cursor": cursor(harbour)})
    assert reply.status == 400
    assert "another query" in reply.json["detail"]
    other = harbour.ask("/v1/visits", OWNER_1, {"sort": "-at", "limit": "5", "cursor": cursor(harbour)})
    assert other.status == 400


def test_the_limit_may_change_on_the_way(harbour: Harbour) -> None:
    page = harbour.ask("/v1/ships", OWNER_1, QUERY | {"limit": "2", "cursor": cursor(harbour)})
    assert len(page.json["items"]) == 2


def test_a_new_key_accepts_what_the_old_one_gave(harbour: Harbour) -> None:
    given = cursor(harbour)
    rotated = App(bubble, harbour.database, harbour.options(cursors=Cursors([b"n" * 32, KEY.encode()])))
    replaced = App(bubble, harbour.database, harbour.options(cursors=Cursors([b"n" * 32])))
    assert harbour.ask("/v1/ships", OWNER_1, QUERY | {"cursor": given}, app=rotated).status == 200
    assert harbour.ask("/v1/ships", OWNER_1, QUERY | {"cursor": given}, app=replaced).status == 400
