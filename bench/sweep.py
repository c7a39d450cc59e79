"""A sweep over five million rows: how long, and the most memory that its process ever had.

The poller's index holds every row; a server shows them in pages of 5,000, of which one row in 50,000 is gone and one is
changed in silence. Ours asks again by key before it believes that a row is gone. The baseline is what people write by
hand, a dictionary of digests and a set of keys, which only compares. Each side runs in a process of its own.
"""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from bench import Result
from bench._office import serving
from tidegate import lifecycle

ROWS = 5_000_000
EVERY = 50_000


class Turn(NamedTuple):
    taken_s: float
    most_mib: float


def run() -> Iterator[Result]:
    turns: dict[str, Turn] = {}
    for side in ("tidegate", "dictionary"):
        with serving(ROWS) as office, ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            turns[side] = pool.submit(measure, side, office).result()
    ours, theirs = turns["tidegate"], turns["dictionary"]
    yield Result.of("sweep", "rows/s", ROWS / ours.taken_s, "dictionary", ROWS / theirs.taken_s)
    yield Result(
        bench="sweep-memory", value=round(ours.most_mib), unit="MiB", baseline="dictionary",
        baseline_value=round(theirs.most_mib), ratio=round(theirs.most_mib / ours.most_mib, 2),
    )  # fmt: skip


def measure(side: str, office: str) -> Turn:
    from bench import _pollers  # noqa: PLC0415  (the parent needs none of it)

    lifecycle.set_up_logging("error")
    sides = {"tidegate": _pollers.tidegate_sweep, "dictionary": _pollers.plain_sweep}
    taken_s = sides[side](office, ROWS, EVERY)
    # Linux counts in KiB.
    return Turn(taken_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
