"""Reports: figures of what the caller may see, and an answer that is remembered only as long as it is right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from decimal import Decimal

import msgspec
import pytest

from api.app import App
from api.reports import Result, Results
from tests.integration.harbour import MASTER, NOW, OWNER_1, OWNER_2, Harbour, Reply, opened
from tests.integration.harbour_bubble import bubble
from tidegate.edge import Scope


@pytest.fixture(scope="module")
def harbour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harbour]:
    with opened(tmp_path_factory.mktemp("harbour") / "migrations", count=30) as made:
        yield made


def dues(payers: tuple[str, ...], least: Decimal = Decimal(0)) -> list[dict[str, object]]:
    """The same report over the same visits, added up here."""
    lines: dict[tuple[str, str], list[tuple[Decimal, datetime]]] = {}
    for number in range(50):
        payer, paid, at = f"o{1 + number % 2}", Decimal(number) / 4, NOW - timedelta(days=number)
        if payer in payers and paid >= least:
            # November has winter time in Zurich, and 06:00 UTC is the same day in both.
            lines.setdefault((payer, f"{at:%Y-%m}"), []).append((paid, at))
    return [
        {
            "payer": payer,
            "month": month,
            "visits": len(visits),
            "paid": str(sum(paid for paid, _ in visits)),
            "mean": f"{sum(paid for paid, _ in visits) / len(visits):.6f}",
            "last": f"{max(at for _, at in visits):%Y-%m-%dT%H:%M:%SZ}",
        }
        for (payer, month), visits in sorted(lines.items())
    ]


def as_numbers(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{**row, "paid": Decimal(str(row["paid"])), "mean": Decimal(str(row["mean"]))} for row in rows]


@pytest.mark.parametrize(
    ("who", "payers"),
    [(OWNER_1, ("o1",)), (OWNER_2, ("o2",)), (MASTER, ("o1", "o2")), ({**OWNER_1, "username": "x"}, ())],
)
def test_a_report_counts_what_its_caller_may_see(
    harbour: Harbour, who: Mapping[str, object], payers: tuple[str, ...]
) -> None:
    reply = harbour.ask("/v1/reports/dues", who)
    assert reply.status == 200
    assert reply.json["report"] == "dues"
    assert as_numbers(reply.json["rows"]) == as_numbers(dues(payers))
    assert reply.headers["data-as-of"] == "2026-11-21T05:30:00Z", "the till's"


def test_parameters_are_filters(harbour: Harbour) -> None:
    rows = harbour.ask("/v1/reports/dues", MASTER, {"paid.gte": "6.5"}).json["rows"]
    assert as_numbers(rows) == as_numbers(dues(("o1", "o2"), Decimal("6.5")))
    wrong = harbour.ask("/v1/reports/dues", MASTER, {"payer": "o1"})
    assert (wrong.status, wrong.json["type"]) == (400, "urn:tidegate:problem:unknown-parameter")
    assert harbour.ask("/v1/reports/dues", MASTER, {"at.gte": "soon"}).status == 400


def test_one_line_without_groups_and_none_is_null(harbour: Harbour) -> None:
    rows = harbour.ask("/v1/reports/fleet", MASTER).json["rows"]
    assert rows[0]["ships"] == 30
    assert rows[0]["tonnage"] == sum(row["tonnage"] for row in harbour.ships.values())
    nobody = harbour.ask("/v1/reports/fleet", {**OWNER_1, "username": "nobody"}).json["rows"]
    assert nobody == [{"ships": 0, "tonnage": None, "speed": None, "oldest": None}]


def test_what_is_too_large_or_not_there_is_said(harbour: Harbour) -> None:
    large = harbour.ask("/v1/reports/names", MASTER)
    assert (large.status, large.json["type"]) == (400, "urn:tidegate:problem:report-too-large")
    none = harbour.ask("/v1/reports/nothing", MASTER)
    assert (none.status, none.json["type"]) == (404, "urn:tidegate:problem:no-such-report")
    assert "dues" in none.json["detail"]
    listed = harbour.ask("/v1/reports", OWNER_1).json["reports"]
    assert [report["name"] for report in listed] == ["dues", "fleet", "names"]
    assert harbour.ask("/v1/reports", None).status == harbour.ask("/v1/reports/dues", None).status == 401


# --- what is remembered ----------------------------------------------------------------------------


class Clock:
    """Time stands still until somebody moves it."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def remembering(harbour: Harbour, clock: Clock) -> App:
    return App(bubble, harbour.database, harbour.options(now=clock))


def ask(harbour: Harbour, app: App, who: Mapping[str, object] = OWNER_1, name: str = "dues") -> Reply:
    return harbour.ask(f"/v1/reports/{name}", who, app=app)


def test_the_same_data_is_not_added_up_again(harbour: Harbour, clock: Clock, remembering: App) -> None:
    first = ask(harbour, remembering)
    clock.now += timedelta(seconds=40)
    again = ask(harbour, remembering)
    assert again.text == first.text
    assert (first.headers["age"], again.headers["age"]) == ("0", "40")
    tag = {"if-none-match": first.headers["etag"]}
    assert harbour.ask("/v1/reports/dues", OWNER_1, headers=tag, app=remembering).status == 304
    other = ask(harbour, remembering, OWNER_2)
    assert (other.headers["age"], other.text == first.text) == ("0", False), "another's view is another answer"
    assert harbour.ask("/v1/reports/dues", OWNER_1, {"paid.gt": "0"}, app=remembering).headers["age"] == "0"
    clock.now += timedelta(hours=2)
    assert ask(harbour, remembering).headers["age"] == "0", "nothing is remembered for ever"


@pytest.mark.parametrize(
    "change",
    ["UPDATE visits SET paid = paid + 1 WHERE id = '00000000-0000-0000-0000-000000000002'",
     "UPDATE visits SET _deleted = true WHERE id = '00000000-0000-0000-0000-000000000002'",
     "UPDATE visits SET _deleted = false WHERE id = '00000000-0000-0000-0000-000000000002'",
     "UPDATE visits SET payer = 'o2' WHERE id = '00000000-0000-0000-0000-000000000002'",
     "UPDATE visits SET payer = 'o1' WHERE id = '00000000-0000-0000-0000-000000000002'"],
)  # fmt: skip
def test_any_change_in_the_caller_s_view_is_in_the_next_answer(
    harbour: Harbour, clock: Clock, remembering: App, change: str
) -> None:
    before = ask(harbour, remembering)
    clock.now += timedelta(seconds=10)
    harbour.execute(change)
    after = ask(harbour, remembering)
    assert after.headers["age"] == "0"
    assert after.text != before.text
    assert after.text == harbour.ask("/v1/reports/dues", OWNER_1).text, "as a process without a memory says"


def test_other_policies_are_other_data(harbour: Harbour, clock: Clock, remembering: App) -> None:
    before = ask(harbour, remembering)
    clock.now += timedelta(seconds=10)
    hide = "CREATE POLICY hide ON visits AS RESTRICTIVE FOR SELECT TO tidegate_reader USING (paid < 3)"
    try:
        harbour.execute(hide)
        after = ask(harbour, remembering)
    finally:
        harbour.execute("DROP POLICY hide ON visits")
    assert (after.headers["age"], after.text == before.text) == ("0", False)
    assert ask(harbour, remembering).text == before.text


def test_what_others_do_leaves_it_alone(harbour: Harbour, clock: Clock, remembering: App) -> None:
    ask(harbour, remembering)
    clock.now += timedelta(seconds=10)
    harbour.execute("UPDATE visits SET paid = paid + 1 WHERE id = '00000000-0000-0000-0000-000000000001'")
    assert ask(harbour, remembering).headers["age"] == "10"


def test_what_is_remembered_is_bounded() -> None:
    results = Results(most=3, most_characters=100)
    for number in range(5):
        results.put(str(number), Result("x" * 10, "1", NOW))
    assert [key for key in "01234" if results.get(key, NOW)] == ["2", "3", "4"]
    results.get("2", NOW)
    results.put("5", Result("x" * 85, "1", NOW))
    assert [key for key in "0123456" if results.get(key, NOW)] == ["2", "5"], "the longest unused goes first"
    results.put("6", Result("x" * 101, "1", NOW))
    assert results.get("6", NOW) is None


# --- scopes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/v1/visits", {}),
        ("/v1/visits/changes", {}),
        ("/v1/reports/dues", {}),
        ("/v1/ships", {"embed": "visits"}),
        ("/v1/ships/imo0001", {"embed": "berth,visits"}),
    ],
)
def test_what_a_collection_s_scope_closes_no_other_address_opens(
    harbour: Harbour, path: str, query: dict[str, str]
) -> None:
    closed = msgspec.structs.replace(bubble, scopes=(Scope("/v1/visits", ("harbour/visits",)),))
    app = App(closed, harbour.database, harbour.options())
    refused = harbour.ask(path, MASTER, query, app=app)
    assert refused.status == 403, refused.text
    assert refused.json["type"] == "urn:tidegate:problem:insufficient-scope"
    assert 'scope="harbour/visits"' in refused.headers["www-authenticate"]
    assert harbour.ask(path, {**MASTER, "scope": "harbour/visits"}, query, app=app).status == 200
    assert harbour.ask("/v1/ships", MASTER, {"embed": "berth"}, app=app).status == 200
