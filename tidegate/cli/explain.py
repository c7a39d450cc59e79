"""The verb explain: where one row stands, and why. Here are its arguments."""

from __future__ import annotations

import argparse
import importlib
import os

_ABOUT = """\
Say of one row what its poller saw last, in which shard its events travel and how far the worker is, what the table shows, its
dead letters and outbox, and who may see it. Reads only; needs the variables of worker and poller, as a member of
tidegate_operator. Exit code 1 when something could not be asked.
"""


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    explain = verbs.add_parser("explain", help="where one row stands, why, and who may see it", description=_ABOUT)
    explain.add_argument("entity", metavar="ENTITY", help="as the bubble calls it, such as customer")
    explain.add_argument("key", metavar="KEY", help="the row's key, as text")
    explain.add_argument("--bubble", metavar="MODULE", default=os.environ.get("TIDEGATE_BUBBLE"), help="import path")
    explain.add_argument("--ask", action="store_true", help="ask the back office for the row, too: one request")
    explain.add_argument("--content", action="store_true", help="show the content of the rows, which may be personal")
    explain.add_argument("--json", action="store_true", help="print one JSON object")
    explain.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    # Drivers take longer to import than most verbs need.
    code: int = importlib.import_module("tidegate.cli.explain_run").run_explain(arguments)
    return code
