"""The verb estimate: how large a deployment has to be, and what it costs a month."""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path

import msgspec

from tidegate import estimate
from tidegate.errors import Fatal
from tidegate.estimate import PROFILES, Load
from tidegate.prices import PriceTable


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    about = "shards, tasks, ACUs, DynamoDB units and a monthly cost, from a dated table of list prices"
    parser = verbs.add_parser("estimate", help=about, description=about)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--events-per-second", type=float, metavar="N", help="changes, on average")
    what.add_argument("--list-prices", action="store_true", help="print the table of prices, as --prices takes it")
    parser.add_argument("--size", type=int, default=1_000, metavar="BYTES", help="of an event on the stream (1000)")
    parser.add_argument("--entities", type=int, default=3, metavar="N", help="kinds of rows, a source each (3)")
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="in the front office (1000000)")
    parser.add_argument("--reads-per-second", type=float, default=5.0, metavar="N", help="of the API, on average (5)")
    parser.add_argument("--profile", choices=tuple(PROFILES), default="small", help="what there is at least (small)")
    parser.add_argument(
        "--prices", type=Path, metavar="FILE", help="a table of your own, of another region or contract"
    )
    parser.add_argument("--brief", action="store_true", help="without the assumptions")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run_estimate)


def run_estimate(arguments: argparse.Namespace) -> int:
    prices = PriceTable() if arguments.prices is None else _prices(arguments.prices)
    if arguments.list_prices:
        print(prices.written(), end="")
        return 0
    try:
        load = Load(
            events_s=arguments.events_per_second, size=arguments.size, entities=arguments.entities, rows=arguments.rows,
            reads_s=arguments.reads_per_second,
        )  # fmt: skip
    except ValueError as error:
        raise Fatal(f"cannot estimate that: {error}") from error
    found = estimate.estimate(load, arguments.profile, prices=prices)
    if arguments.json:
        answer = {
            "load": load, "profile": found.profile, "size": found.size, "items": found.items, "dollars": found.dollars,
            "lambda_items": found.lambda_items, "lambda_dollars": found.lambda_dollars,
            "prices": {"region": prices.region, "date": prices.date, "changed": sorted(prices.changed)},
            "assumptions": found.assumptions,
        }  # fmt: skip
        print(msgspec.json.encode(answer).decode())
        return 0
    print("\n".join(estimate.report(found)))
    if not arguments.brief:
        print("\n" + "\n".join(estimate.notes(found.assumptions, found.prices)))
    return 0


def _prices(path: Path) -> PriceTable:
    try:
        return PriceTable.read(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise Fatal(
            f"cannot use the prices of {path}: {error}; `tidegate estimate --list-prices` shows how it looks"
        ) from error
