"""A circuit breaker: after failures in a row a back office is left alone, then one request tries.  (pure)

closed      requests pass; so many failures in a row open it
open        none passes, for a while that doubles with each vain try, up to a bound
half-open   one passes: if it succeeds the breaker closes, if it fails it opens again
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Times are the caller's monotonic seconds. `failures` in a row open it; it rests from `rest_s` to `rest_most_s`."""

    def __init__(self, failures: int, rest_s: float, rest_most_s: float) -> None:
        self._limit = failures
        self._rest_s = rest_s
        self._rest_most_s = rest_most_s
        self._failures = 0
        self._vain = 0
        self._until = 0.0
        self._is_open = False
        self._is_trying = False

    def state(self, now: float) -> State:
        if not self._is_open:
            return State.CLOSED
        return State.OPEN if now < self._until else State.HALF_OPEN

    def wait_s(self, now: float) -> float:
        """How long no request may pass; 0.0 when one may."""
        match self.state(now):
            case State.CLOSED:
                return 0.0
            case State.OPEN:
                return self._until - now
            case State.HALF_OPEN:
                return self._rest_s if self._is_trying else 0.0

    def begin(self, now: float) -> bool:
        """A request wants to pass; False when it may not. Each that passes ends with one of the three below."""
        if self.wait_s(now) > 0:
            return False
        self._is_trying = self._is_open
        return True

    def succeeded(self) -> None:
        self._failures = self._vain = 0
        self._is_open = self._is_trying = False

    def failed(self, now: float) -> None:
        self._failures += 1
        if self._is_open and not self._is_trying:
            # One that had passed before it opened: known already.
            return
        if self._is_trying or self._failures >= self._limit:
            self._until = now + min(self._rest_most_s, self._rest_s * 2.0 ** min(self._vain, 30))
            self._vain += 1
            self._is_open, self._is_trying = True, False

    def said_nothing(self) -> None:
        """The request was given up before anything was known."""
        self._is_trying = False
