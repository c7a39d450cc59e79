"""What strict order lets pass, and how the drain goes about it, without a database."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.integration.worker_rows import NOW, batch, change, gadget
from tidegate.errors import Rejected, Transient
from tidegate.event import EntityKey, Version
from worker import parking
from worker.batch import Change, Item, Position, Record
from worker.decode import rejected
from worker.drain import Drain
from worker.ports import Decode, DrainStep, WriteResult
from worker.settings import DrainSettings

STRICT = frozenset({"gadget"})
names = st.sampled_from("ABC")
drawn = st.lists(st.tuples(names, st.integers(1, 9)), max_size=12)
held = st.dictionaries(names, st.integers(1, 9))


def changes(pairs: Sequence[tuple[str, int]]) -> Sequence[Change]:
    return batch(*(change(key, version, gadget(key)) for key, version in pairs)).changes if pairs else ()


def whole(version: int) -> Version:
    return Version(0, version, 1, 1, 1)


@given(drawn, held)
def test_a_change_waits_exactly_while_an_older_letter_of_its_key_is_open(
    pairs: list[tuple[str, int]], oldest: dict[str, int]
) -> None:
    given_changes = changes(pairs)
    keys = parking.strict_keys(given_changes, STRICT)
    assert sorted(key.key for key in keys) == sorted({key for key, _ in pairs})
    rows = [
        (place, list(whole(oldest[key.key])), None, None, None)
        for place, key in enumerate(keys, 1)
        if key.key in oldest
    ]
    passing, waiting = parking.split(given_changes, keys, rows)
    assert sorted([*passing, *waiting], key=lambda each: each.position) == list(given_changes)
    for each in given_changes:
        is_held = each.event.version > whole(oldest.get(each.event.subject, 9))
        assert (each in waiting) == is_held
        assert parking.letter(each).is_parked


@given(drawn, drawn)
def test_nothing_newer_follows_what_was_refused(pairs: list[tuple[str, int]], failed: list[tuple[str, int]]) -> None:
    error = Rejected("check_violation", "why")
    letters = [rejected(each.position, each.event, each.data, stage="write", error=error) for each in changes(failed)]
    now, later = parking.in_turn(changes(pairs), letters)
    oldest = {key: min(version for other, version in failed if other == key) for key, _ in failed}
    assert all(each.event.version > whole(oldest[each.event.subject]) for each in later)
    assert not any(each.event.version > whole(oldest.get(each.event.subject, 9)) for each in now)
    assert len(now) + len(later) == len(pairs)
    assert parking.stripes(letters, STRICT) == sorted({parking.stripe(each.event.key) for each in changes(failed)})
    assert (
        parking.stripes(letters, frozenset()) == parking.stripes([parking.letter(each) for each in later], STRICT) == []
    )


@pytest.mark.parametrize(
    ("seconds", "place", "must_wait"), [(0, 9, True), (5, 9, True), (-1, 9, False), (5, 5, False), (5, 4, False)]
)
def test_behind_a_raw_row_waits_what_was_read_no_earlier_and_stands_later(
    seconds: int, place: int, must_wait: bool
) -> None:
    seen = replace(change("A", 1, gadget("A")), observed_at=NOW + timedelta(seconds=seconds))
    [only] = batch(seen, first=place).changes
    assert parking.Hold(observed_at=NOW, position=Position(5, 0)).holds(only) == must_wait


def test_only_keys_that_ask_and_come_several_times_are_tried_one_by_one() -> None:
    some = [each.event for each in changes([("A", 1), ("B", 1), ("A", 2)])]
    assert parking.repeated(some, STRICT) == {EntityKey("gadget", "A")}
    assert parking.repeated(some, frozenset()) == parking.repeated(some, frozenset({"counter"})) == set()


class Waiting:
    """Keys with so many parked changes; `others` are drained by another worker, and `faults` come first."""

    def __init__(self, keys: dict[str, int], others: str = "", faults: int = 0) -> None:
        self.keys = keys
        self.others = others
        self.faults = faults
        self.asked = self.settled = 0

    async def ready(self, most: int) -> list[EntityKey]:
        self.asked += 1
        if self.faults:
            self.faults -= 1
            raise Transient("away")
        return [EntityKey("gadget", key) for key, count in self.keys.items() if count][:most]

    async def drain(self, key: EntityKey, decode: Decode, most: DrainStep) -> WriteResult | None:
        if key.key in self.others:
            return None
        count = min(most.letters, self.keys[key.key])
        self.keys[key.key] -= count
        return WriteResult(applied=count)

    async def settle(self) -> None:
        self.settled += 1

    async def look(self) -> dict[str, tuple[int, float]]:
        return {"gadget": (sum(self.keys.values()), 1.0)}


def nothing(records: Sequence[Record]) -> Sequence[Item]:
    return ()


async def test_a_round_ends_when_nothing_is_left_but_what_others_are_at() -> None:
    waiting = Waiting({"A": 5, "B": 3, "C": 4}, others="B")
    drain = Drain(waiting, nothing, DrainSettings(step_letters=2))
    assert await drain.round(asyncio.Event()) == 9
    assert waiting.keys == {"A": 0, "B": 3, "C": 0}
    assert waiting.asked == 4, "the last look found nothing to do"


async def test_a_round_ends_soon_when_asked_to_stop() -> None:
    stop = asyncio.Event()
    stop.set()
    waiting = Waiting({"A": 5})
    assert await Drain(waiting, nothing, DrainSettings()).round(stop) == 0
    assert waiting.keys == {"A": 5}


@pytest.mark.looptime(start=100)
async def test_a_database_that_is_away_is_asked_again_and_what_waits_is_written() -> None:
    stop, waiting = asyncio.Event(), Waiting({"A": 1}, faults=3)
    drain = Drain(waiting, nothing, DrainSettings())
    loop = asyncio.get_running_loop()
    loop.call_later(10, stop.set)
    async with drain.draining(stop):
        pass
    assert waiting.keys == {"A": 0}
    assert waiting.settled == 1
    assert 13 <= waiting.asked <= 24, "one to two rounds a second, and one look more where something was found"
