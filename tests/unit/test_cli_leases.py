"""The lease tools' arguments: what is wrong is said before anything is asked of AWS, with exit code 2."""

from __future__ import annotations

import pytest

from tidegate.cli import main


@pytest.fixture(autouse=True)
def _nothing_to_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TIDEGATE_LEASE_TABLE", "TIDEGATE_POLLER_LEASE_TABLE", "TIDEGATE_STREAM", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "required: VERB"),
        (["release"], "one of the three"),
        (["release", "a", "--all"], "one of the three"),
        (["reset", "--owner", "w", "--all"], "one of the three"),
        (["rewind", "--all"], "required: --to"),
        (["rewind", "--all", "--to", "yesterday"], "'yesterday' is no place"),
        (["rewind", "--all", "--to", "SHARD_END"], "'SHARD_END' is no place"),
        (["rewind", "--all", "--to", "2025-01-31T12:00:00"], "leaves open which zone"),
        (["rewind", "--all", "--to", "2999-01-31T12:00:00Z"], "is in the future"),
        (["rewind", "--all", "--to", "123"], "a position belongs to one shard"),
        (["rewind", "a", "b", "--to", "123.4"], "a position belongs to one shard"),
        (["list", "--watch-s", "soon"], "invalid float value"),
        (["import"], "required: file"),
        (["steal"], "invalid choice: 'steal'"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["leases", *arguments])
    assert ended.value.code == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["list"], "no lease table named; pass --table NAME or set TIDEGATE_LEASE_TABLE"),
        (["list", "--poller"], "no lease table named; pass --table NAME or set TIDEGATE_POLLER_LEASE_TABLE"),
        (["release", "--all"], "no lease table named"),
        (["import", "nowhere.jsonl"], "could not read nowhere.jsonl"),
    ],
)
def test_what_is_missing_is_named(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leases", *arguments]) == 1
    shown = capsys.readouterr()
    assert text in shown.err
    assert shown.out == ""


def test_every_verb_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["leases", "--help"])
    shown = capsys.readouterr().out
    for verb in ("list", "show", "release", "hand-back", "reset", "rewind", "export", "import"):
        assert f"\n    {verb}" in shown
