"""GetRecords: one shard, in order, from a checkpoint to the tip or to the shard's end.

Who calls: a shard's consumer, which asks for the next delivery only when it has room. Who waits: nobody while the
shard is behind, except for what Kinesis allows (`pace`) and for room in the process (`memory`); at the tip about a
quarter of a second. Where reading goes on from, and how a gap is noticed, is in `reading`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from msgspec.structs import replace

from tidegate import aws, telemetry
from tidegate.aws import RecordsPage, aws_errors, error_code
from tidegate.errors import Fatal, Transient
from tidegate.leases.lease import Checkpoint
from worker.memory import PAGE_BYTES, ReadMemory, Room, Share
from worker.pace import ReadPace
from worker.ports import Delivery
from worker.reading import Place, Reading, ShardGone, StartTimes, backoff_s
from worker.settings import ReadSettings
from worker.shards import Shard
from worker.stream import KinesisStream

log = telemetry.get_logger(__name__)

_EXPIRED = "ExpiredIteratorException"
_NOT_FOUND = "ResourceNotFoundException"
_FOREIGN = "InvalidArgumentException"
# What a page is expected to hold before one was seen, and at least: a hundredth of what it may.
_EXPECTED_BYTES = PAGE_BYTES // 100


class KinesisReader:
    """Reads the shards of one stream. `client` comes from `aws.client("kinesis")`; `wall_s` is the time of day."""

    def __init__(
        self,
        client: Any,
        stream: KinesisStream,
        settings: ReadSettings,
        memory: ReadMemory,
        times: StartTimes,
        *,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self.client = client
        self.stream = stream
        self.settings = settings
        self.wall_s = wall_s
        self._memory = memory
        self._times = times

    async def list_shards(self) -> list[Shard]:
        return await self.stream.list_shards()

    def is_foreign(self, shard_id: str, sequence: int) -> bool:
        return self.stream.is_foreign(shard_id, sequence)

    async def is_at_the_edge(self, arrival_s: float) -> bool:
        return await self._times.is_at_the_edge(arrival_s, self.wall_s(), self.stream.retention_hours)

    async def read(self, shard_id: str, start: Checkpoint) -> AsyncGenerator[Delivery, None]:
        reading = Reading(shard_id, start, self._times)
        with self._memory.share() as share:
            polling = _Polling(self, reading, share)
            try:
                while True:
                    page, room = await polling.page()
                    delivery = reading.deliver(page, self.stream.hash_range(shard_id))
                    yield replace(delivery, room=room)
                    if delivery.is_end:
                        return
                    await polling.pause(page)
            except ShardGone:
                yield reading.gone()


class _Polling:
    """One shard's iterator, and when it may be used."""

    def __init__(self, reader: KinesisReader, reading: Reading, share: Share) -> None:
        self._client = reader.client
        self._stream = reader.stream
        self._settings = settings = reader.settings
        self._wall_s = reader.wall_s
        self._reading = reading
        self._share = share
        self._iterator: str | None = None
        self._pace = ReadPace(settings.calls_per_s, settings.bytes_per_s)
        self._tip_wait_s = settings.tip_wait_ms / 1000
        self._expected_bytes = _EXPECTED_BYTES

    async def page(self) -> tuple[RecordsPage, Room]:
        """The next page, which may be empty, and the room it has. Raises Transient when all tries are used up."""
        for tried in range(self._settings.attempts):
            try:
                return await self._try_page()
            except Transient as error:
                failed = error
                if error_code(error) == _EXPIRED:
                    # Whoever waited so long may find that the stream trimmed what came next.
                    telemetry.ITERATORS_EXPIRED.inc()
                    self._iterator = None
                    self._reading.lost_touch(self._wall_s())
                    continue
                telemetry.READS_RETRIED.labels(error_code(error) or "connection").inc()
                log.warning(telemetry.READ_FAILED, shard=self._reading.shard_id, tried=tried + 1, error=str(error))
            await asyncio.sleep(backoff_s(tried, self._settings.retry_max_ms / 1000))
        raise failed

    async def _try_page(self) -> tuple[RecordsPage, Room]:
        if self._reading.must_begin_anew(self._wall_s()):
            self._iterator = None
        while True:
            if self._iterator is None:
                self._iterator = await self._new_iterator()
            await asyncio.sleep(self._pace.delay_s(_now_s()))
            room = await self._share.take(self._expected_bytes)
            try:
                page = await self._call(self._iterator)
            except BaseException:
                room.release()
                raise
            if room.fit(page.records.size_bytes):
                break
            # The iterator still stands before this page, and the next try asks for as much.
            room.release()
        self._reading.note_complete(page, self._wall_s())
        self._iterator = page.next_iterator
        return page, room

    async def _call(self, iterator: str) -> RecordsPage:
        self._pace.note_call(_now_s())
        page = await aws.get_records(self._client, iterator, self._settings.limit_records, self._stream.arn)
        self._pace.note_bytes(page.records.size_bytes, _now_s())
        # Pages of one shard are alike; half as much again is rarely passed.
        self._expected_bytes = min(PAGE_BYTES, max(_EXPECTED_BYTES, page.records.size_bytes * 3 // 2))
        return page

    async def _new_iterator(self) -> str:
        shard_id = self._reading.shard_id
        try:
            with aws_errors(f"get an iterator of {shard_id}"):
                answer = await self._client.get_shard_iterator(
                    ShardId=shard_id, **self._stream.target, **_request(self._reading.place())
                )
        except Fatal as error:
            if error_code(error) == _NOT_FOUND and not await self._stream.has_shard(shard_id):
                raise ShardGone from error
            if error_code(error) == _FOREIGN and self._reading.has_position:
                raise self._stream.created_anew(str(error)) from error
            raise
        return str(answer["ShardIterator"])

    async def pause(self, page: RecordsPage) -> None:
        """At the tip wait, counted from the last call; behind it not at all."""
        if page.millis_behind_latest:
            return
        shortest, longest = self._settings.tip_wait_ms / 1000, self._settings.tip_wait_max_ms / 1000
        self._tip_wait_s = shortest if page.records else min(longest, self._tip_wait_s * 1.1)
        await asyncio.sleep(max(0.0, self._pace.last_s + self._tip_wait_s - _now_s()))


def _request(place: Place) -> dict[str, Any]:
    """A place in GetShardIterator's words."""
    request: dict[str, Any] = {"ShardIteratorType": place.kind}
    if place.sequence is not None:
        request["StartingSequenceNumber"] = place.sequence
    if place.timestamp_s is not None:
        request["Timestamp"] = place.timestamp_s
    return request


def _now_s() -> float:
    return asyncio.get_running_loop().time()
