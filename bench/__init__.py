"""Benchmarks: each module has `run() -> Iterator[Result]`; ours and its baselines are measured in the same run."""

from __future__ import annotations

import msgspec


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One line of output. `ratio` > 1 means that ours is better."""

    bench: str
    value: float
    unit: str
    baseline: str
    baseline_value: float
    ratio: float
