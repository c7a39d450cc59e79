"""What `tidegate simulate leases` does: one simulation, its figures on standard output, its progress on standard error."""

from __future__ import annotations

import sys

import msgspec

from local.fleet.report import lines
from local.fleet.simulation import Plan, simulate


def run(*, shards: int, workers: int, seed: int, minutes: float, as_json: bool) -> int:
    """The exit code: 0 when every invariant held, else 1."""
    plan = Plan(shards=shards, workers=workers, seed=seed, minutes=minutes)
    report = simulate(plan, lambda text: print(text, file=sys.stderr, flush=True))
    if as_json:
        print(msgspec.json.encode(report).decode())
    else:
        print("\n".join(lines(report)))
    return 0 if report.is_sound else 1
