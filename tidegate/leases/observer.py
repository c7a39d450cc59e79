"""What one process has seen of the others: when each lease's counter last moved, on the observer's own clock.

Pure: the time is passed in. It is the time *after* the table was read, so a counter moved no later than noted and
an expiry is never judged too early. A read that lags behind shows an old counter, which makes a lease look older than
it is; whoever takes it then fails its compare-and-set.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from tidegate.leases.lease import Lease, LeaseView


class Sight(NamedTuple):
    """One look: the views of the leases that are not ended, and what little most looks come to.

    `oldest_s`: when the counter that stands still longest was seen to move, among those that others hold; infinity if
    there is none. `is_calm`: every lease has an owner, so until `oldest_s` is an expiry ago there is nothing to do.
    """

    views: list[LeaseView]
    oldest_s: float
    is_calm: bool


class Observer:
    """Remembers when each lease moved, from one look at the table, or at a part of it, to the next."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._sights: dict[str, LeaseView] = {}

    def look(self, leases: Sequence[Lease], now_s: float, held: Collection[str]) -> Sight:
        """Views of leases just read. A lease seen for the first time moved now; what `held` names is live.

        A lease in my name that I do not hold is free: no other process writes under my name.
        """
        views: list[LeaseView] = []
        see = views.append
        oldest_s, is_calm = float("inf"), True
        me, sights = self._me, self._sights
        for lease in leases:
            key = lease.key
            view = sights.get(key)
            if view is None or view.lease.counter != lease.counter:
                view = sights[key] = LeaseView(lease, now_s)
            elif view.lease is not lease:
                view = sights[key] = _sighted(view, lease, now_s)
            if lease.checkpoint.position == "SHARD_END":
                continue
            if key in held:
                view = LeaseView(lease, now_s)
            elif (holder := lease.checkpoint_owner or lease.owner) is None:
                is_calm = False
            elif holder == me:
                view = LeaseView(lease, float("-inf"))
                is_calm = False
            elif view.moved_s < oldest_s:
                oldest_s = view.moved_s
            see(view)
        return Sight(views, oldest_s, is_calm)

    def glance(self, lease: Lease, now_s: float) -> LeaseView:
        """The view of one lease, read by itself between two looks at the table."""
        view = self._sights[lease.key] = _sighted(self._sights.get(lease.key), lease, now_s)
        return view

    def moved_s(self, key: str) -> float:
        """When a lease that was looked at last moved, also a finished one."""
        return self._sights[key].moved_s

    def forget_but(self, leases: Sequence[Lease]) -> None:
        """The whole table is `leases`: what is not among them is gone."""
        if len(self._sights) > len(leases):
            keys = {lease.key for lease in leases}
            self._sights = {key: view for key, view in self._sights.items() if key in keys}


def _sighted(before: LeaseView | None, lease: Lease, now_s: float) -> LeaseView:
    """Asking for a hand-over moves neither the holder nor the counter: a silent holder's time runs on."""
    if before is None or before.lease.counter != lease.counter or before.lease.holder != lease.holder:
        return LeaseView(lease, now_s)
    return LeaseView(lease, before.moved_s)
