"""Registered consumers and SubscribeToShard."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from botocore.eventstream import EventStreamBuffer
from botocore.exceptions import ClientError, EventStreamError

from tests.contract.kinesis_peers import (
    SHARD_0,
    SHARD_1,
    SHARD_2,
    Server,
    arn_of,
    code_of,
    contract,
    new_stream,
    wait_for,
)

HORIZON = {"Type": "TRIM_HORIZON"}


async def register(client: Any, stream: str, name: str = "reader") -> str:
    """The ARN of a new consumer, once it is ACTIVE."""
    arn = await arn_of(client, stream)
    consumer = (await client.register_stream_consumer(StreamARN=arn, ConsumerName=name))["Consumer"]

    async def ready() -> bool:
        answer = await client.describe_stream_consumer(ConsumerARN=consumer["ConsumerARN"])
        return bool(answer["ConsumerDescription"]["ConsumerStatus"] == "ACTIVE")

    await wait_for(ready, f"{name} is ACTIVE")
    return str(consumer["ConsumerARN"])


async def events(client: Any, consumer: str, position: dict[str, Any], shard: str = SHARD_0) -> Any:
    answer = await client.subscribe_to_shard(ConsumerARN=consumer, ShardId=shard, StartingPosition=position)
    return answer["EventStream"]


async def collect(stream: Any, count: int) -> list[dict[str, Any]]:
    """Events until `count` records are there."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(10):
        async for event in stream:
            found.append(event["SubscribeToShardEvent"])
            if sum(len(one["Records"]) for one in found) >= count:
                return found
    return found


def payloads(found: list[dict[str, Any]]) -> list[bytes]:
    return [record["Data"] for event in found for record in event["Records"]]


@contract("consumers")
async def test_a_consumer_is_registered_described_listed_and_deregistered(kinesis: Any) -> None:
    stream = await new_stream(kinesis)
    consumer = await register(kinesis, stream)
    arn = await arn_of(kinesis, stream)
    assert consumer.startswith(f"{arn}/consumer/reader:")
    by_name = await kinesis.describe_stream_consumer(StreamARN=arn, ConsumerName="reader")
    assert by_name["ConsumerDescription"]["ConsumerARN"] == consumer
    assert by_name["ConsumerDescription"]["StreamARN"] == arn
    assert by_name["ConsumerDescription"]["ConsumerCreationTimestamp"] <= datetime.now(UTC)
    listed = await kinesis.list_stream_consumers(StreamARN=arn)
    assert [one["ConsumerName"] for one in listed["Consumers"]] == ["reader"]
    with pytest.raises(ClientError) as raised:
        await kinesis.register_stream_consumer(StreamARN=arn, ConsumerName="reader")
    assert code_of(raised) == "ResourceInUseException"
    await kinesis.deregister_stream_consumer(ConsumerARN=consumer)

    async def gone() -> bool:
        return not (await kinesis.list_stream_consumers(StreamARN=arn))["Consumers"]

    await wait_for(gone, "the consumer is deregistered")
    with pytest.raises(ClientError) as raised:
        await kinesis.describe_stream_consumer(StreamARN=arn, ConsumerName="reader")
    assert code_of(raised) == "ResourceNotFoundException"


@contract("consumer-limits")
async def test_a_stream_has_twenty_consumers_at_most(kinesis: Any) -> None:
    stream = await new_stream(kinesis)
    arn = await arn_of(kinesis, stream)
    for number in range(20):
        await register(kinesis, stream, f"reader-{number:02d}")
    with pytest.raises(ClientError) as raised:
        await kinesis.register_stream_consumer(StreamARN=arn, ConsumerName="one-too-many")
    assert code_of(raised) == "LimitExceededException"
    answer = await kinesis.list_stream_consumers(StreamARN=arn, MaxResults=15)
    rest = await kinesis.list_stream_consumers(StreamARN=arn, MaxResults=15, NextToken=answer["NextToken"])
    names = [one["ConsumerName"] for one in answer["Consumers"] + rest["Consumers"]]
    assert names == [f"reader-{number:02d}" for number in range(20)]


@contract("subscribe")
async def test_stored_and_new_records_are_pushed(kinesis: Any) -> None:
    stream = await new_stream(kinesis)
    await kinesis.put_record(StreamName=stream, Data=b"stored", PartitionKey="k")
    pushed = await events(kinesis, await register(kinesis, stream), HORIZON)
    first = await collect(pushed, 1)
    assert payloads(first) == [b"stored"]
    answer = await kinesis.put_record(StreamName=stream, Data=b"new", PartitionKey="k")
    second = await collect(pushed, 1)
    assert payloads(second) == [b"new"]
    assert second[-1]["Records"][0]["SequenceNumber"] == answer["SequenceNumber"]
    assert second[-1]["MillisBehindLatest"] == 0
    pushed.close()


@contract("subscribe")
async def test_a_new_subscription_goes_on_after_the_continuation(kinesis: Any) -> None:
    stream = await new_stream(kinesis)
    await kinesis.put_record(StreamName=stream, Data=b"1", PartitionKey="k")
    first = await events(kinesis, await register(kinesis, stream, "one"), HORIZON)
    continuation = (await collect(first, 1))[-1]["ContinuationSequenceNumber"]
    first.close()
    await kinesis.put_record(StreamName=stream, Data=b"2", PartitionKey="k")
    position = {"Type": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": continuation}
    second = await events(kinesis, await register(kinesis, stream, "two"), position)
    assert payloads(await collect(second, 1)) == [b"2"]
    second.close()


@contract("subscribe")
async def test_the_first_frame_is_the_initial_response(kinesis: Any, kinesis_server: Server) -> None:
    stream = await new_stream(kinesis)
    consumer = await register(kinesis, stream)
    body = {"ConsumerARN": consumer, "ShardId": SHARD_0, "StartingPosition": HORIZON}
    headers = {
        "X-Amz-Target": "Kinesis_20131202.SubscribeToShard",
        "Content-Type": "application/x-amz-json-1.1",
        "Authorization": "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/kinesis/aws4_request, SignedHeaders=a, Signature=b",
    }
    frames = EventStreamBuffer()
    seen: list[tuple[str, str]] = []
    async with (
        asyncio.timeout(10),
        aiohttp.ClientSession() as session,
        session.post(kinesis_server.url, json=body, headers=headers) as response,
    ):
        assert response.headers["Content-Type"] == "application/vnd.amazon.eventstream"
        while len(seen) < 2:
            frames.add_data(await response.content.readany())
            seen += [(frame.headers[":message-type"], frame.headers[":event-type"]) for frame in frames]
    assert seen[:2] == [("event", "initial-response"), ("event", "SubscribeToShardEvent")]


@contract("subscribe", "shard-end")
async def test_a_subscription_ends_with_the_children_of_its_shard(kinesis: Any) -> None:
    stream = await new_stream(kinesis)
    await kinesis.put_record(StreamName=stream, Data=b"1", PartitionKey="k")
    pushed = await events(kinesis, await register(kinesis, stream), HORIZON)
    await collect(pushed, 1)
    await kinesis.put_record(StreamName=stream, Data=b"2", PartitionKey="k")
    await kinesis.split_shard(StreamName=stream, ShardToSplit=SHARD_0, NewStartingHashKey=str(1 << 127))
    rest = await collect(pushed, 1_000)
    assert payloads(rest) == [b"2"]
    assert {child["ShardId"] for child in rest[-1]["ChildShards"]} == {SHARD_1, SHARD_2}
    assert "ContinuationSequenceNumber" not in rest[-1]
    pushed.close()


@contract("subscribe", "subscription-ends")
async def test_deregistering_ends_the_subscription(kinesis: Any) -> None:
    stream = await new_stream(kinesis)
    consumer = await register(kinesis, stream)
    pushed = await events(kinesis, consumer, HORIZON)
    await kinesis.deregister_stream_consumer(ConsumerARN=consumer)
    with pytest.raises(EventStreamError) as raised:
        await collect(pushed, 1)
    assert code_of(raised) == "ResourceNotFoundException"
    pushed.close()


@contract("subscribe", "subscribe-errors")
async def test_a_subscription_needs_a_consumer_and_a_shard(kinesis: Any) -> None:
    stream = await new_stream(kinesis)
    consumer = await register(kinesis, stream)
    with pytest.raises(ClientError) as raised:
        await events(kinesis, consumer, HORIZON, SHARD_2)
    assert code_of(raised) == "ResourceNotFoundException"
    with pytest.raises(ClientError) as raised:
        await events(kinesis, f"{await arn_of(kinesis, stream)}/consumer/nobody:1", HORIZON)
    assert code_of(raised) == "ResourceNotFoundException"
