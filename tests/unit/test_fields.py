"""Translators that need no code."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.translate import Reading, Translated, raw_keys, translate_all
from tidegate.bubble import Env, Fields, PageNumber, RawRow, Rest, Source, Translator
from tidegate.entity import EVERYONE, Entity, Meta, Reader
from tidegate.errors import BubbleError, Rejected

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
ROW = {
    "number": "A1", "weight": "12.50", "share": 0.5, "pieces": "3", "fragile": "true", "changed_at": "2026-11-21T12:00:00Z",
    "ignored": [1],
}  # fmt: skip


class Crate(Entity):
    """Something in a store."""

    meta = Meta(collection="crates", key="number", version="changed_at", readers=(Reader(EVERYONE),))
    number: str
    weight: Decimal | None
    share: float
    pieces: int
    changed_at: datetime
    fragile: bool = False


def by_hand(row: RawRow) -> Crate:
    return Crate(
        number=row["number"],
        weight=None if row["weight"] is None else Decimal(row["weight"]),
        share=float(row["share"]),
        pieces=int(row["pieces"]),
        fragile=row["fragile"] == "true",
        changed_at=datetime.fromisoformat(row["changed_at"]),
    )


def translated(rows: Sequence[dict[str, Any]], translator: Translator) -> Sequence[Translated | Rejected]:
    feed = Rest(url=Env("URL"), path="/", rows="rows", key="number", paging=PageNumber(param="p", pages="n"))
    reading = Reading.of(Source(name="crates", entity=Crate, feed=feed, translate=translator))
    return translate_all(rows, raw_keys(rows, reading.key_path), reading)


def test_texts_become_what_the_entity_wants() -> None:
    expected = Crate(number="A1", weight=Decimal("12.50"), share=0.5, pieces=3, fragile=True, changed_at=NOON)
    assert Fields(Crate)(ROW) == expected
    assert Fields(Crate).all([ROW, ROW]) == [expected, expected]


def test_a_field_may_stand_elsewhere() -> None:
    row = {**ROW, "share": 0.1, "size": {"weight": "7", "part": {"share": "0.25"}}, "fragile": "nonsense"}
    made = Fields(Crate, weight="size.weight", share="size.part.share", fragile="breaks")(row)
    # A field that is looked for elsewhere is not taken from where it is not looked for.
    assert (made.weight, made.share, made.fragile, made.pieces) == (Decimal(7), 0.25, False, 3)


def test_a_null_is_a_value_and_a_missing_field_is_none() -> None:
    elsewhere = Fields(Crate, weight="w.kg")
    assert elsewhere({**ROW, "w": {"kg": None}}).weight is None
    for row in ({**ROW, "w": {}}, {**ROW, "w": None}):
        with pytest.raises(ValueError, match="weight"):
            elsewhere(row)


def test_a_path_of_a_field_that_is_not_there_is_refused() -> None:
    with pytest.raises(BubbleError, match=r"Fields\(Crate\): it has no field 'wieght'; it has changed_at, fragile"):
        Fields(Crate, wieght="w")


FAULTS = {
    "shares": ({"share": "much"}, "untranslatable", "share"),
    "missing": ({"pieces": None}, "untranslatable", "pieces"),
    "not finite": ({"share": "nan"}, "invalid", "share is nan, not a finite number"),
    "huge": ({"pieces": 2**63}, "invalid", "which no column can hold"),
    "no zone": ({"changed_at": "2026-11-21T12:00:00"}, "invalid", "a time without a zone"),
}


@pytest.mark.parametrize(("wrong", "reason", "text"), FAULTS.values(), ids=FAULTS)
def test_one_bad_row_touches_no_other(wrong: dict[str, Any], reason: str, text: str) -> None:
    first, bad, last = translated([ROW, {**ROW, "number": "A2", **wrong}, {**ROW, "number": "A3"}], Fields(Crate))
    assert isinstance(bad, Rejected)
    assert bad.reason == reason
    assert text in str(bad)
    assert [first, last] == translated([ROW, {**ROW, "number": "A3"}], by_hand)


def test_times_are_put_in_utc() -> None:
    [one] = translated([{**ROW, "changed_at": "2026-11-21T13:00:00+01:00"}], Fields(Crate))
    assert [one] == translated([ROW], Fields(Crate))


rows = st.fixed_dictionaries(
    {
        "number": st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
        "weight": st.none() | st.decimals(allow_nan=False, allow_infinity=False, places=2).map(str),
        "share": st.floats(allow_nan=False, allow_infinity=False),
        "pieces": st.integers(-(2**63), 2**63 - 1),
        "fragile": st.sampled_from(("true", "false")),
        "changed_at": st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat),
    }
)


@given(st.lists(rows, max_size=5))
def test_it_makes_what_a_function_would(some: list[dict[str, Any]]) -> None:
    assert translated(some, Fields(Crate)) == translated(some, by_hand)
