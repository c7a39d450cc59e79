"""Verbs about the outbox: carry-over, for a database that was restored. Here are their arguments."""

from __future__ import annotations

import argparse
import importlib

_ABOUT = """\
After the database was restored to an earlier time, and before a worker starts on it: tell it what the database that was left
(TIDEGATE_LEFT_DATABASE_URL) has sent, or given up, since. Without that every destination is told again of what the workers
apply again. TIDEGATE_DATABASE_URL is the restored database, with the worker's login. Safe to repeat.
"""


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    group = verbs.add_parser("outbox", help="what destinations are told of, after a restore of the database")
    each = group.add_subparsers(title="verbs", metavar="VERB", required=True)
    carried = each.add_parser("carry-over", help="what was sent before a restore is not sent again", description=_ABOUT)
    carried.add_argument("--dry-run", action="store_true", help="say what would be done, change nothing")
    carried.add_argument("--json", action="store_true", help="print one JSON object")
    carried.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    # Drivers take longer to import than most verbs need.
    code: int = importlib.import_module("tidegate.cli.outbox_run").run_carry_over(arguments)
    return code
