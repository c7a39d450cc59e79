"""From one look to the next plan: what the pure `planner` decides, with what only a process over time can know.

- A process that just started knows nobody: others may start at this very moment. So it begins with a small portion, and
  has twice as much from survey to survey; when a whole fleet starts, all are known before anybody has too much.
- What stays free although everybody who sees it has enough is taken all the same after a while, a few at a time, and
  first by those whom it does not overload.
- Who has begun to balance goes on to the dead band, as everybody does after a start.
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
_FIRST_PORTION = 1 / 800
_FIRST_LEAST = 2
_DOUBLINGS_MOST = 20
_ASKS_MOST = 16
# What is free for so long is taken beyond one's share, by so much of the mean load; after as long again by any of those
# who see it. Longer if nobody ever had it, for a fleet that starts together with its table would grab it all. At once
# only so much of all leases, or a few.
_OVERDUE_S = 0.8
_OVERDUE_LOAD = 1.1
_OVERDUE_NEW_S = 15.0
_OVERDUE_PORTION = 1 / 2000
_OVERDUE_LEAST = 2
# Who has begun to balance goes on until nothing was worth it for so long, while so many of all leases are measured.
_SETTLED_S = 15.0
_KNOWN_SHARE = 0.9


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
        # Balancing until then. At first, too: who settles at the edge of what is tolerable is soon beyond it.
        self._balancing_until_s = _now_s() + _SETTLED_S
        self._had = 0  # leases that were mine at the last survey

    async def plan(self, mine: Collection[Lease], resting: Collection[str], asked: int, *, is_woken: bool) -> LeasePlan:
        """Look if it is time to, or when woken, and decide. Raises Transient when the store or discovery fails.

        `mine`: what I hold or have asked for, the latter so many; it is not in the plan. `resting`: what I leave alone.
        """
        busy = {lease.key for lease in mine}
        has_looked = is_woken or self._watch.is_stale()
        if has_looked:
            await self._look(busy)
            if self._watch.is_survey:
                self._had = len(mine)
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
            if ask or balance.measured < _KNOWN_SHARE * balance.total:
                self._balancing_until_s = _now_s() + _SETTLED_S
            if take or ask or self._upkeep.is_busy:
                self._watch.stir()
            else:
                self._watch.settle()
        elif take:
            self._watch.hasten()
        return LeasePlan(take, ask)

    def may_start(self, lease: Lease, parents: Sequence[Lease]) -> bool:
        """Whether work on a lease may begin, by its parents as they are now."""
        return lease.key in self._startable_of([lease, *parents])

    async def _look(self, busy: Collection[str]) -> None:
        self.read_s = _now_s()
        leases = await self._watch.look(busy)
        if not self._watch.is_survey:
            return
        created = await self._upkeep.tend(leases, busy, self._watch.balance, self._watch.moved_s)
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
        overdue = [view.lease for view in others if self._is_overdue(view, balance)]
        room = min(
            limits.max_leases - balance.counts[self._me], max(_OVERDUE_LEAST, int(balance.total * _OVERDUE_PORTION))
        )
        return tuple(planner.in_turn(overdue, balance)[:room]) if room > 0 else ()

    def _is_overdue(self, view: LeaseView, balance: Balance) -> bool:
        lease = view.lease
        free_since_s = view.moved_s + (self._settings.expiry_s if lease.holder is not None else 0.0)
        if not lease.counter:
            return _now_s() >= free_since_s + _OVERDUE_NEW_S
        fits = balance.loads[self._me] + balance.weight(lease) <= _OVERDUE_LOAD * balance.mean
        return _now_s() >= free_since_s + (_OVERDUE_S if fits else 2 * _OVERDUE_S)

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
            take_most=max(0, (first << doublings) - (balance.counts[self._me] - self._had)),
            ask_most=min(1 << doublings, asks_most),
            eager=_now_s() < self._balancing_until_s,
        )


def _now_s() -> float:
    return asyncio.get_running_loop().time()
