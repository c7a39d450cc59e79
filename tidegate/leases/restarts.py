"""Which leases failed here lately, and until when this process leaves them alone."""

from __future__ import annotations

import random

from tidegate.settings import LeaseSettings


class Restarts:
    """Doubling, jittered delays, by lease. Others may take the lease meanwhile."""

    def __init__(self, settings: LeaseSettings) -> None:
        self._settings = settings
        # By key: failures in a row, and the loop time until which it rests.
        self._failures: dict[str, tuple[int, float]] = {}

    def keys(self, now_s: float) -> set[str]:
        """What to leave alone now."""
        return {key for key, (_, until_s) in self._failures.items() if now_s < until_s}

    def after_failure(self, key: str, began_s: float, now_s: float) -> float:
        """The delay before the next try. A long good run starts it afresh."""
        longest_s = self._settings.restart_delay_max_s
        in_a_row = 0 if now_s - began_s > longest_s else self._failures.get(key, (0, 0.0))[0]
        delay_s = min(self._settings.restart_delay_s * 2.0 ** min(in_a_row, 32), longest_s) * random.uniform(0.5, 1.0)
        self._failures[key] = (in_a_row + 1, now_s + delay_s)
        return delay_s
