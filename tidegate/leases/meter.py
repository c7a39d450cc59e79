"""How much is read under a lease, smoothed: what the planner balances by, besides the number of leases.

Pure: the time is passed in. The average forgets with a time constant of a minute, so a burst does not move leases
about, and a shard that became busy counts in full after a few minutes. A new holder goes on from what the last one wrote.
"""

from __future__ import annotations

from math import exp

_TIME_CONSTANT_S = 60.0
# Nothing is said before so much was seen: the first seconds after a take are spent catching up.
_LEAST_S = 10.0
_KIB = 1024.0


class Meter:
    """KiB/s read under one lease. Says nothing (None) while nobody ever told it anything."""

    __slots__ = ("_bytes", "_kbps", "_sampled_s", "_seen_s")

    def __init__(self, kbps: float | None, now_s: float) -> None:
        """`kbps`: the average that the last holder left, None if it left none."""
        self._kbps = kbps
        self._seen_s = _TIME_CONSTANT_S if kbps is not None else 0.0
        self._sampled_s = now_s
        self._bytes: int | None = None

    def note(self, size_bytes: int) -> None:
        """So much more was read; 0 counts too, since it says that nothing came."""
        self._bytes = (self._bytes or 0) + size_bytes

    def sample(self, now_s: float) -> float | None:
        """The average at `now_s` in KiB/s, with three decimals; None while it is not known."""
        elapsed_s = now_s - self._sampled_s
        if self._bytes is None:
            return self._kbps
        if elapsed_s > 0:
            # While little was seen the plain mean is the best guess; later the exponential one.
            self._seen_s += elapsed_s
            share = max(1.0 - exp(-elapsed_s / _TIME_CONSTANT_S), min(1.0, elapsed_s / self._seen_s))
            rate = self._bytes / _KIB / elapsed_s
            self._kbps = rate if self._kbps is None else self._kbps + share * (rate - self._kbps)
            self._sampled_s, self._bytes = now_s, 0
        return None if self._kbps is None or self._seen_s < _LEAST_S else round(self._kbps, 3)
