"""The verb erase: remove one row's data everywhere, and keep it out. Here are its arguments."""

from __future__ import annotations

import argparse
import importlib
import os

_ABOUT = """\
Remove one row's data everywhere, for the law's sake, and keep it out: the row becomes an empty tombstone that wins over
every event, its dead letters and waiting effects go. Its key stays in the tombstone. Needs the rights of the worker's
login. What it cannot reach (the stream until its retention, related rows, backups, the back office) it lists.
"""


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    erase = verbs.add_parser("erase", help="remove one row's data everywhere, and keep it out", description=_ABOUT)
    erase.add_argument("entity", metavar="ENTITY", help="as the bubble calls it, such as customer")
    erase.add_argument("key", metavar="KEY", help="the row's key, as text")
    erase.add_argument("--bubble", metavar="MODULE", default=os.environ.get("TIDEGATE_BUBBLE"), help="import path")
    erase.add_argument("--related", action="store_true", help="look through all tables for rows that name the key")
    erase.add_argument(
        "--undo", action="store_true", help="let the key in again; its data does not come back by itself"
    )
    erase.add_argument("--yes", action="store_true", help="do not ask")
    erase.add_argument("--dry-run", action="store_true", help="say what would be removed, change nothing")
    erase.add_argument("--json", action="store_true", help="print one JSON object")
    erase.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    # Drivers take longer to import than most verbs need.
    code: int = importlib.import_module("tidegate.cli.erase_run").run_erase(arguments)
    return code
