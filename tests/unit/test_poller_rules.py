"""The pure rules of the poller: what a row means against the index, when to do what, what the clock says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.index import Index, Roll
from poller.schedule import Agenda, Kind, Next, back_off_s, next_step
from poller.snapshot import Entry, Seen, State, deletion_limit, doubtful, fingerprint, gone, is_known, judge
from poller.times import as_text, floor, instant, wall_clock
from tidegate.bubble import ByTime

ZURICH = ZoneInfo("Europe/Zurich")
LOCAL = ByTime(param="since", column="at", format="%d.%m.%Y %H:%M:%S", zone="Europe/Zurich")
ISO = ByTime(param="since", column="at")
A, B = b"aaaaaaaa", b"bbbbbbbb"
KNOWN = Entry(2, 50, 7, 10, 1, A)


def seen(row: bytes = B, version: int | None = 50, read: int = 11, keyed: bool = False, translation: int = 1) -> Seen:
    return Seen(row, version, 7, read, translation, keyed)


def test_a_new_key_begins_at_generation_0() -> None:
    entry = judge(None, seen(version=9))
    assert entry is not None
    assert entry.version == (0, 9, 7, 11, 1)


def test_other_content_under_the_same_version_is_ordered_by_observation() -> None:
    entry = judge(KNOWN, seen(version=50))
    assert entry is not None
    assert KNOWN.version < entry.version == (2, 50, 7, 11, 1)


@pytest.mark.parametrize("state", [State.LIVE, State.GONE])
def test_a_broken_order_is_decided_by_a_keyed_reread_only(state: State) -> None:
    known = Entry(2, 50, 7, 10, 1, A, state)
    version = 49 if state is State.LIVE else 60
    assert judge(known, seen(version=version)) is None
    assert judge(known, seen(version=version, keyed=True, read=10)) is None, "not sent after the last observation"
    entry = judge(known, seen(version=version, keyed=True))
    assert entry is not None
    assert entry.version == (3, version, 7, 11, 1)


def test_a_row_is_known_by_content_and_translation() -> None:
    assert is_known(KNOWN, A, 1)
    assert not is_known(KNOWN, B, 1)
    assert not is_known(KNOWN, A, 2), "a fixed translator publishes again"
    assert is_known(Entry(2, 50, 7, 10, 3, A), A, 2), "an older one, rolled back, does not"
    assert not is_known(Entry(2, 50, 7, 10, 1, A, State.GONE), A, 1)
    assert not is_known(None, A, 1)


def test_a_translator_that_lowers_the_version_needs_nobody_to_ask() -> None:
    entry = judge(KNOWN, seen(row=A, version=40, translation=2))
    assert entry is not None
    assert entry.version == (3, 40, 7, 11, 2)


def test_an_unsure_row_is_published_again_under_the_same_version() -> None:
    unsure = doubtful(None, KNOWN)
    assert not is_known(unsure, A, 1)
    assert judge(unsure, seen(row=A)) == KNOWN


def test_an_unsure_tombstone_is_missing_until_it_is_certain() -> None:
    tombstone = gone(KNOWN, 7, 12)
    assert tombstone is not None
    assert (tombstone.version, tombstone.state) == ((2, 50, 7, 12, 1), State.GONE)
    index = Index({"sure": tombstone, "unsure": doubtful(None, tombstone), "live": KNOWN, "seen": KNOWN})
    roll = Roll(index)
    roll.call({"seen": -1})
    assert set(roll.missing()) == {"unsure", "live"}
    assert gone(tombstone, 7, 13) is None
    assert gone(doubtful(None, tombstone), 7, 13) == tombstone, "the same again"


def test_a_tombstone_older_than_what_is_known_is_not_one() -> None:
    assert gone(KNOWN, 7, 10) is None
    assert gone(KNOWN, 6, 99) is None


def test_a_row_that_cannot_be_translated_keeps_its_place() -> None:
    entry = judge(KNOWN, seen(version=None))
    assert entry is not None
    assert (entry.generation, entry.source_version, entry.state) == (2, 50, State.QUARANTINED)
    assert is_known(entry, B, 1), "filed once"
    assert not is_known(entry, B, 2), "tried again by another translator"


@given(st.permutations(["b", "a", "c"]))
def test_the_order_of_columns_is_not_content(order: list[str]) -> None:
    assert fingerprint({name: 1 for name in order}) == fingerprint({"a": 1, "b": 1, "c": 1})
    assert fingerprint({name: 1 for name in order}) != fingerprint({"a": 1, "b": 1, "c": "1"})


def test_the_limit_on_deletions() -> None:
    assert [deletion_limit(live, 20, 30) for live in (0, 10, 100, 1000)] == [20, 20, 30, 300]


def test_a_poll_goes_first_and_a_sweep_gets_a_page_between_polls() -> None:
    assert next_step(Agenda(5.0, 0.0, swept_last=True), 5.0) == Next(Kind.POLL)
    assert next_step(Agenda(5.0, 0.0, swept_last=False), 5.0) == Next(Kind.SWEEP), "polls longer than their interval"
    assert next_step(Agenda(5.0, 0.0, swept_last=False, in_poll=True), 5.0) == Next(Kind.POLL)
    assert next_step(Agenda(5.0, 0.0), 4.0) == Next(Kind.SWEEP), "nothing else to do"
    assert next_step(Agenda(5.0, 9.0), 4.0) == Next(Kind.WAIT, 1.0)
    assert next_step(Agenda(None, 9.0), 4.0) == Next(Kind.WAIT, 5.0)
    assert next_step(Agenda(None, 9.0), 9.0) == Next(Kind.SWEEP)


@given(st.integers(1, 10_000), st.floats(0, 1), st.none() | st.floats(0, 1e9))
def test_waits_are_bounded_and_never_shorter_than_asked(attempt: int, dice: float, wish_s: float | None) -> None:
    wait_s = back_off_s(attempt, wish_s, 0.5, 15.0, dice)
    assert 0 <= wait_s <= 10 * 15.0 + 15.0
    assert wait_s >= min(wish_s or 0.0, 150.0)


def test_wall_clocks() -> None:
    assert wall_clock("21.11.2026 06:55:03", LOCAL) == datetime(2026, 11, 21, 6, 55, 3)
    assert wall_clock("2026-11-21T06:55:03+01:00", ISO) == datetime(2026, 11, 21, 5, 55, 3)
    assert wall_clock("2026-11-21T06:55:03", ISO) == datetime(2026, 11, 21, 6, 55, 3)
    for nothing in ("", "  ", "soon", None, 5, "0000-00-00"):
        assert wall_clock(nothing, ISO) is None
    assert as_text(datetime(2026, 11, 21, 6, 55, 3), LOCAL) == "21.11.2026 06:55:03"
    assert as_text(datetime(2026, 11, 21, 6, 55, 3), ISO) == "2026-11-21T06:55:03Z"


@given(st.datetimes(datetime(2026, 10, 24), datetime(2026, 10, 26)), st.floats(0, 90_000))
def test_no_later_change_is_dated_before_the_floor(at: datetime, later_s: float) -> None:
    moment = at.replace(tzinfo=UTC)
    later = (moment + timedelta(seconds=later_s)).astimezone(ZURICH).replace(tzinfo=None)
    assert later >= floor(moment, ZURICH)


@given(st.datetimes(datetime(2026, 10, 24), datetime(2026, 10, 26)))
def test_the_instant_of_a_bound_is_never_late(at: datetime) -> None:
    moment = at.replace(tzinfo=UTC)
    assert instant(moment.astimezone(ZURICH).replace(tzinfo=None), ZURICH) <= moment
