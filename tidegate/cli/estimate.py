"""The verb estimate: how large a deployment has to be, and what it costs a month."""

from __future__ import annotations

import argparse

import msgspec

from tidegate import estimate
from tidegate.errors import Fatal
from tidegate.estimate import PROFILES, Load
from tidegate.prices import DATE, REGION


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    about = "shards, tasks, ACUs, DynamoDB units and a monthly cost, from a dated table of list prices"
    parser = verbs.add_parser("estimate", help=about, description=about)
    parser.add_argument("--events-per-second", type=float, required=True, metavar="N", help="changes, on average")
    parser.add_argument("--size", type=int, default=1_000, metavar="BYTES", help="of an event on the stream (1000)")
    parser.add_argument("--entities", type=int, default=3, metavar="N", help="kinds of rows, a source each (3)")
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="in the front office (1000000)")
    parser.add_argument("--reads-per-second", type=float, default=5.0, metavar="N", help="of the API, on average (5)")
    parser.add_argument("--profile", choices=tuple(PROFILES), default="small", help="what there is at least (small)")
    parser.add_argument("--brief", action="store_true", help="without the assumptions")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run_estimate)


def run_estimate(arguments: argparse.Namespace) -> int:
    try:
        load = Load(
            events_s=arguments.events_per_second, size=arguments.size, entities=arguments.entities, rows=arguments.rows,
            reads_s=arguments.reads_per_second,
        )  # fmt: skip
    except ValueError as error:
        raise Fatal(f"cannot estimate that: {error}") from error
    found = estimate.estimate(load, arguments.profile)
    if arguments.json:
        items = [{**msgspec.to_builtins(item), "dollars": item.dollars} for item in found.items]
        answer = {
            "load": load, "profile": found.profile, "size": found.size, "items": items, "dollars": found.dollars,
            "lambda_dollars": found.lambda_dollars, "prices": {"region": REGION, "date": DATE},
            "assumptions": found.assumptions,
        }  # fmt: skip
        print(msgspec.json.encode(answer).decode())
        return 0
    print("\n".join(estimate.report(found)))
    if not arguments.brief:
        print("\n" + "\n".join(estimate.notes(found.assumptions)))
    return 0
