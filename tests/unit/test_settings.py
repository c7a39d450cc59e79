"""Settings come from the environment, complain about everything at once, and show no secret."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from msgspec import Meta, Struct

from tidegate.errors import Fatal
from tidegate.settings import AwsSettings, HealthSettings, LeaseSettings, Secret, StreamSettings, describe, read


class Program(Struct, frozen=True, kw_only=True):
    stream: StreamSettings
    leases: LeaseSettings = LeaseSettings(max_leases=7)
    database_url: Secret
    batch_rows: Annotated[int, Meta(ge=1, le=10_000, description="rows in one statement")] = 500
    wait_s: float = 1.5
    live: bool = False
    mode: Literal["poll", "push"] = "poll"
    sources: tuple[str, ...] = ()
    note: str | None = None
    limit: Annotated[int | None, Meta(description="none: no limit")] = None


LEAST = {"TIDEGATE_STREAM": "orders", "TIDEGATE_DATABASE_URL": "postgresql://u:hidden@h/d"}


def test_defaults_fill_what_is_not_set() -> None:
    settings = read(Program, LEAST)
    assert settings.stream.name == "orders"
    assert settings.database_url.reveal() == "postgresql://u:hidden@h/d"
    assert (settings.batch_rows, settings.wait_s, settings.live, settings.mode) == (500, 1.5, False, "poll")
    assert (settings.sources, settings.note, settings.limit) == ((), None, None)
    assert settings.leases == LeaseSettings(max_leases=7), "the outer class may have its own defaults"


def test_every_type_is_read() -> None:
    more = {
        "TIDEGATE_LEASES_EXPIRY_S": "20",
        "TIDEGATE_BATCH_ROWS": " 9 ",
        "TIDEGATE_WAIT_S": "0.25",
        "TIDEGATE_LIVE": "true",
        "TIDEGATE_MODE": "push",
        "TIDEGATE_SOURCES": "a, b,,c",
        "TIDEGATE_NOTE": "12",
        "TIDEGATE_LIMIT": "3",
    }
    settings = read(Program, LEAST | more)
    assert settings.leases.expiry_s == 20.0
    assert (settings.batch_rows, settings.wait_s, settings.live, settings.mode) == (9, 0.25, True, "push")
    assert (settings.sources, settings.note, settings.limit) == (("a", "b", "c"), "12", 3)


def test_an_empty_variable_counts_as_unset() -> None:
    assert read(Program, LEAST | {"TIDEGATE_BATCH_ROWS": ""}).batch_rows == 500


def test_all_mistakes_are_told_at_once() -> None:
    wrong = {
        "TIDEGATE_STREAM": "",
        "TIDEGATE_BATCH_ROWS": "0",
        "TIDEGATE_WAIT_S": "soon",
        "TIDEGATE_MODE": "pull",
        "TIDEGATE_LEASES_PATIENCE_S": "11",
    }
    with pytest.raises(Fatal) as raised:
        read(Program, wrong)
    text = str(raised.value)
    for part in (
        "TIDEGATE_STREAM is missing, expected text",
        "TIDEGATE_DATABASE_URL is missing, expected a secret text",
        "TIDEGATE_BATCH_ROWS is '0', expected a whole number >= 1 and <= 10000",
        "TIDEGATE_WAIT_S is 'soon', expected a number",
        "TIDEGATE_MODE is 'pull', expected one of poll, push",
        "TIDEGATE_LEASES_*: PATIENCE_S must be less than EXPIRY_S",
    ):
        assert part in text


def test_a_secret_is_shown_nowhere() -> None:
    settings = read(Program, LEAST)
    assert "hidden" not in repr(settings)
    assert "hidden" not in f"{settings.database_url} {settings.database_url!r}"
    assert settings.database_url == Secret("postgresql://u:hidden@h/d")


def test_describe_names_every_variable() -> None:
    described = {variable.name: variable for variable in describe(Program)}
    assert described["TIDEGATE_STREAM"].required
    assert described["TIDEGATE_DATABASE_URL"].kind == "a secret text"
    rows = described["TIDEGATE_BATCH_ROWS"]
    assert (rows.default, rows.required, rows.help) == ("500", False, "rows in one statement")
    assert described["TIDEGATE_LEASES_MAX_LEASES"].default == "7"
    assert described["TIDEGATE_LIMIT"].help == "none: no limit"
    assert set(described) >= {"TIDEGATE_LEASES_EXPIRY_S", "TIDEGATE_SOURCES", "TIDEGATE_NOTE"}


@pytest.mark.parametrize("shared", [LeaseSettings, AwsSettings, HealthSettings])
def test_shared_settings_have_working_defaults_and_explain_themselves(shared: type[Struct]) -> None:
    assert read(shared, {}) == shared()
    assert all(variable.help for variable in describe(shared))


def test_patience_must_be_below_expiry_and_leave_room_for_a_renewal() -> None:
    with pytest.raises(ValueError, match="PATIENCE_S must be less"):
        LeaseSettings(patience_s=10, expiry_s=10)
    with pytest.raises(ValueError, match="must not exceed PATIENCE_S"):
        LeaseSettings(renew_interval_s=7.5)
