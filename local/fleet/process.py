"""One simulated worker: a coordinator as in production, an event loop and a clock of its own, and a stream to read.

Reading is kept cheap, since ten thousand tasks do it: a task only waits for its end, and one ticker for each process
steps all its tasks. A step is what matters to the leases: what was read is noted, and the checkpoint goes to the tip
of the shard. How much a shard has to read differs from shard to shard (log-normal), and every sample is noisy.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from local.fleet.clock import ProcessLoop, World
from local.fleet.faults import Trouble, was_away
from local.fleet.network import Link
from local.fleet.watch import Watch, Work
from tidegate.errors import Superseded
from tidegate.leases import Checkpoint, Coordinator, Hold, Lease, at
from tidegate.settings import LeaseSettings

# Real sequence numbers have 56 digits; ours count milliseconds of the world in the last ones.
_SEQUENCE_PREFIX = "4964" + "0" * 36
# A quiet shard has nothing to read, so its checkpoint stands still and its lease must be renewed all the same.
_QUIET_SHARE = 0.1
_MEAN_BYTES_S = 200_000.0


class Stream:
    """What the shards of the simulated stream have to read."""

    def __init__(self, world: World, leases: Sequence[Lease], seed: int) -> None:
        draw = random.Random(seed)
        self.leases = leases
        self._world = world
        self._bytes_s = {
            lease.key: 0.0 if draw.random() < _QUIET_SHARE else _MEAN_BYTES_S * draw.lognormvariate(-0.5, 1.0)
            for lease in leases
        }

    async def discover(self) -> Sequence[Lease]:
        return self.leases

    def tip(self) -> Checkpoint:
        """The newest record of every shard that is not quiet."""
        return at(f"{_SEQUENCE_PREFIX}{int(self._world.now_s * 1000):016d}")

    def bytes_s(self, key: str) -> float:
        return self._bytes_s[key]


class Process:
    """One worker, from its start to its end."""

    def __init__(
        self, name: str, loop: ProcessLoop, link: Link, stream: Stream, watch: Watch, settings: LeaseSettings, seed: int
    ) -> None:
        self.name = name
        self.loop = loop
        self.link = link
        self.stop = asyncio.Event()
        self.is_dead = False
        self.troubles: list[Trouble] = []
        self._stream = stream
        self._watch = watch
        self._draw = random.Random(seed)
        self._step_s = settings.renew_interval_s
        self._works: dict[str, Work] = {}
        self._settings = settings
        self._main: asyncio.Task[None] | None = None

    def clock_s(self) -> float:
        return self.loop.time()

    def was_away(self, since_s: float, until_s: float, longer_than_s: float) -> bool:
        return was_away(self.troubles, since_s, until_s, longer_than_s)

    def begin(self) -> None:
        """Called in the process's own loop."""
        self._main = self.loop.create_task(self._run(), name=self.name)

    @property
    def is_over(self) -> bool:
        return self.is_dead or (self._main is not None and self._main.done())

    @property
    def crash(self) -> BaseException | None:
        """What ended it, if that was an exception."""
        main = self._main
        return main.exception() if main is not None and main.done() and not main.cancelled() else None

    def kill(self) -> None:
        """Gone at once: nothing of it runs again. What it has sent still arrives."""
        self.is_dead = self.loop.dead = True

    def bury(self) -> None:
        """Let a dead process's tasks end, off the network, so that none is left pending. Called in its loop."""
        if self._main is not None:
            self._main.cancel()

    async def _run(self) -> None:
        coordinator = Coordinator(self.link, self.name, self._settings, self._work, discover=self._stream.discover)
        ticker = asyncio.create_task(self._tick(), name=f"ticker of {self.name}")
        try:
            await coordinator.run(self.stop)
        finally:
            ticker.cancel()

    async def _work(self, hold: Hold) -> None:
        """What the coordinator runs for each hold."""
        work = self._works[hold.key] = self._watch.began(self, hold)
        try:
            await hold.stop.wait()
            await asyncio.sleep(self._draw.uniform(0.02, 0.5))  # the batch in hand
            self._step(work, 0.0)
        finally:
            del self._works[hold.key]
            self._watch.ended(work)

    async def _tick(self) -> None:
        last_s = self.loop.time()
        while True:
            await asyncio.sleep(self._step_s * self._draw.uniform(0.9, 1.1))
            now_s = self.loop.time()
            for work in list(self._works.values()):
                self._step(work, now_s - last_s)
            last_s = now_s

    def _step(self, work: Work, seconds: float) -> None:
        hold = work.hold
        try:
            hold.check()
        except Superseded:
            return
        self._watch.stepped(work)
        bytes_s = self._stream.bytes_s(hold.key)
        hold.note_read(int(bytes_s * seconds * self._draw.lognormvariate(0.0, 0.5)))
        if bytes_s:
            hold.advance(self._stream.tip())
