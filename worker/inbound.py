"""`python -m worker.inbound`: file the stream of arrivals in the database until SIGTERM.

The same worker with another sink: leases, shards, reading, batches, fence and dead letters are those of `worker.app`.
What belongs to rows is not here: destinations, housekeeping and parked changes. TIDEGATE_STREAM is the stream of
arrivals, and TIDEGATE_LEASE_TABLE a table of its own.

health server
├── coordinator: takes leases, and runs one consumer for each
│   └── consumer: reader (Kinesis) → sink (tidegate.inbound)
└── watch: says on /readyz whether the database takes writes
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from functools import partial

from tidegate import aws, bubble, health, lifecycle, telemetry
from tidegate.command_line import answered
from tidegate.database import connect
from tidegate.leases import DynamoLeaseStore
from tidegate.settings import read, unpack
from worker.app import FIRST, Discovery, connections, coordinator, open_reader, prepared
from worker.arrival_sink import ArrivalSink
from worker.arrivals import ArrivalDecoder
from worker.origin import OriginKeeper
from worker.ports import RecordReader
from worker.settings import WorkerSettings
from worker.stream import KinesisStream
from worker.watch import DatabaseWatch

log = telemetry.get_logger(__name__)


async def run(stop: asyncio.Event) -> None:
    """The whole life of the process: until `stop` is set and everything is drained. Raises Fatal as `worker.app.run`."""
    unpack(os.environ)
    settings = read(WorkerSettings, os.environ)
    loaded = bubble.load(settings.bubble)
    readiness = health.Readiness("leases", "stream", "database")
    async with (
        health.serving(settings.health, readiness, service=settings.name) as port,
        connect(settings.database_url.reveal(), settings.database, "worker inbound") as database,
        aws.client("kinesis", connections(settings)) as kinesis,
        aws.client("dynamodb", settings.aws) as dynamodb,
    ):
        stream = KinesisStream(kinesis, settings.stream)
        log.info(telemetry.WORKER_STARTED, stream=stream.name, bubble=loaded.name, health_port=port)
        sink = ArrivalSink(database, stream.name)
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
        lifecycle.settle_memory()
        watch = DatabaseWatch(
            database, settings.watch, partial(readiness.yes, "database"), partial(readiness.no, "database")
        )
        async with watch.watching():
            decoder = ArrivalDecoder(loaded.inbound)
            await coordinator(settings, decoder, made[-1], sink, store, discovery).run(stop)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    about = "File the stream of arrivals in the database until SIGTERM."
    code = answered("worker.inbound", about, WorkerSettings, arguments)
    return lifecycle.main(run) if code is None else code


if __name__ == "__main__":
    sys.exit(main())
