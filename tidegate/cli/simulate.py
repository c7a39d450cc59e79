"""The verb simulate: a whole fleet on virtual time, with faults, in one process."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable

from tidegate.errors import Fatal


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    simulate = verbs.add_parser("simulate", help="run a fleet on virtual time, with faults, and count what it does")
    what = simulate.add_subparsers(title="what", metavar="WHAT", required=True)
    leases = what.add_parser("leases", help="how workers share leases: convergence, moves, take-over, cost")
    leases.add_argument("--shards", metavar="N", type=_number(int, 1), default=500, help="leases to share (500)")
    leases.add_argument("--workers", metavar="M", type=_number(int, 2), default=20, help="processes, 2 or more (20)")
    leases.add_argument("--seed", metavar="S", type=_number(int, 0), default=1, help="same seed, same result (1)")
    leases.add_argument(
        "--minutes", metavar="X", type=_number(float, 0.5), default=5.0, help="virtual minutes of the active phase (5)"
    )
    leases.add_argument("--json", action="store_true", help="print one JSON object")
    leases.set_defaults(run=run_leases)


def _number(kind: Callable[[str], float], least: float) -> Callable[[str], float]:
    """A type for argparse: a finite number, not below `least`."""

    def number(text: str) -> float:
        value = kind(text)
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a number from {least} on")
        return value

    number.__name__ = "whole number" if kind is int else "number"
    return number


def run_leases(arguments: argparse.Namespace) -> int:
    """0 when every invariant held, 1 when one broke; what it costs is for the reader to judge."""
    # By name, because the kernel imports none of what stands above it.
    try:
        fleet = importlib.import_module("local.fleet.command")
    except ModuleNotFoundError as error:
        raise Fatal(f"the simulation is not installed ({error}); run: pip install 'tidegate[local]'") from error
    code: int = fleet.run(
        shards=arguments.shards,
        workers=arguments.workers,
        seed=arguments.seed,
        minutes=arguments.minutes,
        as_json=arguments.json,
    )
    return code
