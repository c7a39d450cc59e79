"""What survives the death of our server: real processes, SIGKILL, half-written lines.

Ours only. After kill -9 `kinesis-local` has lost acknowledged records and rewinds its sequence numbers, and
`ministack` saves its state on a graceful stop only.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from tests.contract.kinesis_peers import (
    ROOT,
    SHARD_0,
    SHARD_1,
    SHARD_2,
    Server,
    arn_of,
    client_of,
    iterator,
    new_stream,
    read_all,
    read_on,
    shards_of,
    start_ours,
)


class Restarts:
    """One directory, one server at a time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server = self._start()

    def _start(self) -> Server:
        return start_ours(self.directory, "--no-enforce-limits")

    def kill(self) -> None:
        self.server.kill()

    def again(self) -> str:
        """Start once more; returns the new address."""
        self.server = self._start()
        return self.server.url


@pytest.fixture
def restarts(tmp_path: Path) -> Iterator[Restarts]:
    running = Restarts(tmp_path)
    yield running
    running.server.stop()


def log_files(directory: Path, shard: str) -> list[Path]:
    return sorted((directory / "logs").glob(f"stream-*/{shard}.*.log"))


def said(directory: Path) -> str:
    """What the servers of this directory wrote to their standard error."""
    return (directory / "ours.log").read_text()


async def test_every_acknowledged_record_survives_kill_9(restarts: Restarts) -> None:
    acknowledged: dict[str, str] = {}
    enough, killed = asyncio.Event(), asyncio.Event()

    async def write(client: Any, stream: str, writer: int) -> None:
        for number in range(100_000):
            names = [f"{writer}-{number}-{entry}" for entry in range(20)]
            entries = [{"Data": name.encode(), "PartitionKey": name} for name in names]
            try:
                answer = await client.put_records(StreamName=stream, Records=entries)
            except (BotoCoreError, ClientError):
                assert killed.is_set(), "a put failed while the server lived"
                return
            assert answer["FailedRecordCount"] == 0
            acknowledged.update(zip(names, (entry["SequenceNumber"] for entry in answer["Records"]), strict=True))
            if len(acknowledged) > 4_000:
                enough.set()

    async with client_of(restarts.server.url) as client:
        stream = await new_stream(client, 2)
        async with asyncio.TaskGroup() as group:
            for writer in range(4):
                group.create_task(write(client, stream, writer))
            await asyncio.wait_for(enough.wait(), 20)
            killed.set()
            restarts.kill()
    async with client_of(restarts.again()) as client:
        found = {
            record["Data"].decode(): record["SequenceNumber"]
            for shard in (SHARD_0, SHARD_1)
            for record in await read_all(client, stream, shard)
        }
        assert acknowledged.items() <= found.items()
        for shard in await shards_of(client, stream):
            start = shard["HashKeyRange"]["StartingHashKey"]
            answer = await client.put_record(StreamName=stream, Data=b"after", PartitionKey="k", ExplicitHashKey=start)
            older = [int(record["SequenceNumber"]) for record in await read_all(client, stream, shard["ShardId"])][:-1]
            assert int(answer["SequenceNumber"]) > max(older)


@pytest.mark.parametrize("torn", [b'{"ApproximateArrivalTimestamp":17', b'{"half":1},\n{"Appro', b"\0" * 5_000])
async def test_a_torn_last_line_is_cut_off(restarts: Restarts, torn: bytes) -> None:
    async with client_of(restarts.server.url) as client:
        stream = await new_stream(client)
        first = await client.put_record(StreamName=stream, Data=b"whole", PartitionKey="k")
        opened = await iterator(client, stream, SHARD_0)
    restarts.kill()
    (path,) = log_files(restarts.directory, SHARD_0)
    with path.open("ab") as log:
        log.write(torn)
    async with client_of(restarts.again()) as client:
        assert f"cut off {len(torn)} bytes" in said(restarts.directory)
        second = await client.put_record(StreamName=stream, Data=b"next", PartitionKey="k")
        assert int(second["SequenceNumber"]) > int(first["SequenceNumber"])
        records, _ = await read_on(client, opened)
        assert [record["Data"] for record in records] == [b"whole", b"next"]
    restarts.kill()
    async with client_of(restarts.again()) as client:
        assert [record["Data"] for record in await read_all(client, stream, SHARD_0)] == [b"whole", b"next"]


async def test_shards_consumers_and_retention_survive_kill_9(restarts: Restarts) -> None:
    async with client_of(restarts.server.url) as client:
        stream = await new_stream(client)
        await client.put_record(StreamName=stream, Data=b"parent", PartitionKey="k")
        await client.split_shard(StreamName=stream, ShardToSplit=SHARD_0, NewStartingHashKey=str(1 << 127))
        await client.put_record(StreamName=stream, Data=b"child", PartitionKey="k", ExplicitHashKey="0")
        await client.increase_stream_retention_period(StreamName=stream, RetentionPeriodHours=72)
        await client.register_stream_consumer(StreamARN=await arn_of(client, stream), ConsumerName="reader")
        deleted = await new_stream(client)
        await client.delete_stream(StreamName=deleted)
        before = (await client.describe_stream(StreamName=stream))["StreamDescription"]
    restarts.kill()
    async with client_of(restarts.again()) as client:
        assert (await client.describe_stream(StreamName=stream))["StreamDescription"] == before
        assert (await client.list_streams())["StreamNames"] == [stream]
        listed = await client.list_stream_consumers(StreamARN=await arn_of(client, stream))
        assert [consumer["ConsumerName"] for consumer in listed["Consumers"]] == ["reader"]
        records, last = await read_on(client, await iterator(client, stream, SHARD_0))
        assert [record["Data"] for record in records] == [b"parent"]
        assert {child["ShardId"] for child in last["ChildShards"]} == {SHARD_1, SHARD_2}
        assert [record["Data"] for record in await read_all(client, stream, SHARD_1)] == [b"child"]


async def test_damage_before_good_records_stops_the_start(restarts: Restarts) -> None:
    async with client_of(restarts.server.url) as client:
        stream = await new_stream(client)
        for payload in (b"one", b"two", b"three"):
            await client.put_record(StreamName=stream, Data=payload, PartitionKey="k")
    restarts.kill()
    (path,) = log_files(restarts.directory, SHARD_0)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"Data"', b'"Dxta"', 1))
    ended = await asyncio.to_thread(refused_start, restarts.directory)
    assert ended.returncode == 1
    assert path.name in ended.stderr
    path.write_bytes(whole)
    async with client_of(restarts.again()) as client:
        assert len(await read_all(client, stream, SHARD_0)) == 3


def refused_start(directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "local.kinesis", "--port", "0", "--data", str(directory / "logs")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)


async def test_two_servers_do_not_share_a_directory(restarts: Restarts) -> None:
    ended = await asyncio.to_thread(refused_start, restarts.directory)
    assert ended.returncode == 1
    assert "in use" in ended.stderr


async def test_sigterm_stops_cleanly_although_a_subscription_is_open(restarts: Restarts) -> None:
    async with client_of(restarts.server.url) as client:
        stream = await new_stream(client)
        arn = await arn_of(client, stream)
        consumer = await client.register_stream_consumer(StreamARN=arn, ConsumerName="reader")
        pushed = await client.subscribe_to_shard(
            ConsumerARN=consumer["Consumer"]["ConsumerARN"], ShardId=SHARD_0, StartingPosition={"Type": "LATEST"}
        )
        began = time.monotonic()
        assert await asyncio.to_thread(restarts.server.stop) == 0
        assert time.monotonic() - began < 5
        pushed["EventStream"].close()
    async with client_of(restarts.again()) as client:
        assert (await client.list_streams())["StreamNames"] == [stream]
