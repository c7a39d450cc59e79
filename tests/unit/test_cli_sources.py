"""The source tools' arguments, and what they show: a person's mistake gets a text, never a trace."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from tidegate.cli import main, sources_show
from tidegate.cli.sources_show import View
from tidegate.signals import Control, Signal, Standing, State, Verb

FLIGHTS = ["--bubble", "examples.flights.bubble"]
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _nothing_to_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TIDEGATE_BUBBLE", "TIDEGATE_SOURCE_TABLE", "AWS_REGION", "AWS_DEFAULT_REGION", "FLIGHTS_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "required: VERB"),
        (["halt"], "invalid choice: 'halt'"),
        (["backfill", "flights"], "required: --since"),
        (["backfill", "flights", "--since", "yesterday"], "neither a time, such as"),
        (["backfill", "flights", "--since", "2026-11-21T06:00:00"], "leaves open which zone"),
        (["resync", "flights"], "required: --key"),
        (["resync", "flights", "--key", ""], "a key has some text"),
        (["show"], "required: NAME"),
        (["show", "flights", "--files", "-3"], "no number from 1 on"),
        (["try", "flights", "--limit", "0"], "'0' is no number from 1 on"),
        (["pause"], "name some sources, or pass --all"),
        (["resume", "flights", "--all"], "name some sources, or pass --all"),
        (["backfill", "flights", "--since", "9", "--until", "3"], "--until is before --since: 3"),
        (["backfill", "flights", "--since", "2026-11-21", "--until", "2026-11-21T00:00:00+01:00"], "before --since"),
        (["backfill", "flights", "--since", "9", "--until", "2026-11-21"], "both times, or both revisions"),
        (["retranslate", "flights", "--since", "2026-13-01"], "no day; write it as"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["sources", *arguments])
    assert ended.value.code == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["list"], "no bubble named; pass --bubble"),
        (["show", "airplanes", *FLIGHTS], "no source 'airplanes'. Did you mean 'airlines' or 'planes'? The bubble"),
        (["pause", "flights", "x", *FLIGHTS], "no source 'x'. The bubble 'flights' has airlines, airports"),
        (["sweep", "fligths", *FLIGHTS], "Did you mean 'flights'"),
        (["try", "plane", *FLIGHTS], "Did you mean 'planes'"),
        (["try", "flights", *FLIGHTS], "FLIGHTS_URL is missing"),
        (["try", "planes", *FLIGHTS], "DROPS_BUCKET is missing"),
        (["sweep", "flights", "--allow-mass-deletion", *FLIGHTS], "Nobody is here to answer; add --yes"),
        (["list", *FLIGHTS], "region"),
    ],
)
def test_a_persons_mistake_is_told(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLIGHTS_API_KEY", "key")
    monkeypatch.delenv("DROPS_BUCKET", raising=False)
    assert main(["sources", *arguments]) == 1
    shown = capsys.readouterr()
    assert text in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


STATE = State(
    at=NOW, owner="poller-1", epoch=7, doing="polling", keys=1200, loaded=True, as_of=NOW - timedelta(seconds=3)
)
SIGNAL = Signal(
    id="1", verb=Verb.BACKFILL, asked_at=NOW - timedelta(minutes=5), by="ann", since="2026-01-01", rows=70, published=3,
    standing=Standing.RUNNING,
)  # fmt: skip
VIEW = View(name="flights", entity="flight", feed="REST", state=STATE, control=Control(), signals=(SIGNAL,))


def shown(view: View, **changed: Any) -> str:
    return "\n".join(sources_show.whole(replace(view, **changed), NOW))


def test_a_source_that_is_well_needs_one_line() -> None:
    [head, line] = sources_show.table([replace(VIEW, signals=())], NOW)
    assert head.split() == ["SOURCE", "DOING", "KEYS", "FRESH", "ERRAND", "REMARK"]
    assert line.split() == ["flights", "polling", "1200", "3", "s"]


def test_what_is_wrong_is_shown() -> None:
    held = replace(STATE, held=True, error="401", drift=("the field 'a' is missing",), as_of=None)
    files = (
        {"fate": "refused", "name": "x.csv", "at": "2026-11-21T10:00:00Z", "rows": 9, "faults": 4, "reason": "bad"},
    )
    line = list(sources_show.table([replace(VIEW, state=held, files=files)], NOW))[1]
    for part in ("mass deletion held", "401", "shape: the field 'a' is missing", "1 files refused", "backfill running"):
        assert part in line
    text = shown(VIEW, state=held, files=files)
    for part in (
        "ATTENTION 401",
        "no watermark yet",
        "x.csv  9 rows, 4 bad: bad",
        "5 min ago by ann: backfill running: 70",
    ):
        assert part in text


def test_a_source_that_nobody_polls_says_so() -> None:
    silent = replace(VIEW, state=replace(STATE, at=NOW - timedelta(hours=3)))
    assert "no poller for 3 h" in shown(silent)
    assert "no poller" in list(sources_show.table([replace(VIEW, state=None)], NOW))[1]
    assert sources_show.is_silent(None, NOW)
    assert not sources_show.is_silent(STATE, NOW)


@pytest.mark.parametrize(
    ("state", "control", "says"),
    [
        (None, Control(), "no poller works on 'flights' now"),
        (replace(STATE, at=NOW - timedelta(hours=1)), Control(paused=True), "no poller works on 'flights' now"),
        (STATE, Control(paused=True), "it begins after: tidegate sources resume flights"),
        (replace(STATE, doing="closed"), Control(), "not to be asked now"),
    ],
)
def test_who_waits_is_told_what_for(state: State | None, control: Control, says: str) -> None:
    assert says in sources_show.in_the_way(Verb.SWEEP, "flights", state, control, NOW)
    assert sources_show.in_the_way(Verb.SWEEP, "flights", STATE, Control(), NOW) == ""
    closed = replace(STATE, doing="closed")
    assert sources_show.in_the_way(Verb.RETRANSLATE, "flights", closed, Control(), NOW) == "", "it reads the archive"


def test_a_pause_says_who_and_why() -> None:
    paused = Control(paused=True, by="ann", at=NOW, reason="month end")
    text = shown(VIEW, control=paused)
    assert "doing     paused" in text
    assert "by ann since 2026-11-21 12:00:00Z: month end" in text


def test_a_trial_shows_row_entity_and_event_or_the_error() -> None:
    good = {"origin": "", "raw": {"a": "1"}, "entity": {"a": 1}, "event": {"type": "x"}, "error": ""}
    bad = {"origin": "1.csv line 3", "raw": {"a": "?"}, "entity": None, "event": None, "error": "untranslatable: no"}
    text = "\n".join(sources_show.tried([good, bad]))
    assert "--- row 1 of 2\nraw     {" in text
    assert 'entity  {\n          "a": 1' in text
    assert "--- row 2 of 2 1.csv line 3" in text
    assert "ERROR   untranslatable: no" in text
