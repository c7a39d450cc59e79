"""The poller as a process: who is made of what, and the tree of its tasks.

    health pages
    └── Coordinator (leases, one per source)
        └── SourceLoop, one task per held lease

Clients and the HTTP session are shared by all sources. Only this module names concrete adapters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import aiohttp

from poller.csv_drop import CsvDropSource
from poller.cursor_store import DynamoCursorStore
from poller.index_store import S3IndexStore
from poller.loop import SourceLoop
from poller.publisher import KinesisPublisher
from poller.rest import RestSource
from poller.settings import PollerSettings
from poller.source import Source
from poller.term import Stores, Term
from poller.translate import Reading
from tidegate import aws, bubble, health, telemetry
from tidegate.errors import Fatal
from tidegate.leases import Coordinator, DynamoLeaseStore, Hold, owner_name

log = telemetry.get_logger("poller.app")


class Poller:
    """`environ` is where the bubble's own settings come from. Raises Fatal when one is missing."""

    def __init__(
        self,
        settings: PollerSettings,
        declared: Mapping[str, bubble.Source],
        stores: Stores,
        *,
        session: aiohttp.ClientSession,
        s3: Any,
        environ: Mapping[str, str],
    ) -> None:
        self._settings = settings
        self._declared = declared
        self._stores = stores
        self._session = session
        self._s3 = s3
        self._environ = environ
        self._to_republish = set(settings.republish)
        # Made once here, so that a missing variable is found at the start and not at the first take.
        for source in declared.values():
            self._source(source)

    async def poll(self, hold: Hold) -> None:
        """Work on one source while its lease is held; what a Coordinator starts."""
        declared = self._declared[hold.key]
        term = Term(
            Reading.of(declared),
            self._source(declared),
            self._stores,
            self._settings.loop,
            stop=hold.stop,
            check=hold.check,
        )
        loop = SourceLoop(
            term,
            self._stores.publisher,
            allowed=hold.key in self._settings.allow_mass_deletion,
            republish=hold.key in self._to_republish,
        )
        try:
            await loop.run(hold.epoch)
        finally:
            if loop.has_republished:
                # Once in a process, however often the lease comes back.
                self._to_republish.discard(hold.key)

    def _source(self, declared: bubble.Source) -> Source:
        if isinstance(declared.feed, bubble.CsvDrop):
            return CsvDropSource(declared, declared.feed, self._s3, self._environ)
        return RestSource(declared, declared.feed, self._session, self._environ)


def chosen(settings: PollerSettings, loaded: bubble.Bubble) -> dict[str, bubble.Source]:
    """The sources to poll, by name. Raises Fatal for a name that the bubble does not have."""
    sources = {source.name: source for source in loaded.sources}
    for name in (*settings.sources, *settings.allow_mass_deletion, *settings.republish):
        if name not in sources:
            raise Fatal(f"the bubble {loaded.name!r} has no source {name!r}; it has {', '.join(sorted(sources))}")
    return {name: sources[name] for name in settings.sources} if settings.sources else sources


async def run(settings: PollerSettings, environ: Mapping[str, str], stop: asyncio.Event) -> None:
    """Poll until `stop`, then finish the pages in hand and hand the leases over. Raises as Coordinator.run."""
    declared = chosen(settings, bubble.load(settings.bubble))
    readiness = health.Readiness("leases")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(health.serving(settings.health, readiness, service="poller"))
        dynamodb = await stack.enter_async_context(aws.client("dynamodb", settings.aws))
        s3 = await stack.enter_async_context(aws.client("s3", settings.aws))
        kinesis = await stack.enter_async_context(aws.client("kinesis", settings.aws))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        cursors = DynamoCursorStore(dynamodb, settings.cursor_table)
        leases = DynamoLeaseStore(dynamodb, settings.lease_table)
        await cursors.ensure_table()
        await leases.ensure_table()
        publisher = KinesisPublisher(kinesis, settings.stream.id, settings.publish)
        stores = Stores(cursors, S3IndexStore(s3, settings.state_bucket), publisher)
        poller = Poller(settings, declared, stores, session=session, s3=s3, environ=environ)
        owner = owner_name("poller")
        log.info(telemetry.PROCESS_STARTED, owner=owner, sources=sorted(declared))
        coordinator = Coordinator.for_keys(leases, owner, settings.leases, poller.poll, sorted(declared))
        async with asyncio.TaskGroup() as group:
            telling = group.create_task(_tell_ready(coordinator, readiness))
            await coordinator.run(stop)
            telling.cancel()


async def _tell_ready(coordinator: Coordinator, readiness: health.Readiness) -> None:
    await coordinator.planned.wait()
    readiness.yes("leases")
