"""What looking at the table may cost: read units a second, for one process.

Pure: the time is passed in. Looks that must not wait (at my own name, at the part that I watch) are paid for whatever
the balance is; a look at the whole table waits until the debt is paid. So a large table is looked at less often.
"""

from __future__ import annotations

# So many seconds' worth may be saved up: after a start, or when something happens, looks follow each other at once.
_SAVED_S = 10.0


class ReadBudget:
    """A token bucket that may be overdrawn."""

    def __init__(self, units_per_s: float, now_s: float) -> None:
        self.spent = 0.0  # read units so far
        self._units_per_s = units_per_s
        self._most = units_per_s * _SAVED_S
        self._saved = self._most
        self._at_s = now_s

    def spend(self, units: float, now_s: float) -> None:
        """A look was made."""
        self._saved = min(self._most, self._saved + (now_s - self._at_s) * self._units_per_s) - units
        self._at_s = now_s
        self.spent += units

    def ready_s(self) -> float:
        """From when on the debt is paid."""
        return self._at_s + max(0.0, -self._saved) / self._units_per_s
