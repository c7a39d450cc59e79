"""Fleets that are too large for everybody to look at everything: each watches a part, and nothing is overlooked."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from msgspec.structs import replace

from tests.fakes.lease_store import MemoryLeaseStore
from tests.sim.fleet import SETTINGS, Fleet, now_s
from tidegate.leases import Hold, Lease, Look, Part, at, plain_leases
from tidegate.leases.watch import Watch

pytestmark = pytest.mark.looptime(noop_cycles=0)

LEASES = plain_leases(f"shard-{index:04}" for index in range(240))
WORKERS = 10


async def idle(hold: Hold) -> None:
    await hold.checkpoint(at("1"))
    await hold.stop.wait()


async def settled(seed: int, **settings: float) -> Fleet:
    fleet = Fleet(seed, LEASES, task=idle, settings=replace(SETTINGS, **settings))
    for index in range(WORKERS):
        fleet.start(f"w{index}")
    await until(lambda: fleet_is_even(fleet), 60)
    return fleet


def fleet_is_even(fleet: Fleet) -> bool:
    loads = [len(process.held()) for process in fleet.processes if not process.running.done()]
    return sum(loads) == len(LEASES) and max(loads) - min(loads) <= 3


async def until(check: object, seconds: float) -> None:
    assert callable(check)
    async with asyncio.timeout(seconds):
        while not check():
            await asyncio.sleep(0.25)


async def test_a_cold_start_ends_even_and_at_rest() -> None:
    fleet = await settled(1)
    assert now_s() < 30
    assert max(map(len, fleet.epochs.values())) <= 2, "hardly a lease was taken twice"
    begun = {key: len(epochs) for key, epochs in fleet.epochs.items()}
    spent = [process.coordinator.read_units for process in fleet.processes]
    await asyncio.sleep(60)
    assert {key: len(epochs) for key, epochs in fleet.epochs.items()} == begun
    per_s = [(process.coordinator.read_units - was) / 60 for process, was in zip(fleet.processes, spent, strict=True)]
    assert max(per_s) < 8, "a look at everything every second would cost 9 a second"
    await fleet.close()


@pytest.mark.parametrize("seed", range(2))
async def test_what_the_dead_held_is_noticed_by_those_who_watch_it(seed: int) -> None:
    fleet = await settled(seed)
    victims = fleet.random.sample(fleet.processes, 2)
    lost = set().union(*(victim.held() for victim in victims))
    died_s = now_s()
    for victim in victims:
        await victim.kill()
    others = [process for process in fleet.processes if process not in victims]
    await until(lambda: lost <= set().union(*(process.held() for process in others)), SETTINGS.expiry_s + 5)
    assert now_s() - died_s >= SETTINGS.expiry_s - SETTINGS.renew_interval_s
    loads = [len(process.held()) for process in others]
    assert max(loads) <= 40, "30 is the mean"
    await fleet.close()


async def test_when_most_die_at_once_the_rest_takes_everything() -> None:
    """Three neighbours and more are gone, so parts of the table have no watcher left."""
    fleet = await settled(5)
    rest, *victims = fleet.processes
    for victim in victims:
        await victim.kill()
    await until(lambda: len(rest.held()) == len(LEASES), SETTINGS.expiry_s + 30)
    await fleet.close()


async def test_a_shard_that_nobody_has_room_for_is_not_stuck() -> None:
    """Everybody is at its fair share or above, by its own count."""
    fleet = Fleet(6, LEASES[:7], task=idle)
    for name in "abc":
        fleet.start(name)
    await until(lambda: sum(len(process.held()) for process in fleet.processes) == 7, 30)
    await fleet.table.create(Lease(key="late", counter=1, checkpoint=at("1")))
    await until(lambda: any("late" in process.held() for process in fleet.processes), 6)
    await fleet.close()


class Counted(MemoryLeaseStore):
    """Which looks were made, and when; `units` is what a look at everything costs."""

    def __init__(self, units: float) -> None:
        super().__init__()
        self.looks: list[tuple[float, Part | None]] = []
        self._units = units

    async def look(self, part: Part | None = None) -> Look:
        self.looks.append((now_s(), part))
        leases = (await super().look(part)).leases
        return Look(leases, self._units / (1 if part is None else part.total))


def of_many(workers: int) -> dict[str, Lease]:
    leases = [
        replace(lease, owner=f"w{index % workers}", counter=1, checkpoint=at("1")) for index, lease in enumerate(LEASES)
    ]
    return {lease.key: lease for lease in leases}


async def watched(store: Counted, seconds: float) -> Watch:
    """Looks as the plan loop does, with nothing to do."""
    watch = Watch(store, "w0", SETTINGS)
    mine = [lease for lease in store.leases.values() if lease.owner == "w0"]
    until_s = now_s() + seconds
    while now_s() < until_s:
        for key, lease in store.leases.items():
            store.leases[key] = replace(lease, counter=lease.counter + 1)
        await watch.look({lease.key for lease in mine})
        watch.weigh(mine)
        if watch.is_survey:
            watch.settle()
        await asyncio.sleep(watch.next_s() - now_s())
    return watch


async def test_a_large_fleet_looks_at_three_parts_and_seldom_at_everything() -> None:
    store = Counted(300.0)
    store.leases.update(of_many(24))
    await watched(store, 600)
    late = [(at_s, part) for at_s, part in store.looks if at_s > 120]
    parts = Counter(part for _, part in late if part is not None)
    assert set(parts) == {Part(0, 24), Part(1, 24), Part(2, 24)}
    surveys = [at_s for at_s, part in late if part is None]
    assert 12 <= len(surveys) <= 22, "every half minute, jittered"
    assert parts[Part(0, 24)] > 300


@pytest.mark.parametrize(("units", "workers"), [(300.0, 24), (300.0, 2), (5_000.0, 24), (5_000.0, 2)])
async def test_looking_stays_within_the_budget(units: float, workers: int) -> None:
    store = Counted(units)
    store.leases.update(of_many(workers))
    watch = await watched(store, 600)
    assert watch.read_units <= 600 * SETTINGS.reads_per_s + 10 * SETTINGS.reads_per_s + units


async def test_a_small_table_is_always_looked_at_as_a_whole() -> None:
    store = Counted(4.0)
    store.leases.update(of_many(24))
    await watched(store, 60)
    assert {part for _, part in store.looks} == {None}
    assert len(store.looks) > 40
