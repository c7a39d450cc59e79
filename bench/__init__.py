"""Benchmarks: each module has `run() -> Iterator[Result]`; ours and its baselines are measured in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One line of output. `ratio` > 1 means that ours is better."""

    bench: str
    value: float
    unit: str
    baseline: str
    baseline_value: float
    ratio: float

    @classmethod
    def of(cls, bench: str, unit: str, value: float, baseline: str, baseline_value: float) -> Result:
        """A rate, where more is better."""
        return cls(
            bench=bench,
            value=round(value),
            unit=unit,
            baseline=baseline,
            baseline_value=round(baseline_value),
            ratio=round(value / baseline_value, 2),
        )


def seconds(work: Callable[[], object]) -> float:
    """How long it takes once."""
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s
