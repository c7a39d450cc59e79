"""What entities and reports declare for the API: right ones are read, wrong ones are refused with what to do."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.answer import Answer
from api.cors import Cors
from api.filters import filters_of, operators_of, parsed, split
from api.openapi import document
from api.page import page
from api.request import Request
from tests.integration.harbour_bubble import Quay, Ship, Visit, bubble
from tidegate import tables, tracking
from tidegate.bubble import Bubble, check
from tidegate.entity import EVERYONE, Embed, Entity, Field, Kind, Meta, Reader, describe
from tidegate.errors import BubbleError
from tidegate.report import Measure, Period, Report

SHIP = describe(Ship)


def test_what_is_declared_is_read() -> None:
    check(bubble)
    assert [field.name for field in SHIP.sorts][:2] == ["name", "tonnage"]
    assert operators_of(SHIP.field("flag")) == ("eq", "in")
    assert operators_of(SHIP.field("agent")) == ("eq", "in", "lt", "lte", "gt", "gte", "prefix", "null")
    names = {index.name for index in tables.entity_metadata([SHIP]).tables["ships"].indexes}
    assert names == {"ships_agent_key", "ships_eta_key", "ships_owner_key"}


def changed(**changes: object) -> type[Entity]:
    """Quays, declared otherwise."""
    meta = msgspec.structs.replace(Quay.meta, **{"embeds": (), **changes})
    return type("Quay", (Quay,), {"meta": meta, "__module__": __name__})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"filters": ("colour",)},
            r"Quay: meta.filters names the field 'colour', which does not exist; its fields are",
        ),
        ({"sorts": ("colour",)}, "meta.sorts names the field 'colour'"),
        ({"indexes": ("colour",)}, "meta.indexes names the field 'colour'"),
        ({"embeds": (Embed(name="name", collection="ships", by="quay"),)}, "the name is a field's or another embed's"),
        ({"embeds": (Embed(name="Ships", collection="ships", by="quay"),)}, "use lower-case letters"),
        ({"embeds": (Embed(name="ships", collection="ships"),)}, "say either `field`"),
        ({"embeds": (Embed(name="ships", collection="ships", by="quay", field="number"),)}, "say either `field`"),
        ({"embeds": (Embed(name="ships", collection="ships", field="colour"),)}, "names the field 'colour'"),
        ({"embeds": (Embed(name="ships", collection="ships", by="quay", most=101),)}, "must be from 1 to 100"),
        ({"embeds": (Embed(name="boats", collection="boats", by="quay"),)}, "there is no collection 'boats'"),
        ({"embeds": (Embed(name="ships", collection="ships", by="colour"),)}, "ship has no field 'colour'"),
        ({"embeds": (Embed(name="ships", collection="ships", by="name"),)}, "they must be of one type"),
        ({"collection": "reports"}, "is an address of the API's own"),
    ],
)
def test_a_wrong_declaration_is_refused_by_name(changes: Mapping[str, object], text: str) -> None:
    with pytest.raises(BubbleError, match=text):
        check(Bubble(name="b", entities=(Ship, changed(**changes), Visit), sources=(), viewers=bubble.viewers))


REPORT = Report(name="r", title="R", entity=Visit, by=("payer",), measures=(Measure("visits", "count"),))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": "Dues"}, "name it in lower-case letters"),
        ({"measures": ()}, "it needs a measure"),
        ({"most_rows": 100_000}, "most_rows from 1 to 10,000"),
        ({"by": ("colour",)}, "there is no field 'colour'"),
        ({"filters": ("colour",)}, "there is no field 'colour'"),
        ({"by": ("payer", "payer")}, "needs a name of its own"),
        ({"measures": (Measure("payer", "count"),)}, "needs a name of its own"),
        ({"by": (Period("payer", "month"),)}, "is no date and no time"),
        ({"by": (Period("at", "month", zone="Mars/Olympus"),)}, "there is no zone"),
        ({"measures": (Measure("n", "count", "paid"),)}, "counts rows, or names the field"),
        ({"measures": (Measure("n", "sum"),)}, "counts rows, or names the field"),
        ({"measures": (Measure("n", "sum", "payer"),)}, "is no number"),
        ({"measures": (Measure("n", "max", "id"),)}, "has no max"),
    ],
)
def test_a_wrong_report_is_refused_by_name(changes: Mapping[str, object], text: str) -> None:
    report = msgspec.structs.replace(REPORT, **changes)
    with pytest.raises(BubbleError, match=text):
        check(msgspec.structs.replace(bubble, reports=(report,)))
    with pytest.raises(BubbleError, match="and each once"):
        check(msgspec.structs.replace(bubble, reports=(REPORT, REPORT)))


# --- filters ---------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.text(), min_size=1))
def test_values_with_commas_and_backslashes_come_back(values: list[str]) -> None:
    text = ",".join(value.replace("\\", "\\\\").replace(",", "\\,") for value in values)
    assert split(text) == values


@settings(deadline=None)
@given(st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**30), max_value=10**30))
def test_decimals_keep_their_digits(value: Decimal) -> None:
    assert Decimal(str(parsed(Field("d", Kind.DECIMAL, False), f"{value:f}"))) == value


@settings(deadline=None)
@given(st.dates(min_value=date(1, 1, 1)))
def test_dates_come_back(value: date) -> None:
    assert parsed(Field("d", Kind.DATE, False), value.isoformat()) == value.isoformat()


OFFSETS = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@settings(deadline=None)
@given(st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30), timezones=OFFSETS))
def test_a_time_is_one_instant_whatever_its_offset(value: datetime) -> None:
    shown = parsed(Field("t", Kind.TIMESTAMP, False), str(msgspec.to_builtins(value)))
    assert isinstance(shown, str)
    assert shown.endswith("Z")
    assert datetime.fromisoformat(shown) == value


STORABLE = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=50)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["name", "name.eq", "name.lt", "name.in", "agent", "owner.prefix"]), STORABLE))
def test_the_order_of_parameters_makes_no_other_query(query: dict[str, str]) -> None:
    turned = dict(reversed(query.items()))
    assert filters_of(SHIP.filters, query, ()) == filters_of(SHIP.filters, turned, ())


# --- derived SQL, CORS, the page -------------------------------------------------------------------


def test_who_sees_all_is_told_of_every_departure() -> None:
    class Note(Entity):
        """A note."""

        meta = Meta(
            collection="notes",
            key="id",
            readers=(Reader("a", ("x",)), Reader("a"), Reader("b", ("x", "y")), Reader(EVERYONE)),
        )
        id: str
        x: str
        y: str

    text = tracking.trigger(describe(Note))
    assert """tidegate.track('id', '{"a":[],"b":["x","y"],"everyone":[]}')""" in text
    assert 'ROW(OLD."x", OLD."y") IS DISTINCT FROM ROW(NEW."x", NEW."y")' in text


def test_no_origin_is_answered_unless_it_is_named() -> None:
    request = Request(method="GET", path="/", query={}, headers={"origin": "https://a.example"}, request_id="r")
    answer = Answer(status=200, headers={"Vary": "Authorization"})
    assert Cors().shown(request, answer) == answer
    assert (
        Cors(["https://a.example/"]).shown(request, answer).headers["Access-Control-Allow-Origin"]
        == "https://a.example"
    )
    other = Cors(["https://b.example"]).shown(request, answer)
    assert other.headers == {"Vary": "Authorization, Origin"}, "a cache must not mix them up either"


def test_the_page_shows_a_bubble_s_words_as_words() -> None:
    hostile = msgspec.structs.replace(
        REPORT, title='<img src=x onerror="x()">', by=(), filters=(), name="evil"
    )  # fmt: skip
    text = page(document(msgspec.structs.replace(bubble, reports=(hostile,))))
    assert "<img" not in text
    assert "&lt;img" in text
