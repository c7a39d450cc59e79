"""The style guide as a ratchet: sizes may only shrink, banned calls stay banned."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("tidegate", "worker", "poller", "api", "local", "examples", "tests", "bench")
FILE_LINES = 450
FUNCTION_LINES = 45
NESTING = 5

BANNED_CALLS = {
    "time.sleep": "blocks the loop",
    "asyncio.ensure_future": "leaves a task behind",
    "asyncio.get_event_loop": "belongs to another time",
    "asyncio.shield": "hides cancellation",
}
BANNED_NAMES = re.compile(r"(^|_)(manager|helper|utils?|common|message_handler)(_|$)", re.IGNORECASE)
BANNED_MARKS = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "--", *ROOMS],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    # A migration is generated, long and read once.
    names = [name for name in listed if name.endswith(".py") and "/migrations/" not in name]
    return [ROOT / name for name in names if (ROOT / name).exists()]


FILES = tracked()
IDS = [str(path.relative_to(ROOT)) for path in FILES]
every_file = pytest.mark.parametrize("path", FILES, ids=IDS)


def depth(node: ast.AST) -> int:
    blocks = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)
    return max((depth(child) + isinstance(child, blocks) for child in ast.iter_child_nodes(node)), default=0)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@every_file
def test_sizes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= FILE_LINES, "look for the second idea in this file"
    for function in functions(ast.parse(text)):
        lines = (function.end_lineno or 0) - function.lineno + 1
        assert lines <= FUNCTION_LINES, f"{function.name} has {lines} lines"
        assert depth(function) <= NESTING, f"{function.name} nests {depth(function)} deep"


@every_file
def test_banned_calls_and_marks(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    called = {ast.unparse(node.func) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)}
    assert not called & set(BANNED_CALLS)
    assert path == Path(__file__) or not BANNED_MARKS.search(text)
    assert not BANNED_NAMES.search(path.stem), "the name says nothing"


@every_file
def test_every_module_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "a module opens with a docstring"


def test_except_exception_occurs_once_at_most() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in FILES
        if path.parts[len(ROOT.parts)] in ("tidegate", "worker", "poller", "api")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler) and (node.type is None or ast.unparse(node.type) == "Exception")
    ]
    assert len(found) <= 1, found


def test_no_path_of_a_machine_and_no_registry() -> None:
    pattern = r"(/(home|Users|root|work)/[a-z]|--(extra-)?index-url|\"resolved\": *\"http)"
    found = subprocess.run(
        ["git", "grep", "-nIE", "--untracked", pattern, "--", ".", ":!tests/test_tidy.py"],
        cwd=ROOT, check=False, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert found == ""


VENDORS = {
    "asyncpg": {"tidegate/database.py", "api/database.py"},
    "joserfc": {"api/tokens.py"},
    "aiobotocore": {"tidegate/aws"},
    "botocore": {"tidegate/aws"},
    "aiohttp": {
        "tidegate/aws",
        "tidegate/health.py",
        "poller/rest.py",
        "poller/trial.py",
        "poller/wire.py",
        "poller/app.py",
        "poller/look.py",
        "worker/webhook.py",
        "api/service.py",
    },
    "sqlalchemy": {"tidegate/tables.py", "tidegate/migrate/", "tidegate/migrations"},
    "alembic": {"tidegate/migrate/", "tidegate/migrations"},
    "defusedxml": {"poller/bodies.py"},
    "prometheus_client": {"tidegate/telemetry.py", "tidegate/health.py"},
    "structlog": {"tidegate/telemetry.py", "tidegate/lifecycle.py"},
}
"""Each vendor's library and the only places of the services that may import it."""


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


@every_file
def test_vendors_stay_in_their_adapters(path: Path) -> None:
    place = path.relative_to(ROOT)
    if place.parts[0] not in ("tidegate", "worker", "poller", "api"):
        return
    for vendor in set(imported(ast.parse(path.read_text(encoding="utf-8")))) & set(VENDORS):
        allowed = VENDORS[vendor]
        assert any(str(place).startswith(prefix) for prefix in allowed), (
            f"{vendor} is imported in {sorted(allowed)} only"
        )
