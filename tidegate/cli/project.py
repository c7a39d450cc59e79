"""The verb new: write a small working project."""

from __future__ import annotations

import argparse
import importlib
import importlib.resources
import importlib.util
import keyword
import re
import sys
from importlib.resources.abc import Traversable
from pathlib import Path

from tidegate import bubble as bubbles
from tidegate import migrate
from tidegate.errors import Fatal

_NAME = re.compile(r"[a-z][a-z0-9_]{1,40}\Z")


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    new = verbs.add_parser("new", help="write a small working project: bubble, translator, test, settings, README")
    new.add_argument("name", metavar="NAME", help="the package's name; the folder NAME is made where you stand")
    new.set_defaults(run=run_new)


def run_new(arguments: argparse.Namespace) -> int:
    name: str = arguments.name
    folder = Path(name)
    _check_name(name, folder)
    _write(importlib.resources.files("tidegate") / "scaffold", folder, name)
    _write_migration(folder.resolve(), name)
    print(f"wrote {folder}/. Next:\n\n  cd {folder}\n  tidegate demo --bubble {name}.bubble\n")
    return 0


def _check_name(name: str, folder: Path) -> None:
    if not _NAME.match(name) or keyword.iskeyword(name):
        raise Fatal(f"{name!r} cannot be a package's name; use lower-case letters, digits and underscores")
    # Before the look at packages: a folder where one stands is importable, too.
    if folder.exists():
        raise Fatal(f"{folder}/ is there already; choose another name or remove it")
    if name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None:
        raise Fatal(f"{name!r} is the name of an installed package; choose another")


def _write(source: Traversable, target: Path, name: str) -> None:
    """Copy the templates; `NAME` in paths and `{{NAME}}` in texts become the project's name."""
    target.mkdir(parents=True)
    for entry in source.iterdir():
        place = target / entry.name.replace("NAME", name).removesuffix(".txt")
        if entry.is_dir():
            _write(entry, place, name)
        elif entry.name.endswith(".txt"):
            place.write_text(entry.read_text(encoding="utf-8").replace("{{NAME}}", name), encoding="utf-8")


def _write_migration(folder: Path, name: str) -> None:
    sys.path.insert(0, str(folder))
    path = f"{name}.bubble"
    module = importlib.import_module(path)
    migrate.generate(bubbles.load(path), migrate.migrations_of(module), "first tables")
