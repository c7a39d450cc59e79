"""The wire: JSON 1.1 over HTTP, one target header for each operation. Signatures are not verified."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar
from uuid import uuid4

import msgspec
from aiohttp import web

from local.kinesis import eventstream, shapes
from local.kinesis import operations_consumers as consumers
from local.kinesis import operations_records as records
from local.kinesis import operations_streams as streams
from local.kinesis.catalogue import Catalogue
from local.kinesis.errors import Refused
from local.kinesis.fanout import Push
from local.kinesis.settings import Clock, Settings

CONTENT_TYPE = "application/x-amz-json-1.1"
TARGET_PREFIX = "Kinesis_20131202."
MAX_REQUEST_BYTES = 32 * 1024 * 1024
SHUTDOWN_S = 2.0
_log = logging.getLogger(__name__)

Given = TypeVar("Given", bound=msgspec.Struct)
Operation = Callable[[Catalogue, bytes], bytes]


def _operation(shape: type[Given], act: Callable[[Catalogue, Given], msgspec.Struct | bytes | None]) -> Operation:
    decoder = msgspec.json.Decoder(shape)
    encode = msgspec.json.Encoder().encode

    def run(catalogue: Catalogue, body: bytes) -> bytes:
        answer = act(catalogue, decoder.decode(body))
        if isinstance(answer, bytes):
            return answer
        return b"" if answer is None else encode(answer)

    return run


OPERATIONS: dict[str, Operation] = {
    "CreateStream": _operation(shapes.CreateStreamInput, streams.create_stream),
    "DecreaseStreamRetentionPeriod": _operation(shapes.RetentionInput, streams.decrease_retention),
    "DeleteStream": _operation(shapes.DeleteStreamInput, streams.delete_stream),
    "DeregisterStreamConsumer": _operation(shapes.ConsumerInput, consumers.deregister_consumer),
    "DescribeStream": _operation(shapes.DescribeStreamInput, streams.describe_stream),
    "DescribeStreamConsumer": _operation(shapes.ConsumerInput, consumers.describe_consumer),
    "DescribeStreamSummary": _operation(shapes.StreamInput, streams.describe_stream_summary),
    "GetRecords": _operation(shapes.GetRecordsInput, records.get_records),
    "GetShardIterator": _operation(shapes.GetShardIteratorInput, records.get_shard_iterator),
    "IncreaseStreamRetentionPeriod": _operation(shapes.RetentionInput, streams.increase_retention),
    "ListShards": _operation(shapes.ListShardsInput, streams.list_shards),
    "ListStreamConsumers": _operation(shapes.ListConsumersInput, consumers.list_consumers),
    "ListStreams": _operation(shapes.ListStreamsInput, streams.list_streams),
    "MergeShards": _operation(shapes.MergeShardsInput, streams.merge_shards),
    "PutRecord": _operation(shapes.PutRecordInput, records.put_record),
    "PutRecords": _operation(shapes.PutRecordsInput, records.put_records),
    "RegisterStreamConsumer": _operation(shapes.RegisterConsumerInput, consumers.register_consumer),
    "SplitShard": _operation(shapes.SplitShardInput, streams.split_shard),
    "UpdateShardCount": _operation(shapes.UpdateShardCountInput, streams.update_shard_count),
}


def _unknown(catalogue: Catalogue, body: bytes) -> bytes:
    raise Refused("UnknownOperationException", "This server does not have the operation that X-Amz-Target names.")


_subscribe_decoder = msgspec.json.Decoder(shapes.SubscribeInput)


def _refusal(error: Refused | msgspec.DecodeError) -> web.Response:
    match error:
        case Refused():
            code, text, status = error.code, error.text, error.status
        case msgspec.ValidationError():
            code, text, status = "ValidationException", f"1 validation error detected: {error}", 400
        case _:
            code, text, status = "SerializationException", str(error), 400
    body = msgspec.json.encode({"__type": code, "message": text})
    return web.Response(body=body, status=status, content_type=CONTENT_TYPE, headers=_headers())


def _headers() -> dict[str, str]:
    return {"x-amzn-RequestId": str(uuid4())}


class Wire:
    """The HTTP handlers over one catalogue."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    async def call(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        name = request.headers.get("X-Amz-Target", "").removeprefix(TARGET_PREFIX)
        try:
            if name == "SubscribeToShard":
                return await self._subscribe(request, Push(self._catalogue, _subscribe_decoder.decode(body)))
            answer = OPERATIONS.get(name, _unknown)(self._catalogue, body)
        except (Refused, msgspec.DecodeError) as error:
            return _refusal(error)
        return web.Response(body=answer, content_type=CONTENT_TYPE, headers=_headers())

    async def _subscribe(self, request: web.Request, push: Push) -> web.StreamResponse:
        response = web.StreamResponse(headers=_headers())
        response.content_type = eventstream.CONTENT_TYPE
        response.enable_chunked_encoding()
        try:
            await response.prepare(request)
            async for frame in push.frames():
                await response.write(frame)
            await response.write_eof()
        except ConnectionError:
            # The consumer went away; that is its way of ending a subscription.
            return response
        finally:
            push.close()
        return response

    async def health(self, request: web.Request) -> web.Response:
        return web.json_response({"ok": True, "streams": len(self._catalogue.streams)})


def application(catalogue: Catalogue) -> web.Application:
    wire = Wire(catalogue)
    app = web.Application(client_max_size=MAX_REQUEST_BYTES)
    app.router.add_post("/", wire.call)
    app.router.add_get("/_health", wire.health)
    app.on_shutdown.append(_end_subscriptions(catalogue))
    return app


def _end_subscriptions(catalogue: Catalogue) -> Callable[[web.Application], Awaitable[None]]:
    async def end(_: web.Application) -> None:
        catalogue.end_subscriptions()

    return end


@contextlib.asynccontextmanager
async def serving(settings: Settings, clock: Clock | None = None) -> AsyncIterator[str]:
    """Run the server inside this process; yields its address, such as http://127.0.0.1:4567.

    Raises LogDamaged when the directory cannot be used, OSError when the port is taken.
    """
    catalogue = await asyncio.to_thread(Catalogue, settings, clock or Clock())
    if catalogue.damaged_bytes:
        _log.warning("cut off %d bytes of half-written records that were never acknowledged", catalogue.damaged_bytes)
    runner = web.AppRunner(application(catalogue), access_log=None, shutdown_timeout=SHUTDOWN_S)
    try:
        await runner.setup()
        site = web.TCPSite(runner, settings.host, settings.port)
        await site.start()
        port = runner.addresses[0][1]
        yield f"http://{settings.host}:{port}"
    finally:
        await runner.cleanup()
        catalogue.close()
