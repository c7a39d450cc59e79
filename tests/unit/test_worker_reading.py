"""A page of records as a delivery: aggregates are taken apart bit by bit, so that everybody else has a turn."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.test_worker_kpl import aggregate
from tidegate.aws import RecordsPage
from tidegate.leases import TRIM_HORIZON
from tidegate.record import Record
from worker.reading import Reading, StartTimes
from worker.shards import HashRange

pytestmark = pytest.mark.asyncio
ALL = HashRange(0, (1 << 128) - 1)
EACH, AGGREGATES = 500, 20


async def turns_during(records: list[Record]) -> tuple[int, int]:
    """How many records are delivered, and how often another task had its turn meanwhile."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    page = RecordsPage(records=records, next_iterator="next", millis_behind_latest=0)
    delivery = await Reading("shard-0", TRIM_HORIZON, StartTimes(0.0)).deliver(page, ALL)
    task.cancel()
    return len(delivery.records), turns


async def test_a_page_of_aggregates_leaves_the_loop_to_others_in_between() -> None:
    data = aggregate([("key", None, b"x")] * EACH)
    records = [Record(str(number), data) for number in range(AGGREGATES)]
    delivered, turns = await turns_during(records)
    assert delivered == EACH * AGGREGATES
    assert turns >= delivered // 1_000


async def test_a_page_without_aggregates_waits_for_nobody() -> None:
    assert await turns_during([Record(str(number), b"{}") for number in range(10_000)]) == (10_000, 0)
