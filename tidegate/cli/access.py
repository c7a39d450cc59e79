"""Verbs about access: what a caller may see, and what is kept of a user. Here are their arguments."""

from __future__ import annotations

import argparse
import importlib
import os

Parser = argparse.ArgumentParser

_SHOW = """\
Explain what a caller may see: for each entity by which of the caller's viewers, how many rows, and the policy that decides.
The rows are counted by the database itself under that policy, with the reader's rights; without TIDEGATE_DATABASE_URL
nothing is counted, and the policy is the one that `tidegate migrate` would set.
"""
_FORGET = """\
Delete whatever is kept of a user who signs in: their own attributes (TIDEGATE_USER_TABLE) and the events that they sent
(TIDEGATE_DATABASE_URL, as the worker's login). Each is done if its variable is set. The rows of entities are not
touched; see `tidegate erase`.
"""


def add_verbs(verbs: argparse._SubParsersAction[Parser]) -> None:
    about = "who may see what, and what users keep with us"
    each = verbs.add_parser("access", help=about, description=about).add_subparsers(metavar="VERB", required=True)
    show = each.add_parser("show", help="explain what a caller may see", description=_SHOW)
    show.add_argument("--bubble", metavar="MODULE", default=os.environ.get("TIDEGATE_BUBBLE"), help="import path")
    show.add_argument(
        "--as",
        dest="who",
        metavar="WHO",
        action="append",
        required=True,
        help='a viewer, customer:1001 (several times for several), the claims, {"username": "customer-1001"}, or a file '
        "with a token, @FILE, whose signature is not looked at",
    )
    show.add_argument("--entity", metavar="NAME", help="this entity only")
    show.add_argument("--limit", type=int, default=100_000, help="count no further than this (default %(default)s)")
    show.add_argument("--json", action="store_true", help="print one JSON object")
    show.set_defaults(run=_run_show)
    forget = each.add_parser("forget", help="delete what is kept of a user", description=_FORGET)
    forget.add_argument("subject", metavar="SUBJECT", help="the token's `sub`")
    forget.add_argument("--yes", action="store_true", help="do not ask")
    forget.set_defaults(run=_run_forget)


def _run_show(arguments: argparse.Namespace) -> int:
    # Drivers take longer to import than most verbs need.
    code: int = importlib.import_module("tidegate.cli.access_show").run_show(arguments)
    return code


def _run_forget(arguments: argparse.Namespace) -> int:
    code: int = importlib.import_module("tidegate.cli.access_forget").run_forget(arguments)
    return code
