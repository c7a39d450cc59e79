"""Both readers over one Kinesis server whose clock can be moved: what the suite needs to treat them alike."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from prometheus_client import REGISTRY

from local.kinesis.server import serving
from local.kinesis.settings import Clock, Settings
from tidegate import aws
from tidegate.errors import Transient
from tidegate.leases import Checkpoint
from tidegate.record import Record, Records
from tidegate.settings import StreamSettings
from worker.fanout import FanOutReader, registered
from worker.memory import ReadMemory
from worker.ports import Delivery, RecordReader
from worker.reader import KinesisReader
from worker.reading import StartTimes
from worker.settings import ReadSettings
from worker.stream import KinesisStream

STREAM = "read"
SHARD = "shardId-000000000000"
CONSUMER = "tidegate"
QUICK = ReadSettings(tip_wait_ms=1, tip_wait_max_ms=2, retry_max_ms=50, resubscribe_s=0.0)
HOUR_MS = 3_600_000


class MovableClock:
    def __init__(self) -> None:
        self.ahead_ms = 0

    def now_ms(self) -> int:
        return Clock().now_ms() + self.ahead_ms

    def now_s(self) -> float:
        return self.now_ms() / 1000


@dataclass
class Kinesis:
    """One stream with one shard, and readers of it. `mode` says which."""

    client: Any
    clock: MovableClock
    mode: str
    stream: str = STREAM
    memory: ReadMemory = field(default_factory=lambda: ReadMemory(64 * 1024 * 1024))

    async def put(self, *texts: str | bytes) -> list[int]:
        """Returns the sequence numbers."""
        found = []
        for text in texts:
            body = text.encode() if isinstance(text, str) else text
            answer = await self.client.put_record(StreamName=STREAM, Data=body, PartitionKey="k")
            found.append(int(answer["SequenceNumber"]))
        return found

    async def reader(
        self,
        settings: ReadSettings = QUICK,
        *,
        stream: str | None = None,
        latest_s: float = 0.0,
        timestamp_s: float | None = None,
    ) -> RecordReader:
        """A reader as a worker makes it when it starts."""
        named, times = (
            KinesisStream(self.client, StreamSettings(id=stream or self.stream)),
            StartTimes(latest_s, timestamp_s),
        )
        if self.mode == "polling":
            return KinesisReader(self.client, named, settings, self.memory, times, wall_s=self.clock.now_s)
        consumer = await self.consumer()
        return FanOutReader(self.client, named, consumer, settings, self.memory, times, wall_s=self.clock.now_s)

    async def consumer(self) -> str:
        arn = (await KinesisStream(self.client, StreamSettings(id=self.stream)).describe()).arn
        try:
            return await registered(self.client, arn, CONSUMER)
        except Transient:
            return await registered(self.client, arn, CONSUMER)

    async def read(
        self, start: Checkpoint, *, least: int = 0, reader: RecordReader | None = None, shard: str = SHARD
    ) -> list[Delivery]:
        """Deliveries until `least` records came and the tip or the end is reached; their room is given back."""
        found: list[Delivery] = []
        async with asyncio.timeout(10), aclosing((reader or await self.reader()).read(shard, start)) as deliveries:
            async for delivery in deliveries:
                # As a consumer does, it takes the records once.
                found.append(replace(delivery, records=Records(list(delivery.records))))
                release(delivery)
                if len(records(found)) >= least and delivery.millis_behind == 0:
                    break
        return found

    async def lose_touch(self) -> None:
        """What a reader that was kept waiting for longer than five minutes finds: it must begin anew."""
        if self.mode == "polling":
            self.clock.ahead_ms += 301_000
            return
        # Another subscription of the same consumer takes over and hangs up.
        other = await aws.subscribe_to_shard(self.client, await self.consumer(), SHARD, {"Type": "LATEST"})
        other.close()

    async def split(self) -> None:
        await self.client.split_shard(StreamName=STREAM, ShardToSplit=SHARD, NewStartingHashKey=str(1 << 127))


def release(delivery: Delivery) -> None:
    if delivery.room is not None:
        delivery.room.release()


def records(deliveries: list[Delivery]) -> list[Record]:
    return [record for delivery in deliveries for record in delivery.records]


def texts(deliveries: list[Delivery]) -> list[str]:
    return [record.data.decode() for record in records(deliveries)]


def gaps(deliveries: list[Delivery]) -> list[str]:
    return [delivery.gap for delivery in deliveries if delivery.gap]


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def serving_kinesis(folder: Path, mode: str, *, is_new: bool = True, **settings: Any) -> AsyncIterator[Kinesis]:
    """The server for the block, and a client of ours, as the worker opens it."""
    clock = MovableClock()
    options = {"port": 0, "enforce_limits": False, "heartbeat_s": 0.05, **settings}
    monotonic_s = options.pop("monotonic_s", Clock().monotonic_s)
    with pytest.MonkeyPatch.context() as environment:
        async with serving(Settings(folder, **options), Clock(now_ms=clock.now_ms, monotonic_s=monotonic_s)) as url:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                environment.delenv(name)
            for name, value in (
                ("AWS_ENDPOINT_URL_KINESIS", url), ("AWS_REGION", "us-east-1"),
                ("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x"),
            ):  # fmt: skip
                environment.setenv(name, value)
            async with aws.client("kinesis") as client:
                if is_new:
                    await client.create_stream(StreamName=STREAM, ShardCount=1)
                yield Kinesis(client, clock, mode)


def settings(**changes: Any) -> ReadSettings:
    return replace(QUICK, **changes)
