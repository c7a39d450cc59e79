"""One term: a source while we hold its lease. Numbers the requests, and makes a page's changes durable in order.

`commit` is the heart: journal → publish → cursor → index in memory. Each step is repeated until it is done or the
lease is lost, and never skipped or begun anew with other rows: events that were half published must stay in the
journal that names them. What a crash at each point leaves behind is told in `index_store`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from msgspec.structs import replace

from poller.changes import QUARANTINE, Changes, Sight
from poller.cursor_store import CursorStore
from poller.index_store import IndexStore
from poller.publisher import Publisher
from poller.schedule import back_off_s
from poller.settings import LoopSettings
from poller.snapshot import Index, doubtful
from poller.source import Cursor, Page, Position, Progress, Source
from poller.translate import Reading, raw_key
from tidegate import telemetry
from tidegate.bubble import RawRow
from tidegate.errors import Transient
from tidegate.event import Cause, Operation

T = TypeVar("T")


class Stores(NamedTuple):
    """Where a term's changes go."""

    cursors: CursorStore
    indexes: IndexStore
    publisher: Publisher


class Term:
    """`check` raises Superseded when the lease is gone; `stop` asks to finish what is in hand."""

    def __init__(
        self,
        reading: Reading,
        source: Source,
        stores: Stores,
        settings: LoopSettings,
        *,
        stop: asyncio.Event,
        check: Callable[[], None],
        dice: Callable[[], float] = random.random,
    ) -> None:
        self.reading = reading
        self.source = source
        self.settings = settings
        self.name = reading.source.name
        self.index = Index()
        self.stop = stop
        self.dice = dice
        self._stores = stores
        self._check = check
        self._cursor: Cursor | None = None
        self._read = 0
        self._journals: frozenset[str] = frozenset()
        self._log = telemetry.get_logger("poller.term")

    @property
    def cursor(self) -> Cursor:
        if self._cursor is None:
            raise RuntimeError("the term is not open")
        return self._cursor

    @property
    def progress(self) -> Progress:
        return self.cursor.progress

    async def open(self, least_epoch: int) -> None:
        """Begin the term: no older one can move the cursor from here on. Raises Transient, Superseded, Fatal."""
        self._check()
        cursor = await self._stores.cursors.open(self.name, least_epoch)
        opened = await self._stores.indexes.load(cursor)
        self.index, self._journals = opened.index, opened.journals
        self._cursor = replace(cursor, journal=max(cursor.journal, opened.journal))
        if opened.is_orphaned:
            # Journals that no cursor knows must not look vouched for once new ones have higher numbers.
            await self.compact()
        telemetry.POLLER_KEYS.labels(self.name).set(len(self.index))
        self._log.info(
            telemetry.POLLER_OPENED,
            source=self.name,
            epoch=cursor.epoch,
            keys=len(self.index),
            unsure=len(self.index.unsure()),
        )

    async def fetch(self, position: Position, mark: str = "") -> tuple[int, Page]:
        """One page and the number of its request. Raises as `Source.fetch`."""
        read = self._next_read()
        return read, await self.source.fetch(position, mark)

    def sight(self, read: int, page: Page, cause: Cause, *, keyed: bool = False) -> Sight:
        # Who cannot be asked by key is believed when a later request shows the row.
        keyed = keyed or self.source.reread_size == 0
        return Sight(self.cursor.epoch, read, cause, page.served_at, keyed)

    def changes(self) -> Changes:
        """An empty collection for the rows of one step."""
        return Changes(self.index, self.reading)

    async def settle(self, rows: Iterable[RawRow], sight: Sight) -> Changes:
        """Judge rows, asking again by key for those that only that can decide. Raises as `Source.reread`."""
        changes = self.changes()
        changes.see(rows, sight)
        doubted = sorted(changes.doubted)
        for at in range(0, len(doubted), self.source.reread_size or 1):
            await self.reread(doubted[at : at + self.source.reread_size], sight.cause, changes)
        return changes

    async def reread(self, keys: Sequence[str], cause: Cause, changes: Changes) -> tuple[Sight, set[str]] | None:
        """Ask for keys by name and judge the rows that come; answers which keys exist, None if it proves nothing."""
        read = self._next_read()
        page = await self.source.reread(keys)
        telemetry.POLLER_REREADS.labels(self.name).inc(len(keys))
        found = {raw_key(row, self.reading.key_path) or "" for row in page.rows}
        if not found <= set(keys):
            # The parameter was not understood: this is some list, and what it lacks is not gone.
            self._log.error(
                telemetry.POLLER_REREAD_IGNORED, source=self.name, reason="it showed keys that nobody asked for"
            )
            return None
        sight = self.sight(read, page, cause, keyed=True)
        changes.see(page.rows, sight)
        return sight, found

    async def commit(self, changes: Changes, progress: Progress) -> None:
        """Journal, publish, advance, remember. Raises Superseded, Fatal; Transient only when asked to stop."""
        cursor = replace(self.cursor, progress=progress)
        if changes.records:
            records = list(changes.records.values())
            cursor = replace(cursor, journal=cursor.journal + 1)
            stores = self._stores
            await self.insist(lambda: stores.indexes.append(self.name, cursor.journal, cursor.epoch, changes.entries))
            await self.insist(lambda: stores.publisher.publish(records))
        if cursor != self.cursor:
            self._cursor = await self.insist(lambda: self._stores.cursors.advance(cursor))
        self.index.apply(changes.entries)
        self._count(changes)

    async def advance(self, progress: Progress) -> None:
        """Remember progress alone. Raises as commit."""
        await self.commit(self.changes(), progress)

    async def compact(self) -> bool:
        """Write the index whole, let the cursor name it, drop what it replaces. Raises as commit.

        Answers whether an earlier term wrote something since this one began: its rows are unsure from now on.
        """
        indexes = self._stores.indexes
        strange = await self.insist(lambda: indexes.strangers(self.cursor, self._journals))
        for entries in strange.values():
            self.index.apply({key: doubtful(self.index.get(key), entry) for key, entry in entries.items()})
        self._journals |= strange.keys()
        cursor = self.cursor
        name = await self.insist(lambda: indexes.write_snapshot(self.name, cursor.journal, cursor.epoch, self.index))
        if name != cursor.snapshot:
            named = replace(cursor, snapshot=name)
            self._cursor = await self.insist(lambda: self._stores.cursors.advance(named))
        await self.insist(lambda: indexes.clean_up(self.cursor, self._journals))
        return bool(strange)

    async def insist(self, step: Callable[[], Awaitable[T]]) -> T:
        """The same step until it is done. Raises what it raises, Transient only when asked to stop."""
        attempt = 0
        while True:
            self._check()
            try:
                return await step()
            except Transient as error:
                if self.stop.is_set():
                    raise
                attempt += 1
                await self.back_off(attempt, error)

    async def back_off(self, attempt: int, error: Transient) -> None:
        wait_s = self.back_off_s(attempt, error)
        await pause(self.stop, wait_s)

    def back_off_s(self, attempt: int, error: Transient) -> float:
        """How long to wait after this failure, which is logged."""
        settings = self.settings
        wait_s = back_off_s(attempt, error.retry_after_s, settings.back_off_s, settings.back_off_most_s, self.dice())
        self._log.warning(
            telemetry.POLLER_FAILED, source=self.name, attempt=attempt, wait_s=round(wait_s, 3), error=str(error)
        )
        return wait_s

    def _next_read(self) -> int:
        self._check()
        self._read += 1
        return self._read

    def _count(self, changes: Changes) -> None:
        telemetry.POLLER_ROWS.labels(self.name).inc(changes.counts["rows"])
        telemetry.POLLER_UNCHANGED.labels(self.name).inc(changes.counts["unchanged"])
        telemetry.POLLER_DELETIONS.labels(self.name).inc(changes.counts[Operation.DELETE])
        telemetry.POLLER_KEYS.labels(self.name).set(len(self.index))
        labels = changes.labels()
        for label, count in labels.items():
            telemetry.POLLER_PUBLISHED.labels(self.name, label).inc(count)
        if labels[QUARANTINE]:
            telemetry.POLLER_QUARANTINES.labels(self.name).inc(labels[QUARANTINE])
            self._log.warning(telemetry.POLLER_QUARANTINED, source=self.name, rows=labels[QUARANTINE])


async def pause(stop: asyncio.Event, wait_s: float) -> None:
    """Wait so long, or until asked to stop."""
    if wait_s <= 0:
        return
    try:
        async with asyncio.timeout(wait_s):
            await stop.wait()
    except TimeoutError:
        return
