"""Memory of a poller's index of 10 million rows, with keys of twelve characters, against what docs/SOURCES.md states.

It is filled page by page, as a first load does, in a process of its own; by how much the process' greatest memory grew
is what counts, everything that was taken while it grew included.
"""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from bench import Result

ROWS = 10_000_000
PAGE_ROWS = 1_000
STATED_MIB = 600


def run() -> Iterator[Result]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        grown_mib = pool.submit(measure).result()
    yield Result(
        bench="index-memory", value=round(grown_mib), unit="MiB", baseline="stated", baseline_value=STATED_MIB,
        ratio=round(STATED_MIB / grown_mib, 2),
    )  # fmt: skip


def measure() -> float:
    from bench._office import key_of  # noqa: PLC0415  (the parent needs none of it)
    from poller.index import Index  # noqa: PLC0415
    from poller.snapshot import Entry  # noqa: PLC0415

    before_mib = _most_mib()
    index = Index()
    for read, at in enumerate(range(0, ROWS, PAGE_ROWS), 1):
        numbers = range(at, at + PAGE_ROWS)
        index.apply({key_of(each): Entry(0, each, 1, read, 1, each.to_bytes(8, "little")) for each in numbers})
    assert len(index) == ROWS
    return _most_mib() - before_mib


def _most_mib() -> float:
    # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
