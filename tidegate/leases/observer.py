"""What one process has seen of the others: when each lease's counter last moved, on the observer's own clock.

Pure: the time is passed in. It is the time *after* the table was read, so a counter moved no later than noted and
an expiry is never judged too early.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from msgspec import Struct

from tidegate.leases.lease import Lease, LeaseView


class _Sight(Struct, frozen=True):
    holder: str | None
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
        self._sights = {lease.key: self._sighted(lease, now_s) for lease in leases}
        views: list[LeaseView] = []
        for lease in leases:
            moved_s = self._sights[lease.key].moved_s
            if lease.key in held:
                moved_s = now_s
            elif lease.owner == lease.holder == self._me:
                moved_s = float("-inf")
            views.append(LeaseView(lease, moved_s))
        return views

    def glance(self, lease: Lease, now_s: float) -> LeaseView:
        """The view of one lease, read by itself between two looks at the table."""
        sight = self._sights[lease.key] = self._sighted(lease, now_s)
        return LeaseView(lease, sight.moved_s)

    def _sighted(self, lease: Lease, now_s: float) -> _Sight:
        """Asking for a hand-over moves neither the holder nor the counter: a silent holder's time runs on."""
        before = self._sights.get(lease.key)
        if before is not None and (before.holder, before.counter) == (lease.holder, lease.counter):
            return before
        return _Sight(lease.holder, lease.counter, now_s)

    def next_expiry_s(self, now_s: float, held: Collection[str]) -> float:
        """When the next lease of another process would expire, if its counter stands still; infinity if none could."""
        expiries_s = (
            sight.moved_s + self._expiry_s
            for key, sight in self._sights.items()
            if sight.holder is not None and key not in held
        )
        return min((expiry_s for expiry_s in expiries_s if expiry_s > now_s), default=float("inf"))
