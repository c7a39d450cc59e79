"""The same records, read by three consumers: every one ends with one typed event for each record.

tidegate       the worker's own reader, decoder, batches and checkpoints; the sink keeps nothing, the leases are in memory
async-kinesis  its Consumer with its checkpoints in memory, its limits on calls lifted
aiobotocore    get_records in a loop for each shard, nothing else: no order of keys, no checkpoint, no aggregates

The two others read JSON with the standard library and build the typed event from it by hand, as most people write it.
`aiobotocore-msgspec` is the harder comparison: the same loop in the hands of somebody who gives every entity of the
stream a msgspec struct of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any

import msgspec
from aiobotocore.session import get_session
from kinesis import Consumer as PeerConsumer
from kinesis.aggregators import SimpleAggregator
from kinesis.processors import Processor

from bench._kinesis import stream_of
from bench._stream import PAGE_RECORDS, Parcel
from tests.fakes.lease_store import MemoryLeaseStore
from tidegate import aws, lifecycle
from tidegate.event import Cause, Version
from tidegate.leases import TRIM_HORIZON, Hold, Lease
from tidegate.settings import LeaseSettings, StreamSettings
from worker.batch import Batch, DeadLetter
from worker.consumer import Consumer
from worker.dead_letter import Breaker
from worker.decode import Decoder
from worker.memory import ReadMemory
from worker.ports import ShardState, WriteResult
from worker.reader import KinesisReader
from worker.reading import StartTimes
from worker.settings import BatchSettings, ConsumerSettings, ReadSettings, RejectSettings
from worker.stream import KinesisStream

_READ_BYTES = 16 * 1024 * 1024

Side = Callable[[str, int, int], Coroutine[Any, Any, float]]
"""Address, shards, pages in each shard → seconds from the first request to the last typed event."""


class _Nowhere:
    """A sink that takes everything and keeps nothing; it asks the shard to stop when all its records came."""

    def __init__(self, expected: int, holds: dict[str, Hold]) -> None:
        self._expected = expected
        self._holds = holds
        self._taken = dict.fromkeys(holds, 0)

    async def register(
        self, shard_ids: Collection[str], lineage: Collection[tuple[str, str]], finished: Collection[str]
    ) -> list[str]:
        return []

    async def open(self, shard_id: str, counter: int, replaces: int | None = None) -> ShardState:
        return ShardState(None, counter)

    async def write(self, batch: Batch, counter: int) -> WriteResult:
        assert not batch.dead
        self._taken[batch.shard_id] += len(batch.events)
        if self._taken[batch.shard_id] == self._expected:
            self._holds[batch.shard_id].stop.set()
        return WriteResult(applied=len(batch.events))

    async def note(self, shard_id: str, counter: int, letter: DeadLetter) -> None:
        raise AssertionError(letter.message)

    async def end(self, shard_id: str, counter: int, child_ids: Sequence[str]) -> None:
        raise AssertionError(shard_id)


async def tidegate(url: str, shards: int, pages: int) -> float:
    os.environ["AWS_ENDPOINT_URL_KINESIS"] = url
    store = MemoryLeaseStore()
    async with aws.client("kinesis") as client:
        # Kinesis' limit on the bytes of one shard is lifted: some shards stand in for a hundred. Nor is Kinesis far away
        # here, so reading far ahead has no use: what is read soon is still in the processor's cache.
        settings = ReadSettings(limit_records=PAGE_RECORDS, bytes_per_s=10**12, memory_bytes=_READ_BYTES)
        stream = KinesisStream(client, StreamSettings(id=stream_of(pages)))
        reader = KinesisReader(client, stream, settings, ReadMemory(settings.memory_bytes), StartTimes(0))
        holds = {shard.id: await _hold(store, shard.id) for shard in await reader.list_shards()}
        consumer = Consumer(
            reader=reader,
            sink=_Nowhere(pages * PAGE_RECORDS, holds),
            decoder=Decoder((Parcel,)),
            breaker=Breaker(RejectSettings()),
            # A sink that keeps nothing has no use for large transactions, and some hundred events stay in a core's cache.
            batch=BatchSettings(max_records=250),
            settings=ConsumerSettings(),
            register=_nothing,
            get_lease=store.get,
        )
        lifecycle.settle_memory()
        started_s = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for hold in holds.values():
                group.create_task(_work(consumer, hold))
        taken_s = time.perf_counter() - started_s
    assert len(holds) == shards
    assert all(lease.checkpoint.is_number for lease in store.leases.values())
    return taken_s


async def _work(consumer: Consumer, hold: Hold) -> None:
    """As the coordinator does: renewals, and with them checkpoints, beside the work; at the end the lease is given up."""
    async with asyncio.TaskGroup() as group:
        group.create_task(hold.keep())
        await consumer.run(hold)
        await hold.release()


async def _hold(store: MemoryLeaseStore, shard_id: str) -> Hold:
    await store.create(Lease(key=shard_id, checkpoint=TRIM_HORIZON))
    lease = await store.take(store.leases[shard_id], "bench")
    assert lease is not None
    return Hold(store, lease, LeaseSettings(), sent_s=asyncio.get_running_loop().time())


async def _nothing() -> None:
    return


class _Event(msgspec.Struct, gc=False):
    """The typed event, written by hand for one entity: what its author knows to be on the stream, and nothing else."""

    id: str
    source: str
    subject: str
    time: datetime
    tidegateversion: str
    tidegatecause: Cause
    tidegateobserved: datetime
    data: Parcel
    version: Version | None = None


_events = msgspec.json.Decoder(_Event)


def _typed(data: bytes) -> _Event:
    event = _events.decode(data)
    event.version = Version(*map(int, event.tidegateversion.split(".")))
    return event


_STATUSES = {"booked", "in_transit", "delivered"}


def _by_hand(data: bytes) -> _Event:
    """The same with the standard library: what is not of the right type must not get in."""
    read = json.loads(data)
    parcel = read["data"]
    if parcel["status"] not in _STATUSES or not isinstance(parcel["express"], bool):
        raise ValueError(parcel)
    return _Event(
        id=read["id"],
        source=read["source"],
        subject=read["subject"],
        time=datetime.fromisoformat(read["time"]),
        tidegateversion=read["tidegateversion"],
        tidegatecause=Cause(read["tidegatecause"]),
        tidegateobserved=datetime.fromisoformat(read["tidegateobserved"]),
        data=Parcel(
            number=parcel["number"],
            status=parcel["status"],
            shipping_cost=Decimal(parcel["shipping_cost"]),
            express=parcel["express"],
            pieces=int(parcel["pieces"]),
        ),
        version=Version(*map(int, read["tidegateversion"].split("."))),
    )


@asynccontextmanager
async def _plain_client(url: str) -> AsyncIterator[Any]:
    async with get_session().create_client("kinesis", endpoint_url=url) as client:
        yield client


async def aiobotocore(url: str, shards: int, pages: int, typed: Callable[[bytes], _Event] = _by_hand) -> float:
    stream = stream_of(pages)
    async with _plain_client(url) as client:
        listed = (await client.list_shards(StreamName=stream))["Shards"]

        async def read(shard_id: str) -> int:
            asked = {"StreamName": stream, "ShardId": shard_id, "ShardIteratorType": "TRIM_HORIZON"}
            iterator = (await client.get_shard_iterator(**asked))["ShardIterator"]
            count, behind = 0, 1
            while behind:
                reply = await client.get_records(ShardIterator=iterator, Limit=PAGE_RECORDS)
                for record in reply["Records"]:
                    count += typed(record["Data"]).version is not None
                iterator, behind = reply["NextShardIterator"], reply["MillisBehindLatest"]
            return count

        started_s = time.perf_counter()
        counts = await asyncio.gather(*(read(shard["ShardId"]) for shard in listed))
        taken_s = time.perf_counter() - started_s
    assert counts == [pages * PAGE_RECORDS] * shards
    return taken_s


class _TypedProcessor(Processor, SimpleAggregator):  # type: ignore[misc]  # it has no types
    def deserialize(self, data: bytes) -> _Event:
        return _by_hand(data)


async def async_kinesis(url: str, shards: int, pages: int) -> float:
    expected = shards * pages * PAGE_RECORDS
    peer = PeerConsumer(
        stream_of(pages), endpoint_url=url, processor=_TypedProcessor(), record_limit=PAGE_RECORDS,
        shard_fetch_rate=1_000, max_queue_size=2 * PAGE_RECORDS, sleep_time_no_records=0,
    )  # fmt: skip
    async with peer:
        started_s = time.perf_counter()
        count = 0
        async for event in peer:
            assert event.version is not None
            count += 1
            if count == expected:
                break
        return time.perf_counter() - started_s


SIDES: dict[str, Side] = {
    "tidegate": tidegate,
    "async-kinesis": async_kinesis,
    "aiobotocore": aiobotocore,
    "aiobotocore-msgspec": partial(aiobotocore, typed=_typed),
}
