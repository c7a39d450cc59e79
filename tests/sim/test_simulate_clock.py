"""The simulated fleet's clock and network: what coordinators are told must itself be right."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from math import ceil

import pytest
from msgspec.structs import replace

from local.fleet.clock import ProcessLoop, World
from local.fleet.faults import Faults, Weather, troubles
from local.fleet.network import Link, Network
from local.fleet.table import Table, segment_of, size_of
from tidegate.errors import Superseded, Transient
from tidegate.leases import Lease, at
from tidegate.leases.lease import Part

Main = Callable[[], Awaitable[None]]


def process(world: World, main: Main, *, rate: float = 1.0, began_s: float = 0.0) -> ProcessLoop:
    """A loop that runs `main` from the true time 0 on."""
    loop = ProcessLoop(world, rate=rate, began_s=began_s)  # type: ignore[abstract]

    async def run() -> None:
        await main()

    tasks: list[asyncio.Task[None]] = []
    loop.call_from_world(0.0, lambda: tasks.append(loop.create_task(run())))
    return loop


def ticks(world: World, seen: list[float], every_s: float = 1.0, count: int = 5) -> Main:
    async def main() -> None:
        for _ in range(count):
            await asyncio.sleep(every_s)
            seen.append(world.now_s)

    return main


def test_a_fast_clock_waits_shorter_and_reads_differently() -> None:
    world, right, fast = World(), list[float](), list[float]()
    process(world, ticks(world, right))
    loop = process(world, ticks(world, fast), rate=1.25, began_s=1000.0)
    world.run(60.0)
    assert right == pytest.approx([1, 2, 3, 4, 5])
    assert fast == pytest.approx([0.8, 1.6, 2.4, 3.2, 4.0])
    assert loop.time() == pytest.approx(1000 + 60 * 1.25)


def test_what_became_due_while_a_process_stood_still_is_done_when_it_comes_back() -> None:
    world, seen, others = World(), list[float](), list[float]()
    loop = process(world, ticks(world, seen))
    process(world, ticks(world, others))
    world.call_at(1.5, loop.freeze, 10.0)
    world.run(60.0)
    assert seen == pytest.approx([1, 11.5, 12.5, 13.5, 14.5])
    assert others == pytest.approx([1, 2, 3, 4, 5])


@pytest.mark.parametrize("reply_s", [1.0, 3.0])
def test_a_time_out_that_passed_during_a_stall_beats_a_reply_that_came_during_it(reply_s: float) -> None:
    """As with asyncio: the time-out cancels the task before it sees the reply."""
    world, outcomes = World(), list[str]()

    async def main() -> None:
        reply: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def answer() -> None:
            if not reply.done():
                reply.set_result(None)

        loop.call_from_world(reply_s, answer)
        try:
            async with asyncio.timeout(2.0):
                await reply
            outcomes.append("reply")
        except TimeoutError:
            outcomes.append("time-out")

    loop = process(world, main)
    world.call_at(0.5, loop.freeze, 10.0)
    world.run(60.0)
    assert outcomes == ["time-out"]


def test_of_a_dead_process_nothing_runs_again() -> None:
    world, seen = World(), list[str]()

    async def main() -> None:
        try:
            await asyncio.sleep(5.0)
        finally:
            seen.append("cleaned up")

    loop = process(world, main)
    world.call_at(1.0, setattr, loop, "dead", True)
    world.run(60.0)
    assert seen == []
    loop.dead = False  # the coroutine is closed where its loop runs
    loop.call_from_world(60.0, lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
    world.run(61.0)
    assert world.failures == []


def test_the_loop_serves_locks_groups_and_cancellation_as_asyncio_does() -> None:
    world, log = World(), list[str]()

    async def guarded(lock: asyncio.Lock, name: str) -> None:
        async with lock:
            await asyncio.sleep(1.0)
            log.append(f"{name} at {world.now_s:g}")

    async def fails() -> None:
        await asyncio.sleep(1.5)
        raise Transient("on purpose")

    async def main() -> None:
        lock = asyncio.Lock()
        try:
            async with asyncio.TaskGroup() as group:
                for name in "abc":
                    group.create_task(guarded(lock, name))
                group.create_task(fails())
        except* Transient:
            log.append(f"failed at {world.now_s:g}")

    process(world, main)
    world.run(60.0)
    assert log == ["a at 1", "failed at 1.5"]


def test_an_exception_that_nobody_awaits_is_a_failure_of_the_world() -> None:
    world = World()

    async def main() -> None:
        raise ValueError("nobody looks")

    process(world, main)
    world.run(1.0)
    assert any("nobody looks" in failure for failure in world.failures)


# ---------------------------------------------------------------- the table and the way to it


class Wire:
    """One link to a table that holds one lease, and what came of the calls."""

    def __init__(self, faults: Faults) -> None:
        self.world = World()
        self.table = Table(lambda: self.world.now_s, lambda before, after: None, 1, 400)
        self.table.leases["shard"] = Lease(key="shard")
        self.weather = Weather(faults, 1)
        self.weather.set(True, 0.0)
        self.outcomes: list[str] = []
        self.loop = process(self.world, self.main)
        self.link = Link(Network(self.world, self.table, self.weather, 1), self.loop)

    async def main(self) -> None:
        lease = self.table.leases["shard"]
        for _ in range(3):
            try:
                async with asyncio.timeout(2.0):
                    lease = await self.link.renew(lease)
                self.outcomes.append("written")
            except TimeoutError:
                self.outcomes.append("no reply")
            except (Superseded, Transient) as error:
                self.outcomes.append(type(error).__name__)


QUIET = Faults(lost_request=0, lost_reply=0, late_request=0, late_reply=0, throttle_every_s=1e9)


@pytest.mark.parametrize(
    ("fault", "outcome", "counter"),
    [
        ({}, "written", 3),
        ({"lost_request": 1.0}, "no reply", 0),
        ({"lost_reply": 1.0}, "no reply", 1),
        ({"late_request": 1.0}, "no reply", 1),
        ({"late_reply": 1.0}, "no reply", 1),
        ({"throttle_every_s": 1e-9, "throttle_s": (99.0, 99.0), "throttle_share": 1.0}, "Transient", 0),
    ],
)
def test_each_fault_does_what_it_says(fault: dict[str, object], outcome: str, counter: int) -> None:
    rates = {name: getattr(QUIET, name) for name in QUIET.__struct_fields__}
    wire = Wire(Faults(**(rates | {"late_s": (5.0, 9.0)} | fault)))
    wire.world.run(60.0)
    assert wire.outcomes == [outcome] * 3
    assert wire.table.leases["shard"].counter == counter, "a late write counts once: the next ones fail their condition"
    assert wire.world.failures == []


def test_a_process_off_the_network_reaches_nothing_and_hears_nothing() -> None:
    wire = Wire(QUIET)
    wire.link.is_cut = True
    wire.world.call_at(3.0, setattr, wire.link, "is_cut", False)
    wire.world.run(60.0)
    assert wire.outcomes == ["no reply", "no reply", "written"]


def test_troubles_of_one_worker_are_apart_and_each_kind_occurs() -> None:
    plan = troubles(Faults(), 20, 100.0, 3700.0, 1)
    assert {trouble.kind for trouble in plan} == {"long_stall", "long_cut", "short_stall", "short_cut"}
    assert all(trouble.begins_s >= 100 and trouble.ends_s <= 3700 for trouble in plan)
    for one in plan:
        rivals = [other for other in plan if other is not one and other.worker == one.worker]
        assert all(one.begins_s > other.ends_s or other.begins_s > one.ends_s for other in rivals)


def test_an_item_is_as_large_as_dynamodb_says() -> None:
    assert size_of(Lease(key="s")) == sum(
        (
            len("leaseKey") + 1,
            len("leaseCounter") + 2,
            len("checkpoint") + len("TRIM_HORIZON"),
            len("checkpointSubSequenceNumber") + 2,
            len("ownerSwitchesSinceCheckpoint") + 2,
        )
    )
    assert size_of(Lease(key="s", checkpoint=at("1" * 56))) == size_of(Lease(key="s")) + 56 - len("TRIM_HORIZON")


def test_reads_are_billed_by_pages_of_whole_units() -> None:
    world = World()
    table = Table(lambda: world.now_s, lambda before, after: None, 1, 400)
    for index in range(10_000):
        table.leases[f"shard-{index}"] = Lease(key=f"shard-{index}")
    table.get("shard-1")
    assert table.bill.read_units == 1
    table.scan()
    # Ten pages of 400,000 bytes, each of them 98 units of 4 KB.
    assert table.bill.read_units == 1 + 10 * 98
    world.now_s = 2.0
    look = table.look(None)
    assert (len(look.leases), look.read_units) == (10_000, 10 * 49)
    part = table.look(Part(3, 200))
    assert 20 < len(part.leases) < 80
    assert part.read_units == ceil(len(part.leases) * 400 / 4096) / 2
    assert table.bill.read_units == 1 + 980 + 490 + part.read_units


def test_the_index_shows_keys_by_owner_and_lags_behind() -> None:
    world = World()
    table = Table(lambda: world.now_s, lambda before, after: None, 1, 400)
    lease = Lease(key="shard")
    table.create(lease)
    assert table.named("me").keys == []
    table.swap(lease, replace(lease, owner="me", counter=1))
    assert table.named("me").keys == [], "the copy that the index is read from is a moment old"
    world.now_s = 1.0
    assert table.named("me") == (["shard"], 0.5)


def test_segments_share_the_keys_evenly() -> None:
    sizes = [0] * 8
    for index in range(8000):
        sizes[segment_of(f"shardId-{index:012d}", 8)] += 1
    assert min(sizes) > 800
