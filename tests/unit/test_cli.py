"""The command line: what it prints, its exit codes, and that a mistake is one clear text."""

from __future__ import annotations

import json

import pytest

from tidegate.cli import main

ENVIRONMENT = ("PARCELS_URL", "PARCELS_API_KEY", "CUSTOMERS_URL", "CUSTOMERS_API_KEY")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIDEGATE_DATABASE_URL", raising=False)
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "swordfish")


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for verb in (
        "new",
        "check",
        "schema",
        "migrate",
        "status",
        "explain",
        "dead-letters",
        "outbox",
        "erase",
        "estimate",
        "demo",
    ):
        assert verb in shown


def test_check_says_what_will_be_done_and_shows_no_secret(
    environment: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--bubble", "examples.parcels.bubble"]) == 0
    shown = capsys.readouterr().out
    assert "entity parcel: table parcels, GET /v1/parcels and /v1/parcels/{key}" in shown
    assert "customer sees rows whose sender or recipient is its id" in shown
    assert "source parcels: GET /PAKET/LISTE for changes every 1 s, full-key sweep every 15 s" in shown
    assert "swordfish" not in shown


def test_check_fails_and_names_what_is_missing(
    environment: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CUSTOMERS_API_KEY")
    assert main(["check", "--bubble", "examples.parcels.bubble", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["missing_environment"] == ["CUSTOMERS_API_KEY"]
    assert [entity["name"] for entity in answer["entities"]] == ["parcel", "office", "customer"]


def test_schema_is_json_schema_of_the_events(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--bubble", "examples.parcels.bubble"]) == 0
    schema = capsys.readouterr().out
    assert json.loads(schema)
    assert "tidegate.parcel.upsert" in schema


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["check"], "no bubble named; pass --bubble package.module or set TIDEGATE_BUBBLE"),
        (["check", "--bubble", "nowhere.bubble"], "there is no module 'nowhere'"),
        (["migrate", "--bubble", "examples.parcels.bubble"], "TIDEGATE_DATABASE_URL is not set"),
        (["demo", "--json"], "--chaos and --json go with --once"),
        (["demo", "--bubble", "nowhere.bubble", "--once"], "nowhere"),
    ],
)
def test_a_mistake_is_one_clear_text(
    environment: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    text: str,
) -> None:
    monkeypatch.delenv("TIDEGATE_BUBBLE", raising=False)
    assert main(arguments) == 1
    shown = capsys.readouterr()
    assert text in shown.err
    assert shown.err.startswith("tidegate: ")
    assert shown.out == ""


def test_an_unknown_verb_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["deploy"])
    assert ended.value.code == 2
    assert "invalid choice: 'deploy'" in capsys.readouterr().err
