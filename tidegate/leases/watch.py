"""What one process sees of the lease table, and what it pays for that.

Three looks, all of which may lag a little behind, since whoever acts on one does so by compare-and-set:

own      the index on the owner, twice a second: what is in my name. Next to nothing (`Inbox` makes it)
part     as many parts as there are live processes; I watch mine and two neighbours', every `plan_interval_s`, for
         leases whose counter stands still. What one process reads does not grow with the fleet
survey   the whole table: who lives, how the work is shared, what is missing. As soon as the budget allows while
         things move, then less and less often, down to every `survey_interval_s`

A small table, or a fleet of three, is not worth cutting up: then every look is a survey.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Sequence

from tidegate import telemetry
from tidegate.leases import planner
from tidegate.leases.budget import ReadBudget
from tidegate.leases.lease import Lease, Part
from tidegate.leases.observer import Observer, Sight
from tidegate.leases.planner import Balance
from tidegate.leases.store import LeaseStore, Names, in_time
from tidegate.settings import LeaseSettings

# A table that costs no more than this a look (about a hundred leases) is always looked at as a whole.
_SMALL_UNITS = 4.0
# Of the budget, what the looks that must not wait may use when the table is large and the fleet is small.
_STEADY_SHARE = 0.5
_CONSISTENT_GET_UNITS = 1.0
# So long after a start nothing is settled: others start too, and what is read of each lease is not known yet.
_YOUNG_S = 60.0
# In intervals between looks.
_SOON = 8.0
# DynamoDB serves several pages of this size in one request's time-out, with room to spare.
_UNITS_IN_TIME = 64.0


class Watch:
    """Looks at the table, and remembers what it saw. Made inside the event loop that it is used in."""

    def __init__(self, store: LeaseStore, me: str, settings: LeaseSettings) -> None:
        self.balance = planner.alone(me)
        self.sight = Sight([], float("inf"), is_calm=True)
        self.surveys = 0
        self.is_survey = True  # whether the last look was one
        self._store = store
        self._me = me
        self._settings = settings
        self._observer = Observer(me)
        self._budget = ReadBudget(settings.reads_per_s, _now_s())
        self._began_s = _now_s()
        self._looked_s = float("-inf")
        self._survey_due_s = float("-inf")
        self._rest_s = settings.plan_interval_s
        self._survey_units = float("inf")
        self._part_units = 0.0
        self._interval_s = settings.plan_interval_s

    @property
    def read_units(self) -> float:
        """What all looks have cost so far, in DynamoDB's read units."""
        return self._budget.spent

    async def look(self, busy: Collection[str]) -> list[Lease]:
        """Look at my parts, or at the whole table if that is due; `sight` shows it then. Raises Transient, Fatal.

        `busy`: what I hold or have asked for.
        """
        parts = self._parts()
        is_whole = not parts or self._is_survey_due()
        leases: list[Lease] = []
        units = 0.0
        for part in (None,) if is_whole else parts:
            limit_s = self._settings.request_timeout_s
            if is_whole:
                limit_s = min(self._settings.expiry_s, limit_s * (1 + self._survey_units / _UNITS_IN_TIME))
            look = await in_time(self._store.look(part), limit_s)
            leases.extend(look.leases)
            units += look.read_units
            self._pay(look.read_units)
        if is_whole:
            self._survey_units = units
            self.surveys += 1
            self._survey_due_s = _now_s() + self._rest_s
            self._observer.forget_but(leases)
        else:
            self._part_units = units
        self.is_survey = is_whole
        self._looked_s = _now_s()
        self.sight = self._observer.look(leases, self._looked_s, busy)
        # Jittered, so that processes spread out.
        self._interval_s = self._settings.plan_interval_s * random.uniform(0.75, 1.25)
        return leases

    def moved_s(self, key: str) -> float:
        """When a lease of the last survey was last seen to move; when it was first seen, if it never did."""
        return self._observer.moved_s(key)

    def see(self, leases: Sequence[Lease]) -> None:
        """These exist too: I made them since I looked."""
        more = self._observer.look(leases, _now_s(), ())
        self.sight = Sight(self.sight.views + more.views, self.sight.oldest_s, is_calm=False)

    def weigh(self, mine: Collection[Lease]) -> Balance | None:
        """How the work is shared now; `mine` is what I hold or have asked for. None: as before, and nothing is free."""
        now_s, expiry_s = _now_s(), self._settings.expiry_s
        if self.is_survey:
            self.balance = planner.measure(self.sight.views, self._me, now_s, expiry_s)
            return planner.with_mine(self.balance, mine)
        if self.sight.is_calm and now_s < self.sight.oldest_s + expiry_s:
            return None
        return planner.noticed(self.balance, self.sight.views, mine, now_s, expiry_s)

    def is_stale(self) -> bool:
        """Whether it is time to look again before anything is concluded from `sight`."""
        return _now_s() >= self._looked_s + 0.5 * self._settings.plan_interval_s

    def stir(self) -> None:
        """Something moves: look at the whole table soon, and again soon after that."""
        self._rest_s = self._settings.plan_interval_s
        self._survey_due_s = min(self._survey_due_s, self._looked_s + self._rest_s)

    def hasten(self) -> None:
        """Something moved that concerns few: one survey soon is enough to know who is left."""
        self._survey_due_s = min(self._survey_due_s, _now_s() + _SOON * self._settings.plan_interval_s)

    def settle(self) -> None:
        """A survey showed nothing to do: the next may wait twice as long."""
        most_s = self._settings.survey_interval_s
        if _now_s() < self._began_s + _YOUNG_S:
            most_s = min(most_s, _SOON * self._settings.plan_interval_s)
        paid_s = self._survey_units / self._settings.reads_per_s  # so long it waits anyway
        self._rest_s = min(2 * max(self._rest_s, paid_s), most_s)
        self._survey_due_s = _now_s() + self._rest_s * random.uniform(0.75, 1.25)

    def next_s(self) -> float:
        """When to look again, or when a lease that the last look showed would expire if that comes before."""
        survey_s = max(self._survey_due_s, self._budget.ready_s(), self._looked_s + self._interval_s)
        pause_s = self._pause_s()
        next_s = min(survey_s, self._looked_s + pause_s)
        expiry_s = self.sight.oldest_s + self._settings.expiry_s
        # A table that may be looked at seldom only is not looked at for one lease.
        is_cheap = pause_s <= 2 * self._settings.plan_interval_s
        return min(next_s, expiry_s) if is_cheap and expiry_s > _now_s() else next_s

    def is_silent(self, lease: Lease) -> bool:
        """Whether the holder of a lease just read has not written for so long that the lease is free."""
        now_s = _now_s()
        return not self._observer.glance(lease, now_s).is_live(now_s, self._settings.expiry_s)

    async def get(self, key: str) -> Lease | None:
        """One lease, read consistently. Raises Transient."""
        lease = await in_time(self._store.get(key), self._settings.request_timeout_s)
        self._pay(_CONSISTENT_GET_UNITS)
        return lease

    async def named(self) -> Names:
        """What is in my name. Raises Transient."""
        names = await in_time(self._store.named(self._me), self._settings.request_timeout_s)
        self._pay(names.read_units)
        return names

    def _pause_s(self) -> float:
        """Between two looks; longer when the table is large and the fleet small."""
        units = self._part_units if self._parts() else self._survey_units
        return max(self._interval_s, units / (_STEADY_SHARE * self._settings.reads_per_s))

    def _parts(self) -> tuple[Part, ...]:
        """Where to look; empty: everywhere, always."""
        if self._survey_units <= _SMALL_UNITS:
            return ()
        return planner.parts(self._me, self.balance.live)

    def _is_survey_due(self) -> bool:
        now_s = _now_s()
        return now_s >= self._survey_due_s and now_s >= self._budget.ready_s()

    def _pay(self, units: float) -> None:
        self._budget.spend(units, _now_s())
        telemetry.LEASE_READ_UNITS.inc(units)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
