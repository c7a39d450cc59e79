"""Limits, expiry and retention of our server, in this process and on a clock that the test sets.

Ours only: no other stand-in enforces the limits, and none lets its clock be set.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EventStreamError

from local.kinesis.server import serving
from local.kinesis.settings import Clock, Settings
from tests.contract.kinesis_peers import (
    SHARD_0,
    SHARD_1,
    SHARD_2,
    arn_of,
    client_of,
    code_of,
    iterator,
    read_all,
    read_on,
    shards_of,
)

THROTTLED = "ProvisionedThroughputExceededException"
HOUR_S = 3600
BEGAN_MS = 1_790_000_000_000
LOW, HIGH = "0", str(1 << 127)
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")


@dataclass
class SetClock:
    """Both clocks of the server; they stand still until `advance`."""

    elapsed_s: float = 0.0

    def advance(self, seconds: float) -> None:
        self.elapsed_s += seconds

    @property
    def clock(self) -> Clock:
        return Clock(lambda: BEGAN_MS + round(self.elapsed_s * 1000), lambda: self.elapsed_s)


@asynccontextmanager
async def running(directory: Path, clock: SetClock, **more: Any) -> AsyncIterator[Any]:
    """A client of a server in this process with one stream `s`, made if it is not there."""
    settings = Settings(data=directory, port=0, **more)
    async with serving(settings, clock.clock) as url, client_of(url) as client:
        if "s" not in (await client.list_streams())["StreamNames"]:
            await client.create_stream(StreamName="s", ShardCount=2)
        yield client


def entries(count: int, hash_key: str = LOW, size: int = 1) -> list[dict[str, Any]]:
    return [{"Data": b"x" * size, "PartitionKey": "k", "ExplicitHashKey": hash_key}] * count


async def test_a_thousand_records_a_second_and_shard(tmp_path: Path) -> None:
    clock = SetClock()
    async with running(tmp_path, clock) as client:
        for _ in range(2):
            assert (await client.put_records(StreamName="s", Records=entries(500)))["FailedRecordCount"] == 0
        answer = await client.put_records(StreamName="s", Records=entries(2) + entries(3, HIGH))
        assert answer["FailedRecordCount"] == 2
        assert [entry.get("ErrorCode") for entry in answer["Records"]] == [THROTTLED, THROTTLED, None, None, None]
        assert SHARD_0 in answer["Records"][0]["ErrorMessage"]
        assert "SequenceNumber" not in answer["Records"][0]
        clock.advance(0.1)
        assert (await client.put_records(StreamName="s", Records=entries(150)))["FailedRecordCount"] == 50
        assert len(await read_all(client, "s", SHARD_0)) == 1_100
        assert len(await read_all(client, "s", SHARD_1)) == 3


async def test_a_mebibyte_a_second_and_shard(tmp_path: Path) -> None:
    clock = SetClock()
    async with running(tmp_path, clock) as client:
        answer = await client.put_records(StreamName="s", Records=entries(12, size=100_000))
        assert answer["FailedRecordCount"] == 2
        with pytest.raises(ClientError) as raised:
            await client.put_record(StreamName="s", **entries(1, size=100_000)[0])
        assert code_of(raised) == THROTTLED
        clock.advance(0.1)
        await client.put_record(StreamName="s", **entries(1, size=100_000)[0])


async def test_five_reads_a_second_and_shard(tmp_path: Path) -> None:
    clock = SetClock()
    async with running(tmp_path, clock) as client:
        start = await iterator(client, "s", SHARD_0)
        other = await iterator(client, "s", SHARD_1)
        for _ in range(5):
            await client.get_records(ShardIterator=start)
        with pytest.raises(ClientError) as raised:
            await client.get_records(ShardIterator=start)
        assert code_of(raised) == THROTTLED
        await client.get_records(ShardIterator=other)
        clock.advance(0.2)
        await client.get_records(ShardIterator=start)


async def test_an_answer_of_ten_mebibytes_is_followed_by_five_silent_seconds(tmp_path: Path) -> None:
    clock = SetClock()
    async with running(tmp_path, clock) as client:
        for _ in range(11):
            await client.put_record(StreamName="s", **entries(1, size=1_040_000)[0])
            clock.advance(1)
        start = await iterator(client, "s", SHARD_0)
        answer = await client.get_records(ShardIterator=start)
        assert len(answer["Records"]) == 10
        clock.advance(4.9)
        with pytest.raises(ClientError) as raised:
            await client.get_records(ShardIterator=answer["NextShardIterator"])
        assert code_of(raised) == THROTTLED
        clock.advance(0.2)
        answer = await client.get_records(ShardIterator=answer["NextShardIterator"])
        assert len(answer["Records"]) == 1


async def test_the_limits_can_be_switched_off(tmp_path: Path) -> None:
    async with running(tmp_path, SetClock(), enforce_limits=False) as client:
        for _ in range(5):
            assert (await client.put_records(StreamName="s", Records=entries(500)))["FailedRecordCount"] == 0
        await client.put_records(StreamName="s", Records=entries(10, size=1_000_000))
        start = await iterator(client, "s", SHARD_0)
        for _ in range(8):
            assert (await client.get_records(ShardIterator=start, Limit=2_500))["Records"]
            await iterator(client, "s", SHARD_0)


async def test_iterators_and_tokens_expire(tmp_path: Path) -> None:
    clock = SetClock()
    async with running(tmp_path, clock) as client:
        start = await iterator(client, "s", SHARD_0)
        token = (await client.list_shards(StreamName="s", MaxResults=1))["NextToken"]
        clock.advance(300)
        following = (await client.get_records(ShardIterator=start))["NextShardIterator"]
        clock.advance(0.001)
        with pytest.raises(ClientError) as raised:
            await client.get_records(ShardIterator=start)
        assert code_of(raised) == "ExpiredIteratorException"
        with pytest.raises(ClientError) as raised:
            await client.list_shards(NextToken=token)
        assert code_of(raised) == "ExpiredNextTokenException"
        await client.get_records(ShardIterator=following)


async def test_the_expiry_is_a_setting(tmp_path: Path) -> None:
    clock = SetClock()
    async with running(tmp_path, clock, iterator_expiry_s=2) as client:
        start = await iterator(client, "s", SHARD_0)
        clock.advance(2.001)
        with pytest.raises(ClientError) as raised:
            await client.get_records(ShardIterator=start)
        assert code_of(raised) == "ExpiredIteratorException"


async def test_millis_behind_latest_is_the_age_of_the_next_record(tmp_path: Path) -> None:
    clock = SetClock()
    async with running(tmp_path, clock, enforce_limits=False) as client:
        await client.put_record(StreamName="s", **entries(1)[0])
        clock.advance(3)
        await client.put_record(StreamName="s", **entries(1)[0])
        clock.advance(1.234)
        start = await iterator(client, "s", SHARD_0)
        answer = await client.get_records(ShardIterator=start, Limit=1)
        assert answer["MillisBehindLatest"] == 1_234
        answer = await client.get_records(ShardIterator=answer["NextShardIterator"], Limit=1)
        assert answer["MillisBehindLatest"] == 0


async def test_a_clock_that_is_set_back_does_not_rewind(tmp_path: Path) -> None:
    clock = SetClock()
    async with running(tmp_path, clock) as client:
        await client.put_record(StreamName="s", **entries(1)[0])
        clock.advance(-3600)
        await client.put_record(StreamName="s", **entries(1)[0])
        first, second = await read_all(client, "s", SHARD_0)
        assert first["ApproximateArrivalTimestamp"] == second["ApproximateArrivalTimestamp"]
        assert int(first["SequenceNumber"]) < int(second["SequenceNumber"])


async def numbered(client: Any, *payloads: bytes) -> list[str]:
    return [
        (await client.put_record(StreamName="s", Data=payload, PartitionKey="k", ExplicitHashKey=LOW))["SequenceNumber"]
        for payload in payloads
    ]


def bytes_on_disk(directory: Path, shard: str) -> int:
    return sum(path.stat().st_size for path in directory.glob(f"{shard}.*"))


async def test_records_are_trimmed_after_the_retention(tmp_path: Path) -> None:
    clock = SetClock()
    off: dict[str, Any] = {"enforce_limits": False, "segment_bytes": 200}
    async with running(tmp_path, clock, **off) as client:
        old = await numbered(client, b"0", b"1", b"2")
        clock.advance(20 * HOUR_S)
        await numbered(client, b"3", b"4")
        clock.advance(5 * HOUR_S)
        assert [record["Data"] for record in await read_all(client, "s", SHARD_0)] == [b"3", b"4"]
        at_trimmed = await iterator(client, "s", SHARD_0, "AT_SEQUENCE_NUMBER", StartingSequenceNumber=old[0])
        records, _ = await read_on(client, at_trimmed)
        assert [record["Data"] for record in records] == [b"3", b"4"]
        clock.advance(24 * HOUR_S)
        assert await read_all(client, "s", SHARD_0) == []
        assert bytes_on_disk(tmp_path / "stream-s", SHARD_0) == 0
    async with running(tmp_path, clock, **off) as client:
        (number,) = await numbered(client, b"5")
        assert int(number) > int(old[-1])
        assert [record["Data"] for record in await read_all(client, "s", SHARD_0)] == [b"5"]


async def test_a_longer_retention_keeps_records(tmp_path: Path) -> None:
    clock = SetClock()
    async with running(tmp_path, clock) as client:
        await numbered(client, b"0")
        await client.increase_stream_retention_period(StreamName="s", RetentionPeriodHours=48)
        clock.advance(30 * HOUR_S)
        assert len(await read_all(client, "s", SHARD_0)) == 1
        await client.decrease_stream_retention_period(StreamName="s", RetentionPeriodHours=24)
        assert await read_all(client, "s", SHARD_0) == []


async def test_a_closed_shard_vanishes_after_the_retention(tmp_path: Path) -> None:
    clock = SetClock()
    async with running(tmp_path, clock) as client:
        await numbered(client, b"0")
        await client.merge_shards(StreamName="s", ShardToMerge=SHARD_0, AdjacentShardToMerge=SHARD_1)
        clock.advance(23 * HOUR_S)
        assert len(await shards_of(client, "s")) == 3
        clock.advance(2 * HOUR_S)
        (child,) = await shards_of(client, "s")
        assert (child["ShardId"], child["ParentShardId"], child["AdjacentParentShardId"]) == (SHARD_2, SHARD_0, SHARD_1)
        with pytest.raises(ClientError) as raised:
            await iterator(client, "s", SHARD_0)
        assert code_of(raised) == "ResourceNotFoundException"
    async with running(tmp_path, clock) as client:
        assert [shard["ShardId"] for shard in await shards_of(client, "s")] == [SHARD_2]
        await client.split_shard(StreamName="s", ShardToSplit=SHARD_2, NewStartingHashKey=HIGH)
        assert (await shards_of(client, "s"))[-1]["ShardId"] == "shardId-000000000004"


async def test_a_stream_in_transition_is_not_resharded(tmp_path: Path) -> None:
    clock = SetClock()
    async with running(tmp_path, clock, transition_s=10) as client:

        async def status() -> str:
            answer = await client.describe_stream_summary(StreamName="s")
            return str(answer["StreamDescriptionSummary"]["StreamStatus"])

        assert await status() == "CREATING"
        clock.advance(10)
        assert await status() == "ACTIVE"
        await client.merge_shards(StreamName="s", ShardToMerge=SHARD_0, AdjacentShardToMerge=SHARD_1)
        assert await status() == "UPDATING"
        with pytest.raises(ClientError) as raised:
            await client.split_shard(StreamName="s", ShardToSplit=SHARD_2, NewStartingHashKey=HIGH)
        assert code_of(raised) == "ResourceInUseException"


async def subscription(client: Any, position: dict[str, Any]) -> Any:
    """The events of shard 0 for the consumer `reader`, registered if it is not there."""
    arn = await arn_of(client, "s")
    listed = (await client.list_stream_consumers(StreamARN=arn))["Consumers"]
    if not listed:
        listed = [(await client.register_stream_consumer(StreamARN=arn, ConsumerName="reader"))["Consumer"]]
    answer = await client.subscribe_to_shard(
        ConsumerARN=listed[0]["ConsumerARN"], ShardId=SHARD_0, StartingPosition=position
    )
    return answer["EventStream"]


async def drain(pushed: Any) -> list[dict[str, Any]]:
    async with asyncio.timeout(10):
        return [event["SubscribeToShardEvent"] async for event in pushed]


async def test_a_second_subscription_takes_over_after_five_seconds(tmp_path: Path) -> None:
    clock = SetClock()
    async with running(tmp_path, clock) as client:
        first = await subscription(client, {"Type": "LATEST"})
        clock.advance(4.9)
        with pytest.raises(ClientError) as raised:
            await subscription(client, {"Type": "LATEST"})
        assert code_of(raised) == "ResourceInUseException"
        clock.advance(0.2)
        second = await subscription(client, {"Type": "LATEST"})
        with pytest.raises(EventStreamError) as ended:
            await drain(first)
        assert code_of(ended) == "ResourceInUseException"
        second.close()


async def test_subscriptions_end_in_time_and_continue_without_a_gap(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, port=0, enforce_limits=False, subscription_s=0.3, heartbeat_s=0.05)
    async with serving(settings) as url, client_of(url) as client:
        await client.create_stream(StreamName="s", ShardCount=2)
        await numbered(client, b"0")
        first = await drain(await subscription(client, {"Type": "TRIM_HORIZON"}))
        await numbered(client, b"1")
        position = {"Type": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": first[-1]["ContinuationSequenceNumber"]}
        second = await drain(await subscription(client, position))
        assert len(first) > 2, "the quiet time is filled with empty events"
        found = [record["Data"] for event in first + second for record in event["Records"]]
        assert found == [b"0", b"1"]


async def test_an_empty_shard_has_a_continuation_too(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, port=0, enforce_limits=False, subscription_s=0.1, heartbeat_s=0.05)
    async with serving(settings) as url, client_of(url) as client:
        await client.create_stream(StreamName="s", ShardCount=2)
        first = await drain(await subscription(client, {"Type": "LATEST"}))
        await numbered(client, b"0")
        position = {"Type": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": first[-1]["ContinuationSequenceNumber"]}
        second = await drain(await subscription(client, position))
        assert [record["Data"] for event in second for record in event["Records"]] == [b"0"]
