"""Verbs about sources: list, show, pause, resume, backfill, resync, sweep, retranslate, try. Here are their arguments.

The work is in `sources_run`, which is imported when a verb runs: AWS' client takes longer to import than most verbs need.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable
from datetime import datetime

from tidegate.settings import PREFIX

Parser = argparse.ArgumentParser
Run = Callable[[argparse.Namespace], int]

_ABOUT = """\
Running pollers heed these within a few seconds. Errands (backfill, resync, sweep, retranslate) go on beside live polling,
within the back office's budget, and are taken over when a poller stops; the verb shows their progress until they are
over, and Ctrl-C ends only the showing.
"""


def add_verbs(verbs: argparse._SubParsersAction[Parser]) -> None:
    group = verbs.add_parser(
        "sources",
        help="look at sources, pause them, ask them again, try a translator",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    each = group.add_subparsers(title="verbs", metavar="VERB", required=True)
    _verb(each, "list", "every source: what its poller does, how fresh it is, what is wrong")
    shown = _verb(each, "show", "one source: its state, the errands, the files that were dropped")
    shown.add_argument("name", metavar="NAME")
    shown.add_argument("--files", type=_count, default=20, metavar="N", help="how many files, the newest (default 20)")
    paused = _verb(each, "pause", "ask the back office nothing until `resume`; what is shown of it ages")
    _names(paused)
    paused.add_argument("--reason", default="", help="for whoever wonders: `sources show` and the log tell it")
    resumed = _verb(each, "resume", "go on where the source was paused, or stopped for the shape of its rows")
    _names(resumed)
    resumed.add_argument(
        "--accept-shape",
        action="store_true",
        help="the rows' new shape is meant: go on, and compare with it from now on",
    )
    _add_errands(each)
    tried = _verb(each, "try", "read some rows, translate them, print row, entity and event; publish nothing")
    tried.add_argument("name", metavar="NAME")
    tried.add_argument("--limit", type=_count, default=5, metavar="N", help="how many rows (default 5)")
    tried.add_argument(
        "--key", action="append", type=_key, default=[], help="this row instead, asked for by its key; repeatable"
    )


def _add_errands(each: argparse._SubParsersAction[Parser]) -> None:
    backfill = _errand(
        each, "backfill", "ask once more for what changed in a time; publish what is missing or different"
    )
    backfill.add_argument(
        "--since", required=True, type=_bound, metavar="WHEN",
        help="a time such as 2026-11-21T06:00:00+01:00, or a revision for a source that counts in them",
    )  # fmt: skip
    backfill.add_argument("--until", type=_bound, metavar="WHEN", help="where to end; default: at the tip")
    backfill.add_argument("--again", action="store_true", help="publish what is known, too, under the version it has")
    resync = _errand(each, "resync", "ask for some rows by key, and publish them whatever is known")
    resync.add_argument("--key", required=True, action="append", type=_key, help="the row's key; repeatable")
    sweep = _errand(each, "sweep", "compare every row now: finds deletions, silent updates and missed rows")
    sweep.add_argument("--again", action="store_true", help="publish every row once more, after records were lost")
    sweep.add_argument(
        "--allow-mass-deletion", action="store_true", help="its deletions are meant, however many they are"
    )
    sweep.add_argument("--yes", action="store_true", help="do not ask whether mass deletion is meant")
    mended = _errand(each, "retranslate", "run the translator of now over the archived raw rows; asks no back office")
    mended.add_argument("--since", type=_day, metavar="DAY", help="only rows that were archived since that day")


def _verb(each: argparse._SubParsersAction[Parser], name: str, help_text: str) -> Parser:
    parser = each.add_parser(name, help=help_text, description=help_text)
    parser.add_argument("--bubble", metavar="MODULE", default=os.environ.get("TIDEGATE_BUBBLE"), help="import path")
    parser.add_argument("--table", help=f"the source table; default {PREFIX}_SOURCE_TABLE, as the pollers'")
    parser.add_argument("--region", help="the AWS region; default AWS_REGION")
    parser.add_argument("--json", action="store_true", help="print JSON")

    def run(arguments: argparse.Namespace) -> int:
        if fault := _fault(arguments):
            parser.error(fault)
        verb: Run = importlib.import_module("tidegate.cli.sources_run").VERBS[name]
        return verb(arguments)

    parser.set_defaults(run=run)
    return parser


def _errand(each: argparse._SubParsersAction[Parser], name: str, help_text: str) -> Parser:
    parser = _verb(each, name, help_text)
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--no-wait", action="store_true", help="do not wait for the end: `sources show` tells of it")
    parser.set_defaults(since=None, until=None, key=[], again=False, allow_mass_deletion=False, yes=False)
    return parser


def _names(parser: Parser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--all", action="store_true", help="all sources of the bubble")


def _fault(arguments: argparse.Namespace) -> str:
    """What is wrong with arguments that are right each for itself; "" for nothing."""
    names = getattr(arguments, "names", None)
    if names is not None and bool(names) == arguments.all:
        return "name some sources, or pass --all"
    since, until = getattr(arguments, "since", None), getattr(arguments, "until", None)
    if since is None or until is None:
        return ""
    if since.isdigit() != until.isdigit():
        return "--since and --until are both times, or both revisions"
    is_before = int(until) < int(since) if since.isdigit() else _time(until) < _time(since)
    return f"--until is before --since: {until}" if is_before else ""


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _key(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("a key has some text")
    return text


def _day(text: str) -> str:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no day; write it as 2026-11-21") from None
    return text


def _bound(text: str) -> str:
    """A revision, or a time in ISO 8601; times of day must say their zone."""
    if text.isascii() and text.isdigit() and len(text) < 20:
        return text
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a time, such as 2026-11-21T06:00:00Z, nor a revision"
        ) from None
    if time.tzinfo is None and len(text) > len("2026-11-21"):
        raise argparse.ArgumentTypeError(f"{text!r} leaves open which zone it means; add Z or +01:00")
    return text if time.tzinfo is not None else f"{text}T00:00:00+00:00"
