"""Dropped files through the whole loop: what the files say is what the front office shows, wherever a process dies."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from poller.csv_drop import CsvDropSource
from poller.loop import SourceLoop
from tests.fakes.drop_s3 import DropWorld
from tests.fakes.poller_world import Crash, World
from tests.unit.test_poller_csv_drop import CHANGES, EXTRACTS
from tidegate.bubble import Source
from tidegate.event import Cause


class Place:
    """One source of dropped files with everything around it; `take` is a new process."""

    def __init__(self, declared: Source) -> None:
        self.drops = DropWorld(declared, page_rows=4)
        self.world = World(declared=declared)
        self._source: CsvDropSource | None = None

    async def take(self, *, allowed: bool = False) -> SourceLoop:
        self.close()
        self._source = self.drops.source()
        self.world.source = cast(Any, self._source)
        return await self.world.take(allowed=allowed)

    def close(self) -> None:
        if self._source is not None:
            self._source.close()

    def drop(self, name: str, rows: dict[str, int], *bad: str) -> None:
        lines = [*(f"{key},{content}" for key, content in rows.items()), *bad]
        self.drops.s3.drop(f"drops/{name}.csv", "key,content\n" + "\n".join(lines) + "\n")

    def versions(self, key: str) -> int:
        return sum(event.key.key == key for event in self.world.stream.events)


@pytest.fixture
def extracts() -> Any:
    place = Place(EXTRACTS)
    yield place
    place.close()


@pytest.fixture
def changes() -> Any:
    place = Place(CHANGES)
    yield place
    place.close()


async def test_an_extract_is_compared_with_the_one_before(extracts: Place) -> None:
    loop = await extracts.take()
    extracts.drop("1", {"a": 1, "b": 1, "c": 1, "d": 1})
    await extracts.world.spend(loop, 20)
    extracts.drop("2", {"a": 1, "b": 2, "d": 1, "e": 1})
    await extracts.world.spend(loop, 20)
    assert extracts.world.stream.contents() == {"a": 1, "b": 2, "d": 1, "e": 1}
    assert [extracts.versions(key) for key in "abcde"] == [1, 2, 2, 1, 1]
    assert {event.cause for event in extracts.world.stream.events[-3:]} == {Cause.LIVE}


async def test_a_short_extract_deletes_nothing_until_a_person_says_so(extracts: Place) -> None:
    loop = await extracts.take()
    extracts.drop("1", {f"k{at}": 1 for at in range(100)})
    await extracts.world.spend(loop, 20)
    extracts.drop("2", {"k1": 2})
    await extracts.world.spend(loop, 20)
    assert len(extracts.world.stream.contents()) == 100
    assert extracts.world.stream.contents()["k1"] == 2
    assert "2.csv" not in extracts.drops.ledger.fates(), "it is not done with"
    await extracts.world.spend(await extracts.take(allowed=True), 20)
    assert extracts.world.stream.contents() == {"k1": 2}


async def test_a_bad_row_is_quarantined_once_with_file_and_line(extracts: Place) -> None:
    loop = await extracts.take()
    extracts.drop("1", {"a": 1, "b": 1}, "c", "d,many")
    await extracts.world.spend(loop, 20)
    extracts.drop("2", {"a": 1, "b": 1, "x": 1}, "c", "d,many")
    await extracts.world.spend(loop, 20)
    messages = [record.message for record in extracts.world.stream.quarantined]
    assert messages[0] == "1.csv line 4: 1 columns instead of 2"
    assert messages[1].startswith("1.csv line 5: ValueError")
    assert len(messages) == 2, "the same rows in the next extract are no news"
    assert extracts.world.stream.contents() == {"a": 1, "b": 1, "x": 1}


async def test_a_late_file_of_changes_moves_no_row_back(changes: Place) -> None:
    loop = await changes.take()
    changes.drop("x-20260102", {"a": 2, "b": 2})
    await changes.world.spend(loop, 20)
    changes.drop("y-20260101", {"a": 1, "c": 1})
    await changes.world.spend(loop, 20)
    assert changes.world.stream.contents() == {"a": 2, "b": 2, "c": 1}
    changes.drop("x-20260102", {"a": 2, "b": 3, "d": 3})
    await changes.world.spend(loop, 20)
    assert changes.world.stream.contents() == {"a": 2, "b": 3, "c": 1, "d": 3}
    assert [changes.versions(key) for key in "abcd"] == [1, 2, 1, 1], "of an overwritten file only the difference"


@given(at=st.integers(0, 40), after=st.booleans())
async def test_a_process_that_dies_anywhere_loses_nothing_and_each_file_is_done(at: int, after: bool) -> None:
    place = Place(replace(CHANGES, poll_interval_s=1))
    place.drop("1-20260101", {f"k{at}": 1 for at in range(10)})
    place.drop("2-20260102", {f"k{at}": 2 for at in range(5, 12)})
    place.world.set_fate(at, after=after)
    try:
        await place.world.spend(await place.take(), 10)
    except Crash:
        place.world.set_fate(None)
        await place.world.spend(await place.take(), 10)
    place.close()
    expected = {f"k{at}": 1 for at in range(5)} | {f"k{at}": 2 for at in range(5, 12)}
    assert place.world.stream.contents() == expected
    assert set(place.drops.ledger.fates().values()) == {"done"}
    assert len(place.drops.ledger.fates()) == 2


async def test_an_extract_in_hand_is_read_anew_at_once_by_who_takes_over(extracts: Place) -> None:
    extracts.world.settings = replace(extracts.world.settings, sweep_kept_s=0.01)
    extracts.drop("1", {f"k{at}": 1 for at in range(40)})
    loop = await extracts.take()
    while loop.sweep_rows < 20:
        await extracts.world.spend(loop, 0.02)
    loop = await extracts.take()
    await extracts.world.spend(loop, 2)
    assert len(extracts.world.stream.contents()) == 40, "no wait, as after a failure"


@given(at=st.integers(0, 30), after=st.booleans())
async def test_so_it_is_with_extracts(at: int, after: bool) -> None:
    place = Place(replace(EXTRACTS, poll_interval_s=1))
    place.drop("1", {f"k{at}": 1 for at in range(10)})
    place.world.set_fate(at, after=after)
    try:
        loop = await place.take()
        await place.world.spend(loop, 5)
        place.drop("2", {f"k{at}": 2 for at in range(3, 11)})
        await place.world.spend(loop, 5)
    except Crash:
        place.world.set_fate(None)
        place.drop("2", {f"k{at}": 2 for at in range(3, 11)})
        await place.world.spend(await place.take(), 10)
    place.close()
    assert place.world.stream.contents() == {f"k{at}": 2 for at in range(3, 11)}
    assert place.drops.ledger.fates()["2.csv"] == "done"
