"""`tidegate ops run`: run any verb inside the network of a deployment on Amazon ECS, as a one-off task."""

from __future__ import annotations

import argparse
import importlib
import os

_EPILOG = """\
examples
  tidegate ops run --name parcels -- leases list
  tidegate ops run --name parcels --as owner -- migrate --expand
  tidegate ops run --name parcels --as worker -- erase customer C1234 --yes

The exit code is the verb's. What it prints is printed here; Ctrl-C stops the task.
"""


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    group = verbs.add_parser("ops", help="run a verb inside the network of a deployment on Amazon ECS")
    each = group.add_subparsers(title="verbs", metavar="VERB", required=True)
    verb = each.add_parser(
        "run",
        help="start a one-off task, show what it prints, end with its exit code",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument("--name", default=os.environ.get("TIDEGATE_OPS_NAME"), help="the deployment's Name")
    verb.add_argument(
        "--as",
        dest="role",
        choices=("operator", "owner", "worker", "poller"),
        default="operator",
        help="whose task definition, and with it whose login and rights",
    )
    verb.add_argument("--region", help="where it is; default AWS_REGION")
    verb.add_argument("--timeout-s", type=float, default=1800.0, help="then the task is stopped")
    verb.add_argument("verb", nargs="+", metavar="-- VERB", help="the verb with its arguments, after --")
    verb.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    # AWS' client takes longer to import than most verbs need.
    code: int = importlib.import_module("tidegate.cli.ops_run").run(arguments)
    return code
