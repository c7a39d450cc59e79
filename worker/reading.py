"""Where one shard's reading stands, whatever way its records come: polled (`reader`) or pushed (`fanout`).

Resuming asks for the checkpoint's own record again (AT_SEQUENCE_NUMBER) and drops what is at or before the
checkpoint: AFTER_SEQUENCE_NUMBER would lose the rest of a half-done aggregate. The record's absence shows that
the stream has trimmed it, and perhaps others that were never read: that is reported as a gap. The same holds when
reading has lost touch for so long, or is so far behind, that something unread may have been trimmed.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple

from msgspec import Struct

from tidegate import telemetry
from tidegate.aws import ChildShard, RecordsPage
from tidegate.leases.lease import AT_TIMESTAMP, LATEST, Checkpoint
from tidegate.record import Part, Position, Record, Records
from worker import kpl
from worker.ports import Delivery
from worker.shards import HashRange, Shard

_RETRY_BASE_S = 0.1
# User records out of aggregates that are handed on together: taking apart so many is some milliseconds.
_AT_ONCE = 1_000
# For clocks of ours that are wrong.
_MARGIN_S = 3600.0
# A stream keeps its records for 24 hours at least.
_SURELY_KEPT_S = 24 * 3600.0 - _MARGIN_S


class ShardGone(Exception):
    """The stream has trimmed the whole shard."""


class StartTimes(Struct, frozen=True):
    """What the words stand for that are times, in epoch seconds: LATEST when first looked at, AT_TIMESTAMP as set.

    Without a time set, AT_TIMESTAMP reads from the horizon: to begin too early does no harm.
    """

    latest_s: float
    timestamp_s: float | None = None

    async def is_at_the_edge(
        self, arrival_s: float, now_s: float, retention_hours: Callable[[], Awaitable[int]]
    ) -> bool:
        """See `worker.ports.RecordReader`. `now_s` is wall-clock time; the stream is asked only if it matters."""
        oldest_s = max(arrival_s, self.latest_s)
        if oldest_s >= now_s - _SURELY_KEPT_S:
            return False
        return oldest_s < now_s - await retention_hours() * 3600.0 + _MARGIN_S


class Place(NamedTuple):
    """Where to read from, in Kinesis' words: the kind of position, and its number or its epoch seconds."""

    kind: str
    sequence: str | None = None
    timestamp_s: float | None = None


class Reading:
    """One shard's reading: the last position delivered, and whether what follows is known to join on to it."""

    def __init__(self, shard_id: str, start: Checkpoint, times: StartTimes) -> None:
        self.shard_id = shard_id
        self._start = start
        self._times = times
        self._last = Position(int(start.position), start.sub_sequence) if start.is_number else None
        # Where reading began anew last.
        self._began: Position | None = None
        self._joined = not start.is_number
        self._complete_s: float | None = None

    @property
    def has_position(self) -> bool:
        """Whether reading goes on from a sequence number, which only the stream it came from knows."""
        return self._last is not None

    def place(self) -> Place:
        """Where to go on."""
        self._began = self._last
        if self._last is not None:
            return Place("AT_SEQUENCE_NUMBER", sequence=str(self._last.sequence))
        if self._start == LATEST:
            # LATEST itself would skip what came in since the shard was first looked at.
            return Place("AT_TIMESTAMP", timestamp_s=self._times.latest_s)
        if self._start == AT_TIMESTAMP and self._times.timestamp_s is not None:
            return Place("AT_TIMESTAMP", timestamp_s=self._times.timestamp_s)
        return Place("TRIM_HORIZON")

    def note_complete(self, page: RecordsPage, now_s: float) -> None:
        """Remember until when the shard was read completely. `now_s` is wall-clock time, as retention is."""
        self._complete_s = now_s - page.millis_behind_latest / 1000

    @property
    def last(self) -> Position | None:
        """The position delivered last, or where reading began."""
        return self._last

    def may_have_lost(self, now_s: float) -> bool:
        """Whether the stream may have trimmed something unread by now."""
        age_s = float("inf") if self._complete_s is None else now_s - self._complete_s
        # A clock that was set back proves nothing.
        return not 0 <= age_s < _SURELY_KEPT_S

    def lost_touch(self, now_s: float) -> bool:
        """Reading must begin anew at `place`. True when the stream may have trimmed something unread meanwhile."""
        if may_have_lost := self.may_have_lost(now_s):
            self.doubt()
        return may_have_lost

    def doubt(self) -> None:
        """What comes next may not join on to what was delivered last: its first record tells."""
        self._joined = self._last is None

    def must_begin_anew(self, now_s: float) -> bool:
        """Whether an iterator may pass over records, though it is still good: so far behind, the next may be trimmed.

        Only once something came since reading last began, so that a page with room for one record brings it forward.
        """
        return self._last != self._began and self.lost_touch(now_s)

    def deliver(self, page: RecordsPage, hash_range: HashRange | None) -> Delivery:
        """A page as a delivery: aggregates taken apart, what was delivered before dropped, a gap noticed."""
        gap = self._gap(page)
        records = _UserRecords(page.records, hash_range, after=self._last)
        if records.end is not None and (self._last is None or records.end > self._last):
            self._last = records.end
        size_bytes = page.records.size_bytes
        telemetry.BYTES_READ.inc(size_bytes)
        telemetry.MILLIS_BEHIND.labels(self.shard_id).set(page.millis_behind_latest)
        return Delivery(
            records=records,
            millis_behind=page.millis_behind_latest,
            size_bytes=size_bytes,
            gap=gap,
            is_end=page.next_iterator is None,
            children=tuple(_child(child) for child in page.child_shards or ()),
        )

    def gone(self) -> Delivery:
        """The end of a shard that the stream does not list any more."""
        gap = f"{self.shard_id} is not in the stream any more; what was after {self._last or self._start} is lost"
        return Delivery(records=Records(), millis_behind=0, gap=gap, is_end=True)

    def _gap(self, page: RecordsPage) -> str | None:
        """Judged once for each place that reading goes on from: by its first record, or by none up to the tip."""
        if self._joined or self._last is None:
            return None
        known = f"what was read last, {self._last.sequence}"
        if first := page.records.first:
            self._joined = True
            if int(first.sequence_number) == self._last.sequence:
                return None
            return f"the stream begins at {first.sequence_number}, after {known}"
        if page.millis_behind_latest and page.next_iterator is not None:
            return None
        self._joined = True
        return f"the stream holds nothing from {known}, on: not even that record"


def backoff_s(tried: int, most_s: float) -> float:
    """Full jitter: consumers that were throttled together must not come back together."""
    return random.uniform(0, min(most_s, _RETRY_BASE_S * 2.0 ** min(tried, 32)))


def _child(child: ChildShard) -> Shard:
    keys = child.hash_key_range
    hash_range = HashRange(int(keys.starting_hash_key), int(keys.ending_hash_key))
    return Shard(child.shard_id, tuple(child.parent_shards), hash_range, is_closed=False)


class _UserRecords(Records):
    """A page's records as a consumer wants them: aggregates taken apart, and none that was delivered before.

    `end` is the position of the last; None when there is none. `first` and `last` are as the page has them.
    """

    def __init__(self, page: Records, hash_range: HashRange | None, after: Position | None) -> None:
        self._page = page
        self._hash_range = hash_range
        self._after = after
        self.first, self.last, self.arrival = page.first, page.last, page.arrival
        self.end = _end_of(page.last) if page.last else None

    @property
    def size_bytes(self) -> int:
        return self._page.size_bytes

    def parts(self) -> Iterator[Part]:
        for part in self._page.parts():
            for records in _apart(part, self._hash_range):
                if self._after is None or records[0].position > self._after:
                    yield records
                elif records[-1].position > self._after:
                    yield Part([record for record in records if record.position > self._after])


def _apart(records: Part, hash_range: HashRange | None) -> Iterator[Part]:
    """Aggregates taken apart, some at a time, everything else as it is. Mostly there is no aggregate at all."""
    if kpl.MAGIC[0] not in {record.data[0] for record in records[:] if record.data}:
        yield records
        return
    found: list[Record] = []
    for record in records:
        found += _split(record, hash_range)
        if len(found) >= _AT_ONCE:
            yield Part(found)
            found = []
    if found:
        yield Part(found)


def _end_of(record: Record) -> Position:
    """Its own position, or that of the last record in it."""
    inner = kpl.split(record.data)
    return Position(int(record.sequence_number), len(inner) - 1 if inner else 0)


def _split(record: Record, hash_range: HashRange | None) -> list[Record]:
    inner = kpl.split(record.data)
    if inner is None:
        return [record]
    if hash_range is not None:
        first, last = hash_range.start, hash_range.end
        # Aggregated before a reshard: it belongs to a sister, but only here will anybody see it.
        telemetry.RECORDS_OUTSIDE.inc(sum([not first <= each.hash_key <= last for each in inner]))
    return [Record(record.sequence_number, each.data, sub) for sub, each in enumerate(inner)]
