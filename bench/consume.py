"""Records per second of a whole consumer on one core, from a Kinesis over HTTP to one typed event for each record.

A server process on another core answers with prepared replies. Each side runs in a process of its own, in turns, and
its best turn counts, by the wall's clock. `bench/_consumers.py` says what each side does. The second kind of line says
by how much the greatest memory of our process grew, after its first pages, while it read all the others.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import resource
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from bench import Result
from bench._kinesis import serving
from bench._stream import PAGE_RECORDS, page
from tidegate import lifecycle

SHARDS = 10
ROUNDS = 5
# Ours reads more, or it would be over at once.
PAGES = {"tidegate": 12, "async-kinesis": 1, "aiobotocore": 1, "aiobotocore-msgspec": 1}
# As many as a shard holds at most: one in hand, one read ahead, and one that is just coming.
_WARMING_PAGES = 3
_MIB = 1024 * 1024


class Turn(NamedTuple):
    records_per_s: float
    grown_mib: float


def run() -> Iterator[Result]:
    turns: dict[str, list[Turn]] = {side: [] for side in PAGES}
    with serving(SHARDS, max(PAGES.values())) as url:
        for _ in range(ROUNDS):
            for side, pages in PAGES.items():
                turns[side].append(_alone(side, url, pages))
    best = {side: max(turn.records_per_s for turn in taken) for side, taken in turns.items()}
    for side in list(PAGES)[1:]:
        yield Result.of("consume", "records/s", best["tidegate"], side, best[side])
    yield _memory(max(turn.grown_mib for turn in turns["tidegate"]))


def _memory(grown_mib: float) -> Result:
    """The worst turn's growth, beside what was read meanwhile: what memory would grow by if all of it were kept."""
    read_mib = SHARDS * PAGES["tidegate"] * len(page(0)) / _MIB
    return Result(
        bench="consume-memory",
        value=round(grown_mib, 1),
        unit="MiB growth",
        baseline="MiB read",
        baseline_value=round(read_mib),
        ratio=round(read_mib / max(grown_mib, 1.0), 2),
    )


def _alone(side: str, url: str, pages: int) -> Turn:
    """In a fresh process, so that no side inherits the memory of another."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, side, url, pages).result()


def measure(side: str, url: str, pages: int) -> Turn:
    from bench._consumers import SIDES  # noqa: PLC0415  (the parent needs none of it)

    os.environ |= {
        "AWS_DEFAULT_REGION": "eu-central-1", "AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench",
    }  # fmt: skip
    lifecycle.set_up_logging("error")
    # async-kinesis is closed with reads under way, and both it and the event loop say so.
    for name in ("kinesis", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if side == "tidegate":
        asyncio.run(SIDES[side](url, SHARDS, _WARMING_PAGES))
    before_mib = _most_mib()
    taken_s = asyncio.run(SIDES[side](url, SHARDS, pages))
    return Turn(SHARDS * pages * PAGE_RECORDS / taken_s, _most_mib() - before_mib)


def _most_mib() -> float:
    """The most memory that this process ever had (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
