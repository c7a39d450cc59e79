"""How answers of the servers become lines, and what counts as a breach."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tidegate import status
from tidegate.status import Freshness, Letters, Limits, Line, Polled, ShardLease, Waiting

LIMITS = Limits(age_s=60, lag_s=10, letters=2, outbox_age_s=100)


def only(lines: Iterable[Line]) -> tuple[str, str]:
    [line] = lines
    return line.state, line.text


@pytest.mark.parametrize(
    ("found", "state", "text"),
    [
        (Freshness(source="s", age_s=60), "ok", "as of 60 s ago"),
        (Freshness(source="s", age_s=61), "breach", "more than 60 s"),
        (Freshness(source="s", age_s=None), "breach", "no watermark"),
        (Freshness(source="s", age_s=None, letters=1), "breach", "1 dead letter of its rows"),
        (Freshness(source="s", age_s=None, letters=1, gap=True), "breach", "a gap"),
        (Freshness(source="s", age_s=None, watermarked=False), "note", "does not say"),
    ],
)
def test_freshness(found: Freshness, state: str, text: str) -> None:
    said = only(status.freshness([found], LIMITS))
    assert said[0] == state
    assert text in said[1]


def group(letters: int) -> Letters:
    return Letters(fingerprint=f"f{letters}", stage="write", reason="check", entity=None, letters=letters, oldest_s=5)


def test_letters_count_together() -> None:
    assert only(status.letters([], LIMITS)) == ("ok", "none open")
    assert only(status.letters([group(2)], LIMITS))[0] == "note"
    assert [line.state for line in status.letters([group(2), group(1)], LIMITS)] == ["breach", "breach"]


@pytest.mark.parametrize(
    ("waiting", "oldest_s", "dead", "known", "state"),
    [
        (0, None, 0, True, "ok"),
        (3, 100.0, 0, True, "ok"),
        (3, 101.0, 0, True, "breach"),
        (0, None, 1, True, "breach"),
        (1, 1.0, 0, False, "breach"),
        (0, None, 0, False, "ok"),
    ],
)
def test_outbox(waiting: int, oldest_s: float | None, dead: int, known: bool, state: str) -> None:
    found = Waiting(destination="d", known=known, waiting=waiting, oldest_s=oldest_s, dead=dead)
    assert only(status.outbox([found], LIMITS))[0] == state


@pytest.mark.parametrize(
    ("leased", "holder", "live", "lag_ms", "waits_for", "state"),
    [
        (True, "w", True, 10_000, (), "ok"),
        (True, "w", True, 10_001, (), "breach"),
        (True, "w", True, None, (), "ok"),
        (True, "w", False, 0, (), "breach"),
        (True, None, None, 0, (), "breach"),
        (True, None, None, 0, ("parent",), "note"),
        (False, None, None, None, (), "breach"),
    ],
)
def test_shards(
    leased: bool, holder: str | None, live: bool | None, lag_ms: int | None, waits_for: tuple[str, ...], state: str
) -> None:
    found = ShardLease(shard="s", leased=leased, holder=holder, live=live, lag_ms=lag_ms, waits_for=waits_for)
    assert only(status.shards([found], LIMITS))[0] == state


@pytest.mark.parametrize(
    ("holder", "live", "loaded", "doubt", "state"),
    [
        ("p", True, True, False, "ok"),
        ("p", True, False, False, "note"),
        ("p", True, True, True, "note"),
        ("p", False, True, False, "breach"),
        (None, None, True, False, "breach"),
        (None, None, None, False, "breach"),
    ],
)
def test_sources(holder: str | None, live: bool | None, loaded: bool | None, doubt: bool, state: str) -> None:
    found = Polled(source="s", holder=holder, live=live, loaded=loaded, doubt=doubt)
    assert only(status.sources([found]))[0] == state


def test_hundreds_of_good_shards_take_one_line_and_what_is_wrong_stands_out() -> None:
    good = [ShardLease(shard=f"shard-{number}", leased=True, holder="w", live=True, lag_ms=0) for number in range(300)]
    lines = list(
        status.shards([*good, ShardLease(shard="x", leased=False, holder=None, live=None, lag_ms=None)], LIMITS)
    )
    text = list(status.report(lines, all_of_them=False))
    assert text == [
        "shards     BREACH x  has no lease: no worker knows of it yet",
        "shards     ok     300 others are well (--all names them)",
        "",
        "1 breach; docs/RUNBOOK.md says what to do",
    ]
    assert len(list(status.report(lines, all_of_them=True))) == 303
    assert list(status.report(lines[:1], all_of_them=False))[-1] == "all is well"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "0.2 s"), (42, "42 s"), (600, "10 min"), (7200, "2 h"), (400_000, "5 days")]
)
def test_spans_are_for_people(seconds: float, text: str) -> None:
    assert status.span(seconds) == text
