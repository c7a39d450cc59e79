"""Every failure the services know, in four classes with one action each.

    TidegateError
    ├── Transient(retry_after)   throttled, unavailable, timed out
    │                            → retry the same step, bounded, with full jitter
    ├── Rejected(reason)         cannot decode, invalid, constraint violated
    │                            → dead letter, go on with the next record
    ├── Superseded               lease lost, cursor conflict, fenced write
    │                            → someone else won: stop quietly, write nothing more
    └── Fatal                    configuration, schema mismatch, dead-letter limit
        └── BubbleError          a wrong bubble, found at start
                                 → exit non-zero, let the scheduler restart

Vendor errors are translated into these by the adapters (`tidegate.aws`,
`tidegate.database`, `poller.wire`, …) and nowhere else. Anything that is none of
the four is a bug and ends the process.
"""

from __future__ import annotations


class TidegateError(Exception):
    """The root of the four classes; its text is written for the person who reads the log."""


class Transient(TidegateError):
    """The same step may succeed later. `retry_after_s` is the other side's own wish, if it said one."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Rejected(TidegateError):
    """One record cannot be handled. `reason` is a stable word for grouping, the message says what and where."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Superseded(TidegateError):
    """Another process owns this lease, cursor or shard now; write nothing more."""


class Fatal(TidegateError):
    """Nothing this process can do will help; a person or the scheduler must act."""


class BubbleError(Fatal):
    """The bubble is wrong. The message names the class, the field and the remedy."""
