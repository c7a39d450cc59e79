"""The back office's own store, and the parts of the framework that need no server."""

import random
import sqlite3
from collections.abc import Iterator
from dataclasses import replace as changed
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from local.legacy.desk import Desk
from local.legacy.life import Burst
from local.legacy.manners import Budget, Night
from local.legacy.record import NEVER, Record, Viewer, shapes
from local.legacy.store import KeyBag, Store

START_MS = 1_795_242_402_738


class Loan(Record, frozen=True, kw_only=True):
    entity: ClassVar[str] = "loan"
    editable: ClassVar[tuple[str, ...]] = ("title", "reader", "late")
    hidden: ClassVar[frozenset[str]] = frozenset({"shelf"})
    number: str
    title: str
    reader: str | None = None
    late: bool = False
    shelf: int = 0
    revision: int = 0
    changed_at: datetime = NEVER

    def lane(self) -> str:
        return "out" if self.reader else "in"


class Clock:
    def __init__(self) -> None:
        self.ms = START_MS

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    store = Store(tmp_path, [Loan], clock)
    yield store
    store.close()


def desk_of(store: Store) -> Desk:
    return Desk(store, random.Random(1))


def put(store: Store, *loans: Loan) -> int:
    desk = desk_of(store)
    for loan in loans:
        desk.put(loan)
    return store.commit(desk)


def test_a_commit_shows_rows_and_log_together(store: Store, clock: Clock) -> None:
    desk = desk_of(store)
    desk.put(Loan(number="1", title="Heidi", shelf=4))
    assert store.count(Loan) == 0
    assert store.changes(0, 10) == []
    clock.ms += 1500
    assert store.commit(desk) == 1
    [change] = store.changes(0, 10)
    assert (change.no, change.entity, change.key, change.operation) == (1, "loan", "1", "upsert")
    assert change.committed_at_ms == START_MS + 1500
    found = store.find(Loan, "1")
    assert found is not None
    assert found.changed_at == datetime.fromtimestamp((START_MS + 1500) // 1000, UTC)
    assert change.row is not None
    assert msgspec.json.decode(change.row) == found.truth()
    assert "shelf" not in found.truth()
    assert found.shelf == 4


def test_several_changes_of_a_row_in_one_commit_count_up(store: Store) -> None:
    desk = desk_of(store)
    desk.put(Loan(number="1", title="a"))
    first = desk.find(Loan, "1")
    assert first is not None
    desk.put(replace(first, title="b"))
    desk.put(replace(first, title="c"))
    store.commit(desk)
    titles = [msgspec.json.decode(change.row or b"")["revision"] for change in store.changes(0, 10)]
    assert titles == [1, 2, 3]
    assert [loan.title for loan in store.page(Loan, "key", 0, 9)] == ["c"]


def test_a_deleted_row_is_gone_and_can_be_found_again(store: Store) -> None:
    put(store, Loan(number="1", title="a", reader="x"), Loan(number="2", title="b"))
    desk = desk_of(store)
    loan = desk.find(Loan, "1")
    assert loan is not None
    desk.delete(loan)
    assert desk.find(Loan, "1") is None
    assert desk.pick(Loan, "out") is None
    store.commit(desk)
    assert store.find(Loan, "1") is None
    assert store.changes(2, 10)[0].row is None
    assert store.changes(2, 10)[0].operation == "delete"
    assert store.last_removed(Loan, "1") == loan
    assert desk_of(store).pick(Loan, "out") is None


def test_ties_are_ordered_by_key_and_the_bound_is_inclusive(store: Store, clock: Clock) -> None:
    put(store, Loan(number="3", title="a"), Loan(number="1", title="a"))
    clock.ms += 200  # the same second
    put(store, Loan(number="2", title="a"))
    clock.ms += 1000
    put(store, Loan(number="0", title="a"))
    since = START_MS // 1000
    assert [loan.number for loan in store.page(Loan, "version", 0, 9, since)] == ["1", "2", "3", "0"]
    assert store.count(Loan, since + 1) == 1
    assert [loan.number for loan in store.page(Loan, "key", 1, 2)] == ["1", "2"]


def test_what_fails_to_commit_leaves_nothing(store: Store) -> None:
    put(store, Loan(number="1", title="a"))
    desk = desk_of(store)
    desk.put(Loan(number="2", title="b"))
    desk.put(Loan(number="3", title="c\ud800"))  # not encodable
    with pytest.raises(ValueError, match="surrogate"):
        store.commit(desk)
    assert (store.count(Loan), store.last_change, store.revision) == (1, 1, 1)
    assert put(store, Loan(number="4", title="d")) == 2


def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    first = Store(tmp_path, [Loan])
    desk = desk_of(first)
    desk.put(Loan(number=str(desk.next("loan")), title="a"))
    first.commit(desk)
    first.close()
    second = Store(tmp_path, [Loan])
    assert second.count(Loan) == 1
    assert (second.last_change, second.revision) == (1, 1)
    assert desk_of(second).next("loan") == 2
    assert desk_of(second).pick(Loan) is not None
    second.close()


def test_the_seed_comes_whole_or_not_at_all(store: Store) -> None:
    def broken() -> Iterator[Record]:
        yield Loan(number="1", title="a")
        yield Loan(number="1", title="twice")

    with pytest.raises(sqlite3.IntegrityError):
        store.seed(Loan, broken(), desk_of(store))
    assert (store.count(Loan), store.is_seeded(Loan)) == (0, False)
    store.seed(Loan, [Loan(number="1", title="a")], desk_of(store))
    assert (store.count(Loan), store.is_seeded(Loan), store.last_change) == (1, True, 0)


def test_the_truth_is_one_snapshot(store: Store) -> None:
    put(store, *(Loan(number=f"{number:04d}", title="a") for number in range(500)))
    lines = store.truth(Loan, None)
    first = next(lines)
    put(store, Loan(number="0499", title="changed"), Loan(number="9999", title="new"))
    rest = [msgspec.json.decode(line) for line in lines]
    assert msgspec.json.decode(first)["key"] == "0000"
    assert [line["key"] for line in rest] == [f"{number:04d}" for number in range(1, 500)]
    assert {line["row"]["title"] for line in rest} == {"a"}


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abcdefg"))))
def test_a_key_bag_is_a_set_with_places(steps: list[tuple[bool, str]]) -> None:
    bag, model = KeyBag(), set[str]()
    for adding, key in steps:
        if adding:
            bag.add(key)
            model.add(key)
        else:
            bag.discard(key)
            model.discard(key)
        assert sorted(bag[index] for index in range(len(bag))) == sorted(model)


def test_viewers() -> None:
    assert Viewer.parse("customer:1001") == Viewer("customer", "1001")
    for text in ("", "customer", "customer:", ":1"):
        with pytest.raises(ValueError, match="kind:id"):
            Viewer.parse(text)


def test_the_screen_learns_the_fields_from_the_annotations() -> None:
    assert [(shape.name, shape.type, shape.nullable) for shape in shapes(Loan)] == [
        ("title", "text", False),
        ("reader", "text", True),
        ("late", "flag", False),
    ]


def test_a_burst_has_exactly_the_deeds_it_names() -> None:
    deeds = list(Burst(creates=3, updates=2, deletes=1).deeds(random.Random(1)))
    assert sorted(deeds) == ["creates", "creates", "creates", "deletes", "updates", "updates"]
    for wrong in ({"creates": -1}, {"updates": 1_000_001}, {"typo": 1}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, Burst)


def test_the_budget_refills_with_time() -> None:
    now = [0.0]
    budget = Budget(5, lambda: now[0])
    assert [budget.take() for _ in range(5)] == [0.0] * 5
    assert budget.take() == pytest.approx(0.2)
    now[0] += 0.2
    assert budget.take() == 0.0
    assert budget.take() > 0
    now[0] += 60
    assert [budget.take() for _ in range(6)][-2:] == [0.0, pytest.approx(0.2)]


def test_the_night_may_run_over_midnight() -> None:
    def at(hour: int, minute: int) -> int:
        return Night.parse("23:30-01:15").minutes_left(datetime(2026, 1, 1, hour, minute).time())

    assert [at(23, 29), at(23, 30), at(0, 0), at(1, 14), at(1, 15), at(12, 0)] == [0, 105, 75, 1, 0, 0]
    assert (
        changed(Night.parse("02:00-02:30"), start=datetime(2026, 1, 1, 2, 10).time()).minutes_left(
            datetime(2026, 1, 1, 2, 15).time()
        )
        == 15
    )
    for text in ("02:00", "2-3-4", "25:00-26:00"):
        with pytest.raises(ValueError, match="nightly window"):
            Night.parse(text)
