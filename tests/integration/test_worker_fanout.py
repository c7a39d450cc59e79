"""What only fan-out has: a consumer to register, subscriptions that end, break, and are refused. The rest: tests/contract."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from local.kinesis import eventstream
from tests.contract.record_readers import (
    CONSUMER,
    HOUR_MS,
    QUICK,
    SHARD,
    STREAM,
    gaps,
    metric,
    records,
    release,
    serving_kinesis,
    settings,
    texts,
)
from tidegate import aws
from tidegate.errors import Fatal, Transient
from tidegate.leases import TRIM_HORIZON
from tidegate.settings import AwsSettings, StreamSettings
from worker.fanout import FanOutReader, registered
from worker.memory import ReadMemory
from worker.ports import Delivery
from worker.reading import StartTimes
from worker.stream import KinesisStream


async def test_a_consumer_is_registered_once_and_waited_for(tmp_path: Path) -> None:
    async with serving_kinesis(tmp_path, "fan_out", transition_s=60.0) as kinesis:
        arn = (await KinesisStream(kinesis.client, StreamSettings(id=STREAM)).describe()).arn
        with pytest.raises(Transient, match="being registered"):
            await registered(kinesis.client, arn, CONSUMER)
        with pytest.raises(Transient, match="CREATING"):
            await registered(kinesis.client, arn, CONSUMER)
        kinesis.clock.ahead_ms += 61_000
        consumer = await registered(kinesis.client, arn, CONSUMER)
        assert consumer.startswith(f"{arn}/consumer/{CONSUMER}:")
        assert await registered(kinesis.client, arn, consumer) == consumer
        assert len((await kinesis.client.list_stream_consumers(StreamARN=arn))["Consumers"]) == 1
        await kinesis.client.deregister_stream_consumer(ConsumerARN=consumer)
        with pytest.raises(Fatal, match="TIDEGATE_READ_CONSUMER"):
            await registered(kinesis.client, arn, consumer)


async def test_subscriptions_are_renewed_without_loss_or_repetition(tmp_path: Path) -> None:
    async with serving_kinesis(tmp_path, "fan_out", subscription_s=0.1) as kinesis:
        before = metric("tidegate_resubscriptions_total")
        seen: list[Delivery] = []
        async with asyncio.timeout(20), aclosing((await kinesis.reader()).read(SHARD, TRIM_HORIZON)) as deliveries:
            for number in range(30):
                await kinesis.put(str(number))
                while len(records(seen)) <= number:
                    seen.append(await anext(deliveries))
                await asyncio.sleep(0.01)
        assert texts(seen) == [str(number) for number in range(30)]
        # Nothing was even sent twice: the continuation is exact.
        assert sum(delivery.size_bytes for delivery in seen) == sum(len(str(number)) for number in range(30))
        assert metric("tidegate_resubscriptions_total") >= before + 2


async def test_the_second_subscription_within_five_seconds_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shard moved here from a worker that had subscribed just now. The server's own clock says when it may."""
    ahead_s = 0.0
    loop = asyncio.get_running_loop()
    options: dict[str, Any] = {"enforce_limits": True, "monotonic_s": lambda: loop.time() + ahead_s}
    async with serving_kinesis(tmp_path, "fan_out", **options) as kinesis:
        await kinesis.put("a")
        before = metric("tidegate_reads_retried_total", code="ResourceInUseException")
        # Being refused is no failure: it is not what tries are for.
        monkeypatch.setattr("worker.fanout._IN_USE_WAIT_S", 0.05)
        reader = await kinesis.reader(settings(attempts=1, resubscribe_s=5.0))
        async with asyncio.timeout(10), aclosing(reader.read(SHARD, TRIM_HORIZON)) as former:
            assert texts([await anext(former)]) == ["a"]
            async with aclosing(reader.read(SHARD, TRIM_HORIZON)) as deliveries:
                following = asyncio.create_task(_first(deliveries))
                while metric("tidegate_reads_retried_total", code="ResourceInUseException") < before + 3:
                    await asyncio.sleep(0.01)
                assert not following.done()
                ahead_s = 5.0
                assert texts([await following]) == ["a"]


async def test_our_own_subscriptions_keep_their_distance(tmp_path: Path) -> None:
    async with serving_kinesis(tmp_path, "fan_out", subscription_s=0.05, heartbeat_s=0.01) as kinesis:
        loop, began = asyncio.get_running_loop(), []
        subscribe = kinesis.client.subscribe_to_shard

        async def noted(**request: Any) -> Any:
            began.append(loop.time())
            return await subscribe(**request)

        kinesis.client.subscribe_to_shard = noted
        reader = await kinesis.reader(settings(resubscribe_s=0.3))
        async with asyncio.timeout(10), aclosing(reader.read(SHARD, TRIM_HORIZON)) as deliveries:
            while len(began) < 3:
                release(await anext(deliveries))
        assert began[1] - began[0] >= 0.29
        assert began[2] - began[1] >= 0.29


@pytest.mark.parametrize("retention_hours", [24, 48])
async def test_what_is_trimmed_under_a_subscription_is_a_gap(tmp_path: Path, retention_hours: int) -> None:
    """So far behind that the stream trims what would come next; the subscription is good all the time, and silent."""
    async with serving_kinesis(tmp_path, "fan_out") as kinesis:
        if retention_hours > 24:
            await kinesis.client.increase_stream_retention_period(
                StreamName=STREAM, RetentionPeriodHours=retention_hours
            )
        # More than what sockets hold: it is not on its way yet when it is trimmed.
        large, old, young = 700_000, "abcdefghijklmnopqrstuvw", "xyz"
        await kinesis.put(*[letter * large for letter in old])
        kinesis.clock.ahead_ms = 600_000
        await kinesis.put(*[letter * large for letter in young])
        kinesis.clock.ahead_ms = 24 * HOUR_MS - 120_000
        kinesis.memory = ReadMemory(large + 1_000)
        seen: list[Delivery] = []
        reader = await kinesis.reader()
        async with asyncio.timeout(20), aclosing(reader.read(SHARD, TRIM_HORIZON)) as deliveries:
            while not records(seen):
                seen.append(await anext(deliveries))
            kinesis.clock.ahead_ms += 240_000
            # The stand-in trims when it is spoken to.
            await kinesis.put("#")
            release(seen[-1])
            while texts(seen)[-1] != "#":
                seen.append(await anext(deliveries))
                release(seen[-1])
        letters = "".join(text[0] for text in texts(seen)).removesuffix("#")
        if retention_hours == 24:
            assert letters[-len(young) - 1 :] != old[-1] + young, "something is missing"
            assert len(gaps(seen)) == 1
        else:
            assert (letters, gaps(seen)) == (old + young, [])


async def test_while_nobody_takes_the_records_nothing_more_is_read(tmp_path: Path) -> None:
    """Back-pressure: what waits in this process stays bounded while megabytes wait at Kinesis."""
    async with serving_kinesis(tmp_path, "fan_out") as kinesis:
        for number in range(24):
            await kinesis.put(bytes([65 + number]) * 700_000)
        kinesis.memory = ReadMemory(1_600_000)
        reader = await kinesis.reader()
        seen: list[Delivery] = []
        async with asyncio.timeout(20), aclosing(reader.read(SHARD, TRIM_HORIZON)) as deliveries:
            seen.append(await anext(deliveries))
            blocked = asyncio.create_task(_first(deliveries))
            await asyncio.sleep(0.3)
            assert not blocked.done()
            assert kinesis.memory.used_bytes == 700_000
            release(seen[0])
            seen.append(await blocked)
            while len(records(seen)) < 24:
                release(seen[-1])
                seen.append(await anext(deliveries))
        assert [text[0] for text in texts(seen)] == [chr(65 + number) for number in range(24)]


async def _first(deliveries: Any) -> Delivery:
    delivery: Delivery = await anext(deliveries)
    return delivery


# What a connection can do wrong, from a server that does it.


def event(sequence: int, text: str = "YQ==") -> bytes:
    record = f'{{"SequenceNumber":"{sequence}","Data":"{text}","PartitionKey":"k","ApproximateArrivalTimestamp":1.5}}'
    body = f'{{"Records":[{record}],"MillisBehindLatest":0,"ContinuationSequenceNumber":"{sequence}"}}'
    return eventstream.event("SubscribeToShardEvent", body.encode())


INITIAL = eventstream.event("initial-response", b"{}")
SILENCE = b"nothing, and the connection stays open"


def _torn(frame: bytes) -> bytes:
    return frame[:-5]


def _flipped(frame: bytes) -> bytes:
    return frame[:-6] + bytes([frame[-6] ^ 1]) + frame[-5:]


@asynccontextmanager
async def scripted(monkeypatch: pytest.MonkeyPatch, *answers: list[bytes], memory: ReadMemory | None = None) -> Any:
    """A reader against a server that gives these answers in turn; the requests' positions are yielded with it."""
    asked: list[Any] = []
    over = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(json.loads(await request.read())["StartingPosition"])
        response = web.StreamResponse(headers={"Content-Type": eventstream.CONTENT_TYPE})
        response.enable_chunked_encoding()
        await response.prepare(request)
        for frame in answers[min(len(asked), len(answers)) - 1]:
            if frame is SILENCE:
                await over.wait()
            await response.write(frame)
        await response.write_eof()
        return response

    app = web.Application()
    app.router.add_post("/", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    for name, value in (
        ("AWS_ENDPOINT_URL_KINESIS", f"http://127.0.0.1:{runner.addresses[0][1]}"), ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    try:
        # Kinesis gives a sign of life every five seconds; ten are the default.
        async with aws.client("kinesis", AwsSettings(read_timeout_s=0.5)) as client:
            stream = KinesisStream(client, StreamSettings(id=STREAM))
            consumer = f"arn:aws:kinesis:us-east-1:000000000000:stream/{STREAM}/consumer/{CONSUMER}:1"
            yield FanOutReader(client, stream, consumer, QUICK, memory or ReadMemory(2**20), StartTimes(0.0)), asked
    finally:
        over.set()
        await runner.cleanup()


@pytest.mark.parametrize(
    "broken",
    [
        [INITIAL, event(7), _torn(event(8))],
        [INITIAL, event(7), event(8)[:3]],
        [INITIAL, event(7), _flipped(event(8))],
        [INITIAL, event(7), b"\xff\xff\xff\xff" + event(8)],
        [INITIAL, event(7), b"\0\0\0\x02" + event(8)],
        [INITIAL, event(7), eventstream.exception("InternalFailureException", b'{"message":"sorry"}')],
        [INITIAL, event(7), eventstream.exception("ResourceInUseException", b"not JSON")],
        [INITIAL, event(7), eventstream.event("SubscribeToShardEvent", b'{"Records":[{}]}')],
        [INITIAL, event(7), eventstream.event("SubscribeToShardEvent", b'{"ContinuationSequenceNumber":"\xff"}')],
        [INITIAL, event(7), eventstream.event("SomethingNewEvent", b"{}")],
        [INITIAL, event(7)],
        [INITIAL, event(7), SILENCE],
    ],
    ids=[
        "torn",
        "torn-length",
        "flipped",
        "no-length",
        "too-short",
        "failure",
        "taken-over",
        "unreadable",
        "no-text",
        "of-another-kind",
        "over",
        "half-open",
    ],
)
async def test_a_broken_subscription_is_gone_on_with_after_the_last_event(
    monkeypatch: pytest.MonkeyPatch, broken: list[bytes]
) -> None:
    memory = ReadMemory(2**20)
    async with scripted(monkeypatch, broken, [INITIAL, event(8), event(9)], memory=memory) as (reader, asked):
        seen: list[Delivery] = []
        async with asyncio.timeout(10), aclosing(reader.read(SHARD, TRIM_HORIZON)) as deliveries:
            while len(records(seen)) < 3:
                seen.append(await anext(deliveries))
                release(seen[-1])
            assert memory.used_bytes == 0, "what broke off holds no room"
        assert [record.position.sequence for record in records(seen)] == [7, 8, 9]
        assert asked == [{"Type": "TRIM_HORIZON"}, {"Type": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": "7"}]


@pytest.mark.parametrize(
    "opening", [[], [event(7)], [_torn(INITIAL)], [SILENCE]], ids=["nothing", "no-initial", "torn", "silence"]
)
async def test_an_answer_that_does_not_open_is_tried_again_and_given_up(
    monkeypatch: pytest.MonkeyPatch, opening: list[bytes]
) -> None:
    async with scripted(monkeypatch, opening) as (reader, asked):
        reader.settings = settings(attempts=3)
        with pytest.raises(Transient):
            await anext(reader.read(SHARD, TRIM_HORIZON))
        assert len(asked) == 3


async def test_a_modelled_error_that_needs_a_person_ends_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = eventstream.exception("KMSAccessDeniedException", b'{"message":"the key is not yours"}')
    async with scripted(monkeypatch, [INITIAL, frame]) as (reader, _):
        with pytest.raises(Fatal, match="the key is not yours"):
            await anext(reader.read(SHARD, TRIM_HORIZON))
