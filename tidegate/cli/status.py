"""The verb status: how this deployment is, in one page and one exit code. Here are its arguments."""

from __future__ import annotations

import argparse
import importlib
import os

from tidegate.status import SECTIONS, Limits

_ABOUT = """\
Ask the database, the lease tables, the stream and the pollers' cursors how they are. Exit code 0: all is well; 1: something
is not, or a server that should be asked does not answer. Reads only. The variables are those of worker and poller, as a
member of tidegate_operator.
"""


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    limits = Limits()
    status = verbs.add_parser(
        "status", help="freshness, lag, dead letters, outbox, leases, sources", description=_ABOUT
    )
    status.add_argument("--bubble", metavar="MODULE", default=os.environ.get("TIDEGATE_BUBBLE"), help="import path")
    status.add_argument(
        "--skip", action="append", default=[], choices=SECTIONS, help="do not look at this; repeat for several"
    )
    status.add_argument("--max-age-s", type=float, default=limits.age_s, help=f"of a source ({limits.age_s:g})")
    status.add_argument("--max-lag-s", type=float, default=limits.lag_s, help=f"of a shard ({limits.lag_s:g})")
    status.add_argument("--max-letters", type=int, default=limits.letters, help=f"open ones ({limits.letters})")
    status.add_argument(
        "--max-outbox-age-s", type=float, default=limits.outbox_age_s, help=f"of a change ({limits.outbox_age_s:g})"
    )
    status.add_argument(
        "--watch-s", type=float, metavar="S", help="watch leases for signs of life; default one and a half renewals"
    )
    status.add_argument("--no-lag", action="store_true", help="do not read the shards: one read of each otherwise")
    status.add_argument("--all", action="store_true", help="a line for each shard, also when there are many")
    status.add_argument("--json", action="store_true", help="print one JSON object")
    status.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    # Drivers take longer to import than most verbs need.
    code: int = importlib.import_module("tidegate.cli.status_run").run_status(arguments)
    return code
