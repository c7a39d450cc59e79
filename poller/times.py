"""Modification times of a back office: its wall clock, without zone, and back.  (pure)

Walks compare wall clock times, because that is what the back office orders by. In the autumn hour that happens
twice the wall clock goes back; `floor` is what keeps a bound from passing rows that will get an earlier text.
"""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from tidegate.bubble import ByTime

# Wall clock times have no zone on purpose.
OLDEST = datetime(1970, 1, 1)  # noqa: DTZ001


def wall_clock(text: object, rule: ByTime) -> datetime | None:
    """The wall clock time in a row's column, naive; None when there is none or it cannot be read.

    A time with an offset is converted to the rule's zone.
    """
    if not isinstance(text, str) or not text.strip():
        return None
    try:
        at = _parsed(text.strip(), rule.format)
        return at if at.tzinfo is None else at.astimezone(ZoneInfo(rule.zone)).replace(tzinfo=None)
    except (ValueError, OverflowError):
        return None


def _parsed(text: str, form: str) -> datetime:
    if form == "iso":
        return datetime.fromisoformat(text)
    return datetime.strptime(text, form)  # noqa: DTZ007


def as_text(bound: datetime, rule: ByTime) -> str:
    """A bound as the back office wants to read it. In UTC an ISO time says so ("…Z"); elsewhere it is bare."""
    if rule.format != "iso":
        zoned = bound.replace(tzinfo=ZoneInfo(rule.zone))
        return zoned.strftime(rule.format)
    return bound.isoformat() + ("Z" if rule.zone == "UTC" else "")


def floor(at: datetime, zone: ZoneInfo) -> datetime:
    """The earliest wall clock time that any change at or after `at` (aware) can get.

    In the first pass of the hour that happens twice this is an hour before what the clock shows.
    """
    local = at.astimezone(zone)
    first, second = local.replace(fold=0).utcoffset(), local.replace(fold=1).utcoffset()
    naive = local.replace(tzinfo=None, fold=0)
    if local.fold == 0 and first is not None and second is not None and first > second:
        return naive - (first - second)
    return naive


def instant(bound: datetime, zone: ZoneInfo) -> datetime:
    """The earlier of the moments that a wall clock time can mean, in UTC."""
    return min(bound.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
