"""Modification times of a back office: its wall clock, without zone, and back.  (pure)

Walks compare wall clock times, because that is what the back office orders by. In the autumn hour that happens
twice the wall clock goes back; `floor` is what keeps a bound from passing rows that will get an earlier text.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from tidegate.feeds import ByKeyset, ByTime

SECOND = timedelta(seconds=1)
_EPOCHS = {"epoch_s": 1, "epoch_ms": 1000}
_FINE = frozenset({"iso", *_EPOCHS})
# Wall clock times have no zone on purpose.
OLDEST = datetime(1970, 1, 1)  # noqa: DTZ001


def wall_clock(text: object, rule: ByTime | ByKeyset) -> datetime | None:
    """The wall clock time in a row's column, naive; None when there is none or it cannot be read.

    A time with an offset is converted to the rule's zone.
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        text = str(text)
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
    if form in _EPOCHS:
        return datetime.fromtimestamp(float(text) / _EPOCHS[form], UTC)
    return datetime.strptime(text, form)  # noqa: DTZ007


def as_text(bound: datetime, rule: ByTime | ByKeyset) -> str:
    """A bound as the back office wants to read it. In UTC an ISO time says so ("…Z"); elsewhere it is bare."""
    if rule.format in _EPOCHS:
        return str(int(instant(bound, ZoneInfo(rule.zone)).timestamp() * _EPOCHS[rule.format]))
    if rule.format != "iso":
        zoned = bound.replace(tzinfo=ZoneInfo(rule.zone))
        return zoned.strftime(rule.format)
    return bound.isoformat() + ("Z" if rule.zone == "UTC" else "")


def grain(rule: ByTime | ByKeyset) -> timedelta:
    """How coarse the rule's times are: a change of 12:00:05.9 may be stamped 12:00:05, or 12:00, or with the day."""
    if rule.format in _FINE or "%S" in rule.format or "%T" in rule.format:
        return SECOND
    return timedelta(minutes=1) if "%M" in rule.format else timedelta(days=1)


def floor(at: datetime, zone: ZoneInfo, step: timedelta = SECOND) -> datetime:
    """The earliest wall clock time, cut off to whole steps, that any change at or after `at` (aware) can get.

    In the first pass of the hour that happens twice this is an hour before what the clock shows.
    """
    local = at.astimezone(zone)
    first, second = local.replace(fold=0).utcoffset(), local.replace(fold=1).utcoffset()
    naive = local.replace(tzinfo=None, fold=0)
    naive -= (naive - OLDEST) % step
    if local.fold == 0 and first is not None and second is not None and first > second:
        return naive - (first - second)
    return naive


def instant(bound: datetime, zone: ZoneInfo) -> datetime:
    """The earlier of the moments that a wall clock time can mean, in UTC."""
    return min(bound.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
