"""SubscribeToShard: a shard's records pushed over one long answer, decoded straight into typed structs.

botocore's own event stream cannot be used as it is: it reads ahead of its caller, so that nobody can say how large
the next event is before it is in memory, and it walks the service model for every field. Here the caller asks for
the length of the next event, makes room, and reads it; in between the socket is left alone, which is all the
back-pressure that Kinesis needs. The framing itself, checksums included, is botocore's.

    total length 4 | length of the headers 4 | checksum 4 | headers | payload | checksum 4
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from aiohttp import ClientResponse
from botocore.eventstream import EventStreamBuffer, EventStreamMessage, ParserError
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError
from msgspec import Struct, field

from tidegate.aws.failures import aws_errors
from tidegate.aws.records import ChildShard, FastRecordsParser, FastRecordsParserFactory
from tidegate.errors import Transient
from tidegate.record import StampedRecord

_LENGTH_BYTES = 4
# The smallest frame: lengths and checksums, and nothing between.
_FRAME_MIN_BYTES = 16
# Far above what Kinesis sends in one event; a larger number is not a length.
_FRAME_MAX_BYTES = 24 * 1024 * 1024
_INITIAL = "initial-response"


class ShardEvent(Struct, frozen=True, rename="pascal"):
    """One SubscribeToShardEvent; without records it is a sign of life. `continuation` None: the shard's last."""

    # Stated in every event. What has none is another kind of event, and must not pass for the last of a shard.
    records: list[StampedRecord]
    continuation: str | None = field(name="ContinuationSequenceNumber", default=None)
    millis_behind_latest: int = 0
    child_shards: list[ChildShard] | None = None


class _Failure(Struct):
    message: str = ""


_EVENT = msgspec.json.Decoder(ShardEvent)
_FAILURE = msgspec.json.Decoder(_Failure)


async def subscribe_to_shard(client: Any, consumer_arn: str, shard_id: str, position: dict[str, Any]) -> Subscription:
    """Open a subscription; close it when done. `client` comes from `aws.client("kinesis")`.

    `position` is a StartingPosition. Raises Transient (throttled, or ResourceInUseException: another subscription of
    this consumer and shard began within 5 s) and Fatal.
    """
    with aws_errors(f"subscribe to {shard_id}"):
        reply = await client.subscribe_to_shard(
            ConsumerARN=consumer_arn, ShardId=shard_id, StartingPosition=position
        )  # fmt: skip
    subscription: Subscription = reply["Subscription"]
    return subscription


class Subscription:
    """One answer, which lasts five minutes at most. Use `next_length` and `read` in turn."""

    def __init__(self, answer: ClientResponse) -> None:
        self._answer = answer
        self._began = b""

    async def start(self) -> None:
        """Read the frame that opens every answer. Raises as `read` does."""
        if await self.next_length() is None or (await self._frame()).headers.get(":event-type") != _INITIAL:
            raise Transient("a subscription did not open as it should")

    async def next_length(self) -> int | None:
        """The length in bytes of the next event, once it is coming; None when the subscription is over.

        Raises Transient when the connection breaks, or nothing comes for long, not even a sign of life.
        """
        try:
            with aws_errors("wait for an event of a subscription"):
                self._began = await self._answer.content.readexactly(_LENGTH_BYTES)
        except asyncio.IncompleteReadError:
            # Also when it ends within these four bytes: what matters is that no event is begun.
            return None
        length = int.from_bytes(self._began, "big")
        if not _FRAME_MIN_BYTES <= length <= _FRAME_MAX_BYTES:
            raise Transient(f"a subscription is out of step: {length} is not the length of an event")
        return length

    async def read(self) -> ShardEvent:
        """The event whose length was told. Raises Transient when the connection breaks or Kinesis says so, or Fatal."""
        message = await self._frame()
        kind = message.headers.get(":message-type")
        with aws_errors("read an event of a subscription"):
            if kind != "event":
                code = message.headers.get(":exception-type") or message.headers.get(":error-code") or "InternalFailure"
                raise ClientError({"Error": {"Code": code, "Message": _text(message)}}, "SubscribeToShard")
            try:
                return _EVENT.decode(message.payload)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise ResponseParserError(f"an event of a subscription is not readable: {error}") from error

    def close(self) -> None:
        """Hang up. That is how a subscription ends early; the 5 s until the next one still count."""
        self._answer.close()

    async def _frame(self) -> EventStreamMessage:
        length = int.from_bytes(self._began, "big")
        frames = EventStreamBuffer()
        try:
            with aws_errors("read an event of a subscription"):
                frames.add_data(self._began + await self._answer.content.readexactly(length - _LENGTH_BYTES))
                return next(frames)
        except asyncio.IncompleteReadError as error:
            raise Transient("a subscription broke off within an event") from error
        except (StopIteration, ParserError) as error:
            # A checksum or a length inside does not fit.
            raise Transient(f"a subscription is garbled: {error}") from error


def _text(message: EventStreamMessage) -> str:
    try:
        return _FAILURE.decode(message.payload).message
    except (msgspec.DecodeError, UnicodeDecodeError):
        return str(message.headers.get(":error-message", ""))


class KinesisParserFactory(FastRecordsParserFactory):
    """What the session uses: ours for GetRecords and SubscribeToShard, botocore's for everything else."""

    def create_parser(self, protocol_name: str) -> object:
        parser = super().create_parser(protocol_name)
        return _SubscriptionParser(**self._defaults) if protocol_name == "json" else parser


class _SubscriptionParser(FastRecordsParser):
    async def _do_parse(self, response: dict[str, Any], shape: Any) -> dict[str, Any]:
        if shape is None or shape.name != "SubscribeToShardOutput":
            return await super()._do_parse(response, shape)
        subscription = Subscription(response["body"])
        try:
            await subscription.start()
        except BaseException:
            subscription.close()
            raise
        return {"Subscription": subscription}
