"""The fault proxy: it passes everything through unharmed, and each fault does what it says, the same for one seed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError

from local.kinesis.server import serving
from local.kinesis.settings import Settings
from tests.chaos.proxy import ANY, Fault, FaultProxy, fronting

STREAM = "passed"
SHARD = "shardId-000000000000"
MIB = 1024 * 1024


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[Any]:
    """One try for each call, and little patience."""
    config = AioConfig(retries={"total_max_attempts": 1}, read_timeout=1, connect_timeout=1)
    create = get_session().create_client(
        "kinesis", endpoint_url=url, region_name="us-east-1", config=config,
        aws_access_key_id="local", aws_secret_access_key="local",
    )  # fmt: skip
    async with create as client:
        yield client


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[FaultProxy]:
    settings = Settings(tmp_path, port=0, enforce_limits=False, heartbeat_s=0.2)
    async with serving(settings) as url, fronting(url, seed=1) as made:
        yield made


@pytest.fixture
async def client(proxy: FaultProxy) -> AsyncIterator[Any]:
    async with client_of(proxy.url) as made:
        await made.create_stream(StreamName=STREAM, ShardCount=1)
        yield made


async def put(client: Any, *bodies: bytes) -> None:
    records = [{"Data": body, "PartitionKey": "k"} for body in bodies]
    await client.put_records(StreamName=STREAM, Records=records)


async def get(client: Any) -> list[bytes]:
    where = {"StreamName": STREAM, "ShardId": SHARD, "ShardIteratorType": "TRIM_HORIZON"}
    iterator = (await client.get_shard_iterator(**where))["ShardIterator"]
    return [record["Data"] for record in (await client.get_records(ShardIterator=iterator))["Records"]]


async def test_ten_mebibytes_of_records_pass_unharmed(client: Any) -> None:
    bodies = [bytes([number]) * (MIB // 2 - 1) for number in range(20)]
    for body in bodies:
        await put(client, body)
    assert await get(client) == bodies


async def test_a_subscription_passes_frame_by_frame(client: Any, proxy: FaultProxy) -> None:
    arn = (await client.describe_stream_summary(StreamName=STREAM))["StreamDescriptionSummary"]["StreamARN"]
    consumer = (await client.register_stream_consumer(StreamARN=arn, ConsumerName="c"))["Consumer"]["ConsumerARN"]
    answer = await client.subscribe_to_shard(
        ConsumerARN=consumer, ShardId=SHARD, StartingPosition={"Type": "TRIM_HORIZON"}
    )
    seen: list[bytes] = []
    async with asyncio.timeout(10):
        await put(client, b"0")
        async for event in answer["EventStream"]:
            records = event["SubscribeToShardEvent"]["Records"]
            seen += [record["Data"] for record in records]
            if len(seen) == 3:
                break
            if records:
                # The next one is put only when this one has come through.
                await put(client, str(len(seen)).encode())
    answer["EventStream"].close()
    assert seen == [b"0", b"1", b"2"]


async def refused_with(client: Any) -> tuple[int, str]:
    with pytest.raises(ClientError) as raised:
        await put(client, b"x")
    answer = raised.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (Fault.THROTTLE, 400, "ProvisionedThroughputExceededException"),
        (Fault.ERROR, 500, "InternalFailureException"),
        (Fault.UNAVAILABLE, 503, "503"),
    ],
)
async def test_a_refused_request_does_nothing(
    client: Any, proxy: FaultProxy, fault: Fault, status: int, code: str
) -> None:
    proxy.rates = {"PutRecords": {fault: 1.0}}
    assert await refused_with(client) == (status, code)
    proxy.heal()
    assert await get(client) == []


async def test_control_operations_are_throttled_in_their_own_words(client: Any, proxy: FaultProxy) -> None:
    proxy.rates = {ANY: {Fault.THROTTLE: 1.0}}
    with pytest.raises(ClientError, match="LimitExceededException"):
        await client.list_shards(StreamName=STREAM)


@pytest.mark.parametrize(
    ("fault", "error", "arrived"),
    [
        (Fault.LOST_REQUEST, ConnectionClosedError, []),
        (Fault.LOST_REPLY, ConnectionClosedError, [b"x"]),
        (Fault.TORN_REPLY, ConnectionClosedError, [b"x"]),
        (Fault.HANG, ReadTimeoutError, []),
    ],
)
async def test_what_breaks_is_done_or_not_as_its_name_says(
    client: Any, proxy: FaultProxy, fault: Fault, error: type[Exception], arrived: list[bytes]
) -> None:
    proxy.rates = {"PutRecords": {fault: 1.0}}
    with pytest.raises(error):
        await put(client, b"x")
    proxy.heal()
    assert await get(client) == arrived


async def test_what_is_late_arrives_after_its_client_gave_up(client: Any, proxy: FaultProxy) -> None:
    proxy.late_s = 1.2
    proxy.rates = {"PutRecords": {Fault.LATE: 1.0}}
    with pytest.raises(ReadTimeoutError):
        await put(client, b"late")
    proxy.heal()
    await put(client, b"in time")
    async with asyncio.timeout(10):
        while len(await get(client)) < 2:
            await asyncio.sleep(0.02)
    assert await get(client) == [b"in time", b"late"]


async def test_what_is_slow_arrives(client: Any, proxy: FaultProxy) -> None:
    proxy.slow_s = 0.05
    proxy.rates = {"PutRecords": {Fault.SLOW: 1.0}}
    await put(client, b"x")
    assert await get(client) == [b"x"]


async def test_the_same_seed_is_the_same_fate_for_each_operation(client: Any, proxy: FaultProxy) -> None:
    """However the requests of other operations come in between."""

    async def fates(url: str, *, between: bool) -> list[str]:
        found = []
        async with fronting(url, seed=3) as seeded, client_of(seeded.url) as calls:
            seeded.rates = {"PutRecords": {Fault.THROTTLE: 0.3, Fault.ERROR: 0.3}}
            for _ in range(30):
                if between:
                    await calls.list_streams()
                try:
                    await put(calls, b"x")
                except ClientError as error:
                    found.append(error.response["Error"]["Code"])
                else:
                    found.append("passed")
            assert seeded.passed["PutRecords"] == found.count("passed")
            assert seeded.counts["PutRecords", Fault.ERROR] == found.count("InternalFailureException")
        return found

    first = await fates(proxy.url, between=False)
    assert len(set(first)) == 3
    assert await fates(proxy.url, between=True) == first
