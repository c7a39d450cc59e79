"""What the verb explain asks, and of whom. What does not answer is named in the report, which goes on without it."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from tidegate import aws, explain, letters
from tidegate import bubble as bubbles
from tidegate.bubble import Bubble
from tidegate.cli import leases_plan
from tidegate.cli.console import database, shown
from tidegate.cli.leases_table import LeaseTable, Stream
from tidegate.database import Connection
from tidegate.entity import EntityShape
from tidegate.erasure import HIGHEST, shape_of, typed_key
from tidegate.errors import Fatal, TidegateError
from tidegate.event import EntityKey, Version
from tidegate.explain import Facts, Filed, Observed, Place, SourceRow, Stored, Told
from tidegate.letters import Selection
from tidegate.settings import PREFIX, AwsSettings, StreamSettings, read
from tidegate.tables import VERSION_COLUMNS

_MOST = 20
_OUTBOX = """
SELECT destination, event_id, state, attempts, queued_at, reason FROM tidegate.outbox
WHERE entity = $1 AND key = $2 ORDER BY id DESC LIMIT $3
"""


class ExplainSettings(Struct, frozen=True, kw_only=True):
    """What worker and poller are told, too: the same variables."""

    lease_table: str | None = None
    cursor_table: str | None = None
    state_bucket: str | None = None
    stream: Annotated[str | None, Meta(extra={"env": f"{PREFIX}_STREAM"})] = None
    aws: AwsSettings = AwsSettings()


def run_explain(arguments: argparse.Namespace) -> int:
    if not arguments.bubble:
        raise Fatal("no bubble named; pass --bubble package.module or set TIDEGATE_BUBBLE")
    bubble = bubbles.load(arguments.bubble)
    shape = shape_of(bubble.shapes, arguments.entity)
    typed = typed_key(shape.key, arguments.key)
    asking = Asking(bubble, shape, EntityKey(shape.name, arguments.key), typed, read(ExplainSettings, os.environ))
    facts = asyncio.run(asking.all(ask=arguments.ask))
    seen_by = explain.viewers(shape, bubble.viewers, facts.stored)
    if not arguments.content:
        facts = _without_content(facts)
    if arguments.json:
        answer = {"verdict": explain.verdict(facts), "seen_by": seen_by, "facts": facts}
        print(msgspec.json.encode(answer).decode())
    else:
        print("\n".join(map(shown, explain.lines(facts, seen_by, datetime.now(UTC)))))
    return 1 if facts.unknown else 0


class Asking:
    """One look at one key."""

    def __init__(
        self, bubble: Bubble, shape: EntityShape, key: EntityKey, typed: object, settings: ExplainSettings
    ) -> None:
        self._bubble = bubble
        self._shape = shape
        self._key = key
        self._typed = typed
        self._settings = settings
        self._unknown: dict[str, str] = {}

    async def all(self, *, ask: bool) -> Facts:
        async with asyncio.TaskGroup() as together:
            poller = together.create_task(self._known("poller", lambda: self._poller(ask)))
            stream = together.create_task(self._known("stream", self._place))
            database = together.create_task(self._known("database", self._database))
        facts = Facts(key=self._key)
        observed, at_source = poller.result() or ((), ())
        place, found = stream.result(), database.result()
        facts = replace(facts, observed=observed, at_source=at_source, place=place, unknown=self._unknown)
        return facts if found is None else replace(facts, stored=found[0], letters=found[1], outbox=found[2])

    async def _known(self, what: str, ask: Callable[[], Coroutine[None, None, Any]]) -> Any:
        try:
            return await ask()
        except TidegateError as error:
            self._unknown[what] = str(error)
            return None

    async def _poller(self, ask: bool) -> tuple[list[Observed], list[SourceRow]]:
        table = _set(self._settings.cursor_table, f"{PREFIX}_CURSOR_TABLE")
        bucket = _set(self._settings.state_bucket, f"{PREFIX}_STATE_BUCKET")
        # By name, because the kernel imports none of the programs.
        look = importlib.import_module("poller.look")
        observed: list[Observed] = []
        at_source: list[SourceRow] = []
        async with aws.client("dynamodb", self._settings.aws) as dynamodb, aws.client("s3", self._settings.aws) as s3:
            for source in self._bubble.sources_of(self._shape.name):
                entry = await look.known(source, self._key.key, dynamodb=dynamodb, table=table, s3=s3, bucket=bucket)
                if entry is not None:
                    observed.append(look.observed(source, entry))
                row = await look.ask(source, self._key.key, entry, os.environ) if ask else None
                if row is not None:
                    at_source.append(row)
        return observed, at_source

    async def _place(self) -> Place | None:
        table = _set(self._settings.lease_table, f"{PREFIX}_LEASE_TABLE")
        settings = StreamSettings(id=_set(self._settings.stream, f"{PREFIX}_STREAM"))
        wanted = explain.partition(self._key)
        async with aws.client("kinesis", self._settings.aws) as kinesis:
            stream = Stream(kinesis, settings)
            shard = next((each["ShardId"] for each in await stream.listed() if _holds(each, wanted)), None)
            if shard is None:
                return None
            async with aws.client("dynamodb", self._settings.aws) as dynamodb:
                lease = leases_plan.leases_in(await LeaseTable(dynamodb, table).items()).get(shard)
            if lease is None:
                return Place(shard=shard, holder=None, checkpoint=None, lag_ms=None)
            lags = await stream.lags_ms({shard: lease.checkpoint})
        return Place(shard=shard, holder=lease.holder, checkpoint=str(lease.checkpoint), lag_ms=lags.get(shard))

    async def _database(self) -> tuple[Stored | None, list[Filed], list[Told]]:
        async with database() as opened, opened.transaction(f"look at {self._shape.name}") as connection:
            stored = await self._stored(connection)
            name, key = self._key
            found = await letters.find(connection, Selection(entity=name, key=key, resolved=True), _MOST)
            told = [Told(**row) for row in await connection.fetch(_OUTBOX, name, key, _MOST)]
        filed = [
            Filed(
                id=each.id, open=each.resolved_at is None, state=each.state, version=each.version, stage=each.stage,
                reason=each.reason, message=each.message,
            )
            for each in found
        ]  # fmt: skip
        return stored, filed, told

    async def _stored(self, connection: Connection) -> Stored | None:
        own = ", ".join(f'"{name}"' for name in (*VERSION_COLUMNS, "_deleted", "_event_id", "_occurred_at"))
        row = await connection.fetchrow(
            f'SELECT {own}, "_projected_at", to_jsonb(found)::text AS content FROM "{self._shape.table}" AS found '
            f'WHERE "{self._shape.key.name}" = $1',
            self._typed,
        )
        if row is None:
            return None
        content = msgspec.json.decode(row["content"])
        version = Version._make(row[:5])
        readers = {name for reader in self._shape.readers for name in reader.fields}
        return Stored(
            version=version,
            erased=version == HIGHEST,
            deleted=row["_deleted"],
            event_id=row["_event_id"],
            occurred_at=row["_occurred_at"],
            projected_at=row["_projected_at"],
            viewers={name: _text(content[name]) for name in sorted(readers)},
            row={name: value for name, value in content.items() if not name.startswith("_")},
        )


def _set(value: str | None, variable: str) -> str:
    if not value:
        raise Fatal(f"{variable} is not set")
    return value


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _holds(shard: Mapping[str, Any], wanted: int) -> bool:
    hashes = shard["HashKeyRange"]
    is_open = shard["SequenceNumberRange"].get("EndingSequenceNumber") is None
    return is_open and int(hashes["StartingHashKey"]) <= wanted <= int(hashes["EndingHashKey"])


def _without_content(facts: Facts) -> Facts:
    stored = None if facts.stored is None else replace(facts.stored, row=None)
    return replace(facts, stored=stored, at_source=[replace(each, row=None) for each in facts.at_source])
