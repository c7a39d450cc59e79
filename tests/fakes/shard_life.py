"""One shard's life without a network: a scripted reader, a sink in memory, a lease, and a consumer at work on them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import asynccontextmanager

from tests.fakes.lease_store import MemoryLeaseStore
from tidegate.leases import TRIM_HORIZON, Checkpoint, Hold, Lease
from tidegate.record import Position, Record, Records
from tidegate.settings import LeaseSettings
from worker.batch import Batch, DeadLetter
from worker.consumer import Consumer
from worker.dead_letter import Breaker
from worker.decode import Decoder
from worker.ports import Delivery, ShardState, WriteResult
from worker.settings import BatchSettings, ConsumerSettings, RejectSettings
from worker.shards import HashRange, Shard

PARENT = Shard("shard-0", (), HashRange(0, 9), is_closed=True)
CHILDREN = [
    Shard("shard-1", ("shard-0",), HashRange(0, 4), False),
    Shard("shard-2", ("shard-0",), HashRange(5, 9), False),
]


def delivery(*numbers: int, behind: int = 0, end: bool = False, gap: str | None = None) -> Delivery:
    records = Records([Record(str(number), b"not an event") for number in numbers])
    children = tuple(CHILDREN) if end else ()
    return Delivery(
        records=records, millis_behind=behind, is_end=end, children=children, gap=gap, size_bytes=len(numbers)
    )


class ScriptedReader:
    """Delivers what it was given, then empty pages for ever. `asked` counts the reads begun."""

    def __init__(self, *deliveries: Delivery) -> None:
        self.deliveries = deliveries
        self.asked = 0
        self.start: Checkpoint | None = None
        self.shards = [PARENT, *CHILDREN]
        self.listed = 0
        self.first_sequence = 0
        self.edge_s: float | None = None

    async def read(self, shard_id: str, start: Checkpoint) -> AsyncGenerator[Delivery, None]:
        self.start = start
        for each in self.deliveries:
            self.asked += 1
            yield each
            if each.is_end:
                return
        while True:
            await asyncio.sleep(0.005)
            yield delivery()

    async def list_shards(self) -> list[Shard]:
        self.listed += 1
        return self.shards

    def is_foreign(self, shard_id: str, sequence: int) -> bool:
        return sequence < self.first_sequence

    async def is_at_the_edge(self, arrival_s: float) -> bool:
        return self.edge_s is not None and arrival_s < self.edge_s


class MemorySink:
    """Keeps what was written. `fail` is asked before each write; an error it returns is raised."""

    def __init__(self, position: Position | None = None, lease_counter: int = 0) -> None:
        self.state = ShardState(position, lease_counter)
        self.batches: list[Batch] = []
        self.notes: list[DeadLetter] = []
        self.ended: list[Sequence[str]] = []
        self.written = asyncio.Event()
        self.fail: Callable[[], Exception | None] = lambda: None
        self.gate = asyncio.Event()
        self.gate.set()

    async def register(
        self, shard_ids: Collection[str], lineage: Collection[tuple[str, str]], finished: Collection[str]
    ) -> list[str]:
        return []

    async def open(self, shard_id: str, counter: int, replaces: int | None = None) -> ShardState:
        if self.state.lease_counter <= counter or self.state.lease_counter == replaces:
            self.state = self.state._replace(lease_counter=counter)
        return self.state

    async def write(self, batch: Batch, counter: int) -> WriteResult:
        await self.gate.wait()
        if error := self.fail():
            raise error
        self.batches.append(batch)
        self.written.set()
        return WriteResult(rejected=len(batch.dead))

    async def note(self, shard_id: str, counter: int, letter: DeadLetter) -> None:
        self.notes.append(letter)

    async def end(self, shard_id: str, counter: int, child_ids: Sequence[str]) -> None:
        self.ended.append(child_ids)

    @property
    def positions(self) -> list[int]:
        return [letter.position.sequence for batch in self.batches for letter in batch.dead]


class World:
    """A held lease on shard-0 and a consumer at work on it."""

    def __init__(
        self, reader: ScriptedReader, sink: MemorySink, lease: Lease, store: MemoryLeaseStore, **given: object
    ):
        self.reader, self.sink, self.store = reader, sink, store
        self.hold = self._hold(lease)
        self.consumer = Consumer(
            reader=reader, sink=sink, decoder=Decoder(()), register=self.nothing, get_lease=store.get,
            breaker=Breaker(given.get("reject", RejectSettings(minimum=10_000))),  # type: ignore[arg-type]
            batch=given.get("batch", BatchSettings()),  # type: ignore[arg-type]
            settings=given.get("settings", ConsumerSettings(retry_max_ms=5)),  # type: ignore[arg-type]
        )  # fmt: skip

    def _hold(self, lease: Lease) -> Hold:
        settings = LeaseSettings(renew_retry_s=0.01, renew_interval_s=0.002)
        return Hold(self.store, lease, settings, sent_s=asyncio.get_running_loop().time())

    async def nothing(self) -> None:
        return

    async def take_again(self) -> None:
        """As the next holder does."""
        lease = await self.store.take(self.store.leases["shard-0"], "the next one")
        assert lease is not None
        self.hold = self._hold(lease)

    @property
    def checkpoint(self) -> Checkpoint:
        return self.store.leases["shard-0"].checkpoint

    async def run(self) -> None:
        """To the end, or until the time-out that fails the test; then the lease is given back, as the coordinator does."""
        try:
            async with asyncio.timeout(5):
                await self.consumer.run(self.hold)
        finally:
            await self.hold.release()


async def world(
    reader: ScriptedReader, sink: MemorySink | None = None, checkpoint: Checkpoint = TRIM_HORIZON, **given: object
) -> World:
    store = MemoryLeaseStore()
    await store.create(Lease(key="shard-0", checkpoint=checkpoint, counter=4))
    lease = await store.take(store.leases["shard-0"], "me")
    assert lease is not None
    return World(reader, sink or MemorySink(), lease, store, **given)


@asynccontextmanager
async def working(made: World) -> AsyncGenerator[asyncio.Task[None], None]:
    """The consumer as a task, and renewals; when the block ends it is asked to stop and must do so."""
    task = asyncio.create_task(made.run())
    renewing = asyncio.create_task(made.hold.keep())
    try:
        yield task
        made.hold.stop.set()
        async with asyncio.timeout(5):
            await task
            await renewing
    finally:
        task.cancel()
        renewing.cancel()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        for _ in range(100_000):
            if condition():
                return
            await asyncio.sleep(0.001)
