"""Leases that move between live processes on virtual time: no pause, and one believer whatever fails on the way."""

from __future__ import annotations

from itertools import pairwise

import pytest
from msgspec.structs import replace

from tests.sim.busy import KEYS, LEASES, PLAN_S, Busy, Hurdles
from tests.sim.fleet import SETTINGS, Fleet, Process, now_s
from tidegate.leases import Lease

# Only virtual time passes, so no cycles are needed for the outside world.
pytestmark = pytest.mark.looptime(noop_cycles=0)


@pytest.mark.parametrize("seed", range(5))
async def test_who_joins_gets_its_share_and_every_lease_keeps_moving(seed: int) -> None:
    busy = Busy(seed)
    await busy.alone()
    joined_s = now_s()
    new = busy.fleet.start("new")
    await busy.fleet.until(busy.fleet.is_balanced, 30, "balanced")
    await busy.fleet.run_for(10)
    assert len(new.held()) == 3
    assert len(busy.moves()) == 3, "each lease moved at most once"
    assert all(first.position == last.position + 1 for last, first in busy.moves()), "nothing is done twice"
    pauses_s = [first.at_s - last.at_s for last, first in busy.moves()]
    assert max(pauses_s) < 1.0
    assert busy.longest_pause_s(joined_s) < 1.0
    await busy.fleet.close()


async def test_an_owner_that_writes_all_the_time_is_asked_again_at_once() -> None:
    """The counter moved between reading the lease and asking for it."""
    busy = Busy(10, leases=2)
    await busy.alone()
    table = Hurdles(busy.fleet.table)
    table.overtaken = 3
    busy.fleet.start("new", table)
    await busy.until_wanted()
    assert len(table.asked_s) == 4
    assert table.asked_s[-1] - table.asked_s[0] < 1.0
    await busy.fleet.close()


async def test_the_old_owner_need_not_write_to_learn_of_it() -> None:
    busy = Busy(20, leases=2, settings=replace(SETTINGS, plan_interval_s=0.2))
    busy.pause_s = SETTINGS.expiry_s  # no checkpoint comes, and a renewal is due every 3 s
    await busy.alone()
    await busy.fleet.run_for(SETTINGS.renew_interval_s + 0.5)
    busy.fleet.start("new")
    await busy.until_wanted()
    await busy.fleet.until(busy.fleet.is_balanced, 1.0, "handed over")
    await busy.fleet.close()


async def test_a_request_that_arrives_late_and_is_answered_before_the_next_plan() -> None:
    """It came after the one look that followed the lost reply, so nobody follows it."""
    busy = Busy(21, leases=2)
    await busy.alone()
    table = Hurdles(busy.fleet.table)
    table.ask_late_by_s = SETTINGS.request_timeout_s + 0.6
    joined_s = now_s()
    busy.fleet.start("new", table)
    await busy.fleet.until(lambda: bool(busy.moves()), 15, "handed over")
    assert busy.longest_pause_s(joined_s) < PLAN_S
    await busy.fleet.close()


async def test_a_request_that_arrives_late_is_followed_from_the_next_plan_on() -> None:
    slow = replace(SETTINGS, plan_interval_s=10.0)
    busy = Busy(23, leases=2, settings=slow)
    await busy.alone()
    busy.deaf.add("old")
    table = Hurdles(busy.fleet.table)
    table.ask_late_by_s = SETTINGS.request_timeout_s + 0.6
    joined_s = now_s()
    busy.fleet.start("new", table)
    await busy.fleet.run_for(slow.plan_interval_s * 1.25 + 1.0)
    assert busy.wanted() is not None
    busy.deaf.clear()
    await busy.fleet.until(lambda: bool(busy.moves()), 15, "handed over")
    assert busy.longest_pause_s(joined_s) < 1.0
    await busy.fleet.close()


async def test_a_take_by_force_whose_reply_was_lost_waits_all_the_same() -> None:
    busy = Busy(22, leases=2)
    await busy.alone()
    busy.deaf.add("old")
    table = Hurdles(busy.fleet.table)
    table.lose_reply_of_force = True
    busy.fleet.start("new", table)
    await busy.until_wanted()
    forced_s = now_s() + SETTINGS.hand_over_s
    await busy.fleet.until(lambda: bool(busy.moves()), 60, "taken by force")
    [(_, first)] = busy.moves()
    assert first.at_s >= forced_s + SETTINGS.patience_s
    busy.deaf.clear()
    await busy.fleet.close()


async def test_two_that_join_together_take_no_more_than_their_share() -> None:
    busy = Busy(11)
    await busy.alone()
    newcomers = [busy.fleet.start("one"), busy.fleet.start("two")]
    await busy.fleet.until(busy.fleet.is_balanced, 30, "balanced")
    await busy.fleet.run_for(20)
    assert [len(process.held()) for process in newcomers] == [2, 2]
    assert len(busy.moves()) == 4
    await busy.fleet.close()


async def test_while_it_is_asked_for_the_old_owner_works_on() -> None:
    """Its batch in hand takes long: it renews, writes and checkpoints, and the new one begins right after."""
    busy = Busy(12, leases=2)
    await busy.alone()
    busy.deaf.add("old")
    busy.fleet.start("new")
    key = await busy.until_wanted()
    asked_s = now_s()
    await busy.fleet.run_for(SETTINGS.expiry_s + SETTINGS.patience_s)
    assert busy.writes[key][-1].owner == "old"
    busy.deaf.clear()
    await busy.fleet.until(lambda: busy.writes[key][-1].owner == "new", 2, "handed over")
    assert busy.longest_pause_s(asked_s) < 1.0
    await busy.fleet.close()


async def test_an_owner_that_does_not_let_go_loses_the_lease_in_the_end() -> None:
    busy = Busy(13, leases=2)
    await busy.alone()
    busy.deaf.add("old")
    busy.fleet.start("new")
    key = await busy.until_wanted()
    seconds = await busy.fleet.until(lambda: busy.fleet.believers(key) == ["new"], 60, "taken by force")
    assert SETTINGS.hand_over_s + SETTINGS.patience_s <= seconds
    assert seconds <= SETTINGS.hand_over_s + SETTINGS.patience_s + 1.0
    await busy.fleet.run_for(1)
    [(last, first)] = busy.moves()
    assert first.at_s - last.at_s >= SETTINGS.patience_s - SETTINGS.renew_interval_s
    busy.deaf.clear()
    await busy.fleet.close()


@pytest.mark.parametrize("fate", ["killed", "off the network", "stalled"])
async def test_the_old_owner_fails_while_it_is_asked(fate: str) -> None:
    """Asked for at the worst moment: the lease still expires as if nobody had asked."""
    busy = Busy(14)
    old = await busy.alone()
    new = busy.fleet.start("new")
    await busy.until_wanted()
    assert old.network is not None
    match fate:
        case "killed":
            await old.kill()
        case "off the network":
            old.network.cut = True
        case _:
            old.network.late_by_s = SETTINGS.expiry_s + PLAN_S
    seconds = await busy.fleet.until(lambda: new.held() == busy.keys(), 60, "the new one has everything")
    assert SETTINGS.expiry_s - SETTINGS.renew_interval_s - 0.5 <= seconds <= SETTINGS.expiry_s + PLAN_S
    assert old.held() == set()
    old.network.cut, old.network.late_by_s = False, 0.0
    await busy.fleet.run_for(30)
    if fate != "killed":
        await busy.fleet.until(busy.fleet.is_balanced, 30, "it comes back for its share")
    await busy.fleet.close()


async def test_the_one_that_asked_is_killed() -> None:
    """The old owner hands over all the same; the lease expires in a dead name and comes back."""
    busy = Busy(15, leases=2)
    old = await busy.alone()
    new = busy.fleet.start("new")
    key = await busy.until_wanted()
    await new.kill()
    await busy.fleet.until(lambda: busy.wanted() is None, PLAN_S + 1, "handed over")
    assert busy.fleet.table.leases[key].owner == "new"
    await busy.fleet.until(lambda: old.held() == busy.keys(), SETTINGS.expiry_s + PLAN_S, "back again")
    assert [write.owner for write in busy.writes[key]] == ["old"] * len(busy.writes[key])
    await busy.fleet.close()


async def test_the_one_that_asked_is_told_to_stop() -> None:
    """It waits for the answer and gives the lease to another at once."""
    busy = Busy(16, leases=2)
    old = await busy.alone()
    new = busy.fleet.start("new")
    asked_s = now_s()
    key = await busy.until_wanted()
    await new.shut_down()
    assert busy.fleet.table.leases[key].owner == "old"
    await busy.fleet.until(lambda: old.held() == busy.keys(), PLAN_S, "back again")
    # Two moves, one after the other: the first is noticed by a look at the lease, the second by a look at one's name.
    assert busy.longest_pause_s(asked_s) < SETTINGS.hand_over_look_s + 1.25 * SETTINGS.own_look_s + 0.3
    await busy.fleet.close()


async def test_the_one_that_asked_is_told_to_stop_and_gets_no_answer() -> None:
    """It leaves in time, and takes nothing by force only to drop it."""
    busy = Busy(19, leases=2)
    old = await busy.alone()
    busy.deaf.add("old")
    new = busy.fleet.start("new")
    await busy.until_wanted()
    began_s = now_s()
    await new.shut_down()
    assert now_s() - began_s <= SETTINGS.hand_over_s + 1.0
    assert old.held() == busy.keys()
    await busy.fleet.run_for(SETTINGS.expiry_s + PLAN_S)
    assert old.held() == busy.keys()
    busy.deaf.clear()
    await busy.fleet.close()


async def test_the_old_owner_is_told_to_stop_while_it_is_asked() -> None:
    busy = Busy(17)
    old = await busy.alone()
    new = busy.fleet.start("new")
    key = await busy.until_wanted()
    await old.shut_down()
    handed = busy.fleet.table.leases[key]
    assert (handed.owner, handed.checkpoint_owner) == ("new", None)
    assert {lease.owner for lease in busy.fleet.table.leases.values()} == {"new"}
    await busy.fleet.until(lambda: new.held() == busy.keys(), PLAN_S, "everything is the new one's")
    await busy.fleet.close()


async def test_a_half_done_hand_over_of_others_expires() -> None:
    """Left behind in a table that KCL used: with its next owner gone, or without any owner at all."""
    busy = Busy(18, leases=2)
    table = busy.fleet.table
    for lease, owner in zip(LEASES[:2], ("kcl-2", None), strict=True):
        await table.create(Lease(key=lease.key, owner=owner, checkpoint_owner="kcl-1", counter=7))
    new = busy.fleet.start("new")
    seconds = await busy.fleet.until(lambda: new.held() == busy.keys(), 30, "taken")
    assert SETTINGS.expiry_s <= seconds <= SETTINGS.expiry_s + PLAN_S
    await busy.fleet.close()


async def fail(fleet: Fleet, victim: Process, fate: str) -> None:
    """For good, or for a while in which it is off the network or everything that it sends comes late."""
    assert victim.network is not None
    match fate:
        case "kill":
            await victim.kill()
        case "stop":
            victim.stop.set()
        case "cut":
            victim.network.cut = True
            await fleet.run_for(fleet.random.uniform(1, 15))
            victim.network.cut = False
        case _:
            victim.network.late_by_s = fleet.random.uniform(1, 15)
            await fleet.run_for(fleet.random.uniform(1, 15))
            victim.network.late_by_s = 0.0


@pytest.mark.parametrize("seed", range(100, 112))
async def test_whatever_fails_in_a_hand_over_one_process_believes(seed: int) -> None:
    """Requests and replies get lost or late, and each time a lease is asked for, one of the two ends fails."""
    busy = Busy(seed, fault_rate=0.2)
    fleet = busy.fleet
    fleet.start("first")
    asked = 0
    for turn in range(12):
        fleet.start(f"new-{turn}")
        lease = await busy.wanted_within(10)
        await fleet.run_for(fleet.random.choice([0.0, 0.3, 1.0, 2.5]))
        alive = [each for each in fleet.processes if not each.running.done() and not each.stop.is_set()]
        ends = [each for each in alive if lease is not None and each.name in (lease.owner, lease.checkpoint_owner)]
        asked += lease is not None
        fates = ["kill", "stop"] if len(alive) > 3 else ["kill", "stop", "cut", "stall"]
        await fail(fleet, fleet.random.choice(ends or alive), fleet.random.choice(fates))
    assert asked > 3
    fleet.heal()
    await fleet.until(fleet.is_balanced, 120, "after healing everything is shared")
    for key in KEYS:
        assert all(one < other for one, other in pairwise(fleet.epochs[key])), "every take has a higher epoch"
    await fleet.close()
