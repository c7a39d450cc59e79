"""`tidegate …`: one entry point for people.

Each verb is a function `(arguments) -> exit code` in a module of this package. Exit codes: 0 done, 1 it could not be
done, 2 wrong arguments. A mistake of the user's gets one clear text on standard error, never a stack trace.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tidegate import __version__
from tidegate.cli import (
    access,
    bubbles,
    dead_letters,
    demo,
    erase,
    estimate,
    events,
    explain,
    leases,
    logins,
    ops,
    outbox,
    package,
    project,
    simulate,
    sources,
    status,
)
from tidegate.errors import TidegateError
from tidegate.settings import unpack

_OVERVIEW = """\
keep a front office in step with a back office

  start a project      tidegate new NAME
  look before          tidegate check, tidegate schema, tidegate migrate --plan
  who sees what?       tidegate access show --as KIND:ID
  how is it?           tidegate status, tidegate explain ENTITY KEY
  look after sources   tidegate sources list
  look after leases    tidegate leases list
  look after letters   tidegate dead-letters list
  forget a person      tidegate erase ENTITY KEY --dry-run
  what will it cost?   tidegate estimate --events-per-second N
  run it on a laptop   tidegate demo
  on Amazon ECS        tidegate ops run --name NAME -- VERB
  run it for real      tidegate migrate, tidegate logins, then: python -m poller, python -m worker

Most verbs need a bubble: --bubble package.module, or the variable TIDEGATE_BUBBLE.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run the verb, and turn what went wrong into a text and an exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    # A bubble lives in the folder one stands in; a console script, unlike `python -m`, does not search there.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        unpack(os.environ)
        code: int = arguments.run(arguments)
    except TidegateError as error:
        print(f"tidegate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does; that is no failure of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tidegate", description=_OVERVIEW, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"tidegate {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    project.add_verbs(verbs)
    bubbles.add_verbs(verbs)
    status.add_verbs(verbs)
    explain.add_verbs(verbs)
    sources.add_verbs(verbs)
    leases.add_verbs(verbs)
    dead_letters.add_verbs(verbs)
    outbox.add_verbs(verbs)
    erase.add_verbs(verbs)
    logins.add_verbs(verbs)
    ops.add_verbs(verbs)
    estimate.add_verbs(verbs)
    access.add_verbs(verbs)
    package.add_verbs(verbs)
    events.add_verbs(verbs)
    demo.add_verbs(verbs)
    simulate.add_verbs(verbs)
    return parser
