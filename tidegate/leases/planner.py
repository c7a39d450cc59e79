"""Which leases should I have? Values in, values out: the whole policy of sharing work is on this page.

Every process plans for itself and for itself only, from the same table, without a leader:

1. A lease that is free (no owner, or its counter stood still for the expiry time) is *taken* at once, up to my
   fair share, ceil(leases / workers).
2. When nothing is free for me, I *ask* the most loaded process for one lease, and only if it has at least two
   more than I have. A difference of one is the dead band: without it two processes would pass the odd lease to
   and fro for ever. With it, every lease that moves lowers the sum of the squared loads, so asking ends.

A lease that is asked for counts for the one that asked. One at a time keeps two hungry processes from emptying a third.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence

from msgspec import Struct

from tidegate.leases.lease import Lease, LeaseView

# The one that is asked must be left with no fewer leases than the one that asks then has.
_DEAD_BAND = 1


class Limits(Struct, frozen=True, kw_only=True):
    """`expiry_s`: a counter that stands still this long has no living owner. `max_leases`: the most I may hold."""

    expiry_s: float
    max_leases: int


class LeasePlan(Struct, frozen=True):
    """`take`: free leases to take now, in this order. `ask`: at most one lease of a live owner to ask for."""

    take: tuple[Lease, ...] = ()
    ask: tuple[Lease, ...] = ()


def plan(leases: Sequence[LeaseView], me: str, now_s: float, limits: Limits, startable: Collection[str]) -> LeasePlan:
    """Decide what `me` should take and ask for at `now_s` (my monotonic seconds).

    `startable` holds the keys whose work may begin (see `startable` below). Ended leases need nobody. The order
    of the answer differs from process to process, so that many of them starting at once rarely race for one lease.
    """
    open_views = [view for view in leases if not view.lease.is_ended]
    live = [view for view in open_views if view.is_live(now_s, limits.expiry_s)]
    live_keys = {view.lease.key for view in live}
    free = [view.lease for view in open_views if view.lease.key in startable and view.lease.key not in live_keys]

    loads = Counter({me: 0})
    loads.update(owner for view in live if (owner := view.lease.owner or view.lease.holder))
    fair_share = -(-(len(live) + len(free)) // len(loads))
    room = min(fair_share, limits.max_leases) - loads[me]
    if free:
        return LeasePlan(take=tuple(_shuffled(free, me)[: max(0, room)]))
    if loads[me] >= limits.max_leases:
        return LeasePlan()
    movable = [view.lease for view in live if view.lease.checkpoint_owner is None and view.lease.key in startable]
    return LeasePlan(ask=_ask(movable, loads, me))


def _ask(movable: Sequence[Lease], loads: Counter[str], me: str) -> tuple[Lease, ...]:
    """One lease of the most loaded owner whose load exceeds mine by more than the dead band."""
    worth_it = {owner for owner, load in loads.items() if load - loads[me] > _DEAD_BAND}
    candidates = [lease for lease in movable if lease.owner in worth_it]
    most = max((loads[lease.owner] for lease in candidates if lease.owner), default=0)
    richest = [lease for lease in candidates if lease.owner and loads[lease.owner] == most]
    return tuple(_shuffled(richest, me)[:1])


def _shuffled(leases: Sequence[Lease], me: str) -> list[Lease]:
    """An order that looks random, is always the same for me, and is another one for everybody else."""
    return sorted(leases, key=lambda lease: hashlib.blake2b(f"{me}\n{lease.key}".encode(), digest_size=8).digest())


def startable(leases: Sequence[Lease]) -> frozenset[str]:
    """Keys of shards whose work may begin: every parent is at SHARD_END or has no lease (any more).

    A child that started early would overtake changes of the same key that its parent still holds. A merged shard
    has two parents and waits for both.
    """
    open_keys = {lease.key for lease in leases if not lease.is_ended}
    return frozenset(lease.key for lease in leases if not lease.is_ended and open_keys.isdisjoint(lease.parent_keys))


def removable(leases: Sequence[Lease], wanted: Collection[str]) -> tuple[Lease, ...]:
    """Finished leases that may be deleted: nobody asks for them, and every child has truly begun.

    `wanted` are the keys that discovery still names; deleting one of these would only create it again, at the
    start of its shard. A child at TRIM_HORIZON or AT_TIMESTAMP still proves by its parent's lease that it may start
    from there, so the parent stays.
    """
    begun = {lease.key for lease in leases if lease.checkpoint.is_number or lease.is_ended}
    return tuple(
        lease
        for lease in leases
        if lease.is_ended and lease.child_keys and lease.key not in wanted and lease.child_keys <= begun
    )
