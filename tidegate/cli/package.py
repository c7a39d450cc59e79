"""The verb package: the zip of one Lambda function. Here are its arguments."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

_ABOUT = """\
Build the zip of one Lambda function: the packages that the function imports, as they are installed here, tidegate's own and
the bubble's, compiled, and nothing else. The same input makes the same bytes. For another Python than this one, or another
platform, the same versions are fetched with `uv`, which must be installed then.
"""


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    package = verbs.add_parser("package", help="build the zip of one Lambda function", description=_ABOUT)
    package.add_argument("function", choices=("reads", "ingest", "user"))
    package.add_argument("--bubble", metavar="MODULE", default=os.environ.get("TIDEGATE_BUBBLE"), help="import path")
    package.add_argument("-o", "--output", type=Path, metavar="FILE", help="default dist/<function>.zip")
    package.add_argument("--python", default=here, metavar="3.N", help="of the function (default %(default)s, as here)")
    package.add_argument(
        "--platform", metavar="NAME", help="of the function, as uv calls it, such as aarch64-manylinux_2_28"
    )
    package.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    code: int = importlib.import_module("tidegate.cli.package_build").run_package(arguments)
    return code
