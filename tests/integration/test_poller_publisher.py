"""The publisher over the wire: aggregates while the stream is resharded and throttles, and claims that come back whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiobotocore.session import get_session

from local.kinesis.server import serving
from local.kinesis.settings import Settings
from poller.changes import Record
from poller.claim_check import ClaimCheck
from poller.publisher import KinesisPublisher
from poller.settings import PublishSettings
from tests.contract.kinesis_peers import Server, start_ministack
from tests.integration.poller_stack import LOGIN, REGION, STREAM
from tidegate import aws
from worker import kpl
from worker.claims import S3Claims

ROUNDS, KEYS = 12, 300


@pytest.fixture
async def kinesis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    for name, value in {**REGION, **LOGIN}.items():
        monkeypatch.setenv(name, value)
    async with serving(Settings(tmp_path / "kinesis", port=0)) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_KINESIS", url)
        async with aws.client("kinesis") as client:
            await client.create_stream(StreamName=STREAM, ShardCount=2)
            yield client


async def _arrived() -> dict[str, list[tuple[int, int]]]:
    """Of each key that arrived on a shard of its own: where, in the order of the stream, and which round.

    Read as botocore reads: our own records have no partition key.
    """
    async with get_session().create_client("kinesis", region_name=REGION["AWS_REGION"]) as client:
        return await _read(client)


async def _read(client: Any) -> dict[str, list[tuple[int, int]]]:
    found: dict[str, list[tuple[int, int]]] = {}
    for shard in (await client.list_shards(StreamName=STREAM))["Shards"]:
        keys = shard["HashKeyRange"]
        home = range(int(keys["StartingHashKey"]), int(keys["EndingHashKey"]) + 1)
        asked = {"StreamName": STREAM, "ShardId": shard["ShardId"], "ShardIteratorType": "TRIM_HORIZON"}
        iterator: str | None = (await client.get_shard_iterator(**asked))["ShardIterator"]
        while iterator is not None:
            page = await client.get_records(ShardIterator=iterator, Limit=10_000)
            for record in page["Records"]:
                key, data = record["PartitionKey"], record["Data"]
                for each in kpl.split(data) or [kpl.UserRecord(key, kpl.hash_key(key), data)]:
                    if each.hash_key in home:
                        place = int(record["SequenceNumber"])
                        found.setdefault(each.partition_key, []).append((place, int(each.data)))
            iterator = page.get("NextShardIterator") if page["Records"] else None
    return found


async def test_aggregates_through_reshards_and_throttles(kinesis: Any) -> None:
    settings = PublishSettings(aggregate=True, aggregate_bytes=2_000, shards_refresh_s=1_000)
    publisher = KinesisPublisher(kinesis, STREAM, settings)

    async def publish() -> None:
        for number in range(ROUNDS):
            await publisher.publish([Record(f"thing:{key}", b"%d" % number, "live") for key in range(KEYS)])

    async def reshard() -> None:
        for count in (4, 2, 3):
            await kinesis.update_shard_count(StreamName=STREAM, TargetShardCount=count, ScalingType="UNIFORM_SCALING")
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        group.create_task(publish())
        group.create_task(reshard())
    arrived = await _arrived()
    assert len(arrived) == KEYS
    for places in arrived.values():
        rounds = [number for _, number in sorted(places)]
        assert rounds == sorted(rounds), "a key's records are in their order"
        assert set(rounds) == set(range(ROUNDS)), "and each of them is on the shard of the key"


@pytest.fixture(scope="module")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_ministack(tmp_path_factory.mktemp("ministack"))
    yield server
    server.stop()


async def test_what_is_carried_by_reference_comes_back(
    kinesis: Any, ministack: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", ministack.url)
    async with aws.client("s3") as s3:
        await s3.create_bucket(Bucket="claims", CreateBucketConfiguration={"LocationConstraint": REGION["AWS_REGION"]})
        publisher = KinesisPublisher(kinesis, STREAM, PublishSettings(), claims=ClaimCheck(s3, "claims", 5_000_000))
        large = Record("thing:1", b"x" * 3_000_000, "live")
        await publisher.publish([large])
        for shard in (await kinesis.list_shards(StreamName=STREAM))["Shards"]:
            asked = {"StreamName": STREAM, "ShardId": shard["ShardId"], "ShardIteratorType": "TRIM_HORIZON"}
            iterator = (await kinesis.get_shard_iterator(**asked))["ShardIterator"]
            for record in (await aws.get_records(kinesis, iterator, 10)).records:
                assert len(record.data) < 1_000
                assert await S3Claims(s3, "claims").fetch(record.data) == large.data
                return
    pytest.fail("no reference arrived")
