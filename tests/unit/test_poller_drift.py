"""The shape of rows: learned, compared, told once, and treated as the source says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poller.drift import LEARN_ROWS, Kind, Policy, ShapeWatch
from poller.source import FileRow
from poller.translate import Reading, translate
from tests.fakes.poller_world import THINGS
from tidegate.errors import Rejected

ROW = {"key": "a", "content": 1, "stamp": "2026-11-21T05:55:00+00:00", "more": {"a": 1, "tags": []}, "void": None}


def watch(policy: Policy = "warn", row: dict[str, Any] = ROW) -> ShapeWatch:
    made = ShapeWatch(policy)
    assert made.look([row] * LEARN_ROWS) == []
    return made


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({}, []),
        ({"content": None}, []),
        ({"content": 1.5}, []),
        ({"void": "something"}, []),
        ({"content": "1"}, [(Kind.RETYPED, "content", "the field 'content' holds text, and held number")]),
        ({"content": True}, [(Kind.RETYPED, "content", "the field 'content' holds boolean, and held number")]),
        ({"extra": "x"}, [(Kind.NEW, "extra", "there is a new field 'extra' (text)")]),
        ({"more": {"tags": []}}, [(Kind.MISSING, "more.a", "the field 'more.a' is missing")]),
        ({"more": {"a": 1, "tags": [], "b": 2}}, [(Kind.NEW, "more.b", "there is a new field 'more.b' (number)")]),
        ({"more": "none"}, [
            (Kind.RETYPED, "more", "the field 'more' holds text, and held object"),
            (Kind.MISSING, "more.a", "the field 'more.a' is missing"),
            (Kind.MISSING, "more.tags", "the field 'more.tags' is missing"),
        ]),
    ],
)  # fmt: skip
def test_what_is_new_is_told(changed: dict[str, Any], found: list[tuple[Kind, str, str]]) -> None:
    assert [(drift.kind, drift.field, drift.text) for drift in watch().look([ROW | changed])] == found


def test_it_is_told_once_and_belongs_to_the_shape_from_then_on() -> None:
    made = watch()
    made.is_dirty = False
    row = {"content": "1", "extra": 1}
    assert len(made.look([row, row])) == 8
    assert made.look([row, ROW, row]) == []
    assert made.is_dirty
    again = ShapeWatch("warn")
    again.begin(made.shape)
    assert again.look([row, ROW]) == []


def test_fields_that_only_some_rows_had_may_be_missing() -> None:
    made = ShapeWatch("stop")
    made.look([ROW, ROW | {"sometimes": 1}] * LEARN_ROWS)
    assert made.look([ROW]) == []


def test_quarantine_spares_rows_with_a_field_more() -> None:
    made = watch("quarantine")
    reading = Reading.of(THINGS)._replace(watch=made)
    translate(ROW | {"extra": 1}, "a", reading)
    with pytest.raises(Rejected, match="'stamp' is missing") as caught:
        translate({name: value for name, value in ROW.items() if name != "stamp"}, "a", reading)
    assert caught.value.reason == "drift"
    assert made.look([ROW | {"content": "1"}])
    assert made.fault(ROW | {"content": "1"}), "it is told, and does not belong to the shape"


def test_stop_holds_until_a_person_accepts() -> None:
    made = watch("stop")
    assert made.refusal() == ""
    made.look([ROW | {"extra": 1}])
    made.look([ROW])
    assert "'extra'" in made.refusal()
    assert not made.accept(0)
    assert made.accept(1)
    assert made.refusal() == ""
    made.look([ROW | {"extra": 1}] * LEARN_ROWS)
    assert made.refusal() == ""
    assert not made.accept(1), "once"


def test_lines_that_could_not_be_read_say_nothing() -> None:
    assert watch("stop").look([FileRow([("raw", "x")], "1.csv", 1, "1 columns instead of 2")]) == []


values = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.none(), max_size=1)
rows = st.dictionaries(st.sampled_from("abcd"), values | st.dictionaries(st.sampled_from("xy"), values, max_size=2))


@settings(max_examples=30)
@given(st.lists(rows, min_size=1, max_size=5), st.lists(rows, max_size=5))
def test_what_was_learned_is_no_drift_and_what_was_told_is_not_told_again(
    learned: list[dict[str, Any]], seen: list[dict[str, Any]]
) -> None:
    made = ShapeWatch("warn")
    made.look(learned * LEARN_ROWS)
    assert made.look(learned) == []
    made.look(seen)
    assert made.look([*seen, *learned]) == []


_VALUES = st.sampled_from((None, 1, 2.5, "text", True))
_FLAT_ROWS = st.lists(
    st.dictionaries(st.sampled_from(("key", "content", "void", "extra")), _VALUES, min_size=1).map(
        lambda row: {"key": "a"} | row
    ),
    max_size=4,
)


@given(_FLAT_ROWS)
def test_flat_rows_are_told_as_others_are(rows: list[dict[str, Any]]) -> None:
    flat, deep = {"key": "a", "content": 1, "void": None}, {"deep": {"inner": 1}}
    # Rows with an object in them are compared one by one, flat ones by their columns where that is enough.
    one_by_one = watch("quarantine", flat | deep)
    expected = {drift for row in rows for drift in one_by_one.look([row | deep])}
    assert set(watch("quarantine", flat).look(rows)) == expected
