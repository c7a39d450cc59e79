"""The worker as a whole: the one place that names the concrete adapters and joins them.

health server
├── coordinator: takes leases, and runs one consumer for each
│   └── consumer: reader (Kinesis, polled or pushed) → sink (Aurora PostgreSQL, the outbox in it)
├── dispatch: outbox → destinations (webhooks)
├── drain: parked changes → tables, where an entity asks for strict order
├── watch: says on /readyz whether the database takes writes
├── open letters: counts the dead letters that nobody closed, for the metrics
└── housekeeping: deletes old tombstones and resolved dead letters
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import Any

from msgspec.structs import replace

from tidegate import aws, bubble, health, lifecycle, telemetry
from tidegate.bubble import Bubble
from tidegate.database import connect
from tidegate.errors import Fatal, Transient
from tidegate.leases import (
    AT_TIMESTAMP,
    LATEST,
    TRIM_HORIZON,
    Checkpoint,
    Coordinator,
    DynamoLeaseStore,
    Lease,
    LeaseStore,
    owner_name,
    planner,
)
from tidegate.settings import AwsSettings, read, unpack
from tidegate.tables import fingerprint
from worker import dead_letter, webhook
from worker.aurora import AuroraSink
from worker.claims import S3Claims
from worker.consumer import Consumer
from worker.dead_letter import Breaker
from worker.decode import Decoder
from worker.dispatch import Dispatch
from worker.drain import Drain
from worker.fanout import FanOutReader, registered
from worker.housekeeping import Housekeeping
from worker.memory import ReadMemory
from worker.open_letters import OpenLetters
from worker.origin import OriginKeeper
from worker.outbox import PostgresOutbox
from worker.ports import Claims, RecordDecoder, RecordReader, Sink
from worker.reader import KinesisReader
from worker.reading import StartTimes
from worker.routes import Routes
from worker.settings import WorkerSettings
from worker.shards import Shard, finished, foreign_leases, other_streams, wanted_leases
from worker.stream import KinesisStream
from worker.watch import DatabaseWatch

log = telemetry.get_logger(__name__)

_START_RETRY_MAX_S = 5.0
FIRST = {"TRIM_HORIZON": TRIM_HORIZON, "LATEST": LATEST, "AT_TIMESTAMP": AT_TIMESTAMP}


async def run(stop: asyncio.Event) -> None:
    """The whole life of the process: until `stop` is set and everything is drained.

    Raises Fatal for wrong settings, a wrong bubble, a stream that is not there or that was created anew, or a database
    that was not migrated.
    """
    unpack(os.environ)
    settings = read(WorkerSettings, os.environ)
    loaded = bubble.load(settings.bubble)
    readiness = health.Readiness("leases", "stream", "database")
    async with (
        health.serving(settings.health, readiness, service=settings.name) as port,
        connect(settings.database_url.reveal(), settings.database, f"worker {fingerprint(loaded.shapes)}") as database,
        aws.client("kinesis", connections(settings)) as kinesis,
        aws.client("dynamodb", settings.aws) as dynamodb,
        webhook.connect(loaded.destinations, os.environ) as destinations,
        _claims(settings) as claims,
    ):
        stream = KinesisStream(kinesis, settings.stream)
        log.info(telemetry.WORKER_STARTED, stream=stream.name, bubble=loaded.name, health_port=port)
        dispatch = Dispatch(PostgresOutbox(database), destinations, settings.outbox)
        routes = Routes(loaded.destinations, [shape.name for shape in loaded.shapes])
        sink = AuroraSink(database, stream.name, loaded.shapes, dead_letter.file, routes, dispatch.queued)
        store = DynamoLeaseStore(dynamodb, settings.lease_table)
        origins = OriginKeeper(dynamodb, settings.lease_table, stream, store)
        made: list[RecordReader] = []

        async def make_reader() -> None:
            made.append(await open_reader(settings, kinesis, stream, origins))

        for part, prepare in (("leases", store.ensure_table), ("stream", make_reader), ("database", sink.check)):
            if not await prepared(prepare, partial(readiness.no, part), stop):
                return
            readiness.yes(part)
        discovery = Discovery(stream, sink, origins, FIRST[settings.start_position])
        housekeeping = Housekeeping(database, loaded.shapes, settings.retention, stream.retention_hours)
        lifecycle.settle_memory()
        watch = DatabaseWatch(
            database, settings.watch, partial(readiness.yes, "database"), partial(readiness.no, "database")
        )
        decoder = Decoder(loaded.entities)
        drain = _drain(sink, decoder, loaded, settings, stop)
        letters = OpenLetters(database, settings.watch.letters_interval_s)
        async with watch.watching(), letters.watching(), dispatch.delivering(stop), housekeeping.keeping(stop), drain:
            await coordinator(settings, decoder, made[-1], sink, store, discovery, claims).run(stop)


def _drain(
    sink: AuroraSink, decoder: Decoder, loaded: Bubble, settings: WorkerSettings, stop: asyncio.Event
) -> AbstractAsyncContextManager[None]:
    """Nothing to do where no entity asks for strict order."""
    if not any(shape.is_strict for shape in loaded.shapes):
        return nullcontext()
    return Drain(sink, decoder.decode_all, settings.drain).draining(stop)


@asynccontextmanager
async def _claims(settings: WorkerSettings) -> AsyncIterator[Claims | None]:
    """None when no bucket is named."""
    if settings.claim_bucket is None:
        yield None
        return
    async with aws.client("s3", settings.aws) as client:
        yield S3Claims(client, settings.claim_bucket)


def connections(settings: WorkerSettings) -> AwsSettings:
    """One try a call: reading has its own retries, which know the shard's pace and are counted.

    A subscription keeps its connection, so fan-out needs one for each shard and some for other calls.
    """
    subscriptions = settings.leases.max_leases if settings.read.mode == "fan_out" else 0
    return replace(settings.aws, max_attempts=1, pool_size=settings.aws.pool_size + subscriptions)


async def open_reader(
    settings: WorkerSettings, kinesis: Any, stream: KinesisStream, origins: OriginKeeper
) -> RecordReader:
    """The way to read that the settings ask for. Raises Transient (try again) or Fatal."""
    origin, _ = await origins.check()
    described = await stream.describe()
    if settings.start_s is not None and settings.start_s > described.seen_s:
        raise Fatal(f"TIDEGATE_START_TIME, {settings.start_time}, lies in the future")
    times = StartTimes(latest_s=origin.seen_ms / 1000, timestamp_s=settings.start_s)
    memory = ReadMemory(settings.read.memory_bytes)
    if settings.read.mode == "polling":
        return KinesisReader(kinesis, stream, settings.read, memory, times)
    consumer = await registered(kinesis, described.arn, settings.read.consumer or settings.lease_table)
    return FanOutReader(kinesis, stream, consumer, settings.read, memory, times)


def coordinator(
    settings: WorkerSettings,
    decoder: RecordDecoder,
    reader: RecordReader,
    sink: Sink,
    store: LeaseStore,
    discovery: Discovery,
    claims: Claims | None = None,
) -> Coordinator:
    """The adapters, joined to what takes leases and works on them."""
    consumer = Consumer(
        reader=reader,
        sink=sink,
        decoder=decoder,
        breaker=Breaker(settings.reject),
        batch=settings.batch,
        settings=settings.consumer,
        register=discovery.register,
        get_lease=store.get,
        claims=claims,
    )
    owner = owner_name(settings.name)
    return Coordinator(store, owner, settings.leases, consumer.run, discover=discovery.leases)


async def prepared(prepare: Callable[[], Awaitable[None]], waits: Callable[[str], None], stop: asyncio.Event) -> bool:
    """Wait until a store can be used, for as long as it takes; False when asked to stop before."""
    wait_s = 0.1
    while not stop.is_set():
        try:
            await prepare()
        except Transient as error:
            waits(str(error))
            log.warning(telemetry.WORKER_WAITS, error=str(error))
        else:
            return True
        try:
            async with asyncio.timeout(random.uniform(0, wait_s)):
                await stop.wait()
        except TimeoutError:
            wait_s = min(wait_s * 2, _START_RETRY_MAX_S)
    return False


class Discovery:
    """Looks at the stream: which leases should exist, and which shards the database must know.

    It must know every shard that may be read, or one that nobody reads would let the rest look fresh. A child that
    waits is not among them: until its parent ends, the parent's watermark speaks for both.
    """

    def __init__(self, stream: KinesisStream, sink: Sink, origins: OriginKeeper, initial: Checkpoint) -> None:
        self._stream = stream
        self._sink = sink
        self._origins = origins
        self._initial = initial
        self._is_registered = False
        self._registering = asyncio.Lock()

    async def register(self) -> None:
        """Make the shards known to the database if the last look could not. Raises Transient.

        A consumer awaits it before it writes anything: from then on the database's freshness counts every shard.
        """
        async with self._registering:
            # One looks for all that wait.
            if not self._is_registered:
                leases, shards = await self._look()
                await self._register(shards, leases)

    async def leases(self) -> Sequence[Lease]:
        """The leases that are missing. Raises Transient, or Fatal when those that exist are of another stream."""
        leases, shards = await self._look()
        wanted = wanted_leases(shards, leases, self._initial)
        self._is_registered = False
        try:
            await self._register(shards, [*leases, *wanted])
        except Transient as error:
            # Each consumer sees to it before it writes anything.
            log.warning(telemetry.WRITE_FAILED, doing="register", error=str(error))
        return wanted

    async def _look(self) -> tuple[list[Lease], list[Shard]]:
        """The leases, then the shards: what a lease knows of a shard is then never newer than the listing."""
        _, leases = await self._origins.check()
        if shared := other_streams(leases):
            raise Fatal(
                f"the lease table is one of a multi-stream application ({shared[0]} and {len(shared) - 1} more); "
                "tidegate reads one stream with one table: name another in TIDEGATE_LEASE_TABLE (see docs/KCL.md)"
            )
        shards = await self._stream.list_shards()
        if foreign := foreign_leases(shards, leases):
            raise self._stream.created_anew(f"the leases of {foreign} are at positions from before these shards")
        return leases, shards

    async def _register(self, shards: Sequence[Shard], leases: Sequence[Lease]) -> None:
        lineage = [(parent, shard.id) for shard in shards for parent in shard.parent_ids]
        unfinished = await self._sink.register(planner.startable(leases), lineage, finished(shards, leases))
        if unfinished:
            log.error(telemetry.DATABASE_BEHIND, shards=unfinished)
        self._is_registered = True
