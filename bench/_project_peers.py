"""The two things that the worker is measured against.

bare     rows from memory into the table, in the best way that `upsert` found: the limit
peer     the job as most people write it: async-kinesis, and one INSERT … ON CONFLICT for each record
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal

import asyncpg
from kinesis import Consumer
from kinesis.aggregators import SimpleAggregator
from kinesis.processors import Processor

from bench._project_stream import COLUMNS, FEW, SHARDS, shard_rows, stream_of
from bench._ways import connections, copy_text, look, seconds, upsert

_CONNECTIONS = 5
_ONE = upsert(f"VALUES ({', '.join(f'${number}' for number in range(1, len(COLUMNS) + 1))})")
_STATUSES = {"booked", "in_transit", "delivered"}


async def bare(dsn: str, edition: int, *, each: int | None, batch: int, only_looks: bool = False) -> float:
    """Rows a second, of the first rows of each shard or all. Who knows that all rows are there already need only look."""
    shards = [shard_rows(shard, edition)[:each] for shard in range(SHARDS)]
    gc.freeze()
    async with connections(dsn, _CONNECTIONS) as opened:
        taken_s = await seconds(look if only_looks else copy_text, opened, shards, batch)
    return sum(map(len, shards)) / taken_s


class _Json(Processor, SimpleAggregator):  # type: ignore[misc]  # it has no types
    """Base64 and aggregates aside, what the records hold is the author's business."""

    def deserialize(self, data: bytes) -> bytes:
        return data


async def peer(dsn: str, url: str, edition: int) -> float:
    """Rows a second."""
    expected = FEW * SHARDS
    consumer = Consumer(
        stream_of(edition, whole=False), endpoint_url=url, processor=_Json(), record_limit=FEW, shard_fetch_rate=1_000,
        sleep_time_no_records=0,
    )  # fmt: skip
    connection = await asyncpg.connect(dsn, server_settings={"jit": "off"})
    try:
        async with consumer:
            started_s = time.perf_counter()
            count = 0
            async for data in consumer:
                await connection.execute(_ONE, *_row(data))
                count += 1
                if count == expected:
                    break
            return count / (time.perf_counter() - started_s)
    finally:
        await connection.close()


def _row(data: bytes) -> Iterator[object]:
    """The values by hand; what is not of the right type must not get in."""
    read = json.loads(data)
    shipment = read["data"]
    if shipment["status"] not in _STATUSES or not isinstance(shipment["express"], bool):
        raise ValueError(shipment)
    yield shipment["number"]
    yield str(shipment["sender"])
    yield str(shipment["recipient"])
    yield shipment["status"]
    yield Decimal(shipment["shipping_cost"])
    yield shipment["express"]
    yield int(shipment["pieces"])
    yield from map(int, read["tidegateversion"].split("."))
    yield False
    yield read["id"]
    yield datetime.fromisoformat(read["time"])
