"""A page of records as a delivery: aggregates are taken apart bit by bit, and what was delivered before is dropped."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_worker_kpl import aggregate
from tidegate.aws import RecordsPage
from tidegate.leases import TRIM_HORIZON, at
from tidegate.record import Position, Record, Records
from worker.ports import Delivery
from worker.reading import Reading, StartTimes
from worker.shards import HashRange

ALL = HashRange(0, (1 << 128) - 1)
EACH, AGGREGATES = 500, 20
AGGREGATE = aggregate([("key", None, b"x")] * EACH)


def delivered(records: Sequence[Record], reading: Reading | None = None) -> Delivery:
    page = RecordsPage(Records(records), next_iterator="next", millis_behind_latest=0)
    return (reading or Reading("shard-0", TRIM_HORIZON, StartTimes(0.0))).deliver(page, ALL)


def positions(delivery: Delivery) -> list[Position]:
    return [record.position for record in delivery.records]


def test_aggregates_are_taken_apart_some_at_a_time() -> None:
    parts = list(delivered([Record(str(number), AGGREGATE) for number in range(AGGREGATES)]).records.parts())
    assert sum(map(len, parts)) == EACH * AGGREGATES
    assert max(map(len, parts)) <= 1_000


def test_a_page_without_aggregates_is_handed_on_as_it_is() -> None:
    records = [Record(str(number), b"{}") for number in range(10_000)]
    assert [list(part) for part in delivered(records).records.parts()] == [records]


@given(
    st.lists(st.sampled_from([b"", b"{}", AGGREGATE]), min_size=1, max_size=6), st.integers(0, 7), st.integers(0, EACH)
)
def test_what_was_delivered_before_is_dropped_and_the_rest_is_not(kinds: list[bytes], sequence: int, sub: int) -> None:
    records = [Record(str(number), data) for number, data in enumerate(kinds)]
    everything = positions(delivered(records))
    known = Position(sequence, sub)
    reading = Reading("shard-0", at(str(sequence), sub), StartTimes(0.0))
    assert positions(delivered(records, reading)) == [each for each in everything if each > known]
    assert reading.last == max(known, everything[-1])
