"""The poller as a process: who is made of what, and the tree of its tasks.

    health pages
    ├── Gate, one per back office: looks after our share of its budget
    └── Coordinator (leases, one per source)
        └── Attended, one task per held lease: a SourceLoop, and what people ask of it

Clients and the HTTP session are shared by all sources. Only this module names concrete adapters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import aiohttp

from poller.archive import S3Archive
from poller.attended import Attended
from poller.claim_check import ClaimCheck
from poller.csv_drop import CsvDropSource
from poller.cursor_store import DynamoCursorStore
from poller.drift import ShapeWatch
from poller.drop_bucket import DropBucket
from poller.gate import Gate
from poller.hours import next_cron
from poller.index_store import S3IndexStore
from poller.ledger import TableLedger
from poller.loop import SourceLoop
from poller.publisher import KinesisPublisher
from poller.rest import RestSource
from poller.settings import DropSettings, PollerSettings, PublishSettings, SignalSettings
from poller.signals import Signals, TableSignals
from poller.slot_store import TableSlots
from poller.source import Source
from poller.term import Stores, Term
from poller.translate import Reading
from tidegate import aws, bubble, health, lifecycle, telemetry
from tidegate.errors import Fatal
from tidegate.leases import Coordinator, DynamoLeaseStore, Hold, owner_name
from tidegate.source_table import SourceTable

log = telemetry.get_logger("poller.app")


class Drops(NamedTuple):
    """What sources of dropped files share. `sqs` is None when no source has a queue."""

    s3: Any
    sqs: Any
    table: SourceTable
    settings: DropSettings

    def source(self, declared: bubble.Source, feed: bubble.CsvDrop, environ: Mapping[str, str]) -> CsvDropSource:
        """Raises Fatal when a variable is missing."""
        queue = "" if feed.notices is None else _value(declared.name, feed.notices, environ)
        clock = asyncio.get_running_loop().time
        bucket = DropBucket(feed, _value(declared.name, feed.bucket, environ), self.s3, queue, self.sqs, clock)
        return CsvDropSource(declared, feed, bucket, TableLedger(self.table), self.settings)


def _value(source: str, env: bubble.Env, environ: Mapping[str, str]) -> str:
    value = environ.get(env.name) or env.default
    if not value:
        raise Fatal(f"source {source!r}: the environment variable {env.name} is missing")
    return value


class Poller:
    """`environ` is where the bubble's own settings come from. Raises Fatal when one is missing."""

    def __init__(
        self,
        settings: PollerSettings,
        declared: Mapping[str, bubble.Source],
        stores: Stores,
        *,
        session: aiohttp.ClientSession,
        drops: Drops,
        signals: Callable[[str], Signals],
        owner: str,
        environ: Mapping[str, str],
        gates: Mapping[str, Gate] | None = None,
    ) -> None:
        self._settings = settings
        self._declared = declared
        self._stores = stores
        self._session = session
        self._drops = drops
        self._signals = signals
        self._owner = owner
        self._environ = environ
        self._to_republish = set(settings.republish)
        self._gates = gates or {}
        # Made once here, so that a missing variable is found at the start and not at the first take.
        for source in declared.values():
            self._source(source)
            _check_crons(source)

    async def poll(self, hold: Hold) -> None:
        """Work on one source while its lease is held; what a Coordinator starts."""
        declared = self._declared[hold.key]
        source = self._source(declared)
        term = Term(
            Reading.of(declared)._replace(watch=ShapeWatch(declared.drift)),
            source,
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
            closed_s=source.closed_s if isinstance(source, RestSource) else _never_closed,
        )
        attended = Attended(loop, term, self._signals(hold.key), self._stores.archive, owner=self._owner)
        try:
            await attended.run(hold.epoch)
        finally:
            if isinstance(source, CsvDropSource):
                source.close()
            if loop.has_republished:
                # Once in a process, however often the lease comes back.
                self._to_republish.discard(hold.key)

    def _source(self, declared: bubble.Source) -> Source:
        if isinstance(declared.feed, bubble.CsvDrop):
            return self._drops.source(declared, declared.feed, self._environ)
        gate = self._gates.get(declared.feed.manners.name)
        return RestSource(declared, declared.feed, self._session, self._environ, gate)


def _never_closed() -> float:
    return 0.0


def _check_crons(source: bubble.Source) -> None:
    """Raises Fatal for an expression or a zone that cannot be read."""
    for expression in (source.poll_cron, source.sweep_cron):
        if expression is None:
            continue
        try:
            next_cron(expression, source.zone, datetime.now(UTC))
        except (ValueError, KeyError, OSError) as error:
            raise Fatal(f"source {source.name!r}: {error}") from error


def gates(declared: Mapping[str, bubble.Source], table: SourceTable, owner: str) -> dict[str, Gate]:
    """One gate for each back office, whose budget is shared by all pollers through the table."""
    feeds = [source.feed for source in declared.values()]
    offices = {feed.manners.name: feed.manners for feed in feeds if isinstance(feed, bubble.Rest)}
    return {name: Gate(office, TableSlots(table), owner=owner) for name, office in offices.items()}


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
        leases = DynamoLeaseStore(dynamodb, settings.lease_table)
        table = SourceTable(dynamodb, settings.source_table)
        await leases.ensure_table()
        await table.ensure()
        stores = await _stores(settings, dynamodb, s3, kinesis)
        sqs = await stack.enter_async_context(aws.client("sqs", settings.aws)) if _has_notices(declared) else None
        drops = Drops(s3, sqs, table, settings.drops)
        owner = owner_name("poller")
        at_gates = gates(declared, table, owner)
        poller = Poller(
            settings,
            declared,
            stores,
            session=session,
            drops=drops,
            signals=partial(_signals, table, settings.signals),
            owner=owner,
            environ=environ,
            gates=at_gates,
        )
        lifecycle.settle_memory()
        log.info(telemetry.PROCESS_STARTED, owner=owner, sources=sorted(declared))
        coordinator = Coordinator.for_keys(leases, owner, settings.leases, poller.poll, sorted(declared))
        async with asyncio.TaskGroup() as group:
            beside = [group.create_task(_tell_ready(coordinator, readiness))]
            beside += [group.create_task(gate.keep()) for gate in at_gates.values()]
            await coordinator.run(stop)
            for gate in at_gates.values():
                await gate.give_back()
            for task in beside:
                task.cancel()


async def _stores(settings: PollerSettings, dynamodb: Any, s3: Any, kinesis: Any) -> Stores:
    """Over these clients. Raises Transient, Fatal."""
    cursors = DynamoCursorStore(dynamodb, settings.cursor_table)
    await cursors.ensure_table()
    publisher = KinesisPublisher(kinesis, settings.stream.id, settings.publish, claims=_claims(settings.publish, s3))
    archive = S3Archive(s3, settings.archive_bucket) if settings.archive_bucket else None
    return Stores(cursors, S3IndexStore(s3, settings.state_bucket), publisher, archive)


def _signals(table: SourceTable, settings: SignalSettings, source: str) -> TableSignals:
    return TableSignals(table, source, settings, asyncio.get_running_loop().time)


def _has_notices(declared: Mapping[str, bubble.Source]) -> bool:
    feeds = [source.feed for source in declared.values()]
    return any(isinstance(feed, bubble.CsvDrop) and feed.notices is not None for feed in feeds)


def _claims(settings: PublishSettings, s3: Any) -> ClaimCheck | None:
    return ClaimCheck(s3, settings.claim_bucket, settings.claim_most_bytes) if settings.claim_bucket else None


async def _tell_ready(coordinator: Coordinator, readiness: health.Readiness) -> None:
    await coordinator.planned.wait()
    readiness.yes("leases")
