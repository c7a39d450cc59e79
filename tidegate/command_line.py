"""The command line of a program that takes everything from its environment: `--help`, and nothing else.

code = answered("worker", "Project the stream into the database until SIGTERM.", WorkerSettings, sys.argv[1:])
sys.exit(code if code is not None else lifecycle.main(app.run))
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator, Sequence

from msgspec import Struct

from tidegate.settings import Variable, describe

_WIDTH = 100


def answered(program: str, about: str, settings: type[Struct], arguments: Sequence[str]) -> int | None:
    """The exit code when the arguments were an answer's worth: 0 for --help, 2 for wrong ones. None: run the program."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}",
        description=about,
        epilog="\n".join(_listed(describe(settings))),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    try:
        _, unknown = parser.parse_known_args(arguments)
        if unknown:
            parser.error(f"unexpected {' '.join(unknown)}; settings come from the environment, --help lists them")
    except SystemExit as ended:
        return int(ended.code or 0)
    return None


def _listed(variables: Sequence[Variable]) -> Iterator[str]:
    yield "settings, from environment variables:"
    for variable in variables:
        default = "required" if variable.required else f"default {variable.default}" if variable.default else "unset"
        yield f"\n  {variable.name}  {variable.kind}, {default}"
        yield from textwrap.wrap(variable.help, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
