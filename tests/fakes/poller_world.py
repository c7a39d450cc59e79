"""Everything around one source of the poller, in memory: cursor table, bucket, stream, back office, and a crash.

The production code between them is unmodified. `Fate` counts every call to the outside and ends the process before
or after the one it was told; a publish ends half done.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

from botocore.exceptions import ClientError
from msgspec.structs import replace

from poller.changes import MOST_RECORD_BYTES, Record
from poller.index_store import S3IndexStore
from poller.loop import SourceLoop
from poller.settings import LoopSettings
from poller.source import Cursor, FullWalk, Page, Position, Progress, SinceRevision, SinceTime
from poller.term import Stores, Term
from poller.times import OLDEST
from poller.translate import Reading
from poller.walk import after_full, after_time
from tests.fakes.list_office import ListOffice, Row, start
from tidegate import codec
from tidegate.bubble import Env, PageNumber, RawRow, Rest, Source
from tidegate.entity import EVERYONE, Entity, Meta, Reader
from tidegate.errors import Superseded, Transient
from tidegate.event import ChangeEvent, QuarantineRecord, Watermark


class Thing(Entity):
    """A row of the tests' back office."""

    meta = Meta(collection="things", key="key", version="changed_at", readers=(Reader(EVERYONE),))
    key: str
    content: int
    changed_at: datetime


def translate(row: RawRow) -> Thing:
    """Contents below zero cannot be translated."""
    if row["content"] < 0:
        raise ValueError("content is below zero")
    return Thing(key=row["key"], content=row["content"], changed_at=datetime.fromisoformat(row["stamp"]))


THINGS = Source(
    name="things",
    entity=Thing,
    translate=translate,
    poll_interval_s=3,
    sweep_interval_s=30,
    feed=Rest(url=Env("THINGS_URL"), path="/", rows="rows", key="key", paging=PageNumber(param="p", pages="n")),
)


class PlainThing(Entity):
    """The same without a version: only the order of observation tells old from new."""

    meta = Meta(collection="plain-things", key="key", readers=(Reader(EVERYONE),))
    key: str
    content: int


def translate_plain(row: RawRow) -> PlainThing:
    if row["content"] < 0:
        raise ValueError("content is below zero")
    return PlainThing(key=row["key"], content=row["content"])


PLAIN_THINGS = replace(THINGS, entity=PlainThing, translate=translate_plain)


class Crash(BaseException):
    """The process is gone."""


@dataclass
class Fate:
    """Ends the process at call number `at` (from 0), before its effect or after it; `calls` counts, `names` tells."""

    at: int | None = None
    after: bool = False
    names: list[str] = field(default_factory=list)

    def before(self, name: str) -> bool:
        """Count a call; answers whether the process ends right after its effect."""
        number = len(self.names)
        self.names.append(name)
        if number != self.at:
            return False
        if not self.after:
            raise Crash
        return True


class MemoryCursors:
    """As `poller.cursor_store.DynamoCursorStore`, in one dictionary."""

    def __init__(self, fate: Fate) -> None:
        self.fate = fate
        self.items: dict[str, Cursor] = {}
        self.on_advance: Callable[[Cursor], None] = lambda cursor: None

    async def open(self, source: str, least_epoch: int) -> Cursor:
        ends = self.fate.before("open cursor")
        before = self.items.get(source) or Cursor(source=source, progress=Progress(), revision=0, epoch=0)
        epoch = max(before.epoch + 1, least_epoch)
        self.items[source] = replace(before, revision=before.revision + 1, epoch=epoch)
        if ends:
            raise Crash
        return self.items[source]

    async def advance(self, cursor: Cursor) -> Cursor:
        ends = self.fate.before("advance cursor")
        if self.items[cursor.source].revision != cursor.revision:
            raise Superseded("somebody else wrote")
        self.on_advance(cursor)
        self.items[cursor.source] = replace(cursor, revision=cursor.revision + 1)
        if ends:
            raise Crash
        return self.items[cursor.source]


class MemoryBucket:
    """The few calls of an S3 client that the poller makes."""

    def __init__(self, fate: Fate) -> None:
        self.fate = fate
        self.objects: dict[str, bytes] = {}

    async def put_object(self, *, Bucket: str, Key: str, Body: bytes) -> dict[str, Any]:  # noqa: N803
        ends = self.fate.before(f"put {Key.split('/')[1]}")
        self.objects[Key] = bytes(Body)
        if ends:
            raise Crash
        return {}

    async def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803
        if Key not in self.objects:
            raise ClientError({"Error": {"Code": "NoSuchKey"}}, "GetObject")
        return {"Body": _Body(self.objects[Key])}

    async def delete_objects(self, *, Bucket: str, Delete: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N803
        ends = self.fate.before("delete objects")
        for item in Delete["Objects"]:
            self.objects.pop(item["Key"], None)
        if ends:
            raise Crash
        return {}

    def get_paginator(self, _: str) -> _Lister:
        return _Lister(self.objects)


class _Body:
    def __init__(self, body: bytes) -> None:
        self._body = BytesIO(body)

    async def read(self) -> bytes:
        return self._body.read()


class _Lister:
    def __init__(self, objects: Mapping[str, bytes]) -> None:
        self._objects = objects

    async def paginate(self, *, Bucket: str, Prefix: str) -> AsyncIterator[dict[str, Any]]:  # noqa: N803
        for key in sorted(self._objects):
            if key.startswith(Prefix):
                yield {"Contents": [{"Key": key}]}


class Stream:
    """The stream with a worker behind it: the newest version of a key wins, whatever the order."""

    def __init__(self, fate: Fate) -> None:
        self.fate = fate
        self.events: list[ChangeEvent] = []
        self.state: dict[str, ChangeEvent] = {}
        self.quarantined: list[QuarantineRecord] = []
        self.watermarks: list[datetime] = []
        self.on_watermark: Callable[[datetime], None] = lambda as_of: None

    @property
    def most_record_bytes(self) -> int:
        return MOST_RECORD_BYTES

    async def publish(self, records: Sequence[Record]) -> None:
        ends = self.fate.before("publish")
        for record in records[: len(records) // 2] if ends else records:
            self._take(record.data)
        if ends:
            raise Crash

    async def watermark(self, source: str, as_of: datetime) -> None:
        ends = self.fate.before("watermark")
        self.on_watermark(as_of)
        self.watermarks.append(as_of)
        if ends:
            raise Crash

    def _take(self, data: bytes) -> None:
        event = codec.decode(data)
        assert not isinstance(event, Watermark)
        if isinstance(event, QuarantineRecord):
            self.quarantined.append(event)
            return
        self.events.append(event)
        known = self.state.get(event.key.key)
        if known is None or known.version < event.version:
            self.state[event.key.key] = event

    def contents(self) -> dict[str, int]:
        return {key: event.payload["content"] for key, event in self.state.items() if event.payload is not None}


class OfficeSource:
    """A ListOffice over the production walks, as `poller.rest.RestSource` would be. `outage` makes it unreachable."""

    def __init__(self, office: ListOffice, fate: Fate, *, reread_size: int = 4, by_time: bool = True) -> None:
        self.office = office
        self.fate = fate
        self.outage = False
        self.hidden: set[str] = set()  # keys that full walks leave out
        self.urgent: list[bool] = []
        self._reread_size = reread_size
        self._by_time = by_time

    @property
    def start(self) -> SinceTime | SinceRevision | None:
        return SinceTime(bound=OLDEST) if self._by_time else None

    @property
    def reread_size(self) -> int:
        return self._reread_size

    @property
    def absence_decides(self) -> bool:
        return False

    def may_ask_ahead(self, position: Position) -> bool:
        return True

    async def fetch(self, position: Position, mark: str = "", *, urgent: bool = True) -> Page:
        self.urgent.append(urgent)
        self._reach()
        office = self.office
        if isinstance(position, SinceTime):
            rows, answer = office.ask(position.bound, position.page)
            step = after_time(position, answer, office.safety_s, office.zone)
        else:
            assert isinstance(position, FullWalk)
            rows, answer = office.ask(None, position.page)
            rows = [row for row in rows if row.key not in self.hidden]
            step = after_full(position, answer, office.safety_s)
        return Page(
            rows=tuple(map(_raw, rows)), following=step.following, has_more=step.has_more,
            served_at=answer.served_at, as_of=step.as_of, doubt=step.doubt,
        )  # fmt: skip

    async def reread(self, keys: Sequence[str]) -> Page:
        self._reach()
        assert 0 < len(keys) <= self._reread_size
        rows = tuple(_raw(self.office.rows[key]) for key in keys if key in self.office.rows)
        return Page(rows=rows, following=FullWalk(), has_more=False, served_at=self.office.now.replace(microsecond=0))

    def _reach(self) -> None:
        self.fate.before("request")
        if self.outage:
            raise Transient("nobody answers")


def _raw(row: Row) -> dict[str, Any]:
    return {"key": row.key, "content": row.content, "stamp": row.stamp.replace(tzinfo=UTC).isoformat()}


class World:
    """One source and everything around it. `take` is a new process that takes the lease."""

    def __init__(self, seed: int = 0, *, declared: Source = THINGS, reread_size: int = 4, by_time: bool = True) -> None:
        self.fate = Fate()
        self.office = ListOffice(random.Random(seed), start("2026-11-21T05:55:00"), size=5)
        self.source = OfficeSource(self.office, self.fate, reread_size=reread_size, by_time=by_time)
        self.cursors = MemoryCursors(self.fate)
        self.bucket = MemoryBucket(self.fate)
        self.stream = Stream(self.fate)
        self.declared = declared
        self.settings = LoopSettings()
        self.clock_s = 1000.0

    def set_fate(self, at: int | None, *, after: bool = False) -> None:
        self.fate.at, self.fate.after = at, after
        self.fate.names.clear()

    def term(self, check: Callable[[], None] = lambda: None) -> Term:
        stores = Stores(self.cursors, S3IndexStore(self.bucket, "state"), self.stream)
        return Term(
            Reading.of(self.declared), self.source, stores, self.settings, stop=asyncio.Event(), check=check,
            dice=lambda: 0.5, wall=self._wall_s,
        )  # fmt: skip

    async def take(self, *, allowed: bool = False, republish: bool = False, term: Term | None = None) -> SourceLoop:
        loop = SourceLoop(
            term or self.term(), self.stream, clock=self._monotonic_s, wall=self._wall_s,
            allowed=allowed, republish=republish,
        )  # fmt: skip
        await loop.open()
        return loop

    def _monotonic_s(self) -> float:
        return self.clock_s

    def _wall_s(self) -> float:
        return self.office.now.timestamp()

    async def spend(self, loop: SourceLoop, seconds: float, changes: int = 0) -> None:
        """Let the loop do what is due for so long, with life going on beside it; waiting takes no real time."""
        end = self.clock_s + seconds
        while self.clock_s < end:
            wait_s = await loop.step()
            passed = min(max(wait_s, 0.02), 1.0)
            self.clock_s += passed
            self.office.pass_time(passed)
            if changes:
                self.office.live(self.office.rng.randint(0, changes))

    def idle(self, seconds: float) -> None:
        """Time passes, and no poller runs."""
        self.clock_s += seconds
        self.office.pass_time(seconds)

    def truth(self) -> dict[str, int]:
        return {row.key: row.content for row in self.office.rows.values() if row.content >= 0}

    def edit_silently(self, key: str, content: int) -> None:
        """Change a row and leave its time alone."""
        self.office.rows[key] = self.office.rows[key]._replace(content=content)
