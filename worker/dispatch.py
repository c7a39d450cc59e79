"""Takes what waits in the outbox to its destinations: claim, send, note the outcome.

Who calls: `worker.app`, once for the process; every worker does it, whichever shards it holds. For each destination
one task claims as much as may be sent at once and starts a task for each change. It claims again when one of them is
done, when this process has queued something (the ordinary case, without delay) and now and then for what comes back:
from a failed attempt, or from a worker that died. On `stop` nothing more is claimed and what is under way is finished,
within the destination's time-out; on cancellation it is dropped, and its claims end by themselves. So a receiver may
see a change twice, never less than once; it knows the repetition by the event's id.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from tidegate import telemetry
from tidegate.errors import Rejected, Transient
from tidegate.lifecycle import never_ends
from worker.backoff import Backoff, Restraint
from worker.ports import Destination, Effect, Outbox
from worker.settings import OutboxSettings

log = telemetry.get_logger(__name__)
Result = TypeVar("Result")

_NOTE_RETRY = Backoff(base_s=0.1, most_s=2.0)


class Dispatch:
    """All destinations of a bubble."""

    def __init__(self, outbox: Outbox, destinations: Sequence[Destination], settings: OutboxSettings) -> None:
        self._outbox = outbox
        self._settings = settings
        self._senders = {each.name: _Sender(outbox, each, settings) for each in destinations}

    def queued(self, counts: Mapping[str, int]) -> None:
        """Changes for these destinations were committed just now."""
        for name, count in counts.items():
            telemetry.OUTBOX_QUEUED.labels(name).inc(count)
            if name in self._senders:
                self._senders[name].wake()

    @asynccontextmanager
    async def delivering(self, stop: asyncio.Event) -> AsyncIterator[None]:
        """Deliver beside the block. The block's end waits for `stop` and the drain; what fails here, fails the block."""
        if not self._senders:
            yield
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self.run(stop))
            yield

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until `stop`, and finish what is under way then. Raises Fatal for a database that was not migrated."""
        async with asyncio.TaskGroup() as background:
            keeper = background.create_task(never_ends("outbox keeper", self._keep))
            async with asyncio.TaskGroup() as senders:
                for sender in self._senders.values():
                    senders.create_task(sender.run(stop))
            keeper.cancel()

    async def _keep(self) -> None:
        """Look at how long changes wait, and delete what was sent long ago."""
        while True:
            try:
                for name in self._senders:
                    age_s, dead = await self._outbox.look(name)
                    telemetry.OUTBOX_OLDEST_SECONDS.labels(name).set(age_s)
                    telemetry.OUTBOX_DEAD_OPEN.labels(name).set(dead)
                while await self._outbox.sweep(self._settings.keep_s, self._settings.sweep_rows):
                    pass
            except Transient as error:
                log.warning(telemetry.OUTBOX_DATABASE_AWAY, doing="keep", error=str(error))
            await asyncio.sleep(self._settings.keep_interval_s)


class _Sender:
    """One destination."""

    def __init__(self, outbox: Outbox, destination: Destination, settings: OutboxSettings) -> None:
        self._outbox = outbox
        self._destination = destination
        self._settings = settings
        self._backoff = Backoff(settings.retry_base_ms / 1000, settings.retry_most_s)
        pauses = Backoff(settings.retry_base_ms / 1000, settings.pause_most_s)
        self._restraint = Restraint(pauses, settings.pause_after)
        self._claim_s = destination.timeout_s + settings.claim_margin_s
        self._under_way = 0
        self._bell = asyncio.Event()

    def wake(self) -> None:
        """There may be something to claim."""
        self._bell.set()

    async def run(self, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            ringer = group.create_task(self._wake_on(stop))
            while not stop.is_set():
                self._bell.clear()
                room = self._restraint.room(_now_s(), self._settings.concurrency, self._under_way)
                until_s = _now_s() + self._claim_s
                claimed = await self._claim(room) if room else []
                for effect in claimed:
                    self._under_way += 1
                    group.create_task(self._deliver(effect, until_s))
                if not room or len(claimed) < room:
                    await self._wait()
            ringer.cancel()

    async def _wake_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self.wake()

    async def _wait(self) -> None:
        """Until the bell, or until something may have come back. Not all workers at the same moment."""
        try:
            async with asyncio.timeout(random.uniform(0.5, 1.0) * self._settings.poll_interval_ms / 1000):
                await self._bell.wait()
        except TimeoutError:
            return

    async def _claim(self, room: int) -> list[Effect]:
        try:
            return await self._outbox.claim(self._destination.name, room, self._claim_s)
        except Transient as error:
            log.warning(telemetry.OUTBOX_DATABASE_AWAY, doing="claim", error=str(error))
            return []

    async def _deliver(self, effect: Effect, until_s: float) -> None:
        """One attempt. `until_s` is when the claim ends: after that the change is somebody else's."""
        try:
            # A process that was frozen must not send what others have sent since, and newer ones too.
            if _now_s() < until_s - self._destination.timeout_s:
                await self._attempt(effect, until_s)
        finally:
            self._under_way -= 1
            self.wake()

    async def _attempt(self, effect: Effect, until_s: float) -> None:
        name = self._destination.name
        error: Transient | Rejected | None = None
        try:
            with telemetry.OUTBOX_SEND_SECONDS.labels(name).time():
                await self._destination.send(effect)
        except (Transient, Rejected) as failure:
            error = failure
        if error is None:
            self._restraint.succeeded()
            await self._note(lambda: self._outbox.sent(effect), until_s)
            telemetry.OUTBOX_SENT.labels(name).inc()
            return
        wish_s = self._wish_s(error)
        self._restraint.failed(_now_s(), random.random(), wish_s)
        wait_s = self._backoff.wait_s(effect.attempt, random.random()) + (wish_s or 0.0)
        retry_for_s = self._settings.retry_for_s
        is_dead = await self._note(
            lambda: self._outbox.failed(effect, error, wait_s=wait_s, retry_for_s=retry_for_s), until_s
        )
        if is_dead:
            telemetry.OUTBOX_DEAD.labels(name).inc()
            log.error(telemetry.OUTBOX_CHANGE_DEAD, destination=name, id=effect.id, error=str(error))
        else:
            telemetry.OUTBOX_RETRIED.labels(name).inc()
            log.warning(telemetry.OUTBOX_CHANGE_FAILED, destination=name, id=effect.id, error=str(error))

    def _wish_s(self, error: Transient | Rejected) -> float | None:
        """What the receiver asks for with Retry-After; not a year."""
        if isinstance(error, Rejected) or error.retry_after_s is None:
            return None
        return min(error.retry_after_s, self._settings.retry_after_most_s)

    async def _note(self, step: Callable[[], Awaitable[Result]], until_s: float) -> Result | None:
        """Write an outcome, for as long as it counts. None when it could not be: then the change is sent once more."""
        failures = 0
        while True:
            try:
                return await step()
            except Transient as error:
                failures += 1
                log.warning(telemetry.OUTBOX_DATABASE_AWAY, doing="note an outcome", error=str(error))
            wait_s = _NOTE_RETRY.wait_s(failures, random.random())
            if _now_s() + wait_s >= until_s:
                return None
            await asyncio.sleep(wait_s)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
