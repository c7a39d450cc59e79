"""The sharing policy, decision by decision. What whole fleets come to is in `test_leases_fleet`."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tidegate.leases import SHARD_END, Lease, at
from tidegate.leases.lease import LeaseView
from tidegate.leases.planner import (
    LeasePlan,
    Limits,
    alone,
    around,
    creatable,
    in_turn,
    measure,
    noticed,
    parts,
    plan,
    receiver,
    removable,
    spot,
    startable,
    with_mine,
)

LIMITS = Limits(expiry_s=10, max_leases=1000)
NOW_S = 100.0


def view(
    key: str,
    owner: str | None = None,
    *,
    of: str | None = None,
    age_s: float = 0.0,
    ended: bool = False,
    kbps: float | None = None,
) -> LeaseView:
    """`of`: the one that works on it while `owner` asks for it."""
    checkpoint = SHARD_END if ended else at("1")
    lease = Lease(key=key, owner=owner, checkpoint_owner=of, checkpoint=checkpoint, throughput_kbps=kbps)
    return LeaseView(lease, NOW_S - age_s)


def of(owner: str, count: int, *, kbps: float | None = None, age_s: float = 0.0) -> list[LeaseView]:
    return [view(f"{owner}-{index}", owner, kbps=kbps, age_s=age_s) for index in range(count)]


def decide(views: list[LeaseView], me: str = "me", limits: Limits = LIMITS, dice: float = 0.0) -> LeasePlan:
    """`dice` 0: whatever is possible is done."""
    return plan(views, me, NOW_S, limits, {each.lease.key for each in views}, lambda: dice)


def keys(leases: tuple[Lease, ...]) -> set[str]:
    return {lease.key for lease in leases}


# ---------------------------------------------------------------- taking


def test_free_leases_are_taken_up_to_the_mean_and_the_one_that_passes_it() -> None:
    views = [view(f"free-{index}") for index in range(4)] + of("other", 3)
    assert len(decide(views).take) == 4, "of seven, 3.5 each"
    assert len(decide([*views, *of("me", 1)]).take) == 3
    assert decide([*views, *of("me", 7)]).take == ()


def test_expired_leases_are_taken_at_once() -> None:
    views = [*of("dead", 4, age_s=10), *of("other", 1), *of("me", 1)]
    assert len(decide(views).take) == 2


def test_a_lease_is_not_free_before_its_expiry() -> None:
    assert decide(of("other", 1, age_s=9.99)).take == ()


def test_a_request_whose_old_owner_is_silent_is_free() -> None:
    half_done = [view("a", "gone", of="gone too", age_s=10), view("b", None, of="gone too", age_s=10)]
    assert keys(decide(half_done).take) == {"a", "b"}
    assert decide([view("a", None, of="still there", age_s=9)]) == LeasePlan()


def test_a_heavy_lease_goes_to_who_has_room_but_is_left_to_nobody() -> None:
    light = [*of("me", 9, kbps=1.0), *of("other", 9, kbps=1.0)]
    views = [*light, view("heavy", kbps=50.0), view("light", kbps=1.0)]
    assert keys(decide([view_ for view_ in views if view_.lease.owner != "me"]).take) >= {"heavy"}
    only = [*light, view("heavy", kbps=50.0)]
    assert keys(decide(only).take) == {"heavy"}


def test_nothing_beyond_the_limits() -> None:
    views = [view(f"s{index}") for index in range(9)]
    assert len(decide(views, limits=replace(LIMITS, max_leases=3)).take) == 3
    assert len(decide(views, limits=replace(LIMITS, take_most=2)).take) == 2
    full = [view("a", "me"), *of("other", 5)]
    assert decide(full, limits=replace(LIMITS, max_leases=1)) == LeasePlan()
    assert len(decide(of("other", 9), limits=replace(LIMITS, ask_most=2)).ask) == 2


def test_ended_leases_need_nobody() -> None:
    assert decide([view("a", ended=True), view("b", "dead", age_s=99, ended=True)]) == LeasePlan()


def test_what_may_not_start_is_neither_taken_nor_asked_for() -> None:
    views = [view("free"), *of("other", 3)]
    assert plan(views, "me", NOW_S, LIMITS, set(), lambda: 0.0) == LeasePlan()


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 40), st.integers(1, 10))
def test_processes_that_know_each_other_reach_for_different_leases(workers: int, each: int) -> None:
    names = [f"w{index}" for index in range(workers)]
    free = [view(f"shard-{index}") for index in range(workers * each * 8)]
    views = free + [view(f"mine-{name}", name) for name in names]
    reached = Counter(key for me in names for key in keys(decide(views, me, replace(LIMITS, take_most=each)).take))
    assert reached.total() == len(reached) == workers * each


# ---------------------------------------------------------------- asking


def test_a_difference_of_one_is_left_alone() -> None:
    assert decide([*of("me", 1), *of("other", 2)]) == LeasePlan()


def test_a_difference_of_two_moves_one() -> None:
    assert len(decide(of("other", 2)).ask) == 1


def test_what_is_not_far_apart_is_left_alone() -> None:
    assert decide([*of("me", 42), *of("other", 54), *of("third", 54)]) == LeasePlan(), "16 % below the mean"
    assert len(decide([*of("me", 41), *of("other", 54), *of("third", 55)]).ask) == 8, "18 %; 51 - 49 - 1 is the band"
    assert decide([*of("me", 49), *of("other", 67), *of("third", 34), *of("fourth", 50)]) == LeasePlan(), "34 % above"
    assert len(decide([*of("me", 49), *of("other", 68), *of("third", 33), *of("fourth", 50)]).ask) == 1, "36 %"


def test_who_is_balancing_already_goes_on_to_the_dead_band() -> None:
    views = [*of("me", 46), *of("other", 52), *of("third", 52)]
    assert len(decide(views, limits=replace(LIMITS, eager=True)).ask) == 3, "51 - 48 - 1 is within the band"
    near = [*of("me", 48), *of("other", 51), *of("third", 51)]
    assert decide(near, limits=replace(LIMITS, eager=True)) == LeasePlan()


def test_nobody_comes_to_lack_something_by_giving() -> None:
    """A newcomer lacks everything, and yet asks each of the others only for what it has too much."""
    names = [f"w{index}" for index in range(20)]
    rates = {name: [1.0] * 20 + [30.0] for name in names}
    views = [view(f"{name}-{index}", name, kbps=kbps) for name in names for index, kbps in enumerate(rates[name])]
    balance = measure(views, "me", NOW_S, 10)
    given: dict[str, float] = defaultdict(float)
    for lease in decide(views).ask:
        assert lease.owner is not None
        given[lease.owner] += balance.weight(lease)
    assert len(given) > 10
    assert all(balance.loads[name] - weight > 0.9 * balance.mean for name, weight in given.items())


def test_nobody_asks_for_more_than_it_lacks() -> None:
    views = [*of("me", 9), *(each for name in "abcdefghi" for each in of(name, 10)), *of("rich", 100)]
    asked = decide(views).ask
    assert keys(asked) <= {f"rich-{index}" for index in range(100)}
    assert len(asked) == 10, "the mean is 19"


def test_a_part_of_a_lease_is_asked_for_with_that_probability() -> None:
    """Two lack half a lease each and both see the same rich one: together they ask for one."""
    views = [*of("a", 2), *of("b", 2), *of("rich", 4), *of("c", 2)]
    assert len(decide(views, "a", dice=0.49).ask) == 1
    assert len(decide(views, "a", dice=0.51).ask) == 0


def test_the_lease_that_fits_best_is_asked_for() -> None:
    views = [view("tiny", "rich", kbps=0.0), view("half", "rich", kbps=30.0), view("huge", "rich", kbps=300.0)]
    assert keys(decide(views).ask) == {"huge"}
    views = [*views, view("mine", "me", kbps=300.0), view("extra", "rich", kbps=100.0)]
    assert "huge" not in keys(decide(views).ask)


def test_a_lease_that_is_asked_for_counts_for_the_one_that_asked() -> None:
    views = [view("a", "me", of="other"), view("b", "other"), view("c", "other")]
    assert decide(views) == LeasePlan(), "1 and 2, though the other still works on three"
    assert decide([*views, view("d", "other")]).ask != ()


def test_a_lease_that_is_asked_for_is_not_asked_for_again() -> None:
    views = [view("a", "next", of="rich"), view("b", "next", of="rich"), view("c", "next")]
    assert keys(decide(views).ask) == {"c"}
    assert decide(views[:2]) == LeasePlan()


# ---------------------------------------------------------------- weight


def test_without_measurements_every_lease_weighs_one() -> None:
    balance = measure([*of("a", 3), *of("me", 1)], "me", NOW_S, 10)
    assert balance.loads == {"a": 3, "me": 1}
    assert balance.mean == 2.0


def test_half_of_the_weight_is_the_share_of_what_is_read() -> None:
    views = [view("busy", "a", kbps=30.0), view("idle", "b", kbps=0.0), view("new", "b")]
    balance = measure(views, "me", NOW_S, 10)
    assert [balance.weight(each.lease) for each in views] == [1.0, 0.5, 1.0], "one is no heavier than a share"
    balance = measure([*views[:2], view("third", "b", kbps=0.0)], "a", NOW_S, 10)
    assert balance.kbps == 10.0
    assert balance.loads == {"a": 1.5, "b": 1.0}


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.none() | st.floats(0, 1e6)), min_size=1))
def test_loads_are_the_sums_of_weights_whatever_was_measured(leases: list[tuple[str, float | None]]) -> None:
    views = [view(f"s{index}", owner, kbps=kbps) for index, (owner, kbps) in enumerate(leases)]
    balance = measure(views, "me", NOW_S, 10)
    for owner in balance.live:
        weights = [balance.weight(each.lease) for each in views if each.lease.owner == owner]
        assert abs(balance.loads[owner] - sum(weights)) < 1e-6
        assert all(0 < weight <= balance.heaviest + 1e-9 for weight in weights)


def test_what_a_part_shows_corrects_the_mean() -> None:
    names = [f"w{index}" for index in range(10)]
    balance = measure([each for name in names for each in of(name, 10)], "w0", NOW_S, 10)
    seen = [*of("w1", 18), *of("w2", 2, age_s=10)]
    after = noticed(balance, seen, [view("x").lease] * 3, NOW_S, 10)
    assert after.mean == 10 / 0.9
    assert after.loads["w0"] == 3
    assert {each.lease.owner for each in after.free} == {"w2"}
    assert with_mine(balance, ()).loads["w0"] == 0


# ---------------------------------------------------------------- places


@given(st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=60))
def test_every_part_is_watched_by_three(names: set[str]) -> None:
    live = sorted(names)
    watched = Counter(part for me in live for part in parts(me, live))
    if len(live) <= 3:
        assert not watched, "everybody watches everything"
    else:
        assert {part.total for part in watched} == {len(live)}
        assert {part.index for part in watched} == set(range(len(live)))
        assert set(watched.values()) == {3}


def test_the_ring_goes_round() -> None:
    leases = [Lease(key=f"s{index}") for index in range(50)]
    turned = around(leases, 0.5)
    spots = [spot(lease.key) for lease in turned]
    assert sorted(turned, key=lambda lease: lease.key) == sorted(leases, key=lambda lease: lease.key)
    assert spots == sorted(each for each in spots if each >= 0.5) + sorted(each for each in spots if each < 0.5)


def test_those_who_know_each_other_divide_what_is_free() -> None:
    free = [Lease(key=f"s{index}") for index in range(12)]
    views = [*of("a", 1), *of("b", 1), *of("c", 1), *of("full", 9), *(LeaseView(lease, NOW_S) for lease in free)]
    firsts = {me: in_turn(free, measure(views, me, NOW_S, 10))[:4] for me in "abc"}
    assert sorted(lease.key for some in firsts.values() for lease in some) == sorted(lease.key for lease in free)


def test_who_is_not_known_yet_begins_anywhere() -> None:
    """Its number among the others would push them all aside, and several newcomers would have the same."""
    free = [Lease(key=f"s{index}") for index in range(12)]
    assert in_turn(free, alone("me")) == around(free, spot("me"))
    assert in_turn(free, measure(of("a", 1), "b", NOW_S, 10)) == around(free, spot("b"))
    known = measure([*of("a", 1), *of("b", 1)], "b", NOW_S, 10)
    assert in_turn(free, noticed(known, (), (), NOW_S, 10)) == around(free, spot("b"))


def test_who_stops_gives_to_the_less_loaded_of_two() -> None:
    loads = {"me": 0.0, "a": 5.0, "b": 3.0}
    assert receiver(loads, "me", lambda: 0.0) == "b"
    assert receiver({"me": 0.0, "a": 5.0}, "me", lambda: 0.99) == "a"
    assert receiver({"me": 0.0}, "me", lambda: 0.0) is None


@given(st.integers(2, 100), st.integers(0, 2**32))
def test_what_one_gives_away_is_spread_over_all(others: int, seed: int) -> None:
    loads = {"me": 0.0, **{f"w{index}": 10.0 for index in range(others)}}
    dice = random.Random(seed).random
    for _ in range(3 * others):
        to = receiver(loads, "me", dice)
        assert to is not None
        loads[to] += 1
    assert max(loads.values()) <= 10 + 3 + 5


# ---------------------------------------------------------------- lineage


def test_a_child_waits_for_both_parents() -> None:
    one = Lease(key="one", checkpoint=SHARD_END)
    two = Lease(key="two", checkpoint=at("5"))
    child = Lease(key="child", parent_keys=frozenset({"one", "two", "long gone"}))
    assert startable([one, two, child]) == {"two"}
    assert startable([one, replace(two, checkpoint=SHARD_END), child]) == {"child"}


def test_parents_are_created_before_their_children() -> None:
    one, two = Lease(key="one"), Lease(key="two")
    child = Lease(key="child", parent_keys=frozenset({"one", "two", "long gone"}))
    assert creatable([one, two, child]) == [one, two]
    assert creatable([two, child]) == [two]
    assert creatable([child]) == [child]


def test_a_finished_lease_goes_when_its_children_are_under_way_and_nobody_names_it() -> None:
    parent = Lease(key="parent", checkpoint=SHARD_END, child_keys=frozenset({"left", "right"}))
    left, right = Lease(key="left", checkpoint=at("9")), Lease(key="right")
    assert removable([parent, left, right], set()) == ()
    begun = [parent, left, replace(right, checkpoint=at("9"))]
    assert removable(begun, set()) == (parent,)
    assert removable(begun, {"parent"}) == ()
    assert removable([parent, left], set()) == (), "a child without a lease has not begun"
