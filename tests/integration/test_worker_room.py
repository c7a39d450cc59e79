"""Many shards in one process: the read memory is one for all, and what befalls one shard is its own affair."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.contract.record_readers import Kinesis, serving_kinesis
from tests.fakes.lease_store import MemoryLeaseStore
from tests.unit.test_worker_memory import Peak
from tidegate import telemetry
from tidegate.errors import Superseded, Transient
from tidegate.leases import TRIM_HORIZON, Hold, Lease, at
from tidegate.settings import LeaseSettings
from worker.batch import Batch, DeadLetter
from worker.consumer import Consumer
from worker.dead_letter import Breaker
from worker.decode import Decoder
from worker.memory import ReadMemory
from worker.ports import RecordReader, ShardState, WriteResult
from worker.settings import BatchSettings, ConsumerSettings, RejectSettings

STREAM = "many"


class SharedSink:
    """One database for all shards. `stuck` shards cannot write; while `is_down` nobody can."""

    def __init__(self) -> None:
        self.is_down = False
        self.stuck: set[str] = set()
        self.tried: dict[str, int] = {}
        self.sequences: dict[str, list[int]] = {}

    async def register(
        self, shard_ids: Collection[str], lineage: Collection[tuple[str, str]], finished: Collection[str]
    ) -> list[str]:
        return []

    async def open(self, shard_id: str, counter: int, replaces: int | None = None) -> ShardState:
        return ShardState(None, counter)

    async def write(self, batch: Batch, counter: int) -> WriteResult:
        self.tried[batch.shard_id] = self.tried.get(batch.shard_id, 0) + 1
        if self.is_down or batch.shard_id in self.stuck:
            raise Transient("away")
        written = self.sequences.setdefault(batch.shard_id, [])
        written += [letter.position.sequence for letter in batch.dead]
        return WriteResult(rejected=len(batch.dead))

    async def note(self, shard_id: str, counter: int, letter: DeadLetter) -> None:
        pytest.fail(f"nothing is missing: {letter.message}")

    async def end(self, shard_id: str, counter: int, child_ids: Sequence[str]) -> None:
        pytest.fail("no shard ends")

    @property
    def count(self) -> int:
        return sum(len(sequences) for sequences in self.sequences.values())


@dataclass
class Fleet:
    """Consumers of all shards of a stream, as a worker that holds all leases runs them."""

    kinesis: Kinesis
    reader: RecordReader
    sink: SharedSink = field(default_factory=SharedSink)
    store: MemoryLeaseStore = field(default_factory=MemoryLeaseStore)
    put: dict[str, list[int]] = field(default_factory=dict)

    async def fill(self, records: int, size_bytes: int) -> None:
        """The same number of records into each shard."""
        shards = (await self.kinesis.client.list_shards(StreamName=STREAM))["Shards"]
        for shard in shards:
            key = shard["HashKeyRange"]["StartingHashKey"]
            entry = {"Data": b"x" * size_bytes, "PartitionKey": "k", "ExplicitHashKey": key}
            answer = await self.kinesis.client.put_records(StreamName=STREAM, Records=[entry] * records)
            numbers = [int(record["SequenceNumber"]) for record in answer["Records"]]
            self.put.setdefault(shard["ShardId"], []).extend(numbers)

    @asynccontextmanager
    async def working(self) -> AsyncIterator[list[Hold]]:
        consumer = Consumer(
            reader=self.reader, sink=self.sink, decoder=Decoder(()), register=self._nothing,
            get_lease=self.store.get, breaker=Breaker(RejectSettings(minimum=1_000_000)),
            batch=BatchSettings(max_records=40), settings=ConsumerSettings(retry_max_ms=20),
        )  # fmt: skip
        holds: list[Hold] = []
        for shard in await self.reader.list_shards():
            await self.store.create(Lease(key=shard.id, checkpoint=TRIM_HORIZON))
            lease = await self.store.take(self.store.leases[shard.id], "me")
            assert lease is not None
            settings = LeaseSettings(renew_interval_s=0.05)
            holds.append(Hold(self.store, lease, settings, sent_s=asyncio.get_running_loop().time()))
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for hold in holds:
                group.create_task(self._serve(consumer, hold))
                group.create_task(hold.keep())
            yield holds
            for hold in holds:
                hold.stop.set()

    async def _serve(self, consumer: Consumer, hold: Hold) -> None:
        try:
            await consumer.run(hold)
        finally:
            await hold.release()

    async def _nothing(self) -> None:
        return


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def fleet(folder: Path, mode: str, shards: int, limit_bytes: int) -> AsyncIterator[Fleet]:
    async with serving_kinesis(folder, mode) as kinesis:
        await kinesis.client.create_stream(StreamName=STREAM, ShardCount=shards)
        kinesis.memory = ReadMemory(limit_bytes)
        kinesis.stream = STREAM
        yield Fleet(kinesis, await kinesis.reader())


@pytest.mark.parametrize("mode", ["polling", "fan_out"])
@pytest.mark.parametrize("limit_bytes", [400_000, 4_000_000])
async def test_while_nothing_can_be_written_memory_is_bounded_and_then_everything_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, limit_bytes: int
) -> None:
    """Fifty shards with 200 kB each, a database that is down, and a bound less than a page or a part of it all."""
    peak = Peak()
    monkeypatch.setattr(telemetry, "READ_MEMORY_BYTES", peak)
    async with fleet(tmp_path, mode, 50, limit_bytes) as many:
        await many.fill(records=100, size_bytes=2_000)
        many.sink.is_down = True
        async with many.working():
            await until(lambda: sum(many.sink.tried.values()) > 20)
            held = -1
            while held != (held := many.kinesis.memory.used_bytes):
                await asyncio.sleep(0.3)
            assert 200_000 <= held <= limit_bytes, "reading stands still, at the bound"
            many.sink.is_down = False
            await until(lambda: many.sink.count == 50 * 100)
        assert many.sink.sequences == many.put
        assert peak.bytes <= limit_bytes
        assert many.kinesis.memory.used_bytes == 0
        checkpoints = {lease.key: lease.checkpoint for lease in many.store.leases.values()}
        assert checkpoints == {shard: at(str(numbers[-1])) for shard, numbers in many.put.items()}


async def test_one_shard_that_cannot_be_written_holds_up_no_other(tmp_path: Path) -> None:
    """It keeps its checkpoint and tries again; the others go on, though it holds what it may of the memory."""
    async with fleet(tmp_path, "polling", 4, 1_000_000) as many:
        await many.fill(records=100, size_bytes=2_000)
        stuck = min(many.put)
        many.sink.stuck = {stuck}
        async with many.working() as holds:
            await until(lambda: many.sink.count == 300)
            for _ in range(3):
                await many.fill(records=50, size_bytes=2_000)
                await until(lambda: many.sink.count == sum(len(each) for key, each in many.put.items() if key != stuck))
            assert many.sink.tried[stuck] > 3
            assert stuck not in many.sink.sequences
            [mine] = [hold for hold in holds if hold.key == stuck]
            assert mine.lease.checkpoint == TRIM_HORIZON
            assert mine.is_valid(), "its lease is kept: nobody else could do better"
            many.sink.stuck = set()
            await until(lambda: many.sink.sequences == many.put)


async def test_a_lease_that_is_lost_ends_its_own_task_only(tmp_path: Path) -> None:
    async with fleet(tmp_path, "polling", 3, 1_000_000) as many:
        await many.fill(records=10, size_bytes=100)
        lost = min(many.put)
        ended: list[BaseException] = []
        serve = many._serve

        async def watched(consumer: Consumer, hold: Hold) -> None:
            try:
                await serve(consumer, hold)
            except* Superseded as error:
                ended.append(error)

        many._serve = watched  # type: ignore[method-assign]
        async with many.working() as holds:
            await until(lambda: many.sink.count == 30)
            [mine] = [hold for hold in holds if hold.key == lost]
            mine.fence("taken by another")
            await many.fill(records=10, size_bytes=100)
            await until(lambda: many.sink.count >= 50 and len(ended) == 1)
        assert many.sink.count == 50
        assert len(many.sink.sequences[lost]) == 10
