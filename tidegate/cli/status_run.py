"""What the verb status asks, and of whom. A server that does not answer is a line of the report, not the end of it."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from tidegate import aws, letters, status
from tidegate import bubble as bubbles
from tidegate.bubble import Bubble
from tidegate.cli import leases_plan
from tidegate.cli.console import database
from tidegate.cli.leases_table import LeaseTable, Stream
from tidegate.database import Connection
from tidegate.errors import Fatal, TidegateError
from tidegate.leases.lease import Lease
from tidegate.letters import Selection
from tidegate.settings import PREFIX, AwsSettings, LeaseSettings, StreamSettings, read
from tidegate.status import Freshness, Letters, Limits, Line, Polled, Section, ShardLease, Waiting

_GROUPS = 20

_FRESHNESS = """
SELECT known.source, extract(epoch FROM now() - known.as_of)::double precision AS age_s,
       (SELECT count(*) FROM tidegate.dead_letter AS letter
        WHERE letter.resolved_at IS NULL AND letter.source = known.source AND letter.entity IS NOT NULL) AS letters,
       EXISTS (SELECT FROM tidegate.dead_letter AS letter
               WHERE letter.resolved_at IS NULL AND letter.source IS NULL
                 AND letter.reason = 'gap' AND letter.stage = 'read') AS gap
FROM tidegate.data_as_of($1::text[]) AS known
"""
_OUTBOX = """
SELECT destination, count(*) FILTER (WHERE state = 'waiting') AS waiting, count(*) FILTER (WHERE state = 'dead') AS dead,
       extract(epoch FROM now() - min(queued_at) FILTER (WHERE state = 'waiting'))::double precision AS oldest_s
FROM tidegate.outbox WHERE state IN ('waiting', 'dead') GROUP BY destination ORDER BY 1
"""

Ask = Callable[[], Coroutine[None, None, Iterable[Line]]]


class StatusSettings(Struct, frozen=True, kw_only=True):
    """What worker and poller are told, too: the same variables. Only what is looked at must be set."""

    lease_table: str | None = None
    poller_lease_table: str | None = None
    cursor_table: str | None = None
    stream: Annotated[str | None, Meta(extra={"env": f"{PREFIX}_STREAM"})] = None
    leases: LeaseSettings = LeaseSettings()
    aws: AwsSettings = AwsSettings()


def run_status(arguments: argparse.Namespace) -> int:
    if not arguments.bubble:
        raise Fatal("no bubble named; pass --bubble package.module or set TIDEGATE_BUBBLE")
    asking = Asking(bubbles.load(arguments.bubble), read(StatusSettings, os.environ), arguments)
    lines = asyncio.run(asking.all())
    if arguments.json:
        answer = {"ok": not status.breaches(lines), "breaches": status.breaches(lines), "lines": lines}
        print(msgspec.json.encode(answer).decode())
    else:
        print("\n".join(status.report(lines, all_of_them=arguments.all)))
    return 1 if status.breaches(lines) else 0


class Asking:
    """One look at everything."""

    def __init__(self, bubble: Bubble, settings: StatusSettings, arguments: argparse.Namespace) -> None:
        self._bubble = bubble
        self._settings = settings
        self._skip = frozenset(arguments.skip)
        self._read_lag = not arguments.no_lag
        self._limits = Limits(
            age_s=arguments.max_age_s,
            lag_s=arguments.max_lag_s,
            letters=arguments.max_letters,
            outbox_age_s=arguments.max_outbox_age_s,
        )
        given: float | None = arguments.watch_s
        self._watch_s = settings.leases.renew_interval_s * 1.5 if given is None else given

    async def all(self) -> list[Line]:
        """The lines of every section that is not skipped, in the order of `status.SECTIONS`."""
        asks: dict[Section, Ask] = {
            "freshness": self._freshness, "letters": self._letters, "outbox": self._outbox, "shards": self._shards,
            "sources": self._sources,
        }  # fmt: skip
        async with asyncio.TaskGroup() as together:
            tasks = [together.create_task(_asked(name, ask)) for name, ask in asks.items() if name not in self._skip]
        return [line for task in tasks for line in task.result()]

    async def _freshness(self) -> Iterable[Line]:
        says = {source.name: source.watermark for source in self._bubble.sources}
        async with database() as opened, opened.transaction("ask how fresh it is") as connection:
            rows = await connection.fetch(_FRESHNESS, sorted(says))
        return status.freshness((Freshness(**row, watermarked=says[row["source"]]) for row in rows), self._limits)

    async def _letters(self) -> Iterable[Line]:
        async with database() as opened, opened.transaction("count the dead letters") as connection:
            now: datetime = await connection.fetchval("SELECT now()")
            groups = await letters.groups(connection, Selection(), _GROUPS)
        found = [
            Letters(
                fingerprint=group.fingerprint, stage=group.stage, reason=group.reason, entity=group.entity,
                letters=group.letters, oldest_s=(now - group.first_seen_at).total_seconds(),
            )
            for group in groups
        ]  # fmt: skip
        return status.letters(found, self._limits)

    async def _outbox(self) -> Iterable[Line]:
        async with database() as opened, opened.transaction("look into the outbox") as connection:
            return status.outbox(await _waiting(connection, self._bubble), self._limits)

    async def _shards(self) -> Iterable[Line]:
        stream = StreamSettings(id=_set(self._settings.stream, f"{PREFIX}_STREAM"))
        table = _set(self._settings.lease_table, f"{PREFIX}_LEASE_TABLE")
        async with aws.client("kinesis", self._settings.aws) as client:
            listed = Stream(client, stream)
            is_open = {shard["ShardId"]: _is_open(shard) for shard in await listed.listed()}
            leases, live = await self._leases(table)
            unread = {key: lease for key, lease in leases.items() if key in is_open and not lease.is_ended}
            places = {key: lease.checkpoint for key, lease in unread.items()}
            lags = await listed.lags_ms(places) if self._read_lag else {}
        # A closed one without a lease is finished and cleaned up.
        missing = {key for key, opened in is_open.items() if opened and key not in leases}
        found = [_shard(key, leases, live, lags) for key in sorted(unread.keys() | missing)]
        return status.shards(found, self._limits)

    async def _sources(self) -> Iterable[Line]:
        table = _set(self._settings.poller_lease_table, f"{PREFIX}_POLLER_LEASE_TABLE")
        cursors = _set(self._settings.cursor_table, f"{PREFIX}_CURSOR_TABLE")
        leases, live = await self._leases(table)
        # By name, because the kernel imports none of the programs.
        store = importlib.import_module("poller.cursor_store").DynamoCursorStore
        async with aws.client("dynamodb", self._settings.aws) as client:
            names = [source.name for source in self._bubble.sources]
            found = {name: await store(client, cursors).look(name) for name in names}
        return status.sources(_polled(name, leases.get(name), live, cursor) for name, cursor in found.items())

    async def _leases(self, table: str) -> tuple[dict[str, Lease], frozenset[str]]:
        """The leases, and the keys of those that somebody works on."""
        async with aws.client("dynamodb", self._settings.aws) as client:
            opened = LeaseTable(client, table)
            watch = await opened.watch(None, self._watch_s, lambda text: None)
            leases = leases_plan.leases_in(await opened.items())
            watch.look(leases, asyncio.get_running_loop().time())
        return leases, watch.live()


async def _asked(section: Section, ask: Ask) -> list[Line]:
    try:
        return list(await ask())
    except TidegateError as error:
        return [Line(section=section, subject="-", state="breach", text=f"not known: {error}")]


def _set(value: str | None, variable: str) -> str:
    if not value:
        raise Fatal(f"{variable} is not set; set it, or leave this out by --skip")
    return value


async def _waiting(connection: Connection, bubble: Bubble) -> list[Waiting]:
    rows = {row["destination"]: dict(row) for row in await connection.fetch(_OUTBOX)}
    known = [destination.name for destination in bubble.destinations]
    nothing: Mapping[str, Any] = {"waiting": 0, "dead": 0, "oldest_s": None}
    return [
        Waiting(**{**nothing, **rows.get(name, {}), "destination": name, "known": name in known})
        for name in sorted({*known, *rows})
    ]


def _is_open(shard: Mapping[str, Any]) -> bool:
    return shard["SequenceNumberRange"].get("EndingSequenceNumber") is None


def _shard(key: str, leases: Mapping[str, Lease], live: frozenset[str], lags: Mapping[str, int]) -> ShardLease:
    lease = leases.get(key)
    holder = None if lease is None else lease.holder
    parents = frozenset() if lease is None else lease.parent_keys
    return ShardLease(
        shard=key,
        leased=lease is not None,
        holder=holder,
        live=None if holder is None else key in live,
        lag_ms=lags.get(key),
        waits_for=tuple(sorted(each for each in parents if each in leases and not leases[each].is_ended)),
    )


def _polled(name: str, lease: Lease | None, live: frozenset[str], cursor: Any) -> Polled:
    holder = None if lease is None else lease.holder
    return Polled(
        source=name,
        holder=holder,
        live=None if holder is None else name in live,
        loaded=None if cursor is None else cursor.progress.loaded,
        doubt=cursor is not None and cursor.progress.doubt,
    )
