"""Batches: what closes them, and which version of a key is kept."""

from __future__ import annotations

from collections.abc import Sequence, Set
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate import codec
from tidegate.entity import EVERYONE, Entity, Meta, Reader
from tidegate.event import Cause, ChangeEvent, EntityKey, Operation, Version, Watermark
from tidegate.record import Part
from worker.batch import (
    BatchBuilder,
    BatchLimits,
    BatchSize,
    Change,
    DeadLetter,
    Item,
    Mark,
    Position,
    Record,
    coalesce,
    newest_marks,
)

NOW = datetime(2026, 11, 21, tzinfo=UTC)
LIMITS = BatchLimits(max_records=3, max_bytes=100, max_age_s=2.0)


class Parcel(Entity):
    meta = Meta(collection="parcels", key="number", readers=(Reader(EVERYONE),))
    number: str


class Office(Entity):
    meta = Meta(collection="offices", key="number", readers=(Reader(EVERYONE),))
    number: str


TYPED = codec.TypedDecoder((Parcel, Office))


def record(number: int, size: int = 10) -> Record:
    return Record(str(number), b"x" * size)


def change(key: str, version: int, number: int = 0, entity: str = "parcel") -> Change:
    event = ChangeEvent(
        event_id=f"{key}-{version}-{number}", key=EntityKey(entity, key), version=Version(0, version, 1, 1, 1),
        operation=Operation.UPSERT, cause=Cause.LIVE, source="s", occurred_at=NOW, observed_at=NOW, payload={},
    )  # fmt: skip
    return Change(record(number), TYPED.typed(event, Parcel(number=key)))


def coalesced(
    changes: Sequence[Change], whole: Set[EntityKey] = frozenset()
) -> tuple[dict[str, list[list[Change]]], list[Change]]:
    """What `coalesce` says of their events, in changes."""
    kept, dropped = coalesce([each.event for each in changes], whole)
    layers = {entity: [[changes[place] for place in layer] for layer in found] for entity, found in kept.items()}
    return layers, [changes[place] for place in dropped]


def letter(number: int) -> DeadLetter:
    return DeadLetter(position=Position(number, 0), stage="decode", reason="invalid", message="", payload=b"")


def letters(records: Sequence[Record]) -> list[DeadLetter]:
    return [letter(record.position.sequence) for record in records]


def mark(number: int, source: str = "s", seconds: int = 0) -> Mark:
    as_of = NOW + timedelta(seconds=seconds)
    return Mark(Position(number, 0), Watermark(event_id="w", source=source, as_of=as_of))


def fill(builder: BatchBuilder, records: Sequence[Record], items: Sequence[Item], now_s: float) -> None:
    assert builder.fill(records, 0, lambda part: items, now_s) == len(records)


changes = st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 5), st.sampled_from(["parcel", "office"])))


@given(changes)
def test_one_newest_change_of_each_key_is_kept_and_no_record_disappears(drawn: list[tuple[str, int, str]]) -> None:
    given_changes = [change(key, version, number, entity) for number, (key, version, entity) in enumerate(drawn)]
    kept, dropped = coalesced(given_changes)
    assert all(len(layers) == 1 for layers in kept.values())
    flat = [each for [rows] in kept.values() for each in rows]
    positions = [each.position for each in (*flat, *dropped)]
    assert sorted(positions) == [each.position for each in given_changes]
    best: dict[EntityKey, Version] = {}
    for each in given_changes:
        best[each.event.key] = max(best.get(each.event.key, each.event.version), each.event.version)
    assert {each.event.key: each.event.version for each in flat} == best
    assert len(flat) == len(best)
    for [rows] in kept.values():
        assert [each.key for each in rows] == sorted(each.key for each in rows)


def test_of_two_equal_versions_the_first_is_kept_as_the_table_does() -> None:
    first, second = change("a", 1, 1), change("a", 1, 2)
    assert coalesced([first, second]) == ({"parcel": [[first]]}, [second])
    assert coalesced([first, second], {first.event.key}) == ({"parcel": [[first]]}, [second])


@given(changes, st.sets(st.sampled_from("abcde")))
def test_of_a_key_that_is_wanted_whole_every_version_stands_in_a_layer_of_its_own(
    drawn: list[tuple[str, int, str]], whole: set[str]
) -> None:
    given_changes = [change(key, version, number, entity) for number, (key, version, entity) in enumerate(drawn)]
    keys = {each.event.key for each in given_changes if each.key in whole}
    kept, dropped = coalesced(given_changes, keys)
    flat = [each for layers in kept.values() for rows in layers for each in rows]
    assert sorted(each.position for each in (*flat, *dropped)) == [each.position for each in given_changes]
    for key in keys:
        versions = {each.event.version for each in given_changes if each.event.key == key}
        assert [each.event.version for each in flat if each.event.key == key] == sorted(versions)
    for layers in kept.values():
        for rows in layers:
            assert rows
            assert [each.key for each in rows] == sorted({each.key for each in rows})
        assert {each.key for rows in layers for each in rows} == {each.key for each in layers[0]}, (
            "later layers lock nothing new"
        )


def test_a_batch_closes_by_count() -> None:
    builder = BatchBuilder("shard-0", LIMITS)
    first = change("a", 1, 0)
    items: list[Item] = [first.event, letter(1), mark(2)]
    for number, item in enumerate(items):
        assert not builder.is_full
        fill(builder, [record(number)], [item], float(number))
    assert builder.is_full
    batch = builder.close()
    assert (batch.changes, batch.events) == ([first], [first.event])
    assert (batch.dead, batch.marks) == ([items[1]], [items[2]])
    assert (batch.delivered, batch.last) == (2, Position(2, 0))
    assert builder.is_empty
    assert builder.due_s is None


def test_changes_that_were_let_go_of_are_decoded_again() -> None:
    first, last = change("a", 1, 0), change("b", 1, 2)
    items: list[Item] = [first.event, letter(1), last.event]
    decoded: list[list[int]] = []

    def decode(records: Sequence[Record]) -> list[Item]:
        decoded.append([each.position.sequence for each in records])
        return [items[each.position.sequence] for each in records]

    builder = BatchBuilder("shard-0", LIMITS)
    builder.fill([record(number) for number in range(3)], 0, decode, 0.0)
    batch = builder.close()
    batch.let_go()
    assert (batch.delivered, batch.size, batch.dead) == (3, 3, [items[1]])
    assert decoded == [[0, 1, 2]]
    assert batch.changes == batch.changes == [first, last]
    assert decoded == [[0, 1, 2], [0, 1, 2]]
    batch.let_go()
    assert (batch.delivered, batch.events) == (3, [first.event, last.event])


def test_the_records_of_changes_are_read_again_from_where_they_came() -> None:
    made: list[int] = []

    def again() -> list[Record]:
        made.append(1)
        return [record(number) for number in range(4)]

    part = Part(again(), again)
    expected = [change(name, 1, number) for number, name in enumerate("abcd")]
    builder = BatchBuilder("shard-0", LIMITS)
    assert builder.fill(part, 0, lambda some: [each.event for each in expected[: len(some)]], 0.0) == 3
    first = builder.close()
    assert builder.fill(part, 3, lambda some: [expected[3].event], 0.0) == 4
    second = builder.close()
    part.let_go()
    assert (first.events, second.events, len(made)) == ([each.event for each in expected[:3]], [expected[3].event], 1)
    assert ([*first.changes, *second.changes], len(made)) == (expected, 2)


def test_a_batch_closes_by_bytes() -> None:
    builder = BatchBuilder("shard-0", LIMITS)
    fill(builder, [record(0, 99)], [change("a", 1, 0).event], 0.0)
    assert not builder.is_full
    fill(builder, [record(1, 1)], [change("a", 2, 1).event], 0.0)
    assert builder.is_full


@given(st.lists(st.integers(0, 40), min_size=1, max_size=40), st.integers(1, 12), st.integers(1, 90), st.integers(1, 9))
def test_parts_fill_batches_as_records_one_by_one_would(
    sizes: list[int], max_records: int, max_bytes: int, first: int
) -> None:
    limits = BatchLimits(max_records=max_records, max_bytes=max_bytes, max_age_s=1.0)
    records = [record(number, size) for number, size in enumerate(sizes)]

    def filled(most: int) -> list[Position]:
        """Where the batches end when `most` records at most are offered at a time."""
        builder, ends, taken = BatchBuilder("shard-0", limits), [], 0
        while taken < len(records):
            taken = builder.fill(records[: taken + most], taken, letters, 0.0)
            if builder.is_full or taken == len(records):
                ends.append(builder.close().last)
        return ends

    assert filled(len(records)) == filled(first) == filled(1)


def test_a_batch_grows_while_full_ones_are_quick_and_shrinks_when_one_is_slow() -> None:
    size = BatchSize(least=100, most=700, target_s=1.0)
    seen = [size.records]
    for took_s in (0.5, 0.5, 0.1, 0.1, 0.9, 1.1, 1.1, 0.6, 3.0, 3.0, 0.5):
        size.note(size.records, took_s)
        seen.append(size.records)
    assert seen == [100, 200, 400, 700, 700, 700, 350, 175, 175, 100, 100, 200]


def test_what_was_not_full_says_nothing_about_a_larger_one() -> None:
    size = BatchSize(least=100, most=700, target_s=1.0)
    size.note(99, 0.01)
    assert size.records == 100
    size.note(100, 0.01)
    size.note(150, 2.0)
    assert size.records == 100, "not even three quarters of it were quick enough"


@given(st.integers(1, 50), st.integers(1, 50), st.lists(st.tuples(st.integers(0, 60), st.floats(0, 3)), max_size=30))
def test_a_batch_keeps_within_its_bounds(least: int, most: int, commits: list[tuple[int, float]]) -> None:
    size = BatchSize(least, most, target_s=1.0)
    for records, took_s in commits:
        size.note(records, took_s)
        assert min(least, most) <= size.records <= most


def test_a_limit_counts_for_the_batch_in_hand() -> None:
    builder = BatchBuilder("shard-0", LIMITS)
    fill(builder, [record(0)], [change("a", 1, 0).event], 0.0)
    builder.limit(1)
    assert builder.is_full


def test_a_batch_is_due_by_the_age_of_its_first_record() -> None:
    builder = BatchBuilder("shard-0", LIMITS)
    assert builder.due_s is None
    fill(builder, [record(0)], [change("a", 1, 0).event], 5.0)
    fill(builder, [record(1)], [change("a", 1, 1).event], 6.5)
    assert builder.due_s == 7.0


def test_positions_must_rise_and_an_empty_batch_cannot_close() -> None:
    builder = BatchBuilder("shard-0", LIMITS)
    with pytest.raises(ValueError, match="no position"):
        builder.close()
    fill(builder, [record(4)], [letter(4)], 0.0)
    for number in (4, 3):
        with pytest.raises(ValueError, match="do not rise"):
            fill(builder, [record(number)], [letter(number)], 0.0)


@given(st.lists(st.tuples(st.integers(0, 120), st.integers(0, 2)), min_size=1, max_size=3), st.booleans())
def test_within_a_part_positions_must_rise_as_numbers(places: list[tuple[int, int]], padded: bool) -> None:
    texts = [str(number).rjust(3 if padded else 0, "0") for number, _ in places]
    records = [Record(text, b"", sub) for text, (_, sub) in zip(texts, places, strict=True)]
    items = [letter(number) for number, _ in places]
    builder = BatchBuilder("shard-0", LIMITS)
    if places == sorted(set(places)):
        fill(builder, records, items, 0.0)
        assert builder.close().last == Position(*places[-1])
    else:
        with pytest.raises(ValueError, match="do not rise"):
            fill(builder, records, items, 0.0)


def test_the_furthest_watermark_of_each_source_counts() -> None:
    marks = [mark(1, "b", 5), mark(2, "a", 9), mark(3, "b", 7), mark(4, "b", 6)]
    newest = newest_marks(marks)
    assert [(source, (each.as_of - NOW).seconds) for source, each in newest.items()] == [("a", 9), ("b", 7)]
