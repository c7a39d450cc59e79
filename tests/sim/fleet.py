"""A fleet of coordinators on virtual time, one shared lease table behind a bad network, and what must always hold."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence

from tests.fakes.lease_store import FlakyLeaseStore, MemoryLeaseStore
from tidegate.leases import Checkpoint, Coordinator, Hold, Lease, LeaseStore, at
from tidegate.settings import LeaseSettings

SETTINGS = LeaseSettings(drain_budget_s=20.0)
Task = Callable[[Hold], Coroutine[None, None, None]]


def now_s() -> float:
    return asyncio.get_running_loop().time()


class Process:
    """One process: a coordinator, its own way to the table, and how it dies."""

    def __init__(self, fleet: Fleet, name: str, store: LeaseStore, network: FlakyLeaseStore | None) -> None:
        self.name = name
        self.network = network
        self.stop = asyncio.Event()
        self.coordinator = Coordinator(store, name, fleet.settings, fleet.work_of(self), discover=fleet.discover)
        self.running = asyncio.get_running_loop().create_task(self.coordinator.run(self.stop), name=name)

    def believes_in(self, key: str) -> bool:
        """Whether this process would write under the lease now."""
        hold = self.coordinator.holds.get(key)
        return hold is not None and hold.is_valid() and now_s() >= hold.starts_s and not self.running.done()

    def held(self) -> set[str]:
        return {key for key in self.coordinator.holds if self.believes_in(key)}

    async def kill(self) -> None:
        """Gone at once: nothing it still does reaches the table."""
        if self.network is not None:
            self.network.cut = True
        self.running.cancel()
        await asyncio.wait({self.running})

    async def shut_down(self) -> None:
        """SIGTERM, and wait for its end."""
        self.stop.set()
        await self.running


class Fleet:
    """Processes that come and go around one table. Every task step checks that its process believes alone."""

    def __init__(
        self,
        seed: int,
        leases: Sequence[Lease],
        *,
        fault_rate: float = 0.0,
        task: Task | None = None,
        settings: LeaseSettings = SETTINGS,
    ) -> None:
        random.seed(seed)
        self.table = MemoryLeaseStore()
        self.random = random.Random(seed)
        self.processes: list[Process] = []
        self.epochs: dict[str, list[int]] = defaultdict(list)
        self.checkpoints: dict[str, list[Checkpoint]] = defaultdict(list)
        self.steps = 0
        self.settings = settings
        self._leases = leases
        self._fault_rate = fault_rate
        self._task = task

    async def discover(self) -> Sequence[Lease]:
        return self._leases

    def start(self, name: str, store: LeaseStore | None = None) -> Process:
        """Another process; `store` is its table, if that is more than the shared one."""
        network = FlakyLeaseStore(store or self.table, self.random.getrandbits(32), fault_rate=self._fault_rate)
        process = Process(self, name, network, network)
        self.processes.append(process)
        return process

    def believers(self, key: str) -> list[str]:
        return [process.name for process in self.processes if process.believes_in(key)]

    def work_of(self, process: Process) -> Task:
        async def work(hold: Hold) -> None:
            self.epochs[hold.key].append(hold.epoch)
            if self._task is not None:
                return await self._task(hold)
            position = int(hold.lease.checkpoint.position) if hold.lease.checkpoint.is_number else 0
            while not hold.stop.is_set():
                await asyncio.sleep(self.random.uniform(0.1, 1.0))
                hold.check()
                assert self.believers(hold.key) == [process.name]
                position += 1
                self.steps += 1
                await hold.checkpoint(at(str(position)))
                self.checkpoints[hold.key].append(at(str(position)))
            return None

        return work

    async def until(self, check: Callable[[], bool], deadline_s: float, what: str) -> float:
        """Wait for a condition in virtual time, watching over all leases; returns the seconds it took."""
        began_s = now_s()
        while not check():
            assert now_s() - began_s < deadline_s, f"waited {deadline_s} s in vain: {what}"
            self.check_believers()
            await asyncio.sleep(0.05)
        return now_s() - began_s

    async def run_for(self, seconds: float) -> None:
        until_s = now_s() + seconds
        while now_s() < until_s:
            self.check_believers()
            await asyncio.sleep(0.05)

    def check_believers(self) -> None:
        for lease in self._leases:
            assert len(self.believers(lease.key)) <= 1, (lease.key, self.believers(lease.key))

    def is_balanced(self) -> bool:
        """Every lease is worked on, and no process has two more than another."""
        alive = [len(process.held()) for process in self.processes if not process.running.done()]
        return sum(alive) == len(self._leases) and max(alive) - min(alive) <= 1

    def heal(self) -> None:
        """From now on the network is only slow."""
        for process in self.processes:
            if process.network is not None:
                process.network.fault_rate = 0.0

    async def close(self) -> None:
        for process in self.processes:
            if not process.running.done():
                await process.shut_down()
            if process.network is not None:
                await process.network.close()
