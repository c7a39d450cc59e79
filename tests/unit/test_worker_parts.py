"""How a consumer takes the parts of a page: others have their turn, nothing is kept, and a broken one ends it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial

import pytest
from msgspec.structs import replace

from tests.fakes.shard_life import ScriptedReader, delivery, until, working, world
from tests.unit.test_worker_kpl import aggregate
from tidegate.aws import RecordsPage
from tidegate.errors import Transient
from tidegate.leases import TRIM_HORIZON, at
from tidegate.record import Part, Record, Records
from worker.batch import Item
from worker.decode import Decoder
from worker.reading import Reading, StartTimes
from worker.settings import BatchSettings


class _Turns:
    """A decoder that notes at which turn of the event loop it was asked."""

    def __init__(self) -> None:
        self.turn = 0
        self.seen: list[int] = []

    async def count(self) -> None:
        while True:
            self.turn += 1
            await asyncio.sleep(0)

    def decode_all(self, records: Sequence[Record]) -> list[Item]:
        self.seen.append(self.turn)
        return Decoder(()).decode_all(records)


async def test_while_aggregates_are_taken_apart_others_have_their_turn() -> None:
    page = Records([Record(str(number), aggregate([("key", None, b"x")] * 500)) for number in range(1, 19)])
    given = Reading("shard-0", TRIM_HORIZON, StartTimes(0.0)).deliver(RecordsPage(page, "next", 0), None)
    made = await world(ScriptedReader(given), batch=BatchSettings(least_records=100_000, max_records=100_000))
    turns = _Turns()
    made.consumer = dataclasses.replace(made.consumer, decoder=turns)
    counting = asyncio.create_task(turns.count())
    async with working(made):
        await until(lambda: len(made.sink.positions) == 9_000)
    counting.cancel()
    assert len(set(turns.seen)) >= 9


class Known(Records):
    """A page that remembers the parts it gave, each of which can be read again."""

    def __init__(self, records: Sequence[Record]) -> None:
        super().__init__(records)
        self.given: list[Part] = []
        self.again = 0

    def parts(self) -> Iterator[Part]:
        for record in self._known:
            self.given.append(Part([record], partial(self._anew, record)))
            yield self.given[-1]

    def _anew(self, record: Record) -> list[Record]:
        self.again += 1
        return [record]


async def test_of_a_part_that_was_taken_no_record_is_kept() -> None:
    page = Known([Record(str(number), b"not an event") for number in (5, 6, 7)])
    made = await world(ScriptedReader(replace(delivery(behind=0), records=page)))
    async with working(made):
        await until(lambda: bool(made.sink.positions) and made.sink.positions[-1] == 7)
    assert (len(page.given), page.again) == (3, 0)
    assert [part[0] for part in page.given] == list(page._known)
    assert page.again == 3, "each had been let go of"


class Torn(Records):
    """A page that turns out to be broken after its first part."""

    def parts(self) -> Iterator[Part]:
        yield from super().parts()
        raise Transient("a page of records is not readable")


async def test_what_comes_before_the_broken_part_of_a_page_is_no_more_checkpointed_than_written() -> None:
    given = delivery(5, 6, behind=1)
    torn = replace(given, records=Torn(list(given.records)))
    made = await world(ScriptedReader(delivery(4, behind=1), torn), batch=BatchSettings(max_records=1))
    with pytest.RaisesGroup(Transient):
        await made.run()
    assert made.sink.positions == [4, 5, 6]
    assert made.checkpoint == at("6")
    made = await world(ScriptedReader(torn))
    with pytest.RaisesGroup(Transient):
        await made.run()
    assert made.sink.positions == []
    assert made.checkpoint == TRIM_HORIZON
