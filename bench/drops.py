"""Rows per second of reading one large dropped file, on one core, against the standard library's own reader; and memory.

The file has some hundred MiB and one row in a thousand that cannot be read. Ours tells these with their lines and goes on
behind them; `csv.DictReader` is lenient and notices nothing. Each side runs in a process of its own, in turns, and its best
turn counts, by the processor's clock. The second line is by how much the greatest memory of our process grew over the whole file.
"""

from __future__ import annotations

import csv
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from bench import Result
from poller.unpacked import Unpacked, page_of
from tidegate.drops import CsvDrop
from tidegate.feeds import Env

ROWS = 1_000_000
ROUNDS = 2
PAGE_ROWS = 2_000
FEED = CsvDrop(bucket=Env("BUCKET"), prefix="", key="id", delimiter=";", decimal_comma=("price",))
_MIB = 1024 * 1024


class Turn(NamedTuple):
    rows: int
    faults: int
    rows_per_s: float
    grown_mib: float


def run() -> Iterator[Result]:
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder:
        path = Path(folder) / "drop.csv"
        _write(path)
        turns: dict[str, list[Turn]] = {"tidegate": [], "csv.DictReader": []}
        for _ in range(ROUNDS):
            for side, taken in turns.items():
                taken.append(_alone(side, path))
        size_mib = path.stat().st_size / _MIB
    best = {side: max(turn.rows_per_s for turn in taken) for side, taken in turns.items()}
    assert {(turn.rows, turn.faults) for turn in turns["tidegate"]} == {(ROWS, ROWS // 1_000)}
    yield Result.of("drops", "rows/s", best["tidegate"], "csv.DictReader", best["csv.DictReader"])
    grown_mib = max(turn.grown_mib for turn in turns["tidegate"])
    yield Result(
        bench="drops-memory",
        value=round(grown_mib, 1),
        unit="MiB growth",
        baseline="MiB read",
        baseline_value=round(size_mib),
        ratio=round(size_mib / max(grown_mib, 1.0), 2),
    )


def _write(path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write("id;name;price;note;changed\n")
        for number in range(ROWS):
            if number % 1_000 == 500:
                file.write(f'{number};"never closed;1,5;x;y\n')
            else:
                file.write(
                    f'{number};"Name ""{number}""; AG";1.{number % 1000:03},50;ein Vermerk;2026-11-21 05:55:03\n'
                )


def _alone(side: str, path: Path) -> Turn:
    """In a fresh process, so that no side inherits the memory of another."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, side, path).result()


def measure(side: str, path: Path) -> Turn:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started_s = time.process_time()
    rows, faults = (_ours if side == "tidegate" else _stock)(path)
    taken_s = time.process_time() - started_s
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return Turn(rows, faults, rows / taken_s, grown / 1024)


def _ours(path: Path) -> tuple[int, int]:
    count = faults = 0
    unpacked = Unpacked(path, "drop.csv", FEED)
    rows = unpacked.rows()
    while page := page_of(unpacked, rows, PAGE_ROWS):
        count += len(page)
        faults += sum(bool(row.fault) for row in page)
    return count, faults


def _stock(path: Path) -> tuple[int, int]:
    with path.open(encoding="utf-8", newline="") as file:
        return sum(1 for _ in csv.DictReader(file, delimiter=";")), 0
