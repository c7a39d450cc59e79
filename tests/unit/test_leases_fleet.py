"""Whole fleets that share by the planner alone: everything gets an owner, loads come close, and then nothing moves."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tidegate.leases import Lease, at
from tidegate.leases.lease import LeaseView
from tidegate.leases.meter import Meter
from tidegate.leases.planner import LeasePlan, Limits, ask, donors, measure, plan

LIMITS = Limits(expiry_s=10, max_leases=10_000, ask_most=16)
NOW_S = 100.0
KIB = 1024

# A fleet that fails is shrunk for minutes, to hardly anything simpler.
FAST = (Phase.explicit, Phase.reuse, Phase.generate)

few = st.tuples(st.integers(1, 25), st.integers(1, 6))
some = st.tuples(st.integers(1, 200), st.integers(1, 40))


class Fleet:
    """Leases, their owners, and processes that plan in turn or all at once."""

    def __init__(self, count: int, workers: int, order: random.Random, *, owned: bool = True) -> None:
        self.order = order
        self.names = [f"w{index}" for index in range(workers)]
        owners = [None, *self.names] if owned else [None]
        # Some own much more than others.
        weights = [order.random() ** 3 for _ in owners]
        chosen = order.choices(owners, weights, k=count)
        self.leases = {
            f"s{index}": Lease(key=f"s{index}", owner=owner, checkpoint=at("1")) for index, owner in enumerate(chosen)
        }
        self.moves = 0
        self.is_eager = True  # as everybody is after a start

    @property
    def picture(self) -> list[LeaseView]:
        return [LeaseView(lease, NOW_S) for lease in self.leases.values()]

    def decide(self, picture: list[LeaseView], me: str, limits: Limits = LIMITS) -> LeasePlan:
        limits = replace(limits, eager=self.is_eager)
        return plan(picture, me, NOW_S, limits, self.leases.keys(), self.order.random)

    def give(self, key: str, owner: str) -> None:
        self.leases[key] = replace(self.leases[key], owner=owner)
        self.moves += 1

    def weigh(self, kbps: Iterator[float]) -> None:
        self.leases = {
            key: replace(lease, throughput_kbps=each)
            for (key, lease), each in zip(self.leases.items(), kbps, strict=False)
        }

    def turn(self) -> None:
        """Everybody plans once, each on what the last one left."""
        for me in self.order.sample(self.names, len(self.names)):
            chosen = self.decide(self.picture, me)
            for lease in (*chosen.take, *chosen.ask):
                self.give(lease.key, me)

    def turn_at_once(self, limits: Limits = LIMITS) -> None:
        """Everybody reads, then everybody writes: the first writer wins, as with compare-and-set."""
        seen, taken = self.picture, set[str]()
        for me in self.order.sample(self.names, len(self.names)):
            chosen = self.decide(seen, me, limits)
            for lease in (*chosen.take, *chosen.ask):
                if lease.key not in taken:
                    taken.add(lease.key)
                    self.give(lease.key, me)

    def is_settled(self) -> bool:
        """Nothing is free, and nobody would ask anybody, however the dice fall."""
        picture, limits = self.picture, replace(LIMITS, eager=self.is_eager)
        for me in self.names:
            balance = measure(picture, me, NOW_S, LIMITS.expiry_s)
            if balance.free or (donors(balance, limits) and ask(balance, limits, self.leases.keys(), lambda: 0.0)):
                return False
        return True

    def settle(self, turns: int, *, at_once: bool = False) -> None:
        for _ in range(turns):
            if self.is_settled():
                return
            if at_once:
                self.turn_at_once()
            else:
                self.turn()
        raise AssertionError(f"not settled after {turns} turns: {self.loads()}")

    def loads(self) -> dict[str, int]:
        counts = Counter(lease.owner for lease in self.leases.values())
        return {name: counts[name] for name in self.names}

    def assert_even(self) -> None:
        """No two loads are further apart than who has begun to balance lets them be, and one lease."""
        loads = self.loads().values()
        assert sum(loads) == len(self.leases)
        assert max(loads) - min(loads) <= 1 + max(0.5, 0.15 * len(self.leases) / len(self.names))


@settings(max_examples=30, deadline=None, phases=FAST)
@given(few | some, st.randoms(use_true_random=False))
def test_a_fleet_converges_and_then_rests(size: tuple[int, int], order: random.Random) -> None:
    """Processes plan one after the other, in any order, from any start."""
    fleet = Fleet(*size, order)
    fleet.settle(60)
    fleet.assert_even()
    assert fleet.moves <= 2 * size[0], "a lease moves at most once to its first owner and once to its last"


@settings(max_examples=30, deadline=None, phases=FAST)
@given(few | some, st.randoms(use_true_random=False))
def test_processes_that_decide_on_the_same_stale_picture_converge_too(
    size: tuple[int, int], order: random.Random
) -> None:
    fleet = Fleet(*size, order)
    fleet.settle(100, at_once=True)
    fleet.assert_even()
    assert fleet.moves <= 3 * size[0] + 10


@pytest.mark.parametrize(("count", "workers"), [(2000, 150), (2000, 40), (200, 200), (1, 300), (999, 2)])
def test_a_large_fleet_converges_though_all_plan_at_once(count: int, workers: int) -> None:
    fleet = Fleet(count, workers, random.Random(count + workers))
    fleet.settle(60, at_once=True)
    fleet.assert_even()
    assert fleet.moves <= 2 * count


def test_a_cold_start_in_growing_portions_gives_nobody_too_much() -> None:
    """Nobody knows of anybody at first; what each has taken tells the others."""
    fleet = Fleet(2000, 100, random.Random(5), owned=False)
    for doublings in range(12):
        fleet.turn_at_once(replace(LIMITS, take_most=5 << doublings, ask_most=0))
        assert max(fleet.loads().values()) <= 21
    fleet.assert_even()
    assert fleet.moves == 2000, "each lease is taken once, and stays"


@settings(max_examples=30, deadline=None, phases=FAST)
@given(few | some, st.randoms(use_true_random=False))
def test_while_something_is_free_somebody_takes_it(size: tuple[int, int], order: random.Random) -> None:
    """Whatever the weights: a heavy lease that fits nobody's share included."""
    fleet = Fleet(*size, order)
    fleet.weigh(iter([order.lognormvariate(3, 2) for _ in range(size[0])]))
    picture = fleet.picture
    if any(lease.owner is None for lease in fleet.leases.values()):
        assert any(fleet.decide(picture, me).take for me in fleet.names)


@settings(max_examples=30, deadline=None, phases=FAST)
@given(few | some, st.randoms(use_true_random=False))
def test_uneven_streams_are_shared_and_then_rest(size: tuple[int, int], order: random.Random) -> None:
    """Every move lowers the sum of the squared loads, so there is an end to it."""
    fleet = Fleet(*size, order)
    fleet.weigh(iter([order.lognormvariate(3, 1) for _ in range(size[0])]))
    fleet.settle(100)
    assert fleet.moves <= 3 * size[0] + 10
    fleet.moves = 0
    fleet.turn()
    assert fleet.moves == 0


@settings(max_examples=30, deadline=None, phases=FAST)
@given(few, st.randoms(use_true_random=False))
def test_a_hand_over_that_takes_its_time_counts_for_the_one_that_asked(
    size: tuple[int, int], order: random.Random
) -> None:
    fleet = Fleet(*size, order)
    asked: dict[str, str] = {}
    for _ in range(200):
        for me in order.sample(fleet.names, len(fleet.names)):
            picture = [
                LeaseView(replace(lease, checkpoint_owner=asked.get(key)), NOW_S) for key, lease in fleet.leases.items()
            ]
            chosen = fleet.decide(picture, me)
            asked.update((lease.key, lease.owner or "") for lease in chosen.ask)
            for lease in (*chosen.take, *chosen.ask):
                fleet.give(lease.key, me)
        for key in order.sample(sorted(asked), order.randint(0, len(asked))):
            del asked[key]
        if not asked and fleet.is_settled():
            break
    fleet.assert_even()
    assert fleet.moves <= 2 * size[0] + 10


# ---------------------------------------------------------------- noise


def noisy(order: random.Random, count: int) -> list[Iterator[float]]:
    """What meters say for minutes about leases of equal throughput whose samples are off by up to 30 %."""

    def one() -> Iterator[float]:
        meter = Meter(None, 0.0)
        for step in range(1, 90):
            meter.note(int(500 * KIB * 4 * order.uniform(0.7, 1.3)))
            kbps = meter.sample(step * 4.0)
            if kbps is not None:
                yield kbps

    return [one() for _ in range(count)]


@settings(max_examples=15, deadline=None, phases=FAST)
@given(
    st.sampled_from([(8, 3), (3, 2), (7, 3), (10, 4), (64, 5), (100, 7), (150, 12)]), st.randoms(use_true_random=False)
)
def test_noise_moves_nothing_in_a_settled_fleet(size: tuple[int, int], order: random.Random) -> None:
    fleet = Fleet(*size, order)
    fleet.settle(60)
    fleet.moves, fleet.is_eager = 0, False
    meters = noisy(order, size[0])
    for _ in range(25):
        fleet.weigh(next(meter) for meter in meters)
        fleet.turn()
    assert fleet.moves == 0


def test_noise_moves_nothing_in_a_large_fleet() -> None:
    order = random.Random(3)
    fleet = Fleet(2000, 40, order)
    fleet.settle(60, at_once=True)
    fleet.moves, fleet.is_eager = 0, False
    meters = noisy(order, 2000)
    for _ in range(8):
        fleet.weigh(next(meter) for meter in meters)
        fleet.turn_at_once()
    assert fleet.moves == 0


def test_who_joins_gets_its_share_from_many() -> None:
    order = random.Random(1)
    fleet = Fleet(1000, 20, order)
    fleet.settle(60, at_once=True)
    before = fleet.loads()
    fleet.names.append("new")
    fleet.moves = 0
    for doublings in range(8):
        fleet.turn_at_once(replace(LIMITS, ask_most=1 << doublings))
    after = fleet.loads()
    assert after["new"] >= 40
    assert fleet.moves <= after["new"] + 2, "hardly anything else moves"
    assert max(before[name] - after[name] for name in before) <= 8
    assert all(abs(one - other) <= 12 for one, other in pairwise(after.values()))
