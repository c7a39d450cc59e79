"""The handler's log: one JSON object a line on standard output, where Lambda picks it up.

Every event name is here, as a literal, with how to read it. No claims, keys, rows or addresses are logged.
"""

from __future__ import annotations

import sys

import msgspec

REQUEST = "api.request"
"""One answered request: status, route, duration_ms, and cold when it was the sandbox's first."""

AWAY = "api.database_away"
"""The database could not be read now; the caller got 503 and was told when to come back."""

VALUE_REFUSED = "api.value_refused"
"""PostgreSQL refused a value that our own checks let through; the caller got 400. `reason` is its kind. A gap to close."""

FATAL = "api.fatal"
"""This sandbox refuses to serve: settings, bubble, schema or role are wrong. A person must act."""

_encoder = msgspec.json.Encoder()


def log(event: str, **fields: str | int | float | bool) -> None:
    # One write a line, so lines of two writers never mix.
    sys.stdout.write(_encoder.encode({"event": event, **fields}).decode() + "\n")
    sys.stdout.flush()
