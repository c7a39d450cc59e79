"""The worker's own code from HTTP to committed rows; only the leases are in memory instead of DynamoDB.

Defaults everywhere, but for two limits that are Kinesis' own: the bytes that one shard gives, so that ten shards stand
in for a hundred. The collector is set as the worker sets it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from bench._project_stream import SHAPE, Shipment
from tests.fakes.lease_store import MemoryLeaseStore
from tidegate import aws, lifecycle
from tidegate.database import DatabaseSettings, connect
from tidegate.leases import TRIM_HORIZON, Hold, Lease
from tidegate.settings import LeaseSettings, StreamSettings
from worker import dead_letter
from worker.aurora import AuroraSink
from worker.batch import Batch
from worker.consumer import Consumer
from worker.dead_letter import Breaker
from worker.decode import Decoder
from worker.memory import ReadMemory
from worker.ports import RecordReader, WriteResult
from worker.reader import KinesisReader
from worker.reading import StartTimes
from worker.settings import BatchSettings, ConsumerSettings, ReadSettings, RejectSettings
from worker.stream import KinesisStream


class CountingSink(AuroraSink):
    """Adds the counts of all batches up, and asks the worker to stop when everything came."""

    total = WriteResult()
    expected = 0
    committed: Callable[[Batch], None] = staticmethod(lambda batch: None)

    def watch(self, expected: int, holds: Iterable[Hold]) -> None:
        self.expected, self._holds = expected, list(holds)

    async def write(self, batch: Batch, counter: int) -> WriteResult:
        result = await super().write(batch, counter)
        self.committed(batch)
        self.total = WriteResult(*(one + other for one, other in zip(self.total, result, strict=True)))
        if self.expected and sum(self.total) >= self.expected:
            for hold in self._holds:
                hold.stop.set()
        return result


@dataclass(frozen=True)
class Joined:
    """A worker that holds every shard, ready to go."""

    consumer: Consumer
    sink: CountingSink
    store: MemoryLeaseStore
    holds: list[Hold]

    async def run(self) -> None:
        """Until the holds are told to stop; then all is checkpointed and the leases are given up."""
        async with asyncio.TaskGroup() as group:
            for hold in self.holds:
                group.create_task(self._work(hold))

    async def _work(self, hold: Hold) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(hold.keep())
            await self.consumer.run(hold)
            await hold.release()


@asynccontextmanager
async def joined(stream_name: str, dsn: str) -> AsyncIterator[Joined]:
    """The parts of `worker.app`, joined. The address of Kinesis comes from the environment."""
    store = MemoryLeaseStore()
    async with aws.client("kinesis") as client, connect(dsn, DatabaseSettings(), "bench") as database:
        settings = ReadSettings(bytes_per_s=10**12)
        stream = KinesisStream(client, StreamSettings(id=stream_name))
        reader: RecordReader = KinesisReader(client, stream, settings, ReadMemory(settings.memory_bytes), StartTimes(0))
        sink = CountingSink(database, stream_name, (SHAPE,), dead_letter.file)
        await sink.check()
        holds = [await _hold(store, shard.id) for shard in await reader.list_shards()]
        await sink.register([hold.key for hold in holds], [], [])
        consumer = Consumer(
            reader=reader,
            sink=sink,
            decoder=Decoder((Shipment,)),
            breaker=Breaker(RejectSettings()),
            batch=BatchSettings(),
            settings=ConsumerSettings(),
            register=_nothing,
            get_lease=store.get,
        )
        yield Joined(consumer, sink, store, holds)


async def project(stream: str, dsn: str, records: int) -> float:
    """Rows a second, from the first request to the last checkpoint."""
    async with joined(stream, dsn) as worker:
        worker.sink.watch(records, worker.holds)
        lifecycle.settle_memory()
        started_s = time.perf_counter()
        await worker.run()
        taken_s = time.perf_counter() - started_s
    assert all(lease.checkpoint.is_number for lease in worker.store.leases.values())
    assert records in (worker.sink.total.applied, worker.sink.total.unchanged), worker.sink.total
    return records / taken_s


async def _hold(store: MemoryLeaseStore, shard_id: str) -> Hold:
    await store.create(Lease(key=shard_id, checkpoint=TRIM_HORIZON))
    lease = await store.take(store.leases[shard_id], "bench")
    assert lease is not None
    return Hold(store, lease, LeaseSettings(), sent_s=asyncio.get_running_loop().time())


async def _nothing() -> None:
    return
