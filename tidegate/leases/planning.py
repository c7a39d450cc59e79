"""From one look to the next plan: what the pure `planner` decides, with what only a process over time can know.

- A process that just started knows nobody: others may start at this very moment. So it begins with small portions, and
  doubles them at every survey; when a whole fleet starts at once, everybody is known before anybody has too much.
- What stays free although everybody who sees it has enough is taken all the same after a while, a few at a time.
- Who has begun to balance goes on to half the dead band.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Sequence

from tidegate.leases import planner
from tidegate.leases.lease import Lease, LeaseView
from tidegate.leases.planner import Balance, LeasePlan, Limits
from tidegate.leases.upkeep import Upkeep
from tidegate.leases.watch import Watch
from tidegate.settings import LeaseSettings

Startable = Callable[[Sequence[Lease]], frozenset[str]]

# The first portion to take, of all leases, and the least; the first portion to ask for is one lease.
_FIRST_PORTION = 1 / 400
_FIRST_LEAST = 2
_DOUBLINGS_MOST = 20
_ASKS_MOST = 16
# What is free for so long is taken beyond one's share: longer if nobody ever had it, for a fleet that starts together
# with its table would grab it all. At once only so much of all leases, or one.
_OVERDUE_S = 1.5
_OVERDUE_NEW_S = 15.0
_OVERDUE_PORTION = 1 / 2000


class Planning:
    """Decides for one process, again and again."""

    def __init__(self, me: str, settings: LeaseSettings, watch: Watch, upkeep: Upkeep, startable_of: Startable) -> None:
        self.read_s = float("-inf")  # the last look was sent then, or later
        self._me = me
        self._settings = settings
        self._watch = watch
        self._upkeep = upkeep
        self._startable_of = startable_of
        self._surveyed: list[Lease] = []
        self._known_startable: frozenset[str] | None = None  # of those, not worked out yet
        self._is_balancing = False

    async def plan(self, mine: Collection[Lease], resting: Collection[str], asked: int, *, is_woken: bool) -> LeasePlan:
        """Look if it is time to, or when woken, and decide. Raises Transient when the store or discovery fails.

        `mine`: what I hold or have asked for, the latter so many; it is not in the plan. `resting`: what I leave alone.
        """
        busy = {lease.key for lease in mine}
        known = self._watch.balance.live
        has_looked = is_woken or self._watch.is_stale()
        if has_looked:
            await self._look(busy)
        balance = self._watch.weigh(mine)
        if balance is None:
            return LeasePlan()
        free = [
            view
            for view in balance.free
            if (key := view.lease.key) not in busy and key not in resting and self._is_startable(view.lease)
        ]
        take = self._take(free, balance)
        ask: tuple[Lease, ...] = ()
        if has_looked and self._watch.is_survey:
            if not free:
                ask = self._ask(balance, _ASKS_MOST - asked)
            self._is_balancing = bool(ask)
            self._watch.settle()
        if take or ask or self._upkeep.is_busy or self._watch.balance.live != known:
            self._watch.stir()
        return LeasePlan(take, ask)

    def may_start(self, lease: Lease, parents: Sequence[Lease]) -> bool:
        """Whether work on a lease may begin, by its parents as they are now."""
        return lease.key in self._startable_of([lease, *parents])

    async def _look(self, busy: Collection[str]) -> None:
        self.read_s = _now_s()
        leases = await self._watch.look(busy)
        if not self._watch.is_survey:
            return
        created = await self._upkeep.tend(leases, busy, self._watch.balance)
        self._watch.see(created)
        self._surveyed, self._known_startable = leases + created, None

    @property
    def _startable(self) -> frozenset[str]:
        """What may start, by the last survey. Seldom needed: mostly everything has long started."""
        if self._known_startable is None:
            self._known_startable = self._startable_of(self._surveyed)
        return self._known_startable

    def _is_startable(self, lease: Lease) -> bool:
        """By the last survey. What it did not show may start if it was worked on already, or waits for nobody."""
        if lease.key in self._startable:
            return True
        return (lease.checkpoint.is_number or not lease.parent_keys) and self.may_start(lease, ())

    def _take(self, free: Sequence[LeaseView], balance: Balance) -> tuple[Lease, ...]:
        """What is in my name, whatever my share; then my share; then what nobody takes."""
        limits = self._limits(balance)
        named = [view.lease for view in free if view.lease.owner == self._me]
        others = [view for view in free if view.lease.owner != self._me]
        if named:
            return tuple(named[: self._settings.max_leases - balance.counts[self._me]])
        if chosen := planner.claim([view.lease for view in others], balance, limits):
            return chosen
        overdue = [view.lease for view in others if self._is_overdue(view)]
        room = min(limits.max_leases - balance.counts[self._me], max(1, int(balance.total * _OVERDUE_PORTION)))
        return tuple(planner.around(overdue, planner.place(balance))[:room]) if room > 0 else ()

    def _is_overdue(self, view: LeaseView) -> bool:
        lease = view.lease
        free_since_s = view.moved_s + (self._settings.expiry_s if lease.holder is not None else 0.0)
        return _now_s() >= free_since_s + (_OVERDUE_S if lease.counter else _OVERDUE_NEW_S)

    def _ask(self, balance: Balance, most: int) -> tuple[Lease, ...]:
        limits = self._limits(balance, most)
        if not planner.donors(balance, limits):
            return ()
        return planner.ask(balance, limits, self._startable, random.random)

    def _limits(self, balance: Balance, asks_most: int = 0) -> Limits:
        doublings = min(max(0, self._watch.surveys - 1), _DOUBLINGS_MOST)
        first = max(_FIRST_LEAST, int(balance.total * _FIRST_PORTION))
        return Limits(
            expiry_s=self._settings.expiry_s,
            max_leases=self._settings.max_leases,
            take_most=first << doublings,
            ask_most=min(1 << doublings, asks_most),
            eager=self._is_balancing,
        )


def _now_s() -> float:
    return asyncio.get_running_loop().time()
