"""Verbs about leases: list, show, release, hand-back, reset, rewind, export, import. Here are their arguments.

The work is in `leases_run`, which is imported when a verb runs: AWS' client takes longer to import than most verbs need.
"""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from tidegate.settings import PREFIX

Parser = argparse.ArgumentParser
Run = Callable[[argparse.Namespace], int]

_PLACE = re.compile(r"TRIM_HORIZON\Z|LATEST\Z|[0-9]+(\.-?[0-9]+)?\Z")


def add_verbs(verbs: argparse._SubParsersAction[Parser]) -> None:
    group = verbs.add_parser("leases", help="look at leases, give them up, set them back, save and restore them")
    each = group.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_readers(each)
    _add_writers(each)


def _add_readers(each: argparse._SubParsersAction[Parser]) -> None:
    shown = _verb(each, "list", "who works on what, how far, and since when it stands still")
    _watch_argument(shown)
    shown.add_argument(
        "--lag", action="store_true", help="ask the stream how far each is behind: one read of each shard"
    )
    shown.add_argument("--json", action="store_true", help="print one JSON object")
    whole = _verb(each, "show", "every attribute of the named items, leases or not")
    whole.add_argument("keys", nargs="+", metavar="KEY")
    whole.add_argument("--json", action="store_true", help="print each as DynamoDB's own JSON")
    saved = _verb(each, "export", "print every item whole, as JSON lines")
    saved.add_argument("--file", type=Path, help="write there instead")


def _add_writers(each: argparse._SubParsersAction[Parser]) -> None:
    freed = _verb(each, "release", "give leases up, so that others may take them at once")
    _chosen_arguments(freed)
    removed = _verb(each, "reset", "remove leases; workers make them anew where they start")
    _chosen_arguments(removed)
    returned = _verb(each, "hand-back", "leave the table to a Kinesis Client Library application")
    _write_arguments(returned)
    returned.set_defaults(keys=[], owner=None, all=True)
    back = _verb(each, "rewind", "set checkpoints back, so that records are read again")
    _chosen_arguments(back)
    back.add_argument(
        "--to", required=True, type=_place, metavar="PLACE",
        help="TRIM_HORIZON, LATEST, a time such as 2025-01-31T12:00:00+01:00, or a position as `list` shows it "
        "(NUMBER or NUMBER.SUB: the last record that is done)",
    )  # fmt: skip
    back.add_argument("--forward", action="store_true", help="go ahead, too, and leave records unread")
    brought = _verb(each, "import", "write items of an export back; no attribute is lost")
    brought.add_argument("file", type=Path, help="what `tidegate leases export` wrote; - is standard input")
    _write_arguments(brought)


def _verb(each: argparse._SubParsersAction[Parser], name: str, help_text: str) -> Parser:
    parser = each.add_parser(name, help=help_text, description=help_text)
    parser.add_argument("--table", help=f"the lease table; default {PREFIX}_LEASE_TABLE")
    parser.add_argument("--poller", action="store_true", help=f"the pollers' table: {PREFIX}_POLLER_LEASE_TABLE")
    parser.add_argument("--stream", help=f"the stream's name or ARN; default {PREFIX}_STREAM")
    parser.add_argument("--region", help="the AWS region; default AWS_REGION")

    def run(arguments: argparse.Namespace) -> int:
        verb: Run = importlib.import_module("tidegate.cli.leases_run").VERBS[name]
        return verb(arguments)

    parser.set_defaults(run=run, usage_error=parser.error)
    return parser


def _chosen_arguments(parser: Parser) -> None:
    parser.add_argument("keys", nargs="*", metavar="KEY", help="leases by key")
    parser.add_argument("--owner", help="all leases in the hands of this owner")
    parser.add_argument("--all", action="store_true", help="all leases")
    _write_arguments(parser)


def _write_arguments(parser: Parser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="say what would be written, write nothing")
    parser.add_argument("--force", action="store_true", help="do not watch for live holders first: take it from them")
    _watch_argument(parser)


def _watch_argument(parser: Parser) -> None:
    parser.add_argument(
        "--watch-s",
        type=float,
        metavar="S",
        help="how long to watch for signs of life; default one and a half renewals",
    )


def _place(text: str) -> str | datetime:
    """A time, or a word or position as it is."""
    if _PLACE.match(text):
        return text
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no place: see --help") from None
    if time.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} leaves open which zone it means; add Z or +01:00")
    return time
