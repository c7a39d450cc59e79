"""How legacy systems write things: local times without a zone, decimal commas, page numbers."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo


class BadQuery(ValueError):
    """The request asks for something that the back office does not understand: HTTP 400."""


def local_text(at: datetime, zone: ZoneInfo) -> str:
    """`2026-11-21 06:55:03`: local time without zone or offset, so one hour a year is ambiguous."""
    return at.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S")


def offset_text(at: datetime, zone: ZoneInfo) -> str:
    """`2026-11-21T06:55:03+01:00`: local time with the offset that was in force."""
    return at.astimezone(zone).isoformat(timespec="seconds")


def local_floor(text: str, zone: ZoneInfo) -> int:
    """Seconds since 1970 of a local time, for use as a lower bound. Raises BadQuery.

    In the hour that happens twice it is the first one, and a time in the hour that never happens
    counts with the offset that gives the earlier moment: a bound may only ever be too low.
    """
    try:
        naive = datetime.strptime(text, "%Y-%m-%d %H:%M:%S")
    except ValueError:
        raise BadQuery(f"not a local time YYYY-MM-DD hh:mm:ss: {text}") from None
    return min(int(naive.replace(tzinfo=zone, fold=fold).timestamp()) for fold in (0, 1))


def offset_floor(text: str) -> int:
    """Seconds since 1970 of an ISO time with an offset. Raises BadQuery."""
    # A plus sign that nobody escaped arrives as a space.
    try:
        at = datetime.fromisoformat(text.strip().replace(" ", "+"))
    except ValueError:
        raise BadQuery(f"not an ISO 8601 time: {text}") from None
    if at.tzinfo is None:
        raise BadQuery(f"the offset is missing: {text}")
    return int(at.timestamp())


def unambiguous(at: datetime, zone: ZoneInfo) -> datetime:
    """`at`, or two hours before it when its local time is one that happens twice."""
    local = at.astimezone(zone)
    twice = local.replace(fold=0).utcoffset() != local.replace(fold=1).utcoffset()
    return at - timedelta(hours=2) if twice else at


def zoned(naive: datetime, zone: ZoneInfo) -> datetime:
    """A local wall-clock time as UTC."""
    return naive.replace(tzinfo=zone).astimezone(UTC)


def comma(value: Decimal | float) -> str:
    """`12,50`: all places kept, comma for the point, no exponent."""
    return f"{value:f}".replace(".", ",") if isinstance(value, Decimal) else repr(value).replace(".", ",")


def swiss_date(day: date | None) -> str:
    """`21.11.2026`, blank for none."""
    return "" if day is None else day.strftime("%d.%m.%Y")


def whole(query: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    """An integer parameter within its bounds. Raises BadQuery."""
    text = query.get(name)
    if text is None or text == "":
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 18 or not least <= int(text) <= most:
        raise BadQuery(f"{name} must be a number from {least} to {most}")
    return int(text)
