"""Rows per second of a whole worker: HTTP, decoding, coalescing, one transaction a batch in PostgreSQL, checkpoint.

Three loads: fresh rows, updates of all of them, and a replay of those updates. Each load of each side runs in a process of
its own, in turns, on the same server with the same table; its best turn counts. `_project_worker` and `_project_peers` say
what each side does. After the loads every side's table must be the same. `few` is no side: it makes the peer's table
once more, in the bare way, for that comparison.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import resource
from collections.abc import Coroutine, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

from bench import Result
from bench._project_database import BenchDatabase, database
from bench._project_stream import FEW, RECORDS, serving, stream_of
from tidegate import lifecycle

ROUNDS = 3
LOADS = {"fresh": 1, "update": 2, "replay": 2}
"""And the edition of the stream that each brings."""
_LOOK = "look"
"""What else the bare sides do with a replay, as they know that it is one: they only ask whether all rows are there."""
BASELINES = {
    "fresh": {"bare-asyncpg": "fresh"},
    "update": {"bare-asyncpg": "update"},
    "replay": {"bare-asyncpg-replay": "replay", "bare-asyncpg-look": _LOOK},
}
"""For each load the names under which it is compared, and what the bare sides do."""
PAIRED = ("tidegate", "bare-2000", "tidegate", "bare-500")
"""One round. Larger transactions suit fresh rows, smaller ones updates: the limit is the better of both."""


class Turn(NamedTuple):
    rows_per_s: float
    most_mib: float


Best = dict[tuple[str, str], Turn]


def run() -> Iterator[Result]:
    with serving() as url, asyncio.Runner() as runner:
        indexed, plain = runner.run(_measure(url))
    for load in LOADS:
        ours = indexed["tidegate", load].rows_per_s
        yield from _against_limit(f"project-{load}", indexed, load)
        yield Result.of(f"project-{load}", "rows/s", ours, "row-at-a-time", indexed["peer", load].rows_per_s)
    for load in LOADS:
        yield from _against_limit(f"project-{load}-without-indexes", plain, load)
    most_mib = max(turn.most_mib for best in (indexed, plain) for (side, _), turn in best.items() if side == "tidegate")
    yield Result(
        bench="project-memory", value=round(most_mib), unit="MiB, the process at most", baseline="allowed",
        baseline_value=300, ratio=round(300 / most_mib, 2),
    )  # fmt: skip


def _against_limit(name: str, best: Best, load: str) -> Iterator[Result]:
    for baseline, done in BASELINES[load].items():
        limit = max(turn.rows_per_s for (side, of), turn in best.items() if side.startswith("bare") and of == done)
        yield Result.of(name, "rows/s", best["tidegate", load].rows_per_s, baseline, limit)


async def _measure(url: str) -> tuple[Best, Best]:
    """The best turn of each side and load: with the table's indexes, and without all but the key's."""
    indexed: Best = {}
    plain: Best = {}
    sums: dict[str, set[str]] = {"all": set(), "few": set()}
    async with database() as made:
        for side in PAIRED * ROUNDS:
            sums["all"].add(await _loads(made, side, url, indexed))
        for side in ("peer", "few"):
            sums["few"].add(await _loads(made, side, url, indexed if side == "peer" else {}))
        await made.drop_indexes()
        for side in PAIRED:
            sums["all"].add(await _loads(made, side, url, plain))
    assert all(len(found) == 1 for found in sums.values()), sums
    return indexed, plain


async def _loads(made: BenchDatabase, side: str, url: str, best: Best) -> str:
    """All in their order; returns what the table holds then."""
    await made.empty()
    for load in (*LOADS, _LOOK) if side.startswith("bare") else LOADS:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            turn = await asyncio.get_running_loop().run_in_executor(pool, measure, side, load, url, made.dsn)
        known = best.get((side, load), turn)
        best[side, load] = Turn(max(turn.rows_per_s, known.rows_per_s), max(turn.most_mib, known.most_mib))
        await made.settle()
    return await made.checksum()


def measure(side: str, load: str, url: str, dsn: str) -> Turn:
    os.environ |= {
        "AWS_DEFAULT_REGION": "eu-central-1", "AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_ENDPOINT_URL_KINESIS": url,
    }  # fmt: skip
    lifecycle.set_up_logging("error")
    # async-kinesis is closed with reads under way, and both it and the event loop say so.
    for name in ("kinesis", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    rows_per_s = asyncio.run(_side(side, load, url, dsn))
    return Turn(rows_per_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _side(side: str, load: str, url: str, dsn: str) -> Coroutine[Any, Any, float]:
    # Each process imports what its side needs, and nothing else.
    if side == "tidegate":
        from bench._project_worker import project  # noqa: PLC0415

        return project(stream_of(LOADS[load]), dsn, RECORDS)
    from bench import _project_peers as peers  # noqa: PLC0415

    edition = LOADS["replay" if load == _LOOK else load]
    if side == "peer":
        return peers.peer(dsn, url, edition)
    if side == "few":
        return peers.bare(dsn, edition, each=FEW, batch=FEW)
    batch = int(side.removeprefix("bare-"))
    return peers.bare(dsn, edition, each=None, batch=batch, only_looks=load == _LOOK)
