"""Three worker processes, what is done to them, and how they must end.

A slot is one place of the fleet: a name, a login of the database, and the process that runs there now. Whoever does
something to a slot takes it (`take`) and gives it back with a process that runs. A process that ends when nobody told
it to fails the test at once, with the end of its log.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.worker_stack import Stack, Worker

_STOP_WITHIN_S = 20.0
# Whatever it needs may be away for a while when it starts.
_READY_WITHIN_S = 60.0


@dataclass(slots=True, eq=False)
class Slot:
    """One place of the fleet. `settings`: environment of its processes, beyond that of the stack."""

    name: str
    settings: dict[str, str]
    worker: Worker | None = None

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self.worker is not None
        return self.worker.process


@dataclass(slots=True)
class Fleet:
    """doomed: processes that somebody is ending."""

    stack: Stack
    slots: list[Slot]
    group: asyncio.TaskGroup
    free: list[Slot] = field(default_factory=list)
    given_back: asyncio.Event = field(default_factory=asyncio.Event)
    exits: Counter[str] = field(default_factory=Counter)
    doomed: set[int] = field(default_factory=set)

    async def start(self, slot: Slot) -> None:
        """A new process in this slot; returns when it is ready."""
        slot.worker = await self.stack.start_worker(ready_within_s=_READY_WITHIN_S, **slot.settings)
        self.group.create_task(self._watch(slot, slot.worker), name=f"watch {slot.name}")

    async def _watch(self, slot: Slot, worker: Worker) -> None:
        code = await worker.process.wait()
        assert worker.process.pid in self.doomed, f"{slot.name} ended with {code}: {_tail(worker.log)}"

    @asynccontextmanager
    async def take(self, dice: random.Random) -> AsyncIterator[Slot]:
        """Any slot that nobody else has; it comes back when the block ends."""
        while not self.free:
            self.given_back.clear()
            await self.given_back.wait()
        slot = self.free.pop(dice.randrange(len(self.free)))
        try:
            yield slot
        finally:
            self.free.append(slot)
            self.given_back.set()

    async def kill(self, slot: Slot) -> None:
        self.doomed.add(slot.process.pid)
        slot.process.kill()
        self._count(slot, await slot.process.wait(), -signal.SIGKILL)

    async def terminate(self, slot: Slot) -> None:
        """SIGTERM: it must end in good order."""
        self.doomed.add(slot.process.pid)
        slot.process.send_signal(signal.SIGTERM)
        code = await asyncio.wait_for(slot.process.wait(), _STOP_WITHIN_S)
        self._count(slot, code, 0)

    async def suspend(self, slot: Slot, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after so long: a process that wakes up in another world."""
        slot.process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            slot.process.send_signal(signal.SIGCONT)

    def _count(self, slot: Slot, code: int, expected: int) -> None:
        assert slot.worker is not None
        assert code == expected, f"{slot.name} ended with {code}, not {expected}: {_tail(slot.worker.log)}"
        self.exits[str(code)] += 1

    async def metrics(self, name: str) -> float:
        """The sum of one metric over the fleet, whatever its labels."""
        total = 0.0
        for slot in self.slots:
            assert slot.worker is not None
            found = await slot.worker.metrics()
            total += sum(value for label, value in found.items() if label.partition("{")[0] == name)
        return total


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:]


@asynccontextmanager
async def sailing(stack: Stack, settings: Mapping[str, Mapping[str, str]]) -> AsyncIterator[Fleet]:
    """One process for each name in `settings`, all ready; gone at the end of the block, however it ends."""
    slots = [Slot(name, {**each, "TIDEGATE_NAME": name}) for name, each in settings.items()]
    async with asyncio.TaskGroup() as group:
        fleet = Fleet(stack, slots, group)
        try:
            async with asyncio.TaskGroup() as starting:
                for slot in slots:
                    starting.create_task(fleet.start(slot))
            fleet.free = list(slots)
            yield fleet
        finally:
            fleet.doomed |= {worker.process.pid for worker in stack.workers}
            await stack.stop_workers()


def left_behind(stack: Stack) -> list[str]:
    """Processes that still belong to this stream, whoever started them. Only Linux tells."""
    wanted = f"TIDEGATE_STREAM={stack.stream}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*") if Path("/proc/self/environ").exists() else ():
        try:
            mine = wanted in (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if mine and int(process.name) != os.getpid():
            found.append(process.name)
    return found
