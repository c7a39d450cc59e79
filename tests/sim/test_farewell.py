"""A process that stops gives its leases to live processes, which begin within a second; what goes wrong expires at most."""

from __future__ import annotations

import asyncio

import pytest

from tests.sim.busy import KEYS, PLAN_S, Busy
from tests.sim.fleet import SETTINGS, Fleet, now_s
from tidegate.leases import Hold, Lease, at, plain_leases

pytestmark = pytest.mark.looptime(noop_cycles=0)

# A look at one's name may come a jittered interval late; each call takes a little.
OWN_S = SETTINGS.own_look_s * 1.25 + 0.2


async def three(busy: Busy) -> None:
    for name in "abc":
        busy.fleet.start(name)
    await busy.fleet.until(busy.fleet.is_balanced, 60, "balanced")


@pytest.mark.parametrize("seed", range(4))
async def test_the_work_of_one_that_stops_goes_on_within_a_second(seed: int) -> None:
    busy = Busy(seed)
    await three(busy)
    [one, *others] = busy.fleet.processes
    had, stopped_s = one.held(), now_s()
    stopping = asyncio.create_task(one.shut_down())
    await busy.fleet.until(lambda: set().union(*(each.held() for each in others)) == busy.keys(), 1.0, "all go on")
    assert busy.longest_pause_s(stopped_s) <= OWN_S
    await stopping
    assert now_s() - stopped_s <= 2.0
    await busy.fleet.run_for(5)
    moved = [(last, first) for last, first in busy.moves() if first.at_s > stopped_s]
    assert len(moved) == len(had)
    assert {first.owner for _, first in moved} == {each.name for each in others}, "spread over the others"
    assert all(first.position == last.position + 1 for last, first in moved), "nothing is done twice"
    await busy.fleet.close()


async def test_what_is_done_is_handed_over_in_the_same_write() -> None:
    busy = Busy(1)
    await three(busy)
    [one, *_] = busy.fleet.processes
    key = min(one.held())
    hold = one.coordinator.holds[key]
    hold.advance(at("1000000"))
    hold.stop.set()
    counter = busy.fleet.table.leases[key].counter
    await one.kill()
    left = await hold.release("b")
    assert left is None or (left.checkpoint, left.counter) == (at("1000000"), counter + 1)


async def test_what_a_dead_receiver_does_not_take_is_withdrawn() -> None:
    busy = Busy(2)
    await three(busy)
    one, two, three_ = busy.fleet.processes
    await three_.kill()
    stopped_s = now_s()
    await one.shut_down()
    names = {lease.owner for key, lease in busy.fleet.table.leases.items() if key not in three_.coordinator.holds}
    assert names <= {"b", "c", None}
    given = [key for key, lease in busy.fleet.table.leases.items() if lease.owner is None]
    assert given
    await busy.fleet.until(lambda: set(given) <= two.held(), 5.0, "taken without waiting for an expiry")
    assert now_s() - stopped_s < SETTINGS.expiry_s - SETTINGS.renew_interval_s
    await busy.fleet.until(lambda: two.held() == busy.keys(), SETTINGS.expiry_s + PLAN_S, "those of the dead too")
    await busy.fleet.close()


async def test_when_all_stop_together_nothing_is_left_in_anybodys_name() -> None:
    busy = Busy(3)
    await three(busy)
    began_s = now_s()
    async with asyncio.TaskGroup() as group:
        for process in busy.fleet.processes:
            group.create_task(process.shut_down())
    assert now_s() - began_s < 3.0
    assert {lease.owner for lease in busy.fleet.table.leases.values()} == {None}
    again = busy.fleet.start("again")
    await busy.fleet.until(lambda: again.held() == busy.keys(), 3.0, "a new fleet need not wait for an expiry")
    await busy.fleet.close()


async def test_who_is_alone_leaves_at_once() -> None:
    busy = Busy(4)
    one = await busy.alone()
    began_s = now_s()
    await one.shut_down()
    assert now_s() - began_s < SETTINGS.own_look_s + 0.3
    assert {lease.owner for lease in busy.fleet.table.leases.values()} == {None}


async def test_what_others_put_into_our_name_is_worked_on_within_a_second() -> None:
    """Nobody tells us; the index on the owner does. A lease of another kind of item is none of ours."""
    busy = Busy(5, leases=2)
    one = await busy.alone()
    await busy.fleet.table.create(Lease(key=KEYS[5], owner="old", counter=3, epoch=4))
    await busy.fleet.run_for(3)
    given = await busy.fleet.table.release(busy.fleet.table.leases[KEYS[5]], at("77"), one.name)
    assert given is not None
    seconds = await busy.fleet.until(lambda: KEYS[5] in one.held(), 1.0, "taken")
    assert seconds <= OWN_S
    assert busy.fleet.table.leases[KEYS[5]].epoch == 5
    await busy.fleet.close()


async def test_a_child_that_is_assigned_before_its_time_waits_for_its_parent() -> None:
    """A leader of KCL assigns children while their parents are still being read."""
    child = Lease(key="child", parent_keys=frozenset({"parent"}), owner="one", counter=1)
    begun_s: dict[str, float] = {}

    async def work(hold: Hold) -> None:
        begun_s[hold.key] = now_s()
        if hold.key == "parent":
            await asyncio.sleep(10)
            await hold.end([child])
        else:
            await hold.stop.wait()

    fleet = Fleet(6, plain_leases(["parent"]), task=work)
    await fleet.table.create(child)
    fleet.start("one")
    await fleet.until(lambda: "child" in begun_s, 20, "begun")
    assert begun_s["parent"] + 10 <= begun_s["child"] <= begun_s["parent"] + 11
    await fleet.close()
