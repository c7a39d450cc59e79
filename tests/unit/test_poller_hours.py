"""Opening hours and cron expressions by a back office's clock, also in the nights when that clock jumps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poller.hours import check, cron, is_open, next_cron, opens_at
from tidegate.feeds import Hours

ZURICH = "Europe/Zurich"
OFFICE = Hours(zone=ZURICH, open=("mon-fri 06:00-22:00", "sat 08:00-12:00"), quiet=("11:30-11:45",))
NIGHT = Hours(zone=ZURICH, quiet=("23:30-02:15",))


def local(text: str, *, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(ZURICH), fold=fold).astimezone(UTC)


@pytest.mark.parametrize(
    ("hours", "at", "expected"),
    [
        (OFFICE, "2026-11-20T06:00", True),
        (OFFICE, "2026-11-20T21:59:59", True),
        (OFFICE, "2026-11-20T22:00", False),
        (OFFICE, "2026-11-20T11:30", False),
        (OFFICE, "2026-11-20T11:45", True),
        (OFFICE, "2026-11-21T09:00", True),
        (OFFICE, "2026-11-22T09:00", False),
        (NIGHT, "2026-11-22T23:29", True),
        (NIGHT, "2026-11-22T23:30", False),
        (NIGHT, "2026-11-23T02:14", False),
        (NIGHT, "2026-11-23T02:15", True),
        (Hours(zone=ZURICH, quiet=("mon 23:30-02:15",)), "2026-11-24T01:00", False),
        (Hours(zone=ZURICH, quiet=("mon 23:30-02:15",)), "2026-11-23T01:00", True),
        (Hours(zone=ZURICH, open=("00:00-24:00",)), "2026-11-23T23:59", True),
    ],
)
def test_when_it_is_open(hours: Hours, at: str, expected: bool) -> None:
    assert is_open(hours, local(at)) is expected


def test_it_opens_on_monday() -> None:
    assert opens_at(OFFICE, local("2026-11-21T12:00:30")) == local("2026-11-23T06:00")
    assert opens_at(OFFICE, local("2026-11-20T09:00:30")) == local("2026-11-20T09:00:30")


def test_a_quiet_window_that_the_clock_skips_or_repeats() -> None:
    batch = Hours(zone=ZURICH, quiet=("02:15-02:45",))
    # In spring 02:00 is 03:00: the window does not exist. In autumn it comes twice, and is kept twice.
    assert opens_at(batch, local("2026-03-29T01:59")) == local("2026-03-29T01:59")
    first, second = local("2026-10-25T02:20"), local("2026-10-25T02:20", fold=1)
    assert not is_open(batch, first)
    assert not is_open(batch, second)
    between = opens_at(batch, first)
    assert between == local("2026-10-25T02:45")
    assert opens_at(batch, second) == local("2026-10-25T02:45", fold=1)
    # A window that ends in the hour that is skipped ends at the jump.
    assert opens_at(Hours(zone=ZURICH, quiet=("01:30-02:15",)), local("2026-03-29T01:45")) == local("2026-03-29T03:00")


@pytest.mark.parametrize(
    ("hours", "text"),
    [
        (Hours(zone="Europe/Bern"), "no time zone"),
        (Hours(zone=ZURICH, open=("6-22",)), "no window"),
        (Hours(zone=ZURICH, open=("mun 06:00-22:00",)), "not among"),
        (Hours(zone=ZURICH, open=("25:00-26:00",)), "00:00 to 24:00"),
        (Hours(zone=ZURICH, quiet=("00:00-24:00",)), "never open"),
    ],
)
def test_hours_that_make_no_sense_are_refused(hours: Hours, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        check(hours)


@pytest.mark.parametrize(
    ("expression", "after", "due"),
    [
        ("*/15 * * * *", "2026-11-21T10:07:30", "2026-11-21T10:15"),
        ("0 6-22/4 * * mon-fri", "2026-11-20T22:00", "2026-11-23T06:00"),
        ("30 2 1 jan *", "2026-11-21T10:00", "2027-01-01T02:30"),
        ("0 0 13 * fri", "2026-11-21T10:00", "2026-11-27T00:00"),
        ("0 9 * * sun", "2026-11-21T10:00", "2026-11-22T09:00"),
        ("0 9 * * 7", "2026-11-21T10:00", "2026-11-22T09:00"),
        ("0 9 * * 0", "2026-11-21T10:00", "2026-11-22T09:00"),
        ("5,10 8 29 2 *", "2026-11-21T10:00", "2028-02-29T08:05"),
        # The clock skips 02:30: due at the jump. It shows 02:30 twice: due once, at the first.
        ("30 2 * * *", "2026-03-28T12:00", "2026-03-29T03:00"),
        ("30 2 * * *", "2026-10-24T12:00", "2026-10-25T02:30"),
    ],
)
def test_when_a_cron_expression_is_due(expression: str, after: str, due: str) -> None:
    assert next_cron(expression, ZURICH, local(after)) == local(due)


def test_a_time_that_comes_twice_is_due_once_unless_every_hour() -> None:
    first = local("2026-10-25T02:30")
    assert next_cron("30 2 * * *", ZURICH, first) == local("2026-10-26T02:30")
    assert next_cron("30 * * * *", ZURICH, first) == local("2026-10-25T02:30", fold=1)


@pytest.mark.parametrize("wrong", ["* * * *", "60 * * * *", "* * 0 * *", "*/0 * * * *", "a * * * *", "0 0 30 feb *"])
def test_expressions_that_make_no_sense_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"cron|not among|step|never"):
        next_cron(wrong, ZURICH, local("2026-11-21T10:00"))


@settings(max_examples=60, deadline=None)
@given(
    minute=st.sampled_from(["*", "*/7", "5", "0,30"]),
    hour=st.sampled_from(["*", "1-3", "2", "*/5"]),
    days=st.sampled_from(["*", "mon-fri", "sat,sun"]),
    offset=st.integers(0, 3 * 24 * 60),
)
def test_between_two_due_times_nothing_is_due(minute: str, hour: str, days: str, offset: int) -> None:
    """Around the night in which the clock goes back, against a look at every minute."""
    expression = f"{minute} {hour} * * {days}"
    after = datetime(2026, 10, 24, tzinfo=UTC) + timedelta(minutes=offset)
    due = next_cron(expression, ZURICH, after)
    assert due > after
    rule, zone = cron(expression), ZoneInfo(ZURICH)
    at = after + timedelta(minutes=1)
    while at < due:
        wall = at.astimezone(zone)
        assert not rule.has(wall) or wall.fold
        at += timedelta(minutes=1)
    assert rule.has(due.astimezone(zone))
