"""`python -m poller` against the simulated back offices: what is in the stream is what they say, and stays so."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from local.legacy.customers import CustomerOffice
from local.legacy.flights import FlightOffice
from local.legacy.parcels import ParcelOffice
from tests.contract.kinesis_peers import Server, start_ministack
from tests.integration.poller_stack import BUCKET, DROPS, LOGIN, REGION, STREAM, Stack, offices, running, wait_for
from tidegate import aws
from tidegate.event import Cause, Operation

PARCELS, FLIGHTS = "examples.parcels.bubble", "examples.flights.bubble"
FLEET = ("flight", "airline", "airport", "plane")


@pytest.fixture(scope="module")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_ministack(tmp_path_factory.mktemp("ministack"))
    yield server
    server.stop()


@pytest.fixture
async def stack(ministack: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stack]:
    for name, value in {**REGION, **LOGIN, "AWS_ENDPOINT_URL": ministack.url, "AWS_ENDPOINT_URL_KINESIS": ""}.items():
        monkeypatch.setenv(name, value)
    async with aws.client("s3") as s3, aws.client("dynamodb") as dynamodb:
        for bucket in (BUCKET, DROPS):
            await s3.create_bucket(
                Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION["AWS_REGION"]}
            )
        async with running(ministack, tmp_path) as made:
            yield made
        for bucket in (BUCKET, DROPS):
            for item in (await s3.list_objects_v2(Bucket=bucket)).get("Contents", ()):
                await s3.delete_object(Bucket=bucket, Key=item["Key"])
            await s3.delete_bucket(Bucket=bucket)
        for table in (await dynamodb.list_tables())["TableNames"]:
            await dynamodb.delete_table(TableName=table)


async def test_parcels_through_a_burst_a_kill_and_a_reshard(stack: Stack) -> None:
    burst = {"creates": 30, "updates": 60, "corrections": 20, "deletes": 10}
    none = argparse.Namespace()
    async with offices(stack, parcels=(ParcelOffice, none), customers=(CustomerOffice, none)):

        async def is_right() -> bool:
            parcels = await stack.is_true("parcels", "parcel", "office")
            return parcels and await stack.is_true("customers", "customer")

        async with stack.poller(PARCELS) as process:
            await wait_for(is_right)
            await stack.tell("parcels", "burst", burst)
            process.kill()
            await process.wait()
        await stack.tell("customers", "burst", burst)
        async with stack.poller(PARCELS) as process:
            await wait_for(is_right, 30)
            await stack.kinesis.update_shard_count(StreamName=STREAM, TargetShardCount=4, ScalingType="UNIFORM_SCALING")
            await wait_for(lambda: _watermarks_in_every_open_shard(stack))
            assert await stack.stop(process) == 0
    assert {event.cause for event in stack.reader.events} == {Cause.BACKFILL, Cause.LIVE, Cause.SWEEP}
    assert any(event.operation is Operation.DELETE for event in stack.reader.events)
    assert stack.reader.quarantined == []
    for times in stack.reader.watermarks.values():
        assert times == sorted(times)


async def _watermarks_in_every_open_shard(stack: Stack) -> bool:
    await stack.reader.read()
    shards = (await stack.kinesis.list_shards(StreamName=STREAM))["Shards"]
    opened = {shard["ShardId"] for shard in shards if "EndingSequenceNumber" not in shard["SequenceNumberRange"]}
    wanted = {(source, shard) for source in ("parcels", "offices", "customers") for shard in opened}
    return len(opened) == 4 and wanted <= stack.reader.watermarks.keys()


async def test_flights_by_revision_and_files_from_the_bucket(stack: Stack) -> None:
    options = argparse.Namespace(drops="s3", drops_bucket=DROPS, drops_prefix="drops/", drops_pause_s=0.2)
    async with offices(stack, flights=(FlightOffice, options)), stack.poller(FLIGHTS) as process:
        await wait_for(lambda: stack.is_true("flights", *FLEET))
        await stack.tell("flights", "burst", {"creates": 20, "updates": 40, "corrections": 10, "deletes": 0})
        await wait_for(lambda: stack.is_true("flights", *FLEET), 30)
        assert await stack.stop(process) == 0
    assert {source for source, _ in stack.reader.watermarks} == {"flights"}
    assert stack.reader.quarantined == []
