"""`python -m bench [NAME]`: run one benchmark or all, a JSON object a line."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import msgspec

import bench


def main(argv: list[str]) -> int:
    names = sorted(module.name for module in pkgutil.iter_modules(bench.__path__) if not module.name.startswith("_"))
    wanted = argv or names
    for name in wanted:
        if name not in names:
            print(f"there is no benchmark {name!r}; there are: {', '.join(names)}", file=sys.stderr)
            return 2
    for name in wanted:
        for result in importlib.import_module(f"bench.{name}").run():
            print(msgspec.json.encode(result).decode(), flush=True)
    return 0


sys.exit(main(sys.argv[1:]))
