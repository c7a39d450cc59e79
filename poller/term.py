"""One term: a source while we hold its lease. Numbers the requests, and makes a page's changes durable in order.

`commit` is the heart: journal → publish → cursor → index in memory. Each step is repeated until it is done or the
lease is lost, and never skipped or begun anew with other rows: events that were half published must stay in the
journal that names them. What a crash at each point leaves behind is told in `index_store`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, TypeVar

from msgspec.structs import replace

from poller.archive import Archive
from poller.changes import QUARANTINE, Changes, Sight, distinct
from poller.cursor_store import CursorStore
from poller.index import Index
from poller.index_store import IndexStore, number_of
from poller.publisher import Publisher
from poller.schedule import back_off_s
from poller.settings import LoopSettings
from poller.snapshot import doubtful
from poller.source import Cursor, Page, Position, Progress, Refused, Source
from poller.translate import Reading, raw_key
from tidegate import telemetry
from tidegate.bubble import RawRow
from tidegate.errors import Transient
from tidegate.event import Cause, Operation

T = TypeVar("T")

_MANY_ROWS = 5_000
"""What takes longer than a few milliseconds goes to a thread: leases must be renewed meanwhile."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Stores(NamedTuple):
    """Where a term's changes go."""

    cursors: CursorStore
    indexes: IndexStore
    publisher: Publisher
    archive: Archive | None = None


class Term:
    """`check` raises Superseded when the lease is gone; `stop` asks to finish what is in hand.

    `failing` is what the last request failed for, "" when it did not.

    `wall` is our own time in seconds since 1970.
    """

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
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.reading = reading
        self.source = source
        self.settings = settings
        self.name = reading.source.name
        self.index = Index()
        self.stop = stop
        self.dice = dice
        self._wall = wall
        self._is_ahead = False
        self.failing = ""
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

    @property
    def journals(self) -> int:
        """How many journals a successor would have to read after the snapshot."""
        return self.cursor.journal - number_of(self.cursor.snapshot)

    async def open(self, least_epoch: int, *, republish: bool = False) -> None:
        """Begin the term: no older one can move the cursor from here on. Raises Transient, Superseded, Fatal.

        `republish`: records were lost from the stream, so every entry is unsure, and a sweep must say otherwise.
        """
        self._check()
        cursor = await self._stores.cursors.open(self.name, least_epoch)
        opened = await self._stores.indexes.load(cursor)
        self.index, self._journals = opened.index, opened.journals
        self._cursor = replace(cursor, journal=max(cursor.journal, opened.journal))
        if republish:
            self.index.doubt()
            # Without its mark a file that is known already is read again.
            self._cursor = replace(self._cursor, progress=replace(cursor.progress, doubt=True, mark=""))
        if opened.is_orphaned:
            # Journals that no cursor knows must not look vouched for once new ones have higher numbers.
            await self.compact()
        telemetry.POLLER_KEYS.labels(self.name).set(len(self.index))
        self._log.info(
            telemetry.POLLER_OPENED,
            source=self.name,
            epoch=cursor.epoch,
            keys=len(self.index),
            unsure=self.index.unsure_count(),
        )

    async def fetch(self, position: Position, mark: str = "", *, urgent: bool = True) -> tuple[int, Page]:
        """One page, one row a key, and the number of its request. Raises as `Source.fetch`.

        Its `as_of` is never further ahead of our own clock than the limit.
        """
        read = self._next_read()
        asked_at = self._now()
        page = await self.source.fetch(position, mark, urgent=urgent)
        self.failing = ""
        many = len(page.rows) > _MANY_ROWS
        await self._watch(page, many)
        rows = await asyncio.to_thread(distinct, page.rows, self.reading) if many else distinct(page.rows, self.reading)
        telemetry.POLLER_DUPLICATES.labels(self.name).inc(len(page.rows) - len(rows))
        return read, replace(page, rows=rows, as_of=self._believed(page, asked_at))

    async def _watch(self, page: Page, many: bool) -> None:
        """Compare the rows' shape with what it was. Raises Refused when that stops the source."""
        watch = self.reading.watch
        if watch is None:
            return
        for drift in await asyncio.to_thread(watch.look, page.rows) if many else watch.look(page.rows):
            telemetry.POLLER_SHAPE_DRIFTS.labels(self.name, drift.kind).inc()
            self._log.warning(telemetry.POLLER_SHAPE_DRIFT, source=self.name, field=drift.field, drift=drift.text)
        if why := watch.refusal():
            raise Refused(
                f"source {self.name!r} is stopped, its rows changed their shape: {why}; if that is meant: "
                f"tidegate sources resume {self.name} --accept-shape"
            )

    def _believed(self, page: Page, asked_at: datetime) -> datetime | None:
        """The page's `as_of`; by our own clock when the back office's is too far ahead."""
        if page.as_of is None:
            return None
        ahead_s = (page.as_of - self._now()).total_seconds()
        is_ahead = ahead_s > self.settings.clock_ahead_most_s
        if is_ahead and not self._is_ahead:
            self._log.warning(telemetry.POLLER_CLOCK_AHEAD, source=self.name, ahead_s=round(ahead_s, 3))
        elif self._is_ahead and not is_ahead:
            self._log.info(telemetry.POLLER_CLOCK_RIGHT, source=self.name)
        self._is_ahead = is_ahead
        if not is_ahead:
            return page.as_of
        # How old the page's knowledge was when it was served is true by any clock.
        return asked_at - max(page.served_at - page.as_of, timedelta(seconds=self.reading.source.safety_s))

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._wall(), UTC)

    def sight(self, read: int, page: Page, cause: Cause, *, keyed: bool = False) -> Sight:
        if page.stated_at is not None:
            # A file that comes late shows what was, not what is.
            return Sight(self.cursor.epoch, read, cause, page.served_at, False, _micros(page.stated_at))
        # Who cannot be asked by key is believed when a later request shows the row.
        keyed = keyed or self.source.reread_size == 0
        return Sight(self.cursor.epoch, read, cause, page.served_at, keyed)

    def changes(self) -> Changes:
        """An empty collection for the rows of one step."""
        return Changes(self.index, self.reading, self._stores.publisher.most_record_bytes)

    async def settle(self, rows: Sequence[RawRow], sight: Sight) -> Changes:
        """Judge rows, asking again by key for those that only that can decide. Raises as `Source.reread`."""
        changes = self.changes()
        self._see(changes, rows, sight)
        # Where nobody can be asked by key, what was published stays until a later request shows the row again.
        size = self.source.reread_size
        doubted = sorted(changes.doubted) if size else []
        for at in range(0, len(doubted), size or 1):
            await self.reread(doubted[at : at + size], sight.cause, changes)
        return changes

    def _see(self, changes: Changes, rows: Sequence[RawRow], sight: Sight) -> None:
        try:
            changes.see(rows, sight)
        except RecursionError as error:
            raise Transient(f"{self.name}: a row nests too deep to be read") from error

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
        self._see(changes, page.rows, sight)
        return sight, found

    async def commit(self, changes: Changes, progress: Progress) -> None:
        """Journal, publish, advance, remember. Raises Superseded, Fatal; Transient only when asked to stop."""
        cursor = replace(self.cursor, progress=progress)
        if changes.records:
            records = list(changes.records.values())
            cursor = replace(cursor, journal=cursor.journal + 1)
            stores = self._stores
            await self.insist(lambda: stores.indexes.append(self.name, cursor.journal, cursor.epoch, changes.entries))
            archive, raws = stores.archive, list(changes.raws.values())
            if archive is not None and raws:
                await self.insist(lambda: archive.write(self.name, cursor.epoch, cursor.journal, raws))
            await self.insist(lambda: stores.publisher.publish(records))
        if cursor != self.cursor:
            self._cursor = await self.insist(lambda: self._stores.cursors.advance(cursor))
        changes.apply()
        self._count(changes)

    async def doubt(self) -> None:
        """Every entry is unsure from here on, and a sweep must say otherwise. Raises as commit."""
        self.index.doubt()
        # Without its mark a file that is known already is read again.
        await self.advance(replace(self.progress, doubt=True, mark=""))

    def local_read(self) -> tuple[int, datetime]:
        """A number among the requests, and the time, for rows that nobody was asked for. Raises Superseded."""
        return self._next_read(), self._now()

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
        await self.insist(lambda: indexes.clean_up(self.cursor, self._journals, self.index))
        return bool(strange)

    async def remember_sweep(self, standing: bytes) -> None:
        """Keep how far a sweep has come, b"" for nothing worth keeping. Raises as commit."""
        await self.insist(lambda: self._stores.indexes.save_sweep(self.name, standing))

    async def remembered_sweep(self) -> bytes:
        """What was kept last. Raises as commit."""
        return await self.insist(lambda: self._stores.indexes.load_sweep(self.name))

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
        settings, wish_s = self.settings, error.retry_after_s
        self.failing = str(error)
        if isinstance(error, Refused):
            # Never at once: some systems lock an account that keeps asking.
            dice = 0.5 + 0.5 * self.dice()
            wait_s = back_off_s(attempt, wish_s, settings.back_off_most_s, settings.refused_most_s, dice)
            tell, event = self._log.error, telemetry.POLLER_REFUSED
            telemetry.POLLER_REFUSALS.labels(self.name).inc()
        else:
            wait_s = back_off_s(attempt, wish_s, settings.back_off_s, settings.back_off_most_s, self.dice())
            tell, event = self._log.warning, telemetry.POLLER_FAILED
        tell(event, source=self.name, attempt=attempt, wait_s=round(wait_s, 3), error=str(error))
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


def _micros(at: datetime) -> int:
    return max(0, (at - _EPOCH) // timedelta(microseconds=1))


async def pause(stop: asyncio.Event, wait_s: float) -> None:
    """Wait so long, or until asked to stop."""
    if wait_s <= 0:
        return
    try:
        async with asyncio.timeout(wait_s):
            await stop.wait()
    except TimeoutError:
        return
