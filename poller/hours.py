"""Opening hours, quiet windows and cron expressions, by a back office's own clock.  (pure)

Everything is decided minute by minute in real time, looking at what the wall clock shows then, so that the hours in which
it jumps need few rules of their own: an hour that happens twice is open or quiet twice; a cron time that the clock skips
is due at the moment of the jump, and one that it shows twice is due at the first, unless the hour is left open (`*`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from tidegate.feeds import Hours

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MINUTE = timedelta(minutes=1)
_AHEAD_DAYS = 9
"""Hours repeat every week; what is not open within one and two more days never is."""


class _Window(NamedTuple):
    """`days` of the week (0 is Monday) on which it begins; minutes of the day, `end` not included."""

    days: frozenset[int]
    start: int
    end: int

    def holds(self, wall: datetime) -> bool:
        at, day = wall.hour * 60 + wall.minute, wall.weekday()
        if self.start < self.end:
            return day in self.days and self.start <= at < self.end
        # Over midnight: the end belongs to the day after.
        return (day in self.days and at >= self.start) or ((day - 1) % 7 in self.days and at < self.end)


@lru_cache(maxsize=256)
def _window(text: str) -> _Window:
    found = re.fullmatch(r"(?:([a-z,-]+)\s+)?(\d\d):(\d\d)-(\d\d):(\d\d)", text.strip().lower())
    if not found:
        raise ValueError(f"{text!r} is no window; write it as 'mon-fri 06:00-22:00' or '23:30-02:15'")
    days = frozenset(_spans(found[1], 0, 6, _DAYS)) if found[1] else frozenset(range(7))
    start, end = (int(found[at]) * 60 + int(found[at + 1]) for at in (2, 4))
    if start >= 24 * 60 or end > 24 * 60 or int(found[3]) > 59 or int(found[5]) > 59:
        raise ValueError(f"{text!r} is no window; hours go from 00:00 to 24:00")
    return _Window(days, start, end)


def check(hours: Hours) -> None:
    """Raises ValueError for a window or a zone that cannot be read, and when it would never be open."""
    try:
        ZoneInfo(hours.zone)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{hours.zone!r} is no time zone; name one as 'Europe/Zurich'") from error
    for text in (*hours.open, *hours.quiet):
        _window(text)
    if opens_at(hours, datetime(2026, 1, 5, tzinfo=UTC)) is None:
        raise ValueError("these hours are never open")


def is_open(hours: Hours, at: datetime) -> bool:
    """Whether the back office may be asked at `at` (aware)."""
    wall = at.astimezone(ZoneInfo(hours.zone))
    is_within = not hours.open or any(_window(text).holds(wall) for text in hours.open)
    return is_within and not any(_window(text).holds(wall) for text in hours.quiet)


def opens_at(hours: Hours, at: datetime) -> datetime | None:
    """`at` itself when it is open then, else the next minute at which it opens; None when it never does."""
    if is_open(hours, at):
        return at
    # In UTC, where adding minutes passes time.
    minute = at.astimezone(UTC).replace(second=0, microsecond=0)
    for step in range(1, _AHEAD_DAYS * 24 * 60):
        if is_open(hours, minute + step * _MINUTE):
            return minute + step * _MINUTE
    return None


class _Cron(NamedTuple):
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    every_hour: bool
    either_day: bool

    def has_day(self, day: date) -> bool:
        if day.month not in self.months:
            return False
        by_month, by_week = day.day in self.days, day.weekday() in self.weekdays
        return by_month or by_week if self.either_day else by_month and by_week

    def has(self, wall: datetime) -> bool:
        return wall.minute in self.minutes and wall.hour in self.hours and self.has_day(wall.date())


@lru_cache(maxsize=256)
def cron(text: str) -> _Cron:
    """Five fields: minute, hour, day of the month, month, day of the week. Raises ValueError.

    Lists, ranges, steps and English names of months and days; 0 and 7 are Sunday. When both days are restricted, either
    is enough, as everywhere.
    """
    fields = text.lower().split()
    if len(fields) != 5:
        raise ValueError(f"{text!r} is no cron expression; it has five fields, as '*/15 6-22 * * mon-fri'")
    # Counted from Sunday in the expression, from Monday by Python.
    weekdays = frozenset((day - 1) % 7 for day in _spans(fields[4], 0, 7, (_DAYS[6], *_DAYS[:6])))
    return _Cron(
        frozenset(_spans(fields[0], 0, 59)),
        frozenset(_spans(fields[1], 0, 23)),
        frozenset(_spans(fields[2], 1, 31)),
        frozenset(_spans(fields[3], 1, 12, _MONTHS)),
        weekdays,
        every_hour=fields[1].startswith("*"),
        either_day=not fields[2].startswith("*") and not fields[4].startswith("*"),
    )


def next_cron(text: str, zone: str, after: datetime) -> datetime:
    """The first moment after `after` (aware) at which the expression is due, in UTC. Raises ValueError.

    An expression that is not due within four years (the 30th of February) is refused as well.
    """
    rule, tz = cron(text), ZoneInfo(zone)
    at = after.astimezone(UTC).replace(second=0, microsecond=0) + _MINUTE
    end = at + timedelta(days=4 * 366)
    while at < end:
        wall, before = at.astimezone(tz), (at - _MINUTE).astimezone(tz)
        if any(rule.has(skipped) for skipped in _skipped(before, wall)):
            return at
        if rule.has(wall) and (wall.fold == 0 or rule.every_hour):
            return at
        midnight = (wall + timedelta(days=1)).replace(hour=0, minute=0, fold=0).astimezone(UTC)
        # A day without it is passed over at once, but never back in time.
        at = max(at + _MINUTE, midnight) if not rule.has_day(wall.date()) else at + _MINUTE
    raise ValueError(f"{text!r} is never due")


def _skipped(before: datetime, wall: datetime) -> Iterator[datetime]:
    """The minutes that the wall clock jumps over."""
    naive = before.replace(tzinfo=None, fold=0) + _MINUTE
    end = wall.replace(tzinfo=None, fold=0)
    while naive < end:
        yield naive
        naive += _MINUTE


def _spans(text: str, least: int, most: int, names: tuple[str, ...] = ()) -> Iterator[int]:
    for part in text.split(","):
        span, has_step, step = part.partition("/")
        if has_step and not (step.isdigit() and int(step)):
            raise ValueError(f"{part!r}: the step is no number")
        if span == "*":
            first, last = least, most
        else:
            low, has_end, high = span.partition("-")
            first = _number(low, least, most, names)
            last = _number(high, least, most, names) if has_end else most if has_step else first
        if last < first:
            # From Friday to Monday.
            yield from range(first, most + 1, int(step or 1))
            first = least
        yield from range(first, last + 1, int(step or 1))


def _number(text: str, least: int, most: int, names: tuple[str, ...]) -> int:
    if text in names:
        return names.index(text) + (1 if names is _MONTHS else 0)
    if not text.isdigit() or not least <= int(text) <= most:
        raise ValueError(f"{text!r} is not among {least} to {most}")
    return int(text)
