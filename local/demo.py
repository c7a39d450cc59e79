"""`tidegate demo`: the whole way on one machine, to look at or as an unattended check.

    python -m local.demo [--bubble parcels] [--once] [--chaos] [--json] [--reset] [--data DIR]

Interactive, it prints the addresses and who can sign in, and runs until Ctrl-C. With `once` it changes rows in
every back office, waits until the front office has caught up, compares everything, reports and ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from local import demo_once, demo_spec, demo_status
from local.folder import Folder
from local.stack import Stack, running
from tidegate import bubble as bubbles
from tidegate.errors import TidegateError

LIFE_PER_S = 2.0
_STATUS_S = 2.0
_STATUS_IN_A_FILE_S = 30.0
INTERRUPTED = 130


def run(bubble: str, *, once: bool, chaos: bool, as_json: bool, reset: bool, data: Path) -> int:
    """Run the demo; returns the exit code: 0 good or stopped by hand, 1 rows or answers differ, 130 `once` interrupted.

    Raises:
        Fatal: something could not be started, or died for good; the text names it, the reason and the log.
    """
    path = demo_spec.bubble_path(bubble)
    folder = Folder(data, bubbles.load(path).name)
    with folder.opened(reset=reset):
        try:
            return asyncio.run(_once(folder, path, chaos, as_json) if once else _until_stopped(folder, path))
        except asyncio.CancelledError:
            return INTERRUPTED if once else 0


async def _once(folder: Folder, path: str, chaos: bool, as_json: bool) -> int:
    started = time.monotonic()
    with _cancelled_by_signals():
        async with running(folder, path, say=_progress(started)) as stack:
            report = await demo_once.once(stack, chaos=chaos, started=started)
    print(msgspec.json.encode(report).decode() if as_json else _in_words(report))
    return 0 if report.is_good else 1


async def _until_stopped(folder: Folder, path: str) -> int:
    with _cancelled_by_signals():
        async with running(folder, path, say=_progress(time.monotonic())) as stack:
            await demo_once.live(stack, LIFE_PER_S)
            print(_welcome(stack), flush=True)
            await _show_status(stack)
    return 0


@contextlib.contextmanager
def _cancelled_by_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the demo: everything is stopped in order. A second one is less patient."""
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, task.cancel)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _progress(started: float) -> Callable[[str], None]:
    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {text}", file=sys.stderr, flush=True)

    return say


def _welcome(stack: Stack) -> str:
    lines = ["", f"Front office   {stack.page_url}"]
    lines += [f"Back office    {office.url}   {office.spec.title or office.name}" for office in stack.offices]
    lines += ["", "Sign in as     (the page offers them, too)"]
    lines += [f"  {user.username:<14} {stack.password(user)}   {user.title}" for user in stack.demo.users]
    lines += ["", f"Logs           {stack.folder.logs}", "Ctrl-C stops everything; the data is kept.", ""]
    return "\n".join(lines)


async def _show_status(stack: Stack) -> None:
    """One line that is rewritten on a terminal; elsewhere one line every half minute."""
    terminal = sys.stdout.isatty()
    while True:
        try:
            line = await demo_status.status(stack)
        except demo_status.UNREACHABLE as error:
            line = f"no status at the moment: {error}"
        # A line that wraps cannot be rewritten.
        shown = line[: shutil.get_terminal_size().columns - 1]
        print(f"\r\x1b[2K{shown}" if terminal else line, end="" if terminal else "\n", flush=True)
        await asyncio.sleep(_STATUS_S if terminal else _STATUS_IN_A_FILE_S)


def _in_words(report: demo_once.Report) -> str:
    fresh, promised_ms = report.freshness_ms, report.freshness_bound_ms
    lines = [
        f"bubble             {report.bubble}",
        f"back office        {report.rows_back_office} rows",
        f"front office       {report.rows_front_office} rows",
        f"differences        {report.missing} missing, {report.stale} stale, {report.ghosts} ghosts",
        f"deletions          {report.deletions}",
        f"API                {report.api_reads} reads, {report.api_rows} rows compared, {len(report.api_mismatches)} wrong",
        f"freshness          p50 {fresh['p50']} ms, p99 {fresh['p99']} ms of {fresh['samples']} changes (promised {promised_ms})",
        f"took               {report.seconds} s",
        *(f"wrong              {fault}" for fault in report.api_mismatches),
        "good" if report.is_good else "NOT good",
    ]
    return "\n".join(lines)


def main() -> int:
    """The command line of `python -m local.demo`; `tidegate demo` is the same."""
    parser = argparse.ArgumentParser(prog="python -m local.demo", description="The whole way on one machine.")
    parser.add_argument("--bubble", default="parcels", help="parcels, flights or an import path")
    parser.add_argument("--once", action="store_true", help="unattended and bounded: change, wait, compare, exit")
    parser.add_argument("--chaos", action="store_true", help="with --once: kill every process once on the way")
    parser.add_argument("--json", action="store_true", dest="as_json", help="with --once: print one JSON object")
    parser.add_argument("--reset", action="store_true", help="clear the data folder first")
    parser.add_argument("--data", type=Path, default=Path(".data"), help="where the data lives (.data)")
    try:
        return run(**vars(parser.parse_args()))
    except TidegateError as error:
        print(f"tidegate: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
