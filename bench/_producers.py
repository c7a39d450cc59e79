"""The same events, sent by three producers: from key and bytes to acknowledged, limits on shards lifted on all sides.

tidegate        the poller's publisher, a page at a time, as a source hands it over; plain, or with aggregation
aiokpl          its Producer with its defaults: aggregation, as many calls under way as it likes
async-kinesis   its Producer, plain records under keys of their own
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from aiokpl.config import Config
from aiokpl.producer import Producer as KplProducer
from kinesis import Producer as PeerProducer
from kinesis.processors import StringProcessor
from msgspec.structs import replace

from bench._puts import STREAM
from bench._stream import event
from poller.changes import Record
from poller.publisher import KinesisPublisher
from poller.settings import PublishSettings
from tidegate import aws, codec, lifecycle

PAGE_EVENTS = 2_000
_LIFTED = 1e12

Page = list[tuple[str, bytes]]
Side = Callable[[str, Sequence[Page]], Coroutine[Any, Any, float]]
"""Address, pages → seconds from the first request to the last acknowledgement."""


def pages(count: int) -> list[Page]:
    """Every page has the same keys, each once, in newer versions."""
    return [[_pair(number, turn) for number in range(PAGE_EVENTS)] for turn in range(1, count + 1)]


def _pair(number: int, turn: int) -> tuple[str, bytes]:
    made = event(number)
    made = replace(made, version=made.version._replace(read=turn))
    return str(made.key), codec.encode(made)


async def _ours(url: str, given: Sequence[Page], *, aggregate: bool) -> float:
    os.environ["AWS_ENDPOINT_URL_KINESIS"] = url
    settings = PublishSettings(aggregate=aggregate, shard_records_per_s=_LIFTED, shard_bytes_per_s=_LIFTED)
    async with aws.client("kinesis") as client:
        publisher = KinesisPublisher(client, STREAM, settings)
        lifecycle.settle_memory()
        started_s = time.perf_counter()
        for page in given:
            await publisher.publish([Record(key, data, "live") for key, data in page])
        return time.perf_counter() - started_s


async def tidegate(url: str, given: Sequence[Page]) -> float:
    return await _ours(url, given, aggregate=False)


async def tidegate_aggregated(url: str, given: Sequence[Page]) -> float:
    return await _ours(url, given, aggregate=True)


async def aiokpl(url: str, given: Sequence[Page]) -> float:
    config = Config(
        region="eu-central-1",
        endpoint_url=url,
        rate_limit_records_per_sec_per_shard=_LIFTED,
        rate_limit_bytes_per_sec_per_shard=_LIFTED,
    )
    async with KplProducer(config) as producer:
        started_s = time.perf_counter()
        outcomes = [
            await producer.put_record(stream=STREAM, partition_key=key, data=data)
            for page in given
            for key, data in page
        ]
        await producer.flush()
        results = [await outcome.wait() for outcome in outcomes]
        taken_s = time.perf_counter() - started_s
    assert all(result.success for result in results)
    return taken_s


async def async_kinesis(url: str, given: Sequence[Page]) -> float:
    texts = [(key, data.decode()) for page in given for key, data in page]
    made = PeerProducer(
        STREAM,
        endpoint_url=url,
        region_name="eu-central-1",
        processor=StringProcessor(),
        put_rate_limit_per_shard=10**9,
        put_bandwidth_limit_per_shard=10**9,
    )
    async with made as producer:
        started_s = time.perf_counter()
        for key, text in texts:
            await producer.put(text, partition_key=key)
        await producer.flush()
        return time.perf_counter() - started_s


SIDES: dict[str, Side] = {
    "tidegate": tidegate,
    "tidegate-aggregated": tidegate_aggregated,
    "aiokpl": aiokpl,
    "async-kinesis": async_kinesis,
}
