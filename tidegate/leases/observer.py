"""What one process has seen of the others: when each lease's counter last moved, on the observer's own clock.

Pure: the time is passed in. It is the time *after* the table was read, so a counter moved no later than noted and
an expiry is never judged too early.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from msgspec import Struct

from tidegate.leases.lease import Lease, LeaseView


class _Sight(Struct, frozen=True):
    owner: str | None
    counter: int
    moved_s: float


class Observer:
    """Remembers one look at the table until the next."""

    def __init__(self, me: str, expiry_s: float) -> None:
        self._me = me
        self._expiry_s = expiry_s
        self._sights: dict[str, _Sight] = {}

    def look(self, leases: Sequence[Lease], now_s: float, held: Collection[str]) -> list[LeaseView]:
        """Views of a table just read. A lease seen for the first time moved now; what `held` names is live.

        A lease in my name that I do not hold is free: no other process writes under my name.
        """
        sights: dict[str, _Sight] = {}
        views: list[LeaseView] = []
        for lease in leases:
            before = self._sights.get(lease.key)
            stood_still = before is not None and (before.owner, before.counter) == (lease.owner, lease.counter)
            moved_s = before.moved_s if before is not None and stood_still else now_s
            sights[lease.key] = _Sight(lease.owner, lease.counter, moved_s)
            if lease.key in held:
                moved_s = now_s
            elif lease.owner == self._me:
                moved_s = float("-inf")
            views.append(LeaseView(lease, moved_s))
        self._sights = sights
        return views

    def next_expiry_s(self, now_s: float, held: Collection[str]) -> float:
        """When the next lease of another process would expire, if its counter stands still; infinity if none could."""
        expiries_s = (
            sight.moved_s + self._expiry_s
            for key, sight in self._sights.items()
            if sight.owner is not None and key not in held
        )
        return min((expiry_s for expiry_s in expiries_s if expiry_s > now_s), default=float("inf"))
