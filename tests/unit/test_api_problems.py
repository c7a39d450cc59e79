"""The registry of problem types, the code that raises them and the page that documents them say the same."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from api.problems import READS

ROOT = Path(__file__).parents[2]
# What the functions that write raise has a page of its own.
READING = ("access", "app", "catalog", "faults", "filters", "selection", "service")


def raised() -> Iterator[tuple[str, int]]:
    """Kind and status of every problem that the reads make; a kind with a hole in it stands for all that fit."""
    for name in READING:
        for node in ast.walk(ast.parse((ROOT / "api" / f"{name}.py").read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Refused":
                status, kind = node.args[:2]
                assert isinstance(status, ast.Constant)
                assert isinstance(status.value, int)
                yield ast.unparse(kind), status.value


def test_every_problem_is_registered_with_its_status() -> None:
    found: set[str] = set()
    for text, status in raised():
        pattern = re.sub(r"\{[^}]*\}", "[a-z-]+", text.removeprefix("f").strip("'\""))
        kinds = {kind for kind in READS if re.fullmatch(pattern, kind)}
        assert kinds, text
        assert {READS[kind][0] for kind in kinds} == {status}, text
        found |= kinds
    assert found == set(READS), "none is registered that nothing raises"


def test_the_page_lists_them_all() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d{3}) \| (.+) \|$", (ROOT / "docs" / "API.md").read_text(), re.MULTILINE)
    assert {kind: (int(status), text) for kind, status, text in rows} == dict(READS)
