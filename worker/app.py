"""The worker as a whole: the one place that names the concrete adapters and joins them.

health server
└── coordinator: takes leases, and runs one consumer for each
    └── consumer: reader (Kinesis) → sink (Aurora PostgreSQL)
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from tidegate import aws, bubble, health, telemetry
from tidegate.bubble import Bubble
from tidegate.database import connect
from tidegate.errors import Transient
from tidegate.leases import (
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
from tidegate.settings import read
from worker import dead_letter
from worker.aurora import AuroraSink
from worker.consumer import Consumer
from worker.dead_letter import Breaker
from worker.decode import Decoder
from worker.ports import RecordReader, Sink
from worker.reader import KinesisReader
from worker.settings import WorkerSettings
from worker.shards import Shard, finished, wanted_leases

log = telemetry.get_logger(__name__)

_START_RETRY_MAX_S = 5.0


async def run(stop: asyncio.Event) -> None:
    """The whole life of the process: until `stop` is set and everything is drained.

    Raises Fatal for wrong settings, a wrong bubble or a database that was not migrated.
    """
    settings = read(WorkerSettings, os.environ)
    loaded = bubble.load(settings.bubble)
    readiness = health.Readiness("leases", "database")
    async with (
        health.serving(settings.health, readiness) as port,
        connect(settings.database_url.reveal(), settings.database, "worker") as database,
        aws.client("kinesis", settings.aws) as kinesis,
        aws.client("dynamodb", settings.aws) as dynamodb,
    ):
        stream = settings.stream.name
        log.info(telemetry.WORKER_STARTED, stream=stream, bubble=loaded.name, health_port=port)
        sink = AuroraSink(database, stream, loaded.shapes, dead_letter.file)
        store = DynamoLeaseStore(dynamodb, settings.lease_table)
        for part, prepare in (("leases", store.ensure_table), ("database", sink.check)):
            if not await _prepared(prepare, partial(readiness.no, part), stop):
                return
            readiness.yes(part)
        reader = KinesisReader(kinesis, stream, settings.read)
        await _coordinator(settings, loaded, reader, sink, store).run(stop)


def _coordinator(
    settings: WorkerSettings, loaded: Bubble, reader: RecordReader, sink: Sink, store: LeaseStore
) -> Coordinator:
    """The adapters, joined to what takes leases and works on them."""
    discovery = Discovery(reader, sink, store, LATEST if settings.start_position == "LATEST" else TRIM_HORIZON)
    consumer = Consumer(
        reader=reader,
        sink=sink,
        decoder=Decoder(loaded.entities),
        breaker=Breaker(settings.reject),
        batch=settings.batch,
        settings=settings.consumer,
        register=discovery.register,
        list_leases=store.scan,
    )
    owner = owner_name(settings.name)
    return Coordinator(store, owner, settings.leases, consumer.run, discover=discovery.leases)


async def _prepared(prepare: Callable[[], Awaitable[None]], waits: Callable[[str], None], stop: asyncio.Event) -> bool:
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

    def __init__(self, reader: RecordReader, sink: Sink, store: LeaseStore, initial: Checkpoint) -> None:
        self._reader = reader
        self._sink = sink
        self._store = store
        self._initial = initial
        self._is_registered = False

    async def register(self) -> None:
        """Make the shards known to the database if the last look could not. Raises Transient.

        A consumer awaits it before it writes anything: from then on the database's freshness counts every shard.
        """
        if not self._is_registered:
            await self._register(await self._reader.list_shards(), await self._store.scan())

    async def leases(self) -> Sequence[Lease]:
        """The leases that are missing. Raises Transient or Fatal."""
        shards = await self._reader.list_shards()
        leases = await self._store.scan()
        wanted = wanted_leases(shards, leases, self._initial)
        self._is_registered = False
        try:
            await self._register(shards, [*leases, *wanted])
        except Transient as error:
            # Each consumer sees to it before it writes anything.
            log.warning(telemetry.WRITE_FAILED, doing="register", error=str(error))
        return wanted

    async def _register(self, shards: Sequence[Shard], leases: Sequence[Lease]) -> None:
        lineage = [(parent, shard.id) for shard in shards for parent in shard.parent_ids]
        unfinished = await self._sink.register(planner.startable(leases), lineage, finished(shards, leases))
        if unfinished:
            log.error(telemetry.DATABASE_BEHIND, shards=unfinished)
        self._is_registered = True
