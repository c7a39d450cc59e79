"""Programs without arguments: `--help` prints every setting, anything else is refused with the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from msgspec import Struct

from poller.__main__ import main as poller
from poller.settings import PollerSettings
from tidegate.settings import describe
from worker.__main__ import main as worker
from worker.settings import WorkerSettings

Main = Callable[[Sequence[str]], int]
programs = pytest.mark.parametrize(
    ("name", "main", "settings"), [("worker", worker, WorkerSettings), ("poller", poller, PollerSettings)]
)


@programs
def test_help_prints_every_setting(
    capsys: pytest.CaptureFixture[str], name: str, main: Main, settings: type[Struct]
) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert f"python -m {name}" in shown
    for variable in describe(settings):
        assert f"\n  {variable.name}  {variable.kind}, " in shown
        assert " ".join(variable.help.split()) in " ".join(shown.split())
        if variable.required:
            assert f"{variable.name}  {variable.kind}, required" in shown


@programs
@pytest.mark.parametrize("arguments", [["--stream", "orders"], ["orders"], ["--verbose"]])
def test_arguments_are_refused_with_the_reason(
    capsys: pytest.CaptureFixture[str], name: str, main: Main, settings: type[Struct], arguments: list[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert f"unexpected {' '.join(arguments)}" in said
    assert "environment" in said
