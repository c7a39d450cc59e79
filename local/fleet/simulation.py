"""The phases of one simulated fleet, from a cold start to its end.

cold start   no lease exists; all workers start within a second, and discovery names the shards to each of them
converged    every lease is worked on, and none has changed its holder for a while
active       the stream is read for some minutes, and the faults are on
kill         a tenth of the fleet dies at once, faults still on; until every lease is worked on again
heal         the faults end; every lease must have exactly one process that believes in it
end          the rest gets SIGTERM and drains
"""

from __future__ import annotations

import gc
import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

import structlog
from msgspec import Struct
from msgspec.structs import replace

from local.fleet.clock import ProcessLoop, World
from local.fleet.faults import Faults, Trouble, Weather, troubles
from local.fleet.network import Link, Network
from local.fleet.process import Process, Stream
from local.fleet.report import Report, quantiles
from local.fleet.table import Table, size_of
from local.fleet.watch import Watch
from tidegate.errors import Fatal
from tidegate.leases import Lease, at
from tidegate.settings import LeaseSettings

_START_WITHIN_S = 1.0
_QUIET_S = 30.0  # so long no task may begin before we call the fleet converged
_PHASE_LIMIT_S = 900.0
_LOOK_S = 0.25
_TELL_S = 10.0
_KILLED_SHARE = 0.1
_HASH_RANGE = 1 << 128

Say = Callable[[str], None]


class Plan(Struct, frozen=True, kw_only=True):
    """What to simulate."""

    shards: int
    workers: int
    seed: int
    minutes: float = 5.0
    faults: Faults = Faults()
    settings: LeaseSettings = LeaseSettings()


class Mark(Struct, frozen=True):
    """The bill at one instant, to subtract from a later one."""

    at_s: float
    writes: int
    conflicts: int
    read_units: float
    worker_s: float

    def reads_since(self, earlier: Mark) -> float:
        """Read units by worker and second."""
        return (self.read_units - earlier.read_units) / (self.worker_s - earlier.worker_s)


def simulate(plan: Plan, say: Say = lambda text: None) -> Report:
    """Run it. Raises Fatal when a phase does not end, or a simulated process crashes."""
    with _seeded(plan.seed), _silent(), _rarely_collected():
        return Simulation(plan, say).run()


class Simulation:
    """One world and everything in it."""

    def __init__(self, plan: Plan, say: Say) -> None:
        self.plan = plan
        draw = random.Random(plan.seed)
        self.world = World()
        leases = shard_leases(plan.shards)
        settings = plan.settings
        self.watch = Watch(self._now_s, plan.shards, expiry_s=settings.expiry_s, patience_s=settings.patience_s)
        full = full_lease(leases[-1], worker_name(plan.workers - 1, 0))
        self.table = Table(self._now_s, self.watch.written, draw.getrandbits(32), size_of(full))
        self.weather = Weather(plan.faults, draw.getrandbits(32))
        self.network = Network(self.world, self.table, self.weather, draw.getrandbits(32))
        self.stream = Stream(self.world, leases, draw.getrandbits(32))
        self.processes = [self._process(index, draw) for index in range(plan.workers)]
        self._say = say
        self._draw = draw
        self._died_s: dict[str, float] = {}

    def _now_s(self) -> float:
        return self.world.now_s

    def _process(self, index: int, draw: random.Random) -> Process:
        drift = draw.uniform(*self.plan.faults.drift) * draw.choice((-1, 1))
        loop = ProcessLoop(self.world, rate=1 + drift, began_s=draw.uniform(0, 10_000))  # type: ignore[abstract]
        name = worker_name(index, draw.getrandbits(32))
        link = Link(self.network, loop)
        process = Process(name, loop, link, self.stream, self.watch, self.plan.settings, draw.getrandbits(32))
        self.watch.join(process)
        loop.call_from_world(draw.uniform(0, _START_WITHIN_S), process.begin)
        return process

    # ------------------------------------------------------------------ the phases

    def run(self) -> Report:
        began = time.perf_counter()
        try:
            figures = self._phases()
        finally:
            self._bury()
        return Report(
            shards=self.plan.shards,
            workers=self.plan.workers,
            seed=self.plan.seed,
            minutes=self.plan.minutes,
            two_believers=self.watch.two_believers,
            checkpoints_back=self.watch.checkpoints_back,
            takeover_s=quantiles(self.watch.takeovers_s),
            taken_over=len(self.watch.takeovers_s),
            virtual_s=round(self.world.now_s, 3),
            real_s=round(time.perf_counter() - began, 1),
            faults=dict(sorted(self.weather.injected.items())),
            failures=tuple(self.watch.traces + self.world.failures),
            **figures,
        )

    def _phases(self) -> dict[str, Any]:
        start = self._mark()
        converged_s = self._converge()
        loads = self.watch.loads()
        each = [loads[process.name] for process in self.processes]
        cold_moves = self.watch.moves.copy()
        before = self._mark()
        self._active()
        after = self._mark()
        active_moves = self.watch.moves - cold_moves
        killed = self._kill()
        self._heal()
        healed = self._mark()
        late_moves = self.watch.moves - cold_moves - active_moves
        unowned = self.plan.shards - self.watch.believed()
        drained_s = self._end()
        lease_days = self.plan.shards * (after.at_s - before.at_s) / 86_400
        return {
            "converged_s": round(converged_s, 3),
            "moves": cold_moves.total(),
            "moves_after_converged": active_moves["unexplained"],
            "forced_moves": active_moves["forced"],
            "moves_after_kill": late_moves["unexplained"],
            "unowned": unowned,
            "left_held": sum(lease.owner is not None for lease in self.table.leases.values()),
            "writes_per_lease_day": round((after.writes - before.writes) / lease_days, 1),
            "conflicts_per_lease_day": round((after.conflicts - before.conflicts) / lease_days, 2),
            "reads_per_worker_s": round(max(after.reads_since(before), healed.reads_since(start)), 2),
            "killed": killed,
            "leases_per_worker": (min(each), max(each)),
            "drained_s": round(drained_s, 3),
        }

    def _converge(self) -> float:
        """When the last lease was taken or moved, once nothing has moved since for a while."""

        def is_quiet() -> bool:
            return self.watch.is_full() and self._now_s() - self.watch.changed_s >= _QUIET_S

        self._until(is_quiet, "the fleet converges")
        self.watch.is_converged = True
        self._say(f"converged after {self.watch.changed_s:.1f} s, {self.watch.moves.total()} moves")
        return self.watch.changed_s

    def _active(self) -> None:
        self.weather.set(True, self._now_s())
        ends_s = self._now_s() + self.plan.minutes * 60
        for trouble in troubles(self.plan.faults, self.plan.workers, self._now_s(), ends_s, self._draw.getrandbits(32)):
            self.world.call_at(trouble.begins_s, self._strike, trouble)
        while self._now_s() < ends_s:
            self.world.run(min(ends_s, self._now_s() + 60.0))
            left_s = ends_s - self._now_s()
            self._say(f"active, {left_s:.0f} s to go, {self.watch.moves['unexplained']} unexplained moves")

    def _strike(self, trouble: Trouble) -> None:
        """One stall or cut begins."""
        process = self.processes[trouble.worker]
        self.weather.injected[trouble.kind] += 1
        process.troubles.append(trouble)
        if trouble.kind.endswith("stall"):
            process.loop.freeze(trouble.lasts_s)
        else:
            process.link.is_cut = True
            self.world.call_at(trouble.ends_s, setattr, process.link, "is_cut", False)

    def _kill(self) -> int:
        """Kill a tenth at once, and wait for the others to take over. How many died."""
        victims = self._draw.sample(self.processes, ceil(len(self.processes) * _KILLED_SHARE))
        now_s = self._now_s()
        for victim in victims:
            self._died_s[victim.name] = now_s
            self.watch.killed(victim)
            victim.kill()
        self._until(self.watch.is_full, "the killed are replaced")
        self._say(f"{len(victims)} killed, all is worked on again after {self._now_s() - now_s:.1f} s")
        return len(victims)

    def _heal(self) -> None:
        """Faults end. What still waits for an expiry then has the time for it."""
        self.weather.set(False, self._now_s())
        self._until(lambda: self.watch.believed() == self.plan.shards, "everything is believed in again")
        self.world.run(self._now_s() + _QUIET_S)

    def _end(self) -> float:
        """SIGTERM to all that live; the seconds until the last has ended."""
        began_s = self._now_s()
        alive = [process for process in self.processes if not process.is_dead]
        for process in alive:
            process.loop.call_from_world(began_s, process.stop.set)
        self._until(lambda: all(process.is_over for process in alive), "all have ended")
        return self._now_s() - began_s

    # ------------------------------------------------------------------ around them

    def _until(self, check: Callable[[], bool], what: str) -> None:
        limit_s = self._now_s() + _PHASE_LIMIT_S
        while not check():
            if self._now_s() >= limit_s:
                raise Fatal(f"seed {self.plan.seed}: waited {_PHASE_LIMIT_S:g} virtual seconds in vain until {what}")
            self.world.run(self._now_s() + _LOOK_S)
            self._raise_crashes()
            if self._now_s() % _TELL_S == 0.0:
                self._say(f"{self._now_s():.0f} s, {self.watch.worked_on} leases worked on, waiting until {what}")

    def _raise_crashes(self) -> None:
        for process in self.processes:
            if (error := process.crash) is not None:
                raise Fatal(
                    f"seed {self.plan.seed}: {process.name} ended at {self._now_s():.3f} s: {error!r}"
                ) from error

    def _mark(self) -> Mark:
        bill, now_s = self.table.bill, self._now_s()
        worker_s = sum(self._died_s.get(process.name, now_s) for process in self.processes)
        return Mark(now_s, bill.writes, bill.conflicts, bill.read_units, worker_s)

    def _bury(self) -> None:
        """Let the tasks of the dead end, so that nothing is left pending: they are off the network."""
        for process in self.processes:
            process.link.is_cut = True
            process.loop.dead = False
            process.loop.call_from_world(self._now_s(), process.bury)
        self.world.run(self._now_s() + self.plan.settings.drain_budget_s)


def worker_name(index: int, number: int) -> str:
    """As `owner_name` makes them."""
    return f"worker-ip-10-0-{index // 250}-{index % 250}-{number:08x}"


def full_lease(lease: Lease, owner: str) -> Lease:
    """A lease as it looks after a while; its item is the size that reads are billed at."""
    return replace(lease, owner=owner, counter=10**6, checkpoint=at("4" * 56), epoch=9, throughput_kbps=199.4321)


def shard_leases(shards: int) -> list[Lease]:
    """The leases of a stream with so many shards, hash ranges included, as discovery names them."""
    edges = [_HASH_RANGE * index // shards for index in range(shards + 1)]
    return [
        Lease(
            key=f"shardId-{index:012d}",
            starting_hash_key=str(edges[index]),
            ending_hash_key=str(edges[index + 1] - 1),
        )
        for index in range(shards)
    ]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The module `random`, of which production code takes its jitter."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


@contextmanager
def _silent() -> Iterator[None]:
    """A fleet's log lines are of no use, and they cost time."""
    config = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**config)


@contextmanager
def _rarely_collected() -> Iterator[None]:
    """A large fleet is millions of objects that live long; looking through them for cycles takes a fifth of the time."""
    thresholds = gc.get_threshold()
    gc.set_threshold(100_000, 20, 1000)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
