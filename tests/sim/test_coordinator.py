"""Coordinators share leases on virtual time: one believer a lease, quick take-over, hand-over at once."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from tests.sim.fleet import SETTINGS, Fleet, now_s
from tidegate.errors import Fatal, Superseded, Transient
from tidegate.leases import SHARD_END, Coordinator, Hold, Lease, at, plain_leases

# Only virtual time passes, so no cycles are needed for the outside world.
pytestmark = pytest.mark.looptime(noop_cycles=0)

KEYS = [f"shard-{index}" for index in range(6)]
LEASES = plain_leases(KEYS)
# A plan may come one jittered interval late, and a call takes a little.
PLAN_S = SETTINGS.plan_interval_s * 1.25 + 0.5


async def test_two_processes_come_to_an_even_share() -> None:
    fleet = Fleet(1, LEASES)
    one = fleet.start("one")
    await fleet.until(lambda: one.held() == set(KEYS), 5, "the first takes everything")
    two = fleet.start("two")
    await fleet.until(fleet.is_balanced, 60, "the second gets its share")
    assert len(two.held()) == 3
    epochs = dict(fleet.epochs)
    await fleet.run_for(60)
    assert fleet.epochs == epochs, "nothing moves any more"
    await fleet.close()


async def test_what_is_off_the_network_is_not_worked_on_while_it_may_believe() -> None:
    fleet = Fleet(2, LEASES[:2])
    one = fleet.start("one")
    await fleet.until(lambda: len(one.held()) == 2, 5, "the first takes both")
    assert one.network is not None
    one.network.cut = True  # it learns of nothing any more, and believes until its deadline
    two = fleet.start("two")
    await fleet.until(lambda: len(two.held()) == 2, SETTINGS.expiry_s + 2 * PLAN_S, "the second works on both")
    assert one.held() == set()
    await fleet.close()


async def test_take_over_after_a_kill_takes_the_expiry_and_a_little() -> None:
    fleet = Fleet(3, LEASES)
    one, two = fleet.start("one"), fleet.start("two")
    await fleet.until(fleet.is_balanced, 60, "balanced")
    await one.kill()
    seconds = await fleet.until(lambda: two.held() == set(KEYS), 60, "the survivor has everything")
    assert SETTINGS.expiry_s - SETTINGS.renew_interval_s <= seconds <= SETTINGS.expiry_s + PLAN_S
    await fleet.close()


async def test_hand_over_on_stop_is_at_once() -> None:
    fleet = Fleet(4, LEASES)
    one, two = fleet.start("one"), fleet.start("two")
    await fleet.until(fleet.is_balanced, 60, "balanced")
    await one.shut_down()
    assert all(lease.owner != "one" for lease in fleet.table.leases.values())
    seconds = await fleet.until(lambda: two.held() == set(KEYS), 60, "the other has everything")
    assert seconds <= PLAN_S
    await fleet.close()


async def test_a_process_off_the_network_stops_believing_before_another_begins() -> None:
    fleet = Fleet(5, LEASES)
    one = fleet.start("one")
    await fleet.until(lambda: one.held() == set(KEYS), 5, "all held")
    two = fleet.start("two")
    await fleet.until(fleet.is_balanced, 60, "balanced")
    assert one.network is not None
    one.network.cut = True
    await fleet.until(lambda: not one.held(), SETTINGS.patience_s, "it fences itself")
    await fleet.until(lambda: two.held() == set(KEYS), 60, "the other takes over")
    one.network.cut = False
    await fleet.until(fleet.is_balanced, 60, "it comes back for its share")
    await fleet.close()


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_happens_one_process_believes_and_in_the_end_all_is_held(seed: int) -> None:
    """Requests and replies get lost, requests arrive late, processes die, hang and come back."""
    fleet = Fleet(seed, LEASES, fault_rate=0.2)
    for name in ("a", "b", "c"):
        fleet.start(name)
    for round_number in range(6):
        await fleet.run_for(fleet.random.uniform(1, 15))
        victim = fleet.random.choice([each for each in fleet.processes if not each.running.done()])
        assert victim.network is not None
        match fleet.random.choice(["kill", "cut", "stop"]):
            case "kill":
                await victim.kill()
                fleet.start(f"{victim.name}{round_number}")
            case "stop":
                victim.stop.set()
                fleet.start(f"{victim.name}{round_number}")
            case _:
                victim.network.cut = True
                await fleet.run_for(fleet.random.uniform(1, 15))
                victim.network.cut = False
    fleet.heal()
    await fleet.until(fleet.is_balanced, 60, "after healing everything is shared")
    for key in KEYS:
        assert all(one < other for one, other in pairwise(fleet.epochs[key])), "every take has a higher epoch"
        assert all(one <= other for one, other in pairwise(fleet.checkpoints[key])), "no checkpoint goes back"
        assert fleet.table.leases[key].checkpoint >= fleet.checkpoints[key][-1]
    assert fleet.steps > 100
    await fleet.close()


# ---------------------------------------------------------------- how a lease's task may end


async def test_a_transient_failure_restarts_this_lease_only_and_later_each_time() -> None:
    begun: dict[str, list[float]] = {key: [] for key in KEYS[:2]}

    async def fail_on_the_first(hold: Hold) -> None:
        begun[hold.key].append(now_s())
        if hold.key == KEYS[0]:
            raise ExceptionGroup("from a group of its own", [Transient("database away")])
        await hold.stop.wait()

    fleet = Fleet(6, LEASES[:2], task=fail_on_the_first)
    fleet.start("one")
    await fleet.until(lambda: len(begun[KEYS[0]]) == 5, 120, "tried five times")
    waits = [later - earlier for earlier, later in pairwise(begun[KEYS[0]])]
    assert all(2**tries * 0.5 <= wait for tries, wait in enumerate(waits)), waits
    assert len(begun[KEYS[1]]) == 1
    await fleet.close()


async def test_a_lease_that_fails_here_is_taken_elsewhere_at_once() -> None:
    broken = asyncio.Event()

    async def fail_when_broken(hold: Hold) -> None:
        broken_here = asyncio.create_task(broken.wait())
        stopped = asyncio.create_task(hold.stop.wait())
        await asyncio.wait({broken_here, stopped}, return_when=asyncio.FIRST_COMPLETED)
        broken_here.cancel()
        stopped.cancel()
        if hold.lease.owner == "one" and not hold.stop.is_set():
            raise Transient("its database is away")
        await hold.stop.wait()

    fleet = Fleet(7, LEASES[:1], task=fail_when_broken)
    one = fleet.start("one")
    await fleet.until(lambda: len(one.held()) == 1, 5, "held")
    two = fleet.start("two")
    await fleet.run_for(5)
    broken.set()
    await fleet.until(lambda: len(two.held()) == 1, SETTINGS.restart_delay_max_s, "the other process has it")
    await fleet.close()


async def test_a_task_that_is_superseded_ends_quietly() -> None:
    begun: list[float] = []

    async def lose_once(hold: Hold) -> None:
        begun.append(now_s())
        if len(begun) == 1:
            raise Superseded("the cursor moved under us")
        await hold.stop.wait()

    fleet = Fleet(8, LEASES[:1], task=lose_once)
    fleet.start("one")
    await fleet.until(lambda: len(begun) == 2, 30, "begun again")
    await fleet.close()


@pytest.mark.parametrize("error", [Fatal("schema mismatch"), KeyError("a bug")])
async def test_anything_else_ends_the_process_and_gives_everything_back(error: Exception) -> None:
    async def fail_once_all_are_held(hold: Hold) -> None:
        while len(one.held()) < len(LEASES):
            await asyncio.sleep(0.1)
        if hold.key == KEYS[0]:
            raise error
        await hold.stop.wait()

    fleet = Fleet(9, LEASES, task=fail_once_all_are_held)
    one = fleet.start("one")
    with pytest.raises(ExceptionGroup) as raised:
        await one.running
    assert raised.group_contains(type(error))
    assert {lease.owner for lease in fleet.table.leases.values()} == {None}


async def test_a_task_that_returns_unasked_is_started_again_after_the_delay() -> None:
    begun: list[float] = []

    async def return_at_once(hold: Hold) -> None:
        begun.append(now_s())

    fleet = Fleet(10, LEASES[:1], task=return_at_once)
    fleet.start("one")
    await fleet.until(lambda: len(begun) == 3, 30, "begun three times")
    assert begun[1] - begun[0] >= SETTINGS.restart_delay_s / 2
    await fleet.close()


async def test_a_lost_lease_cancels_its_task() -> None:
    ended = asyncio.Event()

    async def work_for_ever(hold: Hold) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            assert hold.lost.is_set()
            ended.set()

    fleet = Fleet(11, LEASES[:1], task=work_for_ever)
    one = fleet.start("one")
    await fleet.until(lambda: len(one.held()) == 1, 5, "held")
    await fleet.table.take(fleet.table.leases[KEYS[0]], "thief")
    await fleet.until(ended.is_set, SETTINGS.renew_interval_s + 1, "noticed at the next renewal")
    await one.kill()


async def test_the_drain_ends_with_its_budget_and_the_lease_is_given_back() -> None:
    async def ignore_the_stop(hold: Hold) -> None:
        await asyncio.Event().wait()

    fleet = Fleet(12, LEASES[:2], task=ignore_the_stop)
    one = fleet.start("one")
    await fleet.until(lambda: len(one.held()) == 2, 5, "held")
    began_s = now_s()
    await one.shut_down()
    assert now_s() - began_s == pytest.approx(SETTINGS.drain_budget_s, abs=0.5)
    assert {lease.owner for lease in fleet.table.leases.values()} == {None}


async def test_a_task_that_drains_keeps_its_lease_meanwhile() -> None:
    async def drain_for_15_s(hold: Hold) -> None:
        await hold.stop.wait()
        await asyncio.sleep(15)
        await hold.checkpoint(at("99"))

    fleet = Fleet(13, LEASES[:1], task=drain_for_15_s)
    one = fleet.start("one")
    await fleet.until(lambda: len(one.held()) == 1, 5, "held")
    fleet.start("two")
    await one.shut_down()
    assert fleet.table.leases[KEYS[0]].checkpoint == at("99")
    await fleet.until(lambda: len(fleet.processes[1].held()) == 1, PLAN_S, "handed over")
    await fleet.close()


# ---------------------------------------------------------------- lineage and plain keys


async def test_children_begin_when_both_parents_have_ended() -> None:
    child = Lease(key="child", parent_keys=frozenset({"left", "right"}))
    ends_s = {"left": 5.0, "right": 20.0}
    begun: dict[str, float] = {}

    async def end_in_time(hold: Hold) -> None:
        begun[hold.key] = now_s()
        if hold.key in ends_s:
            await asyncio.sleep(ends_s[hold.key])
            await hold.end([child])
        else:
            await hold.checkpoint(at("1"))
            await hold.stop.wait()

    fleet = Fleet(14, plain_leases(["left", "right"]), task=end_in_time)
    fleet.start("one")
    await fleet.until(lambda: "child" in begun, 60, "the child begins")
    assert begun["child"] == pytest.approx(begun["right"] + ends_s["right"], abs=1.0), "at once, and not before"
    assert fleet.table.leases["left"].checkpoint == SHARD_END
    assert fleet.table.leases["left"].child_keys == {"child"}
    await fleet.close()


async def test_a_finished_parent_that_discovery_no_longer_names_is_removed_once_it_has_rested() -> None:
    fleet = Fleet(15, [Lease(key="child", parent_keys=frozenset({"parent"}))])
    await fleet.table.create(Lease(key="parent", checkpoint=SHARD_END, child_keys=frozenset({"child"})))
    fleet.start("one")
    # Whoever sent its creation while it was missing would make it anew, at the start of its shard.
    await fleet.run_for(110)
    assert not await fleet.table.create(Lease(key="parent"))
    await fleet.until(lambda: "parent" not in fleet.table.leases, 60, "removed once the child is under way")
    assert fleet.table.leases["child"].checkpoint.is_number
    await fleet.close()


async def test_plain_keys_are_created_and_others_left_alone() -> None:
    fleet = Fleet(16, [])
    await fleet.table.create(Lease(key="of another poller"))
    begun: dict[str, int] = {}

    async def poll(hold: Hold) -> None:
        begun[hold.key] = hold.epoch
        await hold.stop.wait()

    for turn in range(2):
        stop = asyncio.Event()
        coordinator = Coordinator.for_keys(fleet.table, f"poller-{turn}", SETTINGS, poll, ["orders", "customers"])
        running = asyncio.create_task(coordinator.run(stop))
        await coordinator.planned.wait()
        await fleet.until(lambda: set(begun) == {"orders", "customers"}, 5, "both begun")
        stop.set()
        await running
        epochs, begun = begun, {}
        assert all(epoch == fleet.table.leases[key].epoch for key, epoch in epochs.items())
    assert epochs["orders"] > 1_700_000_000, "the first epoch is the wall clock's, so a lost table resets nothing"
    assert fleet.table.leases["of another poller"].counter == 0
