"""`tidegate outbox carry-over` before it touches a database: which two databases are meant must be clear."""

from __future__ import annotations

import pytest

from tidegate.cli import main

HERE = "postgresql://worker:x@127.0.0.1:9/restored"


@pytest.mark.parametrize(
    ("left", "here", "text"),
    [
        ("", HERE, "TIDEGATE_LEFT_DATABASE_URL is not set"),
        (HERE, HERE, "are the same database"),
        (HERE.replace("restored", "left"), "", "TIDEGATE_DATABASE_URL is not set"),
        ("mysql://no#where", HERE, "TIDEGATE_DATABASE_URL: it is not postgresql://"),
        (HERE.replace("restored", "left"), HERE, "could not count what waits: ConnectionRefusedError"),
    ],
)
def test_a_mistake_is_one_clear_text(
    left: str, here: str, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TIDEGATE_LEFT_DATABASE_URL", left)
    monkeypatch.setenv("TIDEGATE_DATABASE_URL", here)
    assert main(["outbox", "carry-over"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("tidegate: ")
    assert text in said.err
    assert said.err.count("\n") == 1
