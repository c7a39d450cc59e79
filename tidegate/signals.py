"""What people ask of running pollers, and what pollers say of themselves: the items of the source table.  (pure)

A tool writes what it wants, the poller that holds the source's lease heeds it within seconds, and writes what becomes of
it. A signal is worked on by one poller at a time, and begins where it stood when another one takes the source over.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec

ASKED = "ask#"
CONTROL = ASKED + "control"
SIGNAL = ASKED + "signal#"
STATE = "state"


class Verb(StrEnum):
    BACKFILL = "backfill"
    RESYNC = "resync"
    SWEEP = "sweep"
    RETRANSLATE = "retranslate"

    @property
    def asks(self) -> bool:
        """Whether the back office is asked."""
        return self is not Verb.RETRANSLATE


class Standing(StrEnum):
    ASKED = "asked"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Control(msgspec.Struct, frozen=True, kw_only=True):
    """What holds until it is changed. `accepted` is the number of the shape of rows that a person accepted."""

    paused: bool = False
    by: str = ""
    at: datetime | None = None
    reason: str = ""
    accepted: int = 0


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """One errand.

    since, until  of a backfill: a time with its offset, or a revision
    keys          of a resync
    again         publish what is known, too: under the version that it has
    allow         of a sweep: its deletions are confirmed, however many they are
    place         where the errand goes on; only the poller understands it
    rows          that were looked at; `published` of them, or deletions
    note          what a person should know: why it failed, or what is in its way
    """

    id: str
    verb: Verb
    asked_at: datetime
    by: str = ""
    since: str | None = None
    until: str | None = None
    keys: tuple[str, ...] = ()
    again: bool = False
    allow: bool = False
    standing: Standing = Standing.ASKED
    place: str = ""
    rows: int = 0
    published: int = 0
    note: str = ""
    updated_at: datetime | None = None

    @property
    def is_over(self) -> bool:
        return self.standing in (Standing.DONE, Standing.FAILED)


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Where a poller stands with a source; older than a minute it says only where it stood.

    doing   loading, polling, the verb of an errand, paused, or closed
    as_of   the last watermark
    error   what the last request failed for; "" when it did not
    drift   what is new about the rows' shape, in words
    """

    at: datetime
    owner: str
    epoch: int
    doing: str
    keys: int = 0
    loaded: bool = False
    doubt: bool = False
    held: bool = False
    as_of: datetime | None = None
    mark: str = ""
    translation: int = 1
    error: str = ""
    drift: tuple[str, ...] = ()
