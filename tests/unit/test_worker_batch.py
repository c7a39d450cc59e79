"""Batches: what closes them, and which version of a key is kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.event import Cause, ChangeEvent, EntityKey, Operation, Version, Watermark
from worker.batch import BatchBuilder, BatchLimits, Change, DeadLetter, Item, Mark, Position, coalesce, newest_marks

NOW = datetime(2026, 11, 21, tzinfo=UTC)
LIMITS = BatchLimits(max_records=3, max_bytes=100, max_age_s=2.0)


def change(key: str, version: int, number: int = 0, entity: str = "parcel") -> Change:
    event = ChangeEvent(
        event_id=f"{key}-{version}-{number}", key=EntityKey(entity, key), version=Version(0, version, 1, 1, 1),
        operation=Operation.UPSERT, cause=Cause.LIVE, source="s", occurred_at=NOW, observed_at=NOW, payload={},
    )  # fmt: skip
    return Change(Position(number, 0), event, key, (key,), b"")


def letter(number: int) -> DeadLetter:
    return DeadLetter(position=Position(number, 0), stage="decode", reason="invalid", message="", payload=b"")


def mark(number: int, source: str = "s", seconds: int = 0) -> Mark:
    as_of = NOW + timedelta(seconds=seconds)
    return Mark(Position(number, 0), Watermark(event_id="w", source=source, as_of=as_of))


changes = st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 5), st.sampled_from(["parcel", "office"])))


@given(changes)
def test_one_newest_change_of_each_key_is_kept_and_no_record_disappears(drawn: list[tuple[str, int, str]]) -> None:
    given_changes = [change(key, version, number, entity) for number, (key, version, entity) in enumerate(drawn)]
    kept, dropped = coalesce(given_changes)
    flat = [each for rows in kept.values() for each in rows]
    positions = [each.position for each in (*flat, *dropped)]
    assert sorted(positions) == [each.position for each in given_changes]
    best: dict[EntityKey, Version] = {}
    for each in given_changes:
        best[each.event.key] = max(best.get(each.event.key, each.event.version), each.event.version)
    assert {each.event.key: each.event.version for each in flat} == best
    assert len(flat) == len(best)
    for rows in kept.values():
        assert [each.key for each in rows] == sorted(each.key for each in rows)


def test_of_two_equal_versions_the_first_is_kept_as_the_table_does() -> None:
    first, second = change("a", 1, 1), change("a", 1, 2)
    assert coalesce([first, second]) == ({"parcel": [first]}, [second])


def test_a_batch_closes_by_count() -> None:
    builder = BatchBuilder("shard-0", LIMITS)
    items: list[Item] = [change("a", 1, 0), letter(1), mark(2)]
    for number, item in enumerate(items):
        assert not builder.is_full
        builder.add(item, 10, float(number))
    assert builder.is_full
    batch = builder.close()
    assert (len(batch.changes), len(batch.dead), len(batch.marks)) == (1, 1, 1)
    assert (batch.delivered, batch.last) == (2, Position(2, 0))
    assert builder.is_empty
    assert builder.due_s is None


def test_a_batch_closes_by_bytes() -> None:
    builder = BatchBuilder("shard-0", LIMITS)
    builder.add(change("a", 1, 0), 99, 0.0)
    assert not builder.is_full
    builder.add(change("a", 2, 1), 1, 0.0)
    assert builder.is_full


def test_a_batch_is_due_by_the_age_of_its_first_record() -> None:
    builder = BatchBuilder("shard-0", LIMITS)
    assert builder.due_s is None
    builder.add(change("a", 1, 0), 1, 5.0)
    builder.add(change("a", 1, 1), 1, 6.5)
    assert builder.due_s == 7.0


def test_positions_must_rise_and_an_empty_batch_cannot_close() -> None:
    builder = BatchBuilder("shard-0", LIMITS)
    with pytest.raises(ValueError, match="no position"):
        builder.close()
    builder.add(letter(4), 1, 0.0)
    for number in (4, 3):
        with pytest.raises(ValueError, match="comes after"):
            builder.add(letter(number), 1, 0.0)


def test_the_furthest_watermark_of_each_source_counts() -> None:
    marks = [mark(1, "b", 5), mark(2, "a", 9), mark(3, "b", 7), mark(4, "b", 6)]
    newest = newest_marks(marks)
    assert [(source, (each.as_of - NOW).seconds) for source, each in newest.items()] == [("a", 9), ("b", 7)]
