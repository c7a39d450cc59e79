"""The sharing policy: everything gets an owner, loads come within one of each other, and then nothing moves."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tidegate.leases import SHARD_END, Lease, at
from tidegate.leases.lease import LeaseView
from tidegate.leases.planner import LeasePlan, Limits, plan, removable, startable

LIMITS = Limits(expiry_s=10, max_leases=1000)
NOW_S = 100.0


def view(
    key: str, owner: str | None = None, *, of: str | None = None, age_s: float = 0.0, ended: bool = False
) -> LeaseView:
    """`of`: the one that works on it while `owner` asks for it."""
    lease = Lease(key=key, owner=owner, checkpoint_owner=of, checkpoint=SHARD_END if ended else at("1"))
    return LeaseView(lease, NOW_S - age_s)


def decide(views: list[LeaseView], me: str = "me", limits: Limits = LIMITS) -> LeasePlan:
    return plan(views, me, NOW_S, limits, {each.lease.key for each in views})


def keys(leases: tuple[Lease, ...]) -> set[str]:
    return {lease.key for lease in leases}


Owners = dict[str, str | None]


def some_owners(count: int, names: list[str], order: random.Random) -> Owners:
    return {f"s{index}": order.choice([None, *names]) for index in range(count)}


def picture(owners: Owners) -> list[LeaseView]:
    return [view(key, owner) for key, owner in owners.items()]


def assert_balanced(owners: Owners, names: list[str]) -> None:
    loads = Counter(owners.values())
    assert loads[None] == 0
    assert max(loads[name] for name in names) - min(loads[name] for name in names) <= 1


@given(st.integers(0, 25), st.integers(1, 6), st.randoms(use_true_random=False))
def test_a_fleet_converges_and_then_rests(count: int, workers: int, order: random.Random) -> None:
    """Processes plan one after the other, in any order, from any start."""
    names = [f"w{index}" for index in range(workers)]
    owners = some_owners(count, names, order)
    moves, resting = 0, False
    while not resting:
        resting = True
        for me in order.sample(names, workers):
            chosen = decide(picture(owners), me)
            assert len(chosen.ask) <= 1
            for lease in (*chosen.take, *chosen.ask):
                owners[lease.key] = me
                moves += 1
                resting = False
        assert moves <= 2 * count, "a lease moves at most once to its first owner and once to its last"
    assert_balanced(owners, names)


@given(st.integers(0, 25), st.integers(1, 6), st.randoms(use_true_random=False))
def test_processes_that_decide_on_the_same_stale_picture_converge_too(
    count: int, workers: int, order: random.Random
) -> None:
    """Everybody reads, then everybody writes; the first writer wins, as with compare-and-set."""
    names = [f"w{index}" for index in range(workers)]
    owners = some_owners(count, names, order)
    for _ in range(count + 2):
        seen, taken = picture(owners), set[str]()
        for me in order.sample(names, workers):
            chosen = decide(seen, me)
            fresh = keys((*chosen.take, *chosen.ask)) - taken
            owners.update(dict.fromkeys(fresh, me))
            taken |= fresh
        if not taken:
            break
    assert_balanced(owners, names)


@given(st.integers(0, 25), st.integers(1, 6), st.randoms(use_true_random=False))
def test_a_fleet_converges_while_hand_overs_take_their_time(count: int, workers: int, order: random.Random) -> None:
    """Each asks for one at a time, and those that are asked let go whenever they like."""
    names = [f"w{index}" for index in range(workers)]
    owners = some_owners(count, names, order)
    asked: dict[str, str] = {}
    moves, resting = 0, False
    while not resting:
        resting = not asked
        for me in order.sample(names, workers):
            chosen = decide([view(key, owner, of=asked.get(key)) for key, owner in owners.items()], me)
            may_ask = all(owners[key] != me for key in asked)
            asked.update((lease.key, lease.owner or "") for lease in chosen.ask if may_ask)
            for lease in (*chosen.take, *(chosen.ask if may_ask else ())):
                owners[lease.key] = me
                moves += 1
                resting = False
        for key in order.sample(sorted(asked), order.randint(0, len(asked))):
            del asked[key]
        assert moves <= 2 * count
    assert_balanced(owners, names)


def test_a_difference_of_one_is_left_alone() -> None:
    views = [view("a", "me"), view("b", "other"), view("c", "other")]
    assert decide(views) == LeasePlan()


def test_a_difference_of_two_moves_one() -> None:
    views = [view("a", "other"), view("b", "other")]
    assert len(decide(views).ask) == 1


def test_expired_leases_are_taken_at_once_up_to_the_fair_share() -> None:
    dead = [view(f"d{index}", "dead", age_s=10) for index in range(4)]
    alive = [view("a", "other"), view("b", "me")]
    assert len(decide([*dead, *alive]).take) == 2


def test_a_lease_is_not_free_before_its_expiry() -> None:
    assert decide([view("a", "other", age_s=9.99)]) == LeasePlan()


def test_the_most_loaded_owner_is_asked() -> None:
    rich = [view(f"r{index}", "rich") for index in range(6)]
    poor = [view(f"p{index}", "poor") for index in range(3)]
    assert keys(decide(poor + rich).ask) <= {each.lease.key for each in rich}


def test_a_lease_that_is_asked_for_counts_for_the_one_that_asked() -> None:
    views = [view("a", "me", of="other"), view("b", "other"), view("c", "other")]
    assert decide(views) == LeasePlan(), "1 and 2, though the other still works on three"
    assert decide(views, "third").ask != ()
    assert decide([*views, view("d", "other")]).ask != ()


def test_a_lease_that_is_asked_for_is_not_asked_for_again() -> None:
    views = [view("a", "next", of="rich"), view("b", "next", of="rich"), view("c", "next")]
    assert keys(decide(views).ask) == {"c"}
    assert decide(views[:2]) == LeasePlan()


def test_a_request_whose_old_owner_is_silent_is_free() -> None:
    half_done = [view("a", "gone", of="gone too", age_s=10), view("b", None, of="gone too", age_s=10)]
    assert keys(decide(half_done).take) == {"a", "b"}
    assert decide([view("a", None, of="still there", age_s=9)]) == LeasePlan()


def test_nothing_beyond_the_limit() -> None:
    views = [view(f"s{index}") for index in range(9)]
    assert len(decide(views, limits=replace(LIMITS, max_leases=3)).take) == 3
    full = [view("a", "me"), *(view(f"o{index}", "other") for index in range(5))]
    assert decide(full, limits=replace(LIMITS, max_leases=1)) == LeasePlan()


def test_ended_leases_need_nobody() -> None:
    assert decide([view("a", ended=True), view("b", "dead", age_s=99, ended=True)]) == LeasePlan()


def test_what_may_not_start_is_neither_taken_nor_asked_for() -> None:
    views = [view("free"), view("a", "other"), view("b", "other"), view("c", "other")]
    assert plan(views, "me", NOW_S, LIMITS, set()) == LeasePlan()


def test_two_processes_reach_for_different_leases_first() -> None:
    views = [view(f"s{index}") for index in range(20)]
    assert decide(views, "one").take != decide(views, "two").take


def test_a_child_waits_for_both_parents() -> None:
    one = Lease(key="one", checkpoint=SHARD_END)
    two = Lease(key="two", checkpoint=at("5"))
    child = Lease(key="child", parent_keys=frozenset({"one", "two", "long gone"}))
    assert startable([one, two, child]) == {"two"}
    assert startable([one, replace(two, checkpoint=SHARD_END), child]) == {"child"}


def test_a_finished_lease_goes_when_its_children_are_under_way_and_nobody_names_it() -> None:
    parent = Lease(key="parent", checkpoint=SHARD_END, child_keys=frozenset({"left", "right"}))
    left, right = Lease(key="left", checkpoint=at("9")), Lease(key="right")
    assert removable([parent, left, right], set()) == ()
    begun = [parent, left, replace(right, checkpoint=at("9"))]
    assert removable(begun, set()) == (parent,)
    assert removable(begun, {"parent"}) == ()
    assert removable([parent, left], set()) == (), "a child without a lease has not begun"
