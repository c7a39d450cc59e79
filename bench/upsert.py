"""Which way brings rows into the table fastest, by rows in a transaction and connections: rows/s, fresh and updates.

No worker here: rows lie in memory. The figures behind docs/decisions/0016-bulk-write.md.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

from bench import Result
from bench._project_database import BenchDatabase, database
from bench._project_stream import EDITIONS, Row, shard_rows
from bench._ways import WAYS, connections, seconds

SHARDS = 4
BATCHES = (500, 2_000, 5_000)
CONNECTIONS = (1, 2, 4)
ROUNDS = 2
LOADS = ("fresh", "update")


def run() -> Iterator[Result]:
    editions = {edition: [shard_rows(shard, edition) for shard in range(SHARDS)] for edition in EDITIONS}
    gc.freeze()
    with asyncio.Runner() as runner:
        best = runner.run(_measure(editions))
    for (batch, count, way, load), rows_per_s in best.items():
        base = best[batch, count, "unnest", load]
        yield Result.of(f"upsert-{load}-{batch}x{count}-{way}", "rows/s", rows_per_s, "unnest", base)


async def _measure(editions: dict[int, list[list[Row]]]) -> dict[tuple[int, int, str, str], float]:
    best: dict[tuple[int, int, str, str], float] = {}
    async with database() as made:
        for batch in BATCHES:
            for count in CONNECTIONS:
                for way in list(WAYS) * ROUNDS:
                    rates = await _turn(made, way, editions, batch, count)
                    for load, rate in zip(LOADS, rates, strict=True):
                        best[batch, count, way, load] = max(best.get((batch, count, way, load), 0.0), rate)
    return best


async def _turn(
    made: BenchDatabase, way: str, editions: dict[int, list[list[Row]]], batch: int, count: int
) -> list[float]:
    rates = []
    await made.empty()
    async with connections(made.dsn, count) as opened:
        for shards in editions.values():
            taken_s = await seconds(WAYS[way], opened, shards, batch)
            rates.append(sum(map(len, shards)) / taken_s)
            await made.settle()
    return rates
