"""The poller of one source against a `Liar`: everything between them is production code. Time is the test's own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Literal, cast
from zoneinfo import ZoneInfo

from msgspec.structs import replace

from poller.gate import Gate
from poller.index_store import S3IndexStore
from poller.loop import SourceLoop
from poller.rest import RestSource
from poller.settings import LoopSettings
from poller.term import Stores, Term
from poller.translate import Reading
from tests.fakes.liar import SIZE, STAMP, Fault, Liar, LiarSession
from tests.fakes.poller_world import Fate, MemoryBucket, MemoryCursors, Stream
from tidegate import telemetry
from tidegate.bubble import (
    AfterKey,
    ByKeyset,
    ByRevision,
    ByTime,
    Env,
    Office,
    Offset,
    PageNumber,
    RawRow,
    Reread,
    Rest,
    Source,
)
from tidegate.entity import EVERYONE, Entity, Meta, Reader

Mode = Literal["time", "keyset", "revision", "walk"]
MODES: tuple[Mode, ...] = ("time", "keyset", "revision", "walk")
_NO_BUDGET = Office(name="liar", requests_per_s=1e6, failures=10**9)


class Timed(Entity):
    """Ordered by the office's time."""

    meta = Meta(collection="timed", key="key", version="changed_at", readers=(Reader(EVERYONE),))
    key: str
    content: int
    changed_at: datetime


class Revised(Entity):
    """Ordered by the office's counter."""

    meta = Meta(collection="revised", key="key", version="revision", readers=(Reader(EVERYONE),))
    key: str
    content: int
    revision: int


def declared(mode: Mode, zone: ZoneInfo, *, reread: bool) -> Source:
    def timed(row: RawRow) -> Timed:
        text = row["stamp"] or "1970-01-01 00:00:00"
        changed_at = datetime.strptime(text, STAMP).replace(tzinfo=zone).astimezone(UTC)
        return Timed(key=row["key"], content=row["content"], changed_at=changed_at)

    def revised(row: RawRow) -> Revised:
        return Revised(key=row["key"], content=row["content"], revision=row["rev"] or 0)

    by_number = PageNumber(param="page", pages="pages", total="total", size_param="size", size=SIZE)
    feeds: dict[Mode, dict[str, Any]] = {
        "time": {"paging": by_number, "changes": ByTime(param="since", column="stamp", format=STAMP, zone=zone.key)},
        "keyset": {
            "paging": AfterKey(param="from"),
            "changes": ByKeyset(time_param="since", key_param="after_key", column="stamp", format=STAMP, zone=zone.key),
        },
        "revision": {"paging": Offset(param="offset"), "changes": ByRevision(param="rev", column="rev")},
        "walk": {"paging": by_number},
    }
    feed = Rest(
        url=Env("LIAR_URL"), path="/rows", rows="rows", key="key", office=_NO_BUDGET,
        reread=Reread(path="/by-key", param="key", size=4) if reread else None, **feeds[mode],
    )  # fmt: skip
    return Source(
        name="liar", entity=Revised if mode == "revision" else Timed,
        translate=revised if mode == "revision" else timed, feed=feed,
        poll_interval_s=6, sweep_interval_s=900,
    )  # fmt: skip


class LiarWorld:
    """`take` is a new process that takes the lease."""

    def __init__(self, seed: int, faults: Iterable[Fault], mode: Mode, *, reread: bool = True) -> None:
        self.liar = Liar(random.Random(seed), frozenset(faults))
        self.fate = Fate()
        self.cursors = MemoryCursors(self.fate)
        self.bucket = MemoryBucket(self.fate)
        self.stream = Stream(self.fate)
        self.declared = declared(mode, self.liar.zone, reread=reread)
        self.clock_s = 1000.0
        self._born = self.liar.now
        self._dice = random.Random(seed)
        self._session = LiarSession(self.liar)

    def _clock(self) -> float:
        return (self.liar.now - self._born).total_seconds()

    def _wall(self) -> float:
        return self.liar.now.timestamp()

    async def take(self, *, allowed: bool = False) -> SourceLoop:
        liar, feed = self.liar, self.declared.feed
        assert isinstance(feed, Rest)
        # The budget waits by real time, of which this world has none.
        source = RestSource(
            self.declared, feed, cast(Any, self._session), {"LIAR_URL": "http://liar.example"}, Gate(feed.manners),
            clock=self._clock, now=lambda: liar.now,
        )  # fmt: skip
        stores = Stores(self.cursors, S3IndexStore(self.bucket, "state"), self.stream)
        settings = replace(LoopSettings(), mass_deletion_rows=5, mass_deletion_percent=5)
        term = Term(
            Reading.of(self.declared), source, stores, settings, stop=asyncio.Event(), check=lambda: None,
            dice=self._dice.random, wall=self._wall,
        )  # fmt: skip
        loop = SourceLoop(
            term, self.stream, clock=self._clock, wall=self._wall, allowed=allowed
        )  # fmt: skip
        await loop.open()
        return loop

    async def spend(self, loop: SourceLoop, seconds: float) -> None:
        end = self._clock() + seconds
        while self._clock() < end:
            wait_s = await loop.step()
            self.liar.pass_time(min(max(wait_s, 0.02), 1.0))
            if self.liar.is_lively and self.liar.rng.random() < 0.3:
                self.liar.live()

    def differences(self) -> dict[str, str]:
        """Key → missed, changed or deleted: how the front office differs from the back office."""
        truth, shown = self.liar.truth(), self.stream.contents()
        found = {key: "missed" for key in truth.keys() - shown.keys()}
        found |= {key: "deleted" for key in shown.keys() - truth.keys()}
        return found | {key: "changed" for key in truth.keys() & shown.keys() if truth[key] != shown[key]}


def drift() -> dict[str, float]:
    """What the drift metric says now, by kind."""
    kinds = ("missed", "changed", "deleted")
    return {kind: telemetry.POLLER_DRIFT.labels("liar", kind)._value.get() for kind in kinds}
