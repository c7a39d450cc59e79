"""What only polling has: iterators that expire, a pace of calls and of bytes. The rest: tests/contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

from local.kinesis.limits import ShardLimits
from tests.contract.record_readers import (
    HOUR_MS,
    SHARD,
    STREAM,
    gaps,
    metric,
    records,
    release,
    serving_kinesis,
    settings,
    texts,
)
from tidegate.leases import TRIM_HORIZON
from worker.memory import ReadMemory
from worker.ports import Delivery
from worker.settings import ReadSettings


async def test_an_expired_iterator_is_counted_and_renewed(tmp_path: Path) -> None:
    async with serving_kinesis(tmp_path, "polling") as kinesis:
        before = metric("tidegate_iterators_expired_total")
        seen: list[Delivery] = []
        async with asyncio.timeout(10), aclosing((await kinesis.reader()).read(SHARD, TRIM_HORIZON)) as deliveries:
            seen.append(await anext(deliveries))
            await kinesis.put("a")
            await kinesis.lose_touch()
            while not records(seen):
                seen.append(await anext(deliveries))
        assert texts(seen) == ["a"]
        assert metric("tidegate_iterators_expired_total") == before + 1


@pytest.mark.parametrize("retention_hours", [24, 48])
async def test_who_is_so_far_behind_that_the_stream_trims_finds_a_gap(tmp_path: Path, retention_hours: int) -> None:
    """The iterator is good all the time, and silently goes on behind what was trimmed."""
    async with serving_kinesis(tmp_path, "polling") as kinesis:
        if retention_hours > 24:
            await kinesis.client.increase_stream_retention_period(
                StreamName=STREAM, RetentionPeriodHours=retention_hours
            )
        [first] = await kinesis.put("first")
        kinesis.clock.ahead_ms = 60_000
        await kinesis.put("trimmed after a day")
        kinesis.clock.ahead_ms = 600_000
        await kinesis.put("third", "fourth")
        kinesis.clock.ahead_ms = 24 * HOUR_MS - 120_000
        seen: list[Delivery] = []
        reader = await kinesis.reader(settings(limit_records=1))
        async with asyncio.timeout(10), aclosing(reader.read(SHARD, TRIM_HORIZON)) as deliveries:
            while not records(seen):
                seen.append(await anext(deliveries))
            kinesis.clock.ahead_ms += 240_000
            while texts(seen)[-1] != "fourth":
                seen.append(await anext(deliveries))
        if retention_hours == 24:
            assert texts(seen) == ["first", "third", "fourth"]
            assert [str(first) in gap for gap in gaps(seen)] == [True]
        else:
            assert texts(seen) == ["first", "trimmed after a day", "third", "fourth"]
            assert gaps(seen) == []


async def test_while_behind_there_is_no_waiting_and_five_calls_a_second_at_most(tmp_path: Path) -> None:
    async with serving_kinesis(tmp_path, "polling", enforce_limits=True) as kinesis:
        await kinesis.put(*(str(number) for number in range(8)))
        slow_at_the_tip = ReadSettings(limit_records=1, tip_wait_ms=60_000, tip_wait_max_ms=60_000, attempts=1)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        # One try a read: a throttled call would raise.
        found = await kinesis.read(TRIM_HORIZON, least=8, reader=await kinesis.reader(slow_at_the_tip))
        assert texts(found) == [str(number) for number in range(8)]
        assert loop.time() - began_s >= 1.0


@pytest.mark.parametrize("bytes_per_s", [2 * 1024 * 1024, 100 * 1024 * 1024])
async def test_the_pace_in_bytes_is_what_kinesis_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_per_s: int
) -> None:
    """An answer of 2.1 MB costs a second of silence. A reader that does not keep it is refused and tries again."""
    async with serving_kinesis(tmp_path, "polling", enforce_limits=False) as writing:
        await writing.put(*(bytes([48 + number]) * 700_000 for number in range(6)))
    refused = 0
    admit = ShardLimits.admit_read

    def counted(self: ShardLimits, now_s: float) -> bool:
        nonlocal refused
        admitted = admit(self, now_s)
        refused += not admitted
        return admitted

    monkeypatch.setattr(ShardLimits, "admit_read", counted)
    async with serving_kinesis(tmp_path, "polling", enforce_limits=True, is_new=False) as kinesis:
        reader = await kinesis.reader(settings(limit_records=3, bytes_per_s=bytes_per_s, attempts=50))
        found = await kinesis.read(TRIM_HORIZON, least=6, reader=reader)
    assert [text[0] for text in texts(found)] == ["0", "1", "2", "3", "4", "5"]
    assert (refused == 0) == (bytes_per_s == 2 * 1024 * 1024)


async def test_room_is_asked_for_by_what_the_last_page_held(tmp_path: Path) -> None:
    """A page that is larger than expected, with no room for the rest, is let go and read again, from the same iterator."""
    async with serving_kinesis(tmp_path, "polling") as kinesis:
        kinesis.memory = ReadMemory(1_000_000)
        calls: list[str] = []
        works = kinesis.client.get_records

        async def noted(**request: str) -> object:
            calls.append(request["ShardIterator"])
            return await works(**request)

        kinesis.client.get_records = noted
        await kinesis.put(b"x" * 500_000)
        with kinesis.memory.share() as other:
            room = await other.take(700_000)
            async with asyncio.timeout(10), aclosing((await kinesis.reader()).read(SHARD, TRIM_HORIZON)) as deliveries:
                following = asyncio.create_task(_first(deliveries))
                while not calls or kinesis.memory.used_bytes != 700_000:
                    await asyncio.sleep(0.01)
                assert not following.done()
                room.release()
                first = await following
                assert len([*first.records]) == 1
                assert calls[0] == calls[1]
                assert kinesis.memory.used_bytes == 500_000
                release(first)


@pytest.mark.parametrize("name", [STREAM, f"arn:aws:kinesis:us-east-1:000000000000:stream/{STREAM}"])
async def test_shards_are_listed_to_the_last_page(tmp_path: Path, name: str) -> None:
    async with serving_kinesis(tmp_path, "polling") as kinesis:
        await kinesis.split()
        works, asked = kinesis.client.list_shards, []

        async def small_pages(**request: object) -> object:
            asked.append(request)
            return await works(**request, MaxResults=1)

        kinesis.client.list_shards = small_pages
        shards = await (await kinesis.reader(stream=name)).list_shards()
        assert [shard.id for shard in shards] == [f"shardId-{number:012d}" for number in range(3)]
        assert len(asked) == 3
        assert all(("StreamARN" in request) == (name != STREAM) for request in asked)


async def _first(deliveries: AsyncGenerator[Delivery, None]) -> Delivery:
    return await anext(deliveries)
