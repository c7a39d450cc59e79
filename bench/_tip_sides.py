"""The two processes of `tip`: one puts records at a steady rate, the other is the worker and takes the times.

Every event says in `occurred_at` when it was handed to the producer, by the clock of the machine that both run on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from bench._project_stream import RECORDS, changed
from bench._project_worker import joined
from tidegate import aws, codec, lifecycle
from tidegate.aws.puts import PutEntry, put_records
from tidegate.leases import Checkpoint
from worker.batch import Batch
from worker.ports import Delivery, RecordReader
from worker.shards import Shard

_CALL_RECORDS = 500
"""As many as one PutRecords call takes."""
_CALLS = 4
"""On their way at once."""


async def produce(stream: str, records: int, rate_per_s: float | None) -> float:
    """Put so many records, as fast as can be without a rate; answers how many a second it came to."""
    # Fifty calls a second at least, so that no record waits for a call to fill.
    size = _CALL_RECORDS if rate_per_s is None else max(1, min(_CALL_RECORDS, int(rate_per_s / 50)))
    begins = iter(range(0, records, size))

    async def put(client: Any, started_s: float) -> None:
        for begin in begins:
            if rate_per_s is not None:
                await asyncio.sleep(started_s + begin / rate_per_s - time.monotonic())
            entries = [_entry(place) for place in range(begin, min(begin + size, records))]
            outcomes = await put_records(client, {"StreamName": stream}, entries)
            assert not any(outcome.get("ErrorCode") for outcome in outcomes), outcomes[:1]

    async with aws.client("kinesis") as client:
        started_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for _ in range(_CALLS):
                group.create_task(put(client, started_s))
        return records / (time.monotonic() - started_s)


def _entry(place: int) -> PutEntry:
    # Once all rows are there, they are changed.
    event = changed(place % RECORDS, 1 + place // RECORDS, datetime.now(UTC))
    return PutEntry(partition_key=str(event.key), data=codec.encode(event))


class Times(NamedTuple):
    """Of one record, in seconds: put → read, and read → its row is committed."""

    read_s: float
    written_s: float


async def drain(stream: str, dsn: str, records: int) -> float:
    """Project what is there; rows a second."""
    async with joined(stream, dsn) as worker:
        worker.sink.watch(records, worker.holds)
        lifecycle.settle_memory()
        started_s = time.perf_counter()
        await worker.run()
        return records / (time.perf_counter() - started_s)


async def follow(stream: str, dsn: str, records: int, skip_s: float) -> list[Times]:
    """Project so many records as they come. Those of the first seconds are left out: everything is still cold."""
    async with joined(stream, dsn) as worker:
        watch = _Watch(worker.consumer.reader)
        worker.sink.committed = watch.note_committed
        worker.sink.watch(records, worker.holds)
        lifecycle.settle_memory()
        await replace(worker, consumer=replace(worker.consumer, reader=watch)).run()
    begin_s = min(put_s for put_s, _ in watch.times) + skip_s
    return [times for put_s, times in watch.times if put_s >= begin_s]


class _Watch:
    """Notes when each record was read, and when its batch was committed."""

    def __init__(self, reader: RecordReader) -> None:
        self._reader = reader
        self._read_s: dict[str, float] = {}
        self.times: list[tuple[float, Times]] = []

    async def read(self, shard_id: str, start: Checkpoint) -> AsyncGenerator[Delivery, None]:
        async with aclosing(self._reader.read(shard_id, start)) as deliveries:
            async for delivery in deliveries:
                now_s = time.time()
                self._read_s.update((record.sequence_number, now_s) for record in delivery.records)
                yield delivery

    async def list_shards(self) -> list[Shard]:
        return await self._reader.list_shards()

    def is_foreign(self, shard_id: str, sequence: int) -> bool:
        return self._reader.is_foreign(shard_id, sequence)

    async def is_at_the_edge(self, arrival_s: float) -> bool:
        return await self._reader.is_at_the_edge(arrival_s)

    def note_committed(self, batch: Batch) -> None:
        now_s = time.time()
        for change in batch.changes:
            put_s, read_s = change.event.occurred_at.timestamp(), self._read_s.pop(change.record.sequence_number)
            self.times.append((put_s, Times(read_s - put_s, now_s - read_s)))
