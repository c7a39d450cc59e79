"""Verbs about dead letters: list, show, replay, edit, drop. Here are their arguments.

The work is in other modules, which are imported when a verb runs: the drivers take longer to import than most verbs need.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

Parser = argparse.ArgumentParser
Run = Callable[[argparse.Namespace], int]

_AGO = re.compile(r"([0-9]+)([smhd])\Z")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def add_verbs(verbs: argparse._SubParsersAction[Parser]) -> None:
    about = "records that could not be handled: look at them, mend them, send them again, close them"
    each = verbs.add_parser("dead-letters", help=about, description=about).add_subparsers(
        title="verbs", metavar="VERB", required=True
    )
    listed = _verb(each, "list", "how many there are, grouped by why they failed")
    _selection_arguments(listed)
    listed.add_argument("--each", action="store_true", help="one line for each letter instead of each group")
    listed.add_argument("--parked", action="store_true", help="only changes that wait for other letters of their key")
    listed.add_argument("--resolved", action="store_true", help="closed ones, too")
    listed.add_argument("--limit", type=_whole, default=50, help="lines at most (50)")

    one = _verb(each, "show", "everything about one letter, with its payload")
    one.add_argument("id", type=_whole, metavar="ID")

    replayed = _verb(each, "replay", "put the records on the stream again, for the workers to try once more")
    _selection_arguments(replayed)
    replayed.add_argument("--all", action="store_true", help="every open letter")
    replayed.add_argument(
        "--per-second", type=_rate, default=50.0, metavar="N", help="records a second at most (50)"
    )  # fmt: skip
    _dry_run_argument(replayed)

    edited = _verb(
        each, "edit", "mend one letter's payload; a replay sends what you make of it, under its id and version"
    )
    edited.add_argument("id", type=_whole, metavar="ID")
    edited.add_argument("--bubble", metavar="MODULE", default=os.environ.get("TIDEGATE_BUBBLE"), help="import path")
    edited.add_argument(
        "--file", type=Path, help="take the new text from there, - is standard input; else $EDITOR opens"
    )
    edited.add_argument("--whole", action="store_true", help="edit the whole record, not only its data")
    _dry_run_argument(edited)

    dropped = _verb(each, "drop", "close letters that are not needed; housekeeping removes them later")
    _selection_arguments(dropped)
    dropped.add_argument("--all", action="store_true", help="every open letter")
    dropped.add_argument(
        "--parked", action="store_true", help="changes that wait for other letters of their key; else they are left out"
    )
    dropped.add_argument("--yes", action="store_true", help="do not ask")
    _dry_run_argument(dropped)


_PLACES = {
    "list": "dead_letters_show",
    "show": "dead_letters_show",
    "drop": "dead_letters_show",
    "replay": "dead_letters_replay",
    "edit": "dead_letters_edit",
}


def _verb(each: argparse._SubParsersAction[Parser], name: str, help_text: str) -> Parser:
    parser = each.add_parser(name, help=help_text, description=help_text)
    parser.add_argument("--json", action="store_true", help="print one JSON object")

    def run(arguments: argparse.Namespace) -> int:
        verb: Run = importlib.import_module(f"tidegate.cli.{_PLACES[name]}").VERBS[name]
        return verb(arguments)

    parser.set_defaults(run=run)
    return parser


def _selection_arguments(parser: Parser) -> None:
    chosen = parser.add_argument_group("which letters (open ones that meet all of these)")
    chosen.add_argument("ids", nargs="*", type=_whole, metavar="ID")
    chosen.add_argument(
        "--group", action="append", default=[], metavar="FINGERPRINT", help="as `list` shows it; repeat"
    )
    for name in ("entity", "key", "source", "stage", "reason"):
        chosen.add_argument(f"--{name}")
    when = "such as 2025-01-31T12:00Z, or 90m, 6h, 2d ago"
    chosen.add_argument("--since", type=moment, metavar="TIME", help=f"met at this time or later: {when}")
    chosen.add_argument("--until", type=moment, metavar="TIME", help="met at this time or earlier")


def _dry_run_argument(parser: Parser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, change nothing")


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**63):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of records a second: above 0, at most 100000")
    return rate


def moment(text: str) -> datetime:
    """A time with its zone, or how long ago. Raises argparse.ArgumentTypeError."""
    try:
        if ago := _AGO.match(text):
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        time = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no time: see --help") from None
    if time.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} leaves open which zone it means; add Z or +01:00")
    return time
