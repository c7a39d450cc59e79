"""Which leases should I have? Values in, values out: the whole policy of sharing work is on this page.

Every process plans for itself and for itself only, from the same table, without a leader.

*Weight.* Half of a lease's weight is that it exists, half is its share of what is read; without measurements every
lease weighs 1. A process's load is the sum of its leases' weights, the mean load is what each should have.

1. *Take.* A lease that is free (no owner, or its counter stood still for the expiry time) is taken at once while my
   load is below the mean. So as long as a lease is free, somebody is below the mean and takes it. Leases lie on a
   ring (by a hash of their key), and each process begins at a place of its own, so that many who look at the same time
   rarely reach for the same lease.
2. *Ask.* When nothing is free, who is below the mean asks processes above it for leases, but only where the one that
   is asked still has more afterwards, by more than the *dead band*, and does not come to lack something in turn. Without
   the band two processes would pass a lease to and fro for ever; with it, every move lowers the sum of the squared
   loads. What is measured is noisy, so nobody begins before the loads are far apart; who has begun goes on to the band.
   Each asks for no more than it lacks, and for a part of a lease with that probability: what all who lack something ask
   for together is then what others have too much, and nobody is emptied by a crowd.

A lease that is asked for counts for the one that asked.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import accumulate
from zlib import crc32

from msgspec import Struct
from msgspec.structs import replace

from tidegate.leases.lease import Lease, LeaseView, Part

Dice = Callable[[], float]

# Of the mean load: nobody begins to balance before the most loaded has so much more than the mean, or I lack half as
# much. What is measured is noisy, and what a death left uneven is evened out by a return.
_BEGIN = 0.35
# Of the mean load: who has begun goes on to this, far below the above, or the next bit of noise would begin anew.
_EAGER = 0.1
# Of the mean load: so much more than I the one that is asked must have left. A smaller difference is worth no move.
_BAND = 0.05
# In leases: half of the least difference that a move can mend.
_BAND_LEASES = 0.5
# So many neighbours watch each part of the table; at three processes or fewer everybody watches everything.
_WATCHERS = 3
_RING = 2.0**32


class Limits(Struct, frozen=True, kw_only=True):
    """What bounds one plan.

    `expiry_s`: a counter that stands still this long has no living owner. `max_leases`: the most I may hold.
    `take_most`, `ask_most`: the most of one plan. `eager`: I am balancing already, and go on to the dead band.
    """

    expiry_s: float
    max_leases: int
    take_most: int = 1_000_000
    ask_most: int = 1_000_000
    eager: bool = False


class LeasePlan(Struct, frozen=True):
    """`take`: free leases to take now, in this order. `ask`: leases of live owners to ask for."""

    take: tuple[Lease, ...] = ()
    ask: tuple[Lease, ...] = ()


class Balance(Struct, frozen=True):
    """How the work is shared, as one look at the whole table showed it.

    `loads` and `counts` are by live process, myself included; `live` names these, in an order that all agree on. `mean` is
    what each load should be. `held` is what somebody works on, `free` the rest, startable or not. `kbps` is the mean
    throughput of the measured leases (KiB/s), 0 when none is measured; `heaviest` the most that one lease weighs: one that
    is more than a whole share fills a process, and the others share the rest. `total` counts the leases, but for ended
    ones; of those that somebody works on, `measured` have a throughput. `is_part`: corrected by a look at a part of the
    table; `free` shows that part only.
    """

    me: str
    loads: Mapping[str, float]
    counts: Mapping[str, int]
    live: tuple[str, ...]
    held: Sequence[Lease]
    free: tuple[LeaseView, ...] = ()
    kbps: float = 0.0
    heaviest: float = 1.0
    mean: float = 0.0
    total: int = 0
    measured: int = 0
    is_part: bool = False

    def weight(self, lease: Lease) -> float:
        """What the lease adds to its owner's load; about 1 on average."""
        kbps = lease.throughput_kbps
        if kbps is None or not self.kbps:
            return 1.0
        return min(0.5 + 0.5 * (kbps / self.kbps), self.heaviest)


def alone(me: str) -> Balance:
    """What a process knows that has not looked yet."""
    return Balance(me, {me: 0.0}, {me: 0}, (me,), ())


def plan(
    leases: Collection[LeaseView],
    me: str,
    now_s: float,
    limits: Limits,
    startable: Collection[str],
    dice: Dice,
) -> LeasePlan:
    """Decide what `me` should take and ask for at `now_s` (my monotonic seconds).

    `startable` holds the keys whose work may begin (see `startable` below). Ended leases need nobody. `dice` gives
    numbers from 0 up to 1: whom to ask is drawn.
    """
    balance = measure(leases, me, now_s, limits.expiry_s)
    free = [view.lease for view in balance.free if view.lease.key in startable]
    if free:
        return LeasePlan(take=claim(free, balance, limits))
    return LeasePlan(ask=ask(balance, limits, startable, dice))


def measure(views: Iterable[LeaseView], me: str, now_s: float, expiry_s: float) -> Balance:
    """Who lives, and what each has to do. Every process counts the whole table now and then, so one pass has to do."""
    since_s = now_s - expiry_s
    free: list[LeaseView] = []
    held: list[Lease] = []
    tallies: dict[str, _Tally] = {me: _Tally()}
    for view in views:
        lease = view.lease
        if lease.checkpoint.position == "SHARD_END":
            continue
        owner = lease.owner or lease.checkpoint_owner
        if owner is None or view.moved_s <= since_s:
            free.append(view)
            continue
        held.append(lease)
        tally = tallies.get(owner)
        if tally is None:
            tally = tallies[owner] = _Tally()
        tally.count += 1
        if (rate := lease.throughput_kbps) is not None:
            tally.measured += 1
            tally.kbps += rate
            tally.most_kbps = max(tally.most_kbps, rate)
    return _weighed(me, tallies, held, tuple(free))


class _Tally:
    """What one process holds: leases, those of them that are measured, and what is read under these."""

    __slots__ = ("count", "kbps", "measured", "most_kbps")

    def __init__(self) -> None:
        self.count = self.measured = 0
        self.kbps = self.most_kbps = 0.0


def _weighed(me: str, tallies: Mapping[str, _Tally], held: Sequence[Lease], free: tuple[LeaseView, ...]) -> Balance:
    live = tuple(sorted(tallies))
    counts = {owner: tally.count for owner, tally in tallies.items()}
    total = len(held) + len(free)
    heaviest = max(1.0, total / len(live))
    balance = Balance(me, counts, counts, live, held, free, heaviest=heaviest, mean=total / len(live), total=total)
    measured = sum(tally.measured for tally in tallies.values())
    kbps = sum(tally.kbps for tally in tallies.values()) / measured if measured else 0.0
    if not kbps:
        return balance
    balance = replace(balance, kbps=kbps, measured=measured)
    # What is not measured weighs 1, like what is measured and has the mean rate.
    loads = {owner: each.count + 0.5 * (each.kbps / kbps - each.measured) for owner, each in tallies.items()}
    most_kbps = (2 * heaviest - 1) * kbps
    if any(tally.most_kbps > most_kbps for tally in tallies.values()):
        for lease in held:
            rate = lease.throughput_kbps
            if rate is not None and rate > most_kbps:
                loads[lease.owner or lease.checkpoint_owner or me] -= 0.5 * (rate - most_kbps) / kbps
    waiting = sum(balance.weight(view.lease) for view in free)
    return replace(balance, loads=loads, mean=(sum(loads.values()) + waiting) / len(live))


def noticed(
    balance: Balance, views: Iterable[LeaseView], mine: Collection[Lease], now_s: float, expiry_s: float
) -> Balance:
    """The balance as a later look at a part of the table corrects it, with what I hold now (`mine`).

    Every process' leases lie in all parts alike: if a tenth of those that I see have lost their owner, then about a
    tenth of the processes died, and each of the others should have a ninth more.
    """
    since_s = now_s - expiry_s
    seen, lost = 0, 0
    free: list[LeaseView] = []
    for view in views:
        seen += 1
        holder = view.lease.holder
        if holder is None or view.moved_s <= since_s:
            free.append(view)
            lost += holder not in (None, balance.me)
    left = max(0.5, 1 - lost / seen) if lost else 1.0
    return with_mine(replace(balance, free=tuple(free), mean=balance.mean / left, is_part=True), mine)


def with_mine(balance: Balance, mine: Collection[Lease]) -> Balance:
    """The same balance, with what I hold (or have asked for) since it was measured."""
    loads = {**balance.loads, balance.me: sum(map(balance.weight, mine))}
    return replace(balance, loads=loads, counts={**balance.counts, balance.me: len(mine)})


def claim(free: Iterable[Lease], balance: Balance, limits: Limits) -> tuple[Lease, ...]:
    """Which of these free leases to take: while my load is below the mean, those that fit, from my place on the ring.

    At least one while I am below the mean at all, or a heavy lease might fit nobody.
    """
    me = balance.me
    most = min(limits.take_most, limits.max_leases - balance.counts.get(me, 0))
    load, enough = balance.loads.get(me, 0.0), balance.mean - 1e-9
    if most <= 0 or load >= enough:
        return ()
    taken: list[Lease] = []
    for lease in in_turn(free, balance):
        weight = balance.weight(lease)
        if load + weight > enough + 1.0:
            continue
        taken.append(lease)
        load += weight
        if load >= enough or len(taken) == most:
            break
    if not taken:
        taken = sorted(free, key=balance.weight)[:1]
    return tuple(taken)


def ask(balance: Balance, limits: Limits, startable: Collection[str], dice: Dice) -> tuple[Lease, ...]:
    """Which leases of live owners to ask for: no more than I lack, from those who have more by more than the band."""
    rich = donors(balance, limits)
    mine, band = balance.loads[balance.me], _band(balance)
    lack = balance.mean - mine
    most = min(limits.ask_most, limits.max_leases - balance.counts[balance.me])
    offers: dict[str, list[tuple[float, Lease]]] = {}
    chosen: list[Lease] = []
    while rich and len(chosen) < most:
        owner = _drawn({owner: load - balance.mean for owner, load in rich.items()}, dice)
        if owner not in offers:
            offers[owner] = _offers(balance, owner, startable)
        index = _best_fit(offers[owner], rich[owner] - mine, rich[owner] - balance.mean, band)
        if index is None:
            del rich[owner]
            continue
        weight, lease = offers[owner].pop(index)
        if dice() * weight >= lack:
            break
        chosen.append(lease)
        mine, lack = mine + weight, lack - weight
        rich[owner] -= weight
        rich = {other: load for other, load in rich.items() if load > max(balance.mean, mine + band)}
    return tuple(chosen)


def donors(balance: Balance, limits: Limits) -> dict[str, float]:
    """Whom I might ask, with their loads; mostly nobody. All above the mean if I lack much, else who has too much."""
    lack = balance.mean - balance.loads[balance.me]
    if lack <= 0 or limits.ask_most <= 0 or balance.counts[balance.me] >= limits.max_leases:
        return {}
    far = (_EAGER if limits.eager else _BEGIN) * balance.mean
    return _richer(balance, balance.loads, balance.mean if 2 * lack >= far else balance.mean + far)


def _richer(balance: Balance, loads: Mapping[str, float], than: float) -> dict[str, float]:
    """Who has more than that, and more than I by more than the band."""
    least = max(than, balance.loads[balance.me] + _band(balance))
    return {owner: load for owner, load in loads.items() if load > least}


def _band(balance: Balance) -> float:
    return max(_BAND * balance.mean, _BAND_LEASES)


def _offers(balance: Balance, owner: str, startable: Collection[str]) -> list[tuple[float, Lease]]:
    """The owner's leases that could move, with their weights; each who asks has another order."""
    movable = [
        lease
        for lease in balance.held
        if lease.owner == owner and lease.checkpoint_owner is None and lease.key in startable
    ]
    return [(balance.weight(lease), lease) for lease in around(movable, spot(balance.me))]


def _best_fit(leases: Sequence[tuple[float, Lease]], difference: float, surplus: float, band: float) -> int | None:
    """The lease whose move brings the two loads, so far apart now, closest together; None if none is worth it.

    Its owner, who has so much more than the mean, must not come to lack something in turn, or no more than one lease.
    """
    best, gain = None, 0.0
    most = surplus + max(band, 1.0)
    for index, (weight, _) in enumerate(leases):
        left = difference - weight
        if left > band and weight <= most and min(weight, left) > gain:
            best, gain = index, min(weight, left)
    return best


def _drawn(weights: Mapping[str, float], dice: Dice) -> str:
    owners = sorted(weights)
    ladder = list(accumulate(weights[owner] for owner in owners))
    return owners[min(bisect(ladder, dice() * ladder[-1]), len(owners) - 1)]


def receiver(loads: Mapping[str, float], me: str, dice: Dice) -> str | None:
    """Who should get a lease that I give away; None when I know of nobody else.

    The less loaded of two drawn at random: close to the best, and of many who stop together each chooses others.
    """
    others = sorted(owner for owner in loads if owner != me)
    if not others:
        return None
    first = others.pop(int(dice() * len(others)))
    second = others[int(dice() * len(others))] if others else first
    return min((first, second), key=lambda owner: loads[owner])


# ---------------------------------------------------------------- places


def spot(key: str) -> float:
    """Where a key lies on the ring, from 0 up to 1."""
    return crc32(key.encode()) / _RING


def in_turn(leases: Iterable[Lease], balance: Balance) -> list[Lease]:
    """Leases in the order in which I should reach for them: others who look now begin elsewhere.

    After a look at the whole table all who are below the mean know of each other, and divide what is free among them.
    Who sees a part only, or is not known yet, begins anywhere.
    """
    me = balance.me
    if balance.is_part or not balance.counts[me]:
        return around(leases, spot(me))
    ring = around(leases, 0.0)
    wanting = [owner for owner in balance.live if owner == me or balance.loads[owner] < balance.mean]
    first = wanting.index(me) * len(ring) // len(wanting)
    return ring[first:] + ring[:first]


def around(leases: Iterable[Lease], start: float) -> list[Lease]:
    """Leases in the order of the ring, from `start` on."""
    return sorted(leases, key=lambda lease: (spot(lease.key) - start) % 1.0)


def parts(me: str, live: Sequence[str]) -> tuple[Part, ...]:
    """The parts of the table that I watch; none: the whole table.

    There are as many parts as live processes (`live`, sorted, with me). Whoever dies leaves two neighbours at least
    who watch the same; its leases lie in everybody's parts alike, since the table is cut by a hash.
    """
    count = len(live)
    if count <= _WATCHERS:
        return ()
    first = live.index(me)
    return tuple(Part((first + step) % count, count) for step in range(_WATCHERS))


# ---------------------------------------------------------------- lineage


def startable(leases: Sequence[Lease]) -> frozenset[str]:
    """Keys of shards whose work may begin: every parent is at SHARD_END or has no lease (any more).

    A child that started early would overtake changes of the same key that its parent still holds. A merged shard
    has two parents and waits for both.
    """
    open_keys = {lease.key for lease in leases if not lease.is_ended}
    waiting = [lease.key for lease in leases if lease.parent_keys and not open_keys.isdisjoint(lease.parent_keys)]
    return frozenset(open_keys.difference(waiting))


def creatable(missing: Sequence[Lease]) -> list[Lease]:
    """Of leases that should exist and do not, those whose parents all exist: no child may get one before its parent."""
    keys = {lease.key for lease in missing}
    return [lease for lease in missing if keys.isdisjoint(lease.parent_keys)]


def removable(leases: Sequence[Lease], wanted: Collection[str]) -> tuple[Lease, ...]:
    """Finished leases that may be deleted: nobody asks for them, and every child has truly begun.

    `wanted` are the keys that discovery still names; deleting one of these would only create it again, at the
    start of its shard. A child at TRIM_HORIZON or AT_TIMESTAMP still proves by its parent's lease that it may start
    from there, so the parent stays.
    """
    finished = [lease for lease in leases if lease.is_ended and lease.child_keys and lease.key not in wanted]
    if not finished:
        return ()
    begun = {lease.key for lease in leases if lease.checkpoint.is_number or lease.is_ended}
    return tuple(lease for lease in finished if lease.child_keys <= begun)
