"""Rows per second of a whole poller on one core, from the back office's HTTP answer to acknowledged by Kinesis.

The same server gives the same pages to both sides, in turns; each turn is a process of its own, and the best one counts,
by the wall's clock. `bench/_pollers.py` says what each side does: ours decodes, translates, validates, compares with its
index, journals, publishes and waits for Kinesis; dlt extracts, normalizes and loads, in one run to the same Kinesis by the
AWS SDK (baseline `dlt`), in another into a destination that throws its rows away (`dlt-nowhere`).
`bench/publish.py` follows: the publisher alone, against its peers.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from bench import Result, publish
from bench._office import serving as serving_office
from bench._puts import serving as serving_kinesis
from tidegate import lifecycle

ROWS = 60_000
ROUNDS = 3


def run() -> Iterator[Result]:
    best = dict.fromkeys(("tidegate", "dlt", "dlt-nowhere"), 0.0)
    with serving_office(ROWS) as office, serving_kinesis(4) as kinesis:
        for _ in range(ROUNDS):
            for side in best:
                best[side] = max(best[side], ROWS / _alone(side, office, kinesis))
    for side in list(best)[1:]:
        yield Result.of("poll", "rows/s", best["tidegate"], side, best[side])
    yield from publish.run()


def _alone(side: str, office: str, kinesis: str) -> float:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, side, office, kinesis).result()


def measure(side: str, office: str, kinesis: str) -> float:
    from bench import _pollers  # noqa: PLC0415  (the parent needs none of it)

    lifecycle.set_up_logging("error")
    sides = {"tidegate": _pollers.tidegate_poll, "dlt": _pollers.dlt_poll, "dlt-nowhere": _pollers.dlt_nowhere}
    return sides[side](office, kinesis, ROWS)
