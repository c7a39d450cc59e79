"""One suite over both readers, polled and pushed: whoever consumes a shard cannot tell them apart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from tests.contract.record_readers import (
    HOUR_MS,
    SHARD,
    STREAM,
    Kinesis,
    gaps,
    metric,
    records,
    release,
    serving_kinesis,
    settings,
    texts,
)
from tests.unit.test_worker_kpl import aggregate
from tidegate.errors import Fatal, Transient
from tidegate.leases import AT_TIMESTAMP, LATEST, TRIM_HORIZON, Checkpoint, at
from worker.batch import Position
from worker.memory import ReadMemory
from worker.ports import Delivery


@pytest.fixture(params=["polling", "fan_out"])
def mode(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
async def kinesis(tmp_path: Path, mode: str) -> AsyncIterator[Kinesis]:
    async with serving_kinesis(tmp_path, mode) as made:
        yield made


async def test_everything_is_read_once_and_in_order(kinesis: Kinesis) -> None:
    put = await kinesis.put("a", "b", "c")
    found = await kinesis.read(TRIM_HORIZON, least=3)
    assert texts(found) == ["a", "b", "c"]
    assert [record.position for record in records(found)] == [Position(sequence, 0) for sequence in put]
    assert all(delivery.gap is None and not delivery.is_end for delivery in found)
    assert sum(delivery.size_bytes for delivery in found) == 3


async def test_what_comes_later_is_read_too_and_silence_is_a_sign_of_life(kinesis: Kinesis) -> None:
    async with asyncio.timeout(10), aclosing((await kinesis.reader()).read(SHARD, TRIM_HORIZON)) as deliveries:
        first = [await anext(deliveries), await anext(deliveries)]
        assert records(first) == []
        assert [delivery.millis_behind for delivery in first] == [0, 0]
        await kinesis.put("a")
        while not records(first):
            first.append(await anext(deliveries))
    assert texts(first) == ["a"]


async def test_resuming_drops_what_was_done(kinesis: Kinesis) -> None:
    put = await kinesis.put("a", "b", "c")
    found = await kinesis.read(at(str(put[1])), least=1)
    assert texts(found) == ["c"]
    assert gaps(found) == []
    assert texts(await kinesis.read(at(str(put[2])))) == []


async def test_a_half_done_aggregate_is_gone_on_with(kinesis: Kinesis) -> None:
    [before, inside, _] = await kinesis.put("x", aggregate([("p", None, b"0"), ("q", 7, b"1"), ("p", None, b"2")]), "y")
    whole = await kinesis.read(at(str(before)), least=4)
    assert [(record.position.sub, record.data) for record in records(whole)] == [
        (0, b"0"), (1, b"1"), (2, b"2"), (0, b"y"),
    ]  # fmt: skip
    assert texts(await kinesis.read(at(str(inside), 0), least=3)) == ["1", "2", "y"]
    assert texts(await kinesis.read(at(str(inside), 2), least=1)) == ["y"]


async def test_the_end_of_a_shard_brings_its_last_records_and_its_children(kinesis: Kinesis) -> None:
    await kinesis.put("a", "b")
    await kinesis.split()
    found = await kinesis.read(TRIM_HORIZON, least=2)
    assert texts(found) == ["a", "b"]
    assert [delivery.is_end for delivery in found] == [False] * (len(found) - 1) + [True]
    listed = {shard.id: shard for shard in await (await kinesis.reader()).list_shards()}
    assert listed[SHARD].is_closed
    children = found[-1].children
    assert [child.id for child in children] == ["shardId-000000000001", "shardId-000000000002"]
    for child in children:
        assert child.parent_ids == (SHARD,)
        assert child.hash_range == listed[child.id].hash_range


async def test_a_shard_that_ends_while_it_is_read_ends_the_reading(kinesis: Kinesis) -> None:
    await kinesis.put("a")
    seen: list[Delivery] = []
    async with asyncio.timeout(10), aclosing((await kinesis.reader()).read(SHARD, TRIM_HORIZON)) as deliveries:
        while not records(seen):
            seen.append(await anext(deliveries))
        await kinesis.put("b")
        await kinesis.split()
        seen += [delivery async for delivery in deliveries]
    assert texts(seen) == ["a", "b"]
    assert seen[-1].is_end
    assert len(seen[-1].children) == 2


async def test_records_outside_of_the_hash_range_are_counted_and_kept(kinesis: Kinesis) -> None:
    await kinesis.client.split_shard(StreamName=STREAM, ShardToSplit=SHARD, NewStartingHashKey="100")
    await kinesis.client.put_record(
        StreamName=STREAM, PartitionKey="k", ExplicitHashKey="5",
        Data=aggregate([("p", 5, b"mine"), ("p", 2**127, b"my sister's")]),
    )  # fmt: skip
    reader = await kinesis.reader()
    await reader.list_shards()
    before = metric("tidegate_records_outside_total")
    found = await kinesis.read(TRIM_HORIZON, least=2, reader=reader, shard="shardId-000000000001")
    assert texts(found) == ["mine", "my sister's"]
    assert metric("tidegate_records_outside_total") == before + 1


@pytest.mark.parametrize("start", [TRIM_HORIZON, LATEST], ids=str)
async def test_who_lost_touch_goes_on_without_loss(kinesis: Kinesis, start: Checkpoint) -> None:
    seen: list[Delivery] = []
    reader = await kinesis.reader(latest_s=kinesis.clock.now_s())
    async with asyncio.timeout(10), aclosing(reader.read(SHARD, start)) as deliveries:
        seen.append(await anext(deliveries))
        await kinesis.put("a", "b")
        await kinesis.lose_touch()
        while len(records(seen)) < 2:
            seen.append(await anext(deliveries))
        await kinesis.put("c")
        await kinesis.lose_touch()
        while len(records(seen)) < 3:
            seen.append(await anext(deliveries))
    assert texts(seen) == ["a", "b", "c"]
    assert gaps(seen) == []
    assert sum(delivery.size_bytes for delivery in seen) <= len("abbc"), "no more than the last is read once more"


@pytest.mark.parametrize("comes_later", [True, False])
async def test_a_trimmed_checkpoint_is_a_gap(kinesis: Kinesis, *, comes_later: bool) -> None:
    [done, *_] = await kinesis.put("done", "never read")
    kinesis.clock.ahead_ms = 25 * HOUR_MS
    if comes_later:
        await kinesis.put("later")
    found = await kinesis.read(at(str(done)), least=int(comes_later))
    assert len(gaps(found)) == 1
    assert str(done) in gaps(found)[0]
    assert texts(found) == (["later"] if comes_later else [])


@pytest.mark.parametrize("retention_hours", [24, 48])
async def test_the_oldest_records_are_at_the_edge_once_the_first_look_is_past_it(
    kinesis: Kinesis, retention_hours: int
) -> None:
    if retention_hours > 24:
        await kinesis.client.increase_stream_retention_period(StreamName=STREAM, RetentionPeriodHours=retention_hours)
    first_look_s = kinesis.clock.now_s()
    reader = await kinesis.reader(latest_s=first_look_s)
    before_s = first_look_s - 3_600
    assert not await reader.is_at_the_edge(before_s)
    kinesis.clock.ahead_ms += 22 * HOUR_MS
    assert not await reader.is_at_the_edge(before_s), "what is trimmed by now was old when the stream was first seen"
    kinesis.clock.ahead_ms += 2 * HOUR_MS
    assert await reader.is_at_the_edge(before_s) is (retention_hours == 24)
    assert await reader.is_at_the_edge(first_look_s + 60) is (retention_hours == 24)
    assert not await reader.is_at_the_edge(first_look_s + 2 * 3_600), "it is kept for longer than an hour"


@pytest.mark.parametrize("is_trimmed", [True, False])
async def test_who_lost_touch_for_longer_than_the_stream_keeps_finds_a_gap(
    kinesis: Kinesis, *, is_trimmed: bool
) -> None:
    [first] = await kinesis.put("first")
    seen: list[Delivery] = []
    async with asyncio.timeout(10), aclosing((await kinesis.reader()).read(SHARD, TRIM_HORIZON)) as deliveries:
        while not records(seen):
            seen.append(await anext(deliveries))
        await kinesis.lose_touch()
        if not is_trimmed:
            kinesis.clock.ahead_ms += HOUR_MS
        # What a reader has in its socket is not lost; this comes when it no longer listens.
        await kinesis.put("between")
        kinesis.clock.ahead_ms += (25 if is_trimmed else 1) * HOUR_MS
        await kinesis.put("later")
        while texts(seen)[-1] != "later":
            seen.append(await anext(deliveries))
    assert texts(seen) == (["first", "later"] if is_trimmed else ["first", "between", "later"])
    assert len(gaps(seen)) == int(is_trimmed)
    assert all(str(first) in gap for gap in gaps(seen))


async def test_who_lost_touch_for_long_finds_no_gap_where_the_stream_kept_everything(kinesis: Kinesis) -> None:
    await kinesis.client.increase_stream_retention_period(StreamName=STREAM, RetentionPeriodHours=48)
    await kinesis.put("first")
    seen: list[Delivery] = []
    async with asyncio.timeout(10), aclosing((await kinesis.reader()).read(SHARD, TRIM_HORIZON)) as deliveries:
        while not records(seen):
            seen.append(await anext(deliveries))
        await kinesis.lose_touch()
        await kinesis.put("between")
        kinesis.clock.ahead_ms += 30 * HOUR_MS
        await kinesis.put("later")
        while texts(seen)[-1] != "later":
            seen.append(await anext(deliveries))
    assert texts(seen) == ["first", "between", "later"]
    assert gaps(seen) == []


async def test_a_silent_shard_whose_last_record_was_trimmed_shows_no_gap_to_who_listened(kinesis: Kinesis) -> None:
    """Nothing came for longer than the stream keeps; the reader looked all the time, but for a pause at the end."""
    await kinesis.put("first")
    seen: list[Delivery] = []
    async with asyncio.timeout(10), aclosing((await kinesis.reader()).read(SHARD, TRIM_HORIZON)) as deliveries:
        while not records(seen):
            seen.append(await anext(deliveries))
        for _ in range(3):
            kinesis.clock.ahead_ms += 9 * HOUR_MS
            seen.append(await anext(deliveries))
        await kinesis.lose_touch()
        await kinesis.put("later")
        while texts(seen)[-1] != "later":
            seen.append(await anext(deliveries))
    assert texts(seen) == ["first", "later"]
    assert gaps(seen) == []


async def test_latest_means_when_the_stream_was_first_looked_at(kinesis: Kinesis) -> None:
    await kinesis.put("before")
    kinesis.clock.ahead_ms += 2_000
    first_look_s = kinesis.clock.now_s()
    kinesis.clock.ahead_ms += 2_000
    assert texts(await kinesis.read(LATEST, reader=await kinesis.reader(latest_s=first_look_s))) == []
    # That worker dies before its first record; the next one must not skip what came meanwhile.
    await kinesis.put("between")
    found = await kinesis.read(LATEST, least=1, reader=await kinesis.reader(latest_s=first_look_s))
    assert texts(found) == ["between"]


async def test_reading_begins_at_a_time(kinesis: Kinesis) -> None:
    await kinesis.put("before")
    kinesis.clock.ahead_ms += 2_000
    begin_s = kinesis.clock.now_s()
    await kinesis.put("after")
    found = await kinesis.read(AT_TIMESTAMP, least=1, reader=await kinesis.reader(timestamp_s=begin_s))
    assert texts(found) == ["after"]
    # A lease from elsewhere, and no time in the settings: too early does no harm.
    assert texts(await kinesis.read(AT_TIMESTAMP, least=2)) == ["before", "after"]


async def test_a_stream_is_named_by_its_arn_as_well(kinesis: Kinesis) -> None:
    await kinesis.put("a")
    by_arn = await kinesis.reader(stream=f"arn:aws:kinesis:us-east-1:000000000000:stream/{STREAM}")
    assert texts(await kinesis.read(TRIM_HORIZON, least=1, reader=by_arn)) == ["a"]
    assert [shard.id for shard in await by_arn.list_shards()] == [SHARD]


async def test_a_shard_that_the_stream_forgot_ends_with_a_gap(kinesis: Kinesis) -> None:
    found = await kinesis.read(TRIM_HORIZON, shard="shardId-000000000099")
    assert len(found) == 1
    assert found[0].is_end
    assert "shardId-000000000099" in (found[0].gap or "")


async def test_a_foreign_position_needs_a_person(kinesis: Kinesis) -> None:
    with pytest.raises(Fatal, match=r"created anew.*leases reset"):
        await kinesis.read(at("49590338271490256608559692538361571095921575989136588898"))
    reader = await kinesis.reader()
    await reader.list_shards()
    [own] = await kinesis.put("a")
    assert reader.is_foreign(SHARD, 49590338271490256608559692538361571095921575989136588898)
    assert not reader.is_foreign(SHARD, own)


async def test_a_deleted_stream_needs_a_person(kinesis: Kinesis) -> None:
    reader = await kinesis.reader()
    await kinesis.client.delete_stream(StreamName=STREAM, EnforceConsumerDeletion=True)
    with pytest.raises(Fatal):
        await kinesis.read(TRIM_HORIZON, reader=reader)


async def test_throttles_are_waited_out_and_then_given_up(kinesis: Kinesis, monkeypatch: pytest.MonkeyPatch) -> None:
    await kinesis.put("a")
    call = {"polling": "get_records", "fan_out": "subscribe_to_shard"}[kinesis.mode]
    works, refused = getattr(kinesis.client, call), 3
    code = "ProvisionedThroughputExceededException"

    async def throttled(**request: Any) -> Any:
        nonlocal refused
        refused -= 1
        if refused < 0:
            return await works(**request)
        raise kinesis.client.exceptions.ProvisionedThroughputExceededException(
            {"Error": {"Code": code, "Message": "slow down"}}, call
        )

    monkeypatch.setattr(kinesis.client, call, throttled)
    before = metric("tidegate_reads_retried_total", code=code)
    assert texts(await kinesis.read(TRIM_HORIZON, least=1)) == ["a"]
    assert metric("tidegate_reads_retried_total", code=code) == before + 3
    refused = 1_000
    with pytest.raises(Transient, match="slow down"):
        await kinesis.read(TRIM_HORIZON, least=1, reader=await kinesis.reader(settings(attempts=4)))
    assert metric("tidegate_reads_retried_total", code=code) == before + 7
    assert kinesis.memory.used_bytes == 0


async def test_nothing_is_read_without_room(kinesis: Kinesis) -> None:
    kinesis.memory = ReadMemory(1)
    await kinesis.put("a")
    async with aclosing((await kinesis.reader()).read(SHARD, TRIM_HORIZON)) as deliveries:
        async with asyncio.timeout(10):
            first = await anext(deliveries)
            while not first.records:
                first = await anext(deliveries)
        await kinesis.put("b")
        following = asyncio.create_task(_next(deliveries))
        with kinesis.memory.share() as other, pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await other.take(1)
        assert not following.done()
        release(first)
        async with asyncio.timeout(10):
            seen = [await following]
            while not records(seen):
                seen.append(await anext(deliveries))
    assert texts(seen) == ["b"]
    assert kinesis.memory.used_bytes == 0


async def _next(deliveries: AsyncIterator[Delivery]) -> Delivery:
    return await anext(deliveries)
