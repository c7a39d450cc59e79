"""The header Retry-After of HTTP: seconds, or a date.  (pure)"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def seconds(text: str | None, now: datetime) -> float | None:
    """How long the other side asks us to wait; None when it does not say so in a form that can be read."""
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        # Longer ones are nobody's wish; a number of a thousand digits is infinite.
        return float(text[:12])
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, ((at if at.tzinfo else at.replace(tzinfo=UTC)) - now).total_seconds())
