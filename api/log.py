"""The handler's log: one JSON object a line on standard output, where Lambda picks it up.

Every event name is here, as a literal, with how to read it. No claims, keys, rows or addresses are logged.
"""

from __future__ import annotations

import sys

import msgspec

REQUEST = "api.request"
"""One answered request: status, route, duration_ms, and cold when it was the sandbox's first."""

AWAY = "api.database_away"
"""The database, or what else was needed, could not be asked now; the caller got 503 and was told when to come back."""

VALUE_REFUSED = "api.value_refused"
"""PostgreSQL refused a value that our own checks let through; the caller got 400. `reason` is its kind. A gap to close."""

FATAL = "api.fatal"
"""This sandbox refuses to serve: settings, bubble, schema or role are wrong. A person must act."""

UNIDENTIFIED = "api.unidentified"
"""A token came that does not count; `reason` says why, never what. Many of them are somebody trying."""

NOT_BY_THE_EDGE = "api.not_by_the_edge"
"""Somebody called the API's own address past the edge; the caller got 404. Many of them: somebody looks for a way around."""

_encoder = msgspec.json.Encoder()


def log(event: str, **fields: str | int | float | bool) -> None:
    # One write a line, so lines of two writers never mix.
    sys.stdout.write(_encoder.encode({"event": event, **fields}).decode() + "\n")
    sys.stdout.flush()
