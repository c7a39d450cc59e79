"""One process's share of the work: find leases, hold them, run one task for each, and let go in good order.

The worker runs it with shards, the poller with source partitions; what a task does is theirs (`start`).

The tree of tasks, and why it ends in this order:

    run ─ background group: one renewer per hold        dies last: a draining task still needs its lease
          └ lease group, under the drain budget: one task per hold, one per lease that we asked another for, the inbox
            └ its body: the plan loop                   ends first: nothing new is taken once `stop` is set

A lease's task ends in one of five ways: it returns (the lease is given back), it raises Superseded or its hold is
lost (quiet), it raises Transient (given back, tried again after a back-off, here or elsewhere), the drain budget
cancels it (given back), or anything else (the process ends, after giving everything back).

When the process stops, each lease goes to another live process as soon as its task has ended; see `handover`, also for
how leases move between processes that go on. What is known of the others is in `watch`, what it follows in `planner`.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from tidegate import telemetry
from tidegate.errors import Superseded, Transient
from tidegate.leases import planner
from tidegate.leases.farewell import Farewell
from tidegate.leases.handover import Attempts, Requests, Take, Way
from tidegate.leases.hold import Hold
from tidegate.leases.inbox import Inbox
from tidegate.leases.lease import Lease, plain_leases
from tidegate.leases.planning import Planning, Startable
from tidegate.leases.restarts import Restarts
from tidegate.leases.store import LeaseStore, in_time
from tidegate.leases.upkeep import Discover, Upkeep
from tidegate.leases.watch import Watch
from tidegate.settings import LeaseSettings

Start = Callable[[Hold], Awaitable[None]]

log = telemetry.get_logger(__name__)

_TAKEN_EVENTS = {
    Way.TAKE: telemetry.LEASE_TAKEN,
    Way.HAND_OVER: telemetry.LEASE_HANDED_OVER,
    Way.PUSH: telemetry.LEASE_RECEIVED,
    Way.STEAL: telemetry.LEASE_STOLEN,
}


class Coordinator:
    """Holds this process's leases for as long as `run` runs."""

    def __init__(
        self,
        store: LeaseStore,
        owner: str,
        settings: LeaseSettings,
        start: Start,
        *,
        discover: Discover | None = None,
        startable: Startable = planner.startable,
    ) -> None:
        """`owner` must be unique per process (`owner_name`). `discover` names leases that should exist,
        at least those that do not yet; a finished lease that it still names is kept.
        `startable` says which of the table's leases may be worked on; default: shards, parents first."""
        self.planned = asyncio.Event()  # the table was read once: ready, as far as leases go
        self._store = store
        self._owner = owner
        self._settings = settings
        self._start = start
        self._watch = Watch(store, owner, settings)
        self._upkeep = Upkeep(store, settings, discover)
        self._planning = Planning(owner, settings, self._watch, self._upkeep, startable)
        self._attempts = Attempts()
        self._holds: dict[str, Hold] = {}
        # Being taken: two of our own takes at once would each pass for the other.
        self._taking: set[str] = set()
        self._restarts = Restarts(settings)
        self._wake = asyncio.Event()
        self._farewell = Farewell(store, owner, settings, self._watch)

    @classmethod
    def for_keys(
        cls, store: LeaseStore, owner: str, settings: LeaseSettings, start: Start, keys: Sequence[str]
    ) -> Coordinator:
        """A coordinator for plain keys (source partitions): created if absent, other leases in the table left alone."""
        wanted = frozenset(keys)

        async def discover() -> Sequence[Lease]:
            return plain_leases(keys, epoch=int(time.time()))

        def startable(leases: Sequence[Lease]) -> frozenset[str]:
            return wanted.intersection(lease.key for lease in leases if not lease.is_ended)

        return cls(store, owner, settings, start, discover=discover, startable=startable)

    @property
    def holds(self) -> Mapping[str, Hold]:
        """What this process holds, or is just letting go of, by key."""
        return self._holds

    @property
    def read_units(self) -> float:
        """What looking at the table has cost so far, in DynamoDB's read units."""
        return self._watch.read_units

    async def run(self, stop: asyncio.Event) -> None:
        """Share the work until `stop` is set, then drain.

        Raises an ExceptionGroup of what lease tasks raised, other than Superseded and Transient, and of what the store
        raised, other than Transient. Leases are given back before.
        """
        async with asyncio.TaskGroup() as background:
            try:
                async with asyncio.timeout(None) as budget:
                    await self._share(stop, budget, background)
            except TimeoutError:
                if not budget.expired():
                    raise
                log.warning(telemetry.LEASE_DRAIN_CUT)
            finally:
                # A task that was cancelled before its first step gave nothing back; its renewer must end all the same.
                for hold in self._holds.values():
                    hold.fence("the process stops")

    async def _share(self, stop: asyncio.Event, budget: asyncio.Timeout, background: asyncio.TaskGroup) -> None:
        async with asyncio.TaskGroup() as tasks:
            tell = tasks.create_task(self._tell_stop(stop, budget))

            async def take(lease: Lease, way: Way, read_s: float) -> bool:
                hold = await self._take(lease, way, read_s)
                if hold is None:
                    return False
                background.create_task(hold.keep(), name=f"renew {hold.key}")
                tasks.create_task(self._serve(hold), name=f"lease {hold.key}")
                return True

            requests = Requests(self._store, self._owner, self._settings, self._watch, self._attempts, take, tasks)
            inbox = Inbox(
                self._owner,
                self._settings,
                self._watch,
                self._holds,
                self._attempts,
                may_start=self._may_start,
                farewell=self._farewell,
            )
            tasks.create_task(inbox.run(stop, take, requests), name="inbox")
            while not stop.is_set():
                is_woken = self._wake.is_set()
                self._wake.clear()
                try:
                    await self._plan_once(take, requests, is_woken=is_woken)
                    self.planned.set()
                    next_s = self._watch.next_s()
                except Transient as error:
                    log.warning(telemetry.LEASE_PLAN_FAILED, error=str(error))
                    next_s = _now_s() + self._settings.plan_interval_s * random.uniform(0.75, 1.25)
                await self._wait_for_next_plan(next_s)
            await tell

    async def _tell_stop(self, stop: asyncio.Event, budget: asyncio.Timeout) -> None:
        await stop.wait()
        budget.reschedule(_now_s() + self._settings.drain_budget_s)
        await self._farewell.begin([hold.lease for hold in self._holds.values()])
        for hold in self._holds.values():
            hold.stop.set()
        self._wake.set()

    async def _wait_for_next_plan(self, until_s: float) -> None:
        """Until then, or until woken; never so short that looks would follow each other without a pause."""
        pause_s = 0.2 * self._settings.plan_interval_s
        least_s = _now_s() + pause_s
        try:
            async with asyncio.timeout_at(max(until_s, least_s)):
                await self._wake.wait()
        except TimeoutError:
            return
        if not self._farewell.is_on:
            await asyncio.sleep(max(0.0, least_s - _now_s()))

    # ------------------------------------------------------------------ planning

    async def _plan_once(self, take: Take, requests: Requests, *, is_woken: bool) -> None:
        """Decide, take what is free, ask for what is not. Raises Transient when the store or discovery fails."""
        mine = [*(hold.lease for hold in self._holds.values()), *requests.leases]
        resting = self._restarts.keys(_now_s())
        plan = await self._planning.plan(mine, resting, len(requests.keys), is_woken=is_woken)
        size = self._settings.parallel_writes
        for start in range(0, len(plan.take), size):
            some = plan.take[start : start + size]
            async with asyncio.TaskGroup() as group:
                tries = [group.create_task(self._try(take, lease)) for lease in some]
            if 2 * sum(each.result() for each in tries) < len(some):
                return  # others are at it: look again first
        if not self._farewell.is_on:
            requests.ask(plan.ask)

    async def _try(self, take: Take, lease: Lease) -> bool:
        """Take one lease of the plan; a failure is this lease's, and the next plan sees what came of it."""
        if self._farewell.is_on:
            return False
        way = self._attempts.way_of(lease) if lease.owner == lease.holder == self._owner else Way.TAKE
        try:
            return await take(lease, way, self._planning.read_s)
        except Transient as error:
            log.warning(telemetry.LEASE_WRITE_FAILED, lease=lease.key, error=str(error))
            return False

    async def _may_start(self, lease: Lease) -> bool:
        """Whether work on a lease that was given to us may begin; a fleet of KCL assigns children before their time."""
        parents = [] if lease.checkpoint.is_number else [await self._watch.get(key) for key in lease.parent_keys]
        return self._planning.may_start(lease, [parent for parent in parents if parent is not None])

    async def _take(self, lease: Lease, way: Way, read_s: float) -> Hold | None:
        """Take one lease; None when another was faster, or when we would take by force only to let go.

        Our belief counts from the moment the take was sent; from `read_s`, when the lease was read, if an earlier
        take of ours may arrive instead.
        """
        key = lease.key
        if key in self._holds or key in self._taking or (way is Way.STEAL and self._farewell.is_on):
            return None
        self._taking.add(key)
        try:
            sent_s = read_s if self._attempts.is_unsure(key) else _now_s()
            self._attempts.take(lease, way)
            taken = await in_time(self._store.take(lease, self._owner), self._settings.request_timeout_s)
            self._attempts.settle(key)
        finally:
            self._taking.discard(key)
        if taken is None:
            telemetry.LEASE_CONFLICTS.labels("take").inc()
            return None
        # A live owner may believe in the lease for one more patience.
        starts_s = _now_s() + self._settings.patience_s if way is Way.STEAL else sent_s
        hold = Hold(self._store, taken, self._settings, sent_s=sent_s, starts_s=starts_s)
        self._holds[key] = hold
        if self._farewell.is_on:
            hold.stop.set()
        if way is Way.HAND_OVER:
            self._watch.stir()
            self._wake.set()  # it may be time to ask for the next
        telemetry.LEASES_HELD.inc()
        telemetry.LEASES_TAKEN.labels(way.value).inc()
        log.info(_TAKEN_EVENTS[way], lease=key, counter=hold.counter, previous_owner=lease.holder)
        return hold

    # ------------------------------------------------------------------ one lease's task

    async def _serve(self, hold: Hold) -> None:
        """Run one lease's task to its end and give the lease back, however it ends."""
        try:
            began_s = _now_s()
            await self._work(hold)
            if hold.lease.is_ended:
                self._upkeep.hurry()
                self._watch.stir()
            elif not hold.stop.is_set():
                self._back_off(hold, began_s, "its task returned without being asked")
        except* Superseded as lost:
            if hold.is_valid():
                self._back_off(hold, began_s, _first_line(lost))
        except* Transient as failed:
            self._back_off(hold, began_s, _first_line(failed))
        finally:
            try:
                self._farewell.gave(await hold.release(self._farewell.receiver(hold.lease)))
            finally:
                del self._holds[hold.key]
                telemetry.LEASES_HELD.dec()
                self._wake.set()

    async def _work(self, hold: Hold) -> None:
        """The task itself, cancelled when the lease is lost."""
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(_until_lost(hold))
            await _until_start(hold)
            if not hold.stop.is_set():
                await self._start(hold)
            watch.cancel()

    def _back_off(self, hold: Hold, began_s: float, error: str) -> None:
        delay_s = self._restarts.after_failure(hold.key, began_s, _now_s())
        log.warning(telemetry.LEASE_RESTARTING, lease=hold.key, delay_s=round(delay_s, 3), error=error)


async def _until_lost(hold: Hold) -> None:
    await hold.lost.wait()
    raise Superseded(f"lease {hold.key} is lost")


async def _until_start(hold: Hold) -> None:
    """Wait out the patience of the one the lease was stolen from; less when we are to stop anyway."""
    try:
        async with asyncio.timeout_at(hold.starts_s):
            await hold.stop.wait()
    except TimeoutError:
        return


def _first_line(group: BaseExceptionGroup[BaseException]) -> str:
    """The first plain exception in a group of groups, for a log line."""
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return str(first)


def owner_name(program: str) -> str:
    """A name for this process as lease owner: "worker-<host>-<8 hex digits>", never used twice.

    It must not survive a restart: a new process that bears the old one's name would take the old one's leases for its
    own while the old one may still write.
    """
    return f"{program}-{socket.gethostname()}-{secrets.token_hex(4)}"


def _now_s() -> float:
    return asyncio.get_running_loop().time()
