"""SubscribeToShard (enhanced fan-out): the records of a shard are pushed, 2 MiB/s for each shard and consumer.

The equal of `reader`: the same rules of resuming, gaps and aggregates (`reading`), the same bound in bytes (`memory`).
What it waits for is room for the next event, and then the event; meanwhile it does not read from the socket, and
Kinesis stops sending. Empty events come every few seconds and are a sign of life.

A subscription lasts five minutes at most. The next one goes on after the last event's continuation, which moves on
also while nothing is written to the shard; after a long pause it goes on at the last record, whose absence tells a gap.
Who is so far behind that the stream trims what comes next looks for the last record between events as well.
Of one consumer and shard there is one subscription, and within five seconds of one Kinesis refuses the next: after
that time the next one takes over, which is how a shard moves to another worker.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from msgspec.structs import replace

from tidegate import aws, telemetry
from tidegate.aws import RecordsPage, ShardEvent, Subscription, aws_errors, error_code
from tidegate.errors import Fatal, Superseded, Transient
from tidegate.leases.lease import Checkpoint
from tidegate.record import Records
from worker.batch import Position
from worker.memory import ReadMemory, Room, Share
from worker.ports import Delivery
from worker.reading import Place, Reading, ShardGone, StartTimes, backoff_s
from worker.settings import ReadSettings
from worker.shards import Shard
from worker.stream import KinesisStream

log = telemetry.get_logger(__name__)

_NOT_FOUND = "ResourceNotFoundException"
_FOREIGN = "InvalidArgumentException"
_IN_USE = "ResourceInUseException"
# Kinesis takes one such call a second for each shard and consumer; a refused one costs nobody anything.
_IN_USE_WAIT_S = 2.0
# GetRecords allows five calls a second, for all who read the shard.
_PROOF_S = 1.0


async def registered(client: Any, stream_arn: str, consumer: str) -> str:
    """The ARN of a consumer (name or ARN), which is registered if it is a name without one.

    Raises Transient while it is not ACTIVE yet: ask again. Registering costs nothing, subscribing does.
    """
    named = {"ConsumerARN": consumer} if consumer.startswith("arn:") else {"ConsumerName": consumer}
    try:
        with aws_errors(f"describe the consumer {consumer}", superseded={_NOT_FOUND}):
            answer = await client.describe_stream_consumer(StreamARN=stream_arn, **named)
    except Superseded as error:
        if consumer.startswith("arn:"):
            raise Fatal(f"the consumer {consumer} does not exist: TIDEGATE_READ_CONSUMER may also be a name") from error
        with aws_errors(f"register the consumer {consumer}"):
            await client.register_stream_consumer(StreamARN=stream_arn, ConsumerName=consumer)
        raise Transient(f"the consumer {consumer} is being registered") from error
    found = answer["ConsumerDescription"]
    if found["ConsumerStatus"] != "ACTIVE":
        raise Transient(f"the consumer {consumer} is {found['ConsumerStatus']}")
    return str(found["ConsumerARN"])


class FanOutReader:
    """Reads the shards of one stream as the registered consumer `consumer_arn`.

    `client` comes from `aws.client("kinesis")` and keeps one connection for each shard that is read.
    """

    def __init__(
        self,
        client: Any,
        stream: KinesisStream,
        consumer_arn: str,
        settings: ReadSettings,
        memory: ReadMemory,
        times: StartTimes,
        *,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self.client = client
        self.stream = stream
        self.consumer_arn = consumer_arn
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
            pushed = _Pushed(self, reading, share)
            try:
                while True:
                    page, room = await pushed.page()
                    delivery = reading.deliver(page, self.stream.hash_range(shard_id))
                    room.fit(delivery.size_bytes)
                    yield replace(delivery, room=room)
                    if delivery.is_end:
                        return
            except ShardGone:
                yield reading.gone()
            finally:
                pushed.close()


class _Pushed:
    """One shard's subscription, renewed as long as the shard lasts."""

    def __init__(self, reader: FanOutReader, reading: Reading, share: Share) -> None:
        self._client = reader.client
        self._stream = reader.stream
        self._consumer_arn = reader.consumer_arn
        self._settings = reader.settings
        self._wall_s = reader.wall_s
        self._reading = reading
        self._share = share
        self._subscription: Subscription | None = None
        self._began_s: float | None = None
        self._continuation: str | None = None
        # Delivered before events of which nobody knows whether they join on to it.
        self._unproven: Position | None = None
        self._proven_s = float("-inf")

    async def page(self) -> tuple[RecordsPage, Room]:
        """The next event as a page, and the room it has. Raises Transient when all tries are used up."""
        for tried in range(self._settings.attempts):
            try:
                return await self._try_page()
            except Transient as error:
                failed = error
                self.close()
                telemetry.READS_RETRIED.labels(error_code(error) or "connection").inc()
                log.warning(telemetry.READ_FAILED, shard=self._reading.shard_id, tried=tried + 1, error=str(error))
            await asyncio.sleep(backoff_s(tried, self._settings.retry_max_ms / 1000))
        raise failed

    def close(self) -> None:
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None

    async def _try_page(self) -> tuple[RecordsPage, Room]:
        while True:
            subscription = self._subscription or await self._subscribe()
            length = await subscription.next_length()
            if length is not None:
                break
            self.close()
        room = await self._share.take(length)
        try:
            event = await subscription.read()
            await self._prove()
        except BaseException:
            room.release()
            raise
        page = _page(event)
        self._continuation = event.continuation
        self._reading.note_complete(page, self._wall_s())
        return page, room

    async def _prove(self) -> None:
        """So far behind, the stream may trim what would have come next, and a subscription passes over it in silence.

        Nothing is missing as long as the stream still has a record from before: asked for now and then, not each time.
        """
        if self._unproven is None and self._continuation and self._reading.may_have_lost(self._wall_s()):
            self._unproven = self._reading.last
        if self._unproven is None or _now_s() < self._proven_s + _PROOF_S:
            return
        if not await self._still_has(self._unproven):
            self._reading.doubt()
        self._unproven, self._proven_s = None, _now_s()

    async def _still_has(self, position: Position) -> bool:
        shard_id = self._reading.shard_id
        try:
            with aws_errors(f"look for a record of {shard_id}"):
                answer = await self._client.get_shard_iterator(
                    ShardId=shard_id, **self._stream.target, ShardIteratorType="AT_SEQUENCE_NUMBER",
                    StartingSequenceNumber=str(position.sequence),
                )  # fmt: skip
        except Fatal as error:
            if error_code(error) == _NOT_FOUND:
                return False
            raise
        page = await aws.get_records(self._client, answer["ShardIterator"], 1, self._stream.arn)
        return any(int(record.sequence_number) == position.sequence for record in page.records)

    async def _subscribe(self) -> Subscription:
        if self._began_s is not None:
            telemetry.RESUBSCRIPTIONS.inc()
            await asyncio.sleep(self._began_s + self._settings.resubscribe_s - _now_s())
        shard_id = self._reading.shard_id
        try:
            self._subscription = await self._when_free(_request(self._place()))
        except Fatal as error:
            if error_code(error) == _NOT_FOUND and not await self._stream.has_shard(shard_id):
                raise ShardGone from error
            if error_code(error) == _FOREIGN and self._reading.has_position:
                raise self._stream.created_anew(str(error)) from error
            raise
        self._began_s = _now_s()
        return self._subscription

    async def _when_free(self, position: dict[str, Any]) -> Subscription:
        """Subscribe. While another subscription is too young to be taken over, ask again, at most once a second or so."""
        until_s = _now_s() + 2 * self._settings.resubscribe_s
        while True:
            try:
                return await aws.subscribe_to_shard(self._client, self._consumer_arn, self._reading.shard_id, position)
            except Transient as error:
                if error_code(error) != _IN_USE or _now_s() >= until_s:
                    raise
                telemetry.READS_RETRIED.labels(_IN_USE).inc()
            await asyncio.sleep(random.uniform(0, _IN_USE_WAIT_S))

    def _place(self) -> Place:
        may_be_lost = self._reading.lost_touch(self._wall_s())
        if self._continuation is not None and not may_be_lost:
            return Place("AFTER_SEQUENCE_NUMBER", sequence=self._continuation)
        return self._reading.place()


def _page(event: ShardEvent) -> RecordsPage:
    """An event in the shape of a GetRecords page; without a continuation it is the shard's last."""
    return RecordsPage(Records(event.records), event.continuation, event.millis_behind_latest, event.child_shards)


def _request(place: Place) -> dict[str, Any]:
    """A place in SubscribeToShard's words."""
    request: dict[str, Any] = {"Type": place.kind}
    if place.sequence is not None:
        request["SequenceNumber"] = place.sequence
    if place.timestamp_s is not None:
        request["Timestamp"] = place.timestamp_s
    return request


def _now_s() -> float:
    return asyncio.get_running_loop().time()
