"""The packed index behaves as a dictionary would, and its segments hold what it holds."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping

from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from poller.index import SEGMENT_ROWS, Index, Roll
from poller.snapshot import Entry, State, is_known

KEYS = st.one_of(st.sampled_from([f"K{number}" for number in range(40)]), st.text(min_size=1, max_size=12))
_ENTRY = Entry(0, 1, 2, 3, 1, b"12345678")


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    state = draw(st.sampled_from(State))
    return Entry(
        generation=draw(st.integers(0, 3)),
        source_version=draw(st.integers(0, 2**63 - 1)),
        epoch=draw(st.integers(0, 3)),
        read=draw(st.integers(0, 2**32 - 1)),
        translation=draw(st.integers(1, 2)),
        fingerprint=b"" if state is State.GONE else draw(st.binary(min_size=8, max_size=8)),
        state=state,
        unsure=draw(st.booleans()),
    )


def assert_same(index: Index, model: Mapping[str, Entry]) -> None:
    assert dict(index.entries()) == model
    assert len(index) == len(model)
    living = {key for key, entry in model.items() if entry.state is not State.GONE}
    assert index.live_count() == len(living)
    assert all(index.is_living(key) == (key in living) for key in model)
    assert index.behind(2) == sum(model[key].translation < 2 for key in living)
    assert sorted(index.unsure()) == sorted(key for key, entry in model.items() if entry.unsure)
    assert index.unsure_count() == len(index.unsure())


@settings(max_examples=120, deadline=None)
@example([("K1", _ENTRY, False), ("K1", "drop", False), ("K1", _ENTRY, True)])
@given(st.lists(st.tuples(KEYS, st.one_of(entries(), st.just("drop"), st.just("doubt")), st.booleans()), max_size=60))
def test_it_is_a_dictionary(steps: list[tuple[str, Entry | str, bool]]) -> None:
    index, model = Index(), dict[str, Entry]()
    for key, step, is_told in steps:
        if step == "drop":
            index.drop([key, "nobody"])
            model.pop(key, None)
        elif step == "doubt":
            index.doubt()
            model = {name: replace(entry, unsure=True) for name, entry in model.items()}
        elif isinstance(step, Entry):
            changes = {key: step, "K0": step}
            told = dict(zip(changes, index.numbers(changes), strict=True)) if is_told else None
            numbers = index.apply(changes, told)
            assert numbers == index.numbers(changes)
            model |= changes
        known = model.get(key)
        assert index.get(key) == known
        numbers = index.numbers([key, key])
        shown = known.fingerprint if known is not None and known.fingerprint else bytes(8)
        assert index.known(numbers, [shown, b"another!"], 2) == [is_known(known, shown, 2), False]
    assert_same(index, model)
    copy = Index()
    for number in range(index.segments()):
        copy.add_segment(index.segment(number), f"name {number}")
    assert_same(copy, model)
    assert copy.dirty() == []


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(KEYS, entries(), max_size=40), st.sets(KEYS), st.dictionaries(KEYS, entries(), max_size=5))
def test_who_was_not_called(known: dict[str, Entry], called: set[str], late: dict[str, Entry]) -> None:
    index = Index(known)
    roll = Roll(index)
    roll.call(dict(zip(called, index.numbers(called), strict=True)))
    again = Roll(index, roll.first(index.rows))
    index.apply(late)
    everybody = {**known, **late}
    called &= known.keys()
    expected = {key for key, entry in everybody.items() if entry.state is not State.GONE or entry.unsure} - called
    assert set(roll.missing()) == expected
    assert set(again.missing()) == expected


def entry(number: int) -> Entry:
    return Entry(0, 1_700_000_000_000_000 + number, 1_760_000_000, number // 500, 1, number.to_bytes(8, "big"))


def test_only_what_changed_is_written_again() -> None:
    index = Index({f"K{number:07d}": entry(number) for number in range(2 * SEGMENT_ROWS + 10)})
    assert index.dirty() == [0, 1, 2]
    for number in index.dirty():
        index.clean(number, f"segment {number}")
    index.apply({f"K{SEGMENT_ROWS + 1:07d}": entry(1)})
    assert index.dirty() == [1]
    index.apply({"new": entry(2)})
    assert index.dirty() == [1, 2]
    assert index.names == {number: f"segment {number}" for number in range(3)}


def test_a_row_takes_little_memory() -> None:
    count = 20_000
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    index = Index()
    for number in range(count):
        index.apply({f"P-{number:010d}": entry(number)})
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(index) == count
    assert (after - before) / count <= 75, "bytes, the key of 12 included"
