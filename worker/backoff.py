"""When to try again: for one change, and for a whole destination.  (pure)

A change that fails waits by itself, while others go on. But when one after the other fails, it is the destination that
is in trouble: then nothing more is claimed for it, for growing pauses, and after each a single change is tried. So a
receiver that is down costs a request a minute instead of an attempt of everything that waits, and a receiver whose
wrong release refuses everything kills a change a minute instead of all.
"""

from __future__ import annotations

from msgspec import Struct

_MOST_DOUBLINGS = 40


class Backoff(Struct, frozen=True):
    """Full jitter: a random part of a limit that doubles with each failure. `dice` are random, from 0 to 1."""

    base_s: float
    most_s: float

    def wait_s(self, failures: int, dice: float) -> float:
        """After the `failures`-th failure, from 1."""
        return dice * min(self.most_s, self.base_s * 2.0 ** min(failures - 1, _MOST_DOUBLINGS))


class Restraint:
    """How much may be claimed for a destination now. Times are monotonic seconds, passed in."""

    def __init__(self, backoff: Backoff, after: int) -> None:
        """`after` that many failures in a row the destination is in trouble."""
        self._backoff = backoff
        self._after = after
        self._failures = 0
        self._resume_s = float("-inf")

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self, now_s: float, dice: float, retry_after_s: float | None) -> None:
        """`retry_after_s` is what the receiver asks for; it asks it of all who send to it."""
        self._failures += 1
        if self._failures >= self._after:
            self._pause(now_s + self._backoff.wait_s(self._failures - self._after + 1, dice))
        if retry_after_s is not None:
            self._pause(now_s + retry_after_s)

    def room(self, now_s: float, most: int, under_way: int) -> int:
        """How many more may be claimed, with `under_way` of at most `most` being sent."""
        if now_s < self._resume_s:
            return 0
        return max(0, (1 if self._failures >= self._after else most) - under_way)

    def _pause(self, until_s: float) -> None:
        self._resume_s = max(self._resume_s, until_s)
