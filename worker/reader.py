"""GetRecords: one shard, in order, from a checkpoint to the tip or to the shard's end.

Who calls: a shard's consumer, which asks for the next delivery only when it has room. Who waits: nobody while the
shard is behind, except for Kinesis' five calls a second; at the tip about a quarter of a second.

Resuming asks for the checkpoint's own record again (AT_SEQUENCE_NUMBER) and drops what is at or before the
checkpoint: AFTER_SEQUENCE_NUMBER would lose the rest of a half-done aggregate. The record's absence shows that
the stream has trimmed it, and perhaps others that were never read: that is reported as a gap. The same holds when
an iterator has expired and reading goes on from the last record delivered.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from tidegate import aws, telemetry
from tidegate.aws import KinesisRecord, RecordsPage, aws_errors, error_code
from tidegate.errors import Fatal, Transient
from tidegate.leases.lease import LATEST, Checkpoint
from worker import kpl
from worker.batch import Position
from worker.ports import Delivery, Record
from worker.settings import ReadSettings
from worker.shards import HashRange, Shard, from_listing

log = telemetry.get_logger(__name__)

_EXPIRED = "ExpiredIteratorException"
_NOT_FOUND = "ResourceNotFoundException"
_FOREIGN = "InvalidArgumentException"
_RETRY_BASE_S = 0.1
_CLOCK_SKEW_S = 60.0


class KinesisReader:
    """Reads the shards of one stream. `client` comes from `aws.client("kinesis")`."""

    def __init__(self, client: Any, stream: str, settings: ReadSettings) -> None:
        self.client = client
        self.stream = stream
        self.settings = settings
        self._ranges: dict[str, HashRange] = {}

    async def list_shards(self) -> list[Shard]:
        shards: list[Shard] = []
        asked: dict[str, str] = {"StreamName": self.stream}
        while asked:
            with aws_errors(f"list the shards of {self.stream}"):
                answer = await self.client.list_shards(**asked)
            shards += [from_listing(item) for item in answer["Shards"]]
            token = answer.get("NextToken")
            # A page token stands for the stream; Kinesis refuses both together.
            asked = {"NextToken": token} if token else {}
        self._ranges = {shard.id: shard.hash_range for shard in shards}
        return shards

    async def read(self, shard_id: str, start: Checkpoint) -> AsyncGenerator[Delivery, None]:
        reading = _ShardReading(self, shard_id, start)
        try:
            while True:
                page = await reading.page()
                yield reading.deliver(page, self._ranges.get(shard_id))
                if page.next_iterator is None:
                    return
                await reading.pause(page)
        except _ShardGone:
            gap = f"{shard_id} is not in the stream any more; what was after {start} is lost"
            yield Delivery(records=(), millis_behind=0, gap=gap, is_end=True)


class _ShardGone(Exception):
    """The stream has trimmed the whole shard."""


class CallPace:
    """At most `calls` in any second, by monotonic times that are passed in."""

    def __init__(self, calls: int) -> None:
        self._starts: deque[float] = deque(maxlen=calls)

    def delay_s(self, now_s: float) -> float:
        """How long the next call has to wait."""
        if len(self._starts) < (self._starts.maxlen or 0):
            return 0.0
        return max(0.0, self._starts[0] + 1.0 - now_s)

    def note(self, now_s: float) -> None:
        self._starts.append(now_s)

    @property
    def last_s(self) -> float:
        return self._starts[-1]


class _ShardReading:
    """Where one shard's reading stands: the iterator, and the last position delivered, from which it is renewed."""

    def __init__(self, reader: KinesisReader, shard_id: str, start: Checkpoint) -> None:
        self._client = reader.client
        self._stream = reader.stream
        self._settings = settings = reader.settings
        self._list_shards = reader.list_shards
        self._shard_id = shard_id
        self._start = start
        self._last = Position(int(start.position), start.sub_sequence) if start.is_number else None
        self._iterator: str | None = None
        self._began_s: float | None = None
        self._pace = CallPace(settings.calls_per_s)
        self._tip_wait_s = settings.tip_wait_ms / 1000
        self._resumed = not start.is_number

    async def page(self) -> RecordsPage:
        """The next page, which may be empty. Raises Transient when all tries are used up."""
        for tried in range(self._settings.attempts):
            try:
                return await self._try_page()
            except Transient as error:
                failed = error
                if error_code(error) == _EXPIRED:
                    telemetry.ITERATORS_EXPIRED.inc()
                    self._iterator = None
                    # Whoever waited so long may find that the stream trimmed what came next.
                    self._resumed = self._last is None
                    continue
                telemetry.READS_RETRIED.labels(error_code(error) or "connection").inc()
                log.warning(telemetry.READ_FAILED, shard=self._shard_id, tried=tried + 1, error=str(error))
            await asyncio.sleep(self._backoff_s(tried))
        raise failed

    def _backoff_s(self, tried: int) -> float:
        """Full jitter: consumers that were throttled together must not come back together."""
        return random.uniform(0, min(self._settings.retry_max_ms / 1000, _RETRY_BASE_S * 2.0**tried))

    async def _try_page(self) -> RecordsPage:
        if self._iterator is None:
            self._iterator = await self._new_iterator()
        await asyncio.sleep(self._pace.delay_s(_now_s()))
        self._pace.note(_now_s())
        page = await aws.get_records(self._client, self._iterator, self._settings.limit_records)
        self._iterator = page.next_iterator
        return page

    async def _new_iterator(self) -> str:
        where = self._where()
        try:
            with aws_errors(f"get an iterator of {self._shard_id}"):
                answer = await self._client.get_shard_iterator(StreamName=self._stream, ShardId=self._shard_id, **where)
        except Fatal as error:
            if error_code(error) == _NOT_FOUND and await self._is_gone():
                raise _ShardGone from error
            if error_code(error) == _FOREIGN and self._last is not None:
                raise Fatal(
                    f"{error}; the stream {self._stream} seems to have been created anew: the positions in the lease table "
                    "and in tidegate.shard are of its former life and must be removed"
                ) from error
            raise
        return str(answer["ShardIterator"])

    def _where(self) -> dict[str, Any]:
        if self._last is not None:
            return {"ShardIteratorType": "AT_SEQUENCE_NUMBER", "StartingSequenceNumber": str(self._last.sequence)}
        if self._start != LATEST:
            # AT_TIMESTAMP as well: its time is not in the lease, and to begin earlier does no harm.
            return {"ShardIteratorType": "TRIM_HORIZON"}
        if self._began_s is None:
            self._began_s = time.time()
            return {"ShardIteratorType": "LATEST"}
        # LATEST again would skip what came in since. Our clock is not Kinesis'; a little too early does no harm.
        return {"ShardIteratorType": "AT_TIMESTAMP", "Timestamp": self._began_s - _CLOCK_SKEW_S}

    async def _is_gone(self) -> bool:
        """True when the stream is there and the shard is not; a missing stream raises Fatal."""
        return all(shard.id != self._shard_id for shard in await self._list_shards())

    def deliver(self, page: RecordsPage, hash_range: HashRange | None) -> Delivery:
        """A page as a delivery: aggregates taken apart, what was delivered before dropped, a gap noticed."""
        gap = self._gap(page)
        records: list[Record] = []
        for record in page.records:
            last = self._last
            fresh = [each for each in _user_records(record, hash_range) if last is None or each.position > last]
            if fresh:
                records += fresh
                self._last = fresh[-1].position
        telemetry.RECORDS_READ.inc(len(records))
        telemetry.BYTES_READ.inc(sum(len(record.data) for record in page.records))
        telemetry.MILLIS_BEHIND.labels(self._shard_id).set(page.millis_behind_latest)
        return Delivery(
            records=tuple(records),
            millis_behind=page.millis_behind_latest,
            gap=gap,
            is_end=page.next_iterator is None,
            child_ids=tuple(child.shard_id for child in page.child_shards or ()),
        )

    def _gap(self, page: RecordsPage) -> str | None:
        """Judged once for each place that reading goes on from: by its first record, or by none up to the tip."""
        if self._resumed or self._last is None:
            return None
        known = f"what was read last, {self._last.sequence}"
        if page.records:
            self._resumed = True
            if int(page.records[0].sequence_number) == self._last.sequence:
                return None
            return f"the stream begins at {page.records[0].sequence_number}, after {known}"
        if page.millis_behind_latest and page.next_iterator is not None:
            return None
        self._resumed = True
        return f"the stream holds nothing from {known}, on: not even that record"

    async def pause(self, page: RecordsPage) -> None:
        """At the tip wait, counted from the last call; behind it not at all."""
        if page.millis_behind_latest:
            return
        shortest, longest = self._settings.tip_wait_ms / 1000, self._settings.tip_wait_max_ms / 1000
        self._tip_wait_s = shortest if page.records else min(longest, self._tip_wait_s * 1.1)
        await asyncio.sleep(max(0.0, self._pace.last_s + self._tip_wait_s - _now_s()))


def _user_records(record: KinesisRecord, hash_range: HashRange | None) -> Iterator[Record]:
    sequence = int(record.sequence_number)
    inner = kpl.split(record.data)
    if inner is None:
        yield Record(Position(sequence, 0), record.data)
        return
    for sub, user_record in enumerate(inner):
        if hash_range is not None and user_record.hash_key not in hash_range:
            # Aggregated before a reshard: it belongs to a sister, but only here will anybody see it.
            telemetry.RECORDS_OUTSIDE.inc()
        yield Record(Position(sequence, sub), user_record.data)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
