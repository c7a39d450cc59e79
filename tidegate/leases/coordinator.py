"""One process's share of the work: find leases, hold them, run one task for each, and let go in good order.

The worker runs it with shards, the poller with source partitions; what a task does is theirs (`start`).

The tree of tasks, and why it ends in this order:

    run ─ background group: one renewer per hold        dies last: a draining task still needs its lease
          └ lease group, under the drain budget: one task per hold, one per lease that we asked another for
            └ its body: the plan loop                   ends first: nothing new is taken once `stop` is set

A lease's task ends in one of five ways: it returns (the lease is given back), it raises Superseded or its hold is
lost (quiet), it raises Transient (given back, tried again after a back-off, here or elsewhere), the drain budget
cancels it (given back), or anything else (the process ends, after giving everything back).

Leases move between live processes by asking, see `handover`; here are both ends of it: `Hold.heed` and `Requests`.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from tidegate import telemetry
from tidegate.errors import Superseded, Transient
from tidegate.leases import planner
from tidegate.leases.handover import Requests, Take, Way
from tidegate.leases.hold import Hold
from tidegate.leases.lease import Lease, plain_leases
from tidegate.leases.observer import Observer
from tidegate.leases.store import LeaseStore, in_time
from tidegate.settings import LeaseSettings

Start = Callable[[Hold], Awaitable[None]]
Discover = Callable[[], Awaitable[Sequence[Lease]]]
T = TypeVar("T")
Startable = Callable[[Sequence[Lease]], frozenset[str]]

log = telemetry.get_logger(__name__)

_TAKEN_EVENTS = {
    Way.TAKE: telemetry.LEASE_TAKEN,
    Way.HAND_OVER: telemetry.LEASE_HANDED_OVER,
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
        self._limits = planner.Limits(expiry_s=settings.expiry_s, max_leases=settings.max_leases)
        self._start = start
        self._discover = discover
        self._startable = startable
        self._observer = Observer(owner, settings.expiry_s)
        self._holds: dict[str, Hold] = {}
        # Takes whose outcome we do not know: they may still arrive.
        self._unsure: set[str] = set()
        self._rest = _Rest(settings)
        self._wanted: frozenset[str] | None = None
        self._discover_due_s = float("-inf")
        self._wake = asyncio.Event()
        self._stopping = False

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

            async def take(lease: Lease, way: Way, sent_s: float) -> bool:
                hold = await self._take(lease, way, sent_s)
                if hold is None:
                    return False
                background.create_task(hold.keep(), name=f"renew {hold.key}")
                tasks.create_task(self._serve(hold), name=f"lease {hold.key}")
                return True

            requests = Requests(self._store, self._owner, self._settings, self._observer, take, tasks)
            while not stop.is_set():
                self._wake.clear()
                try:
                    await self._plan_once(take, requests)
                    self.planned.set()
                except Transient as error:
                    log.warning(telemetry.LEASE_PLAN_FAILED, error=str(error))
                await self._wait_for_next_plan(requests)
            await tell

    async def _tell_stop(self, stop: asyncio.Event, budget: asyncio.Timeout) -> None:
        await stop.wait()
        self._stopping = True
        budget.reschedule(_now_s() + self._settings.drain_budget_s)
        for hold in self._holds.values():
            hold.stop.set()
        self._wake.set()

    async def _wait_for_next_plan(self, requests: Requests) -> None:
        """One interval, jittered so that processes spread out; less when woken, or when a lease may expire before."""
        now_s = _now_s()
        next_s = now_s + self._settings.plan_interval_s * random.uniform(0.75, 1.25)
        try:
            busy = self._holds.keys() | requests.keys
            async with asyncio.timeout_at(min(next_s, self._observer.next_expiry_s(now_s, busy))):
                await self._wake.wait()
        except TimeoutError:
            return

    # ------------------------------------------------------------------ planning

    async def _plan_once(self, take: Take, requests: Requests) -> None:
        """Read the table, decide, take what is free, ask for what is not. Raises Transient when the store or
        discovery fails."""
        read_s = _now_s()
        leases = await self._read_table()
        self._heed(leases, requests)
        now_s = _now_s()
        busy = self._holds.keys() | requests.keys
        views = self._observer.look(leases, now_s, busy)
        startable = self._startable(leases) - self._rest.keys(now_s) - busy
        plan = planner.plan(views, self._owner, now_s, self._limits, startable)
        for lease in plan.take:
            if self._stopping:
                return
            way = requests.way_of(lease) if lease.owner == self._owner else Way.TAKE
            await take(lease, way, read_s if lease.key in self._unsure else _now_s())
        if not self._stopping:
            requests.ask(plan.ask)

    def _heed(self, leases: Sequence[Lease], requests: Requests) -> None:
        """Requests that the table shows: for what we hold, and in our name."""
        for lease in leases:
            if hold := self._holds.get(lease.key):
                hold.heed(lease)
            elif not self._stopping:
                requests.adopt(lease)

    async def _read_table(self) -> list[Lease]:
        """Every lease, after creating those that discovery names and removing those that nobody needs."""
        leases = await self._in_time(self._store.scan())
        if self._discover is not None and _now_s() >= self._discover_due_s:
            wanted = await self._discover()
            known = {lease.key for lease in leases}
            absent = [lease for lease in wanted if lease.key not in known]
            for lease in absent:
                if await self._in_time(self._store.create(lease)):
                    log.info(telemetry.LEASE_CREATED, lease=lease.key)
            self._wanted = frozenset(lease.key for lease in wanted)
            self._discover_due_s = _now_s() + self._settings.discover_interval_s
            leases = await self._in_time(self._store.scan()) if absent else leases
        if self._wanted is not None:
            for lease in planner.removable(leases, self._wanted | self._holds.keys()):
                if await self._in_time(self._store.delete(lease)):
                    log.info(telemetry.LEASE_DELETED, lease=lease.key)
        return leases

    async def _take(self, lease: Lease, way: Way, sent_s: float) -> Hold | None:
        """Take one lease; None when another was faster, or when we would take by force only to let go.

        Our belief counts from `sent_s`: not after the take was sent, nor after an earlier one that may arrive instead.
        """
        if way is Way.STEAL and self._stopping:
            return None
        self._unsure.add(lease.key)
        taken = await self._in_time(self._store.take(lease, self._owner))
        self._unsure.discard(lease.key)
        if taken is None:
            return None
        # A live owner may believe in the lease for one more patience.
        starts_s = _now_s() + self._settings.patience_s if way is Way.STEAL else sent_s
        hold = Hold(self._store, taken, self._settings, sent_s=sent_s, starts_s=starts_s)
        self._holds[hold.key] = hold
        if self._stopping:
            hold.stop.set()
        if way is Way.HAND_OVER:
            self._wake.set()  # it may be time to ask for the next
        telemetry.LEASES_HELD.inc()
        telemetry.LEASES_TAKEN.labels(way.value).inc()
        log.info(_TAKEN_EVENTS[way], lease=hold.key, counter=hold.counter, previous_owner=lease.holder)
        return hold

    async def _in_time(self, call: Awaitable[T]) -> T:
        """A call that hangs must not keep us from taking over somebody's leases; its outcome is then unknown."""
        return await in_time(call, self._settings.request_timeout_s)

    # ------------------------------------------------------------------ one lease's task

    async def _serve(self, hold: Hold) -> None:
        """Run one lease's task to its end and give the lease back, however it ends."""
        try:
            began_s = _now_s()
            await self._work(hold)
            if hold.lease.is_ended:
                self._discover_due_s = float("-inf")
            elif not hold.stop.is_set():
                self._back_off(hold, began_s, "its task returned without being asked")
        except* Superseded as lost:
            if hold.is_valid():
                self._back_off(hold, began_s, _first_line(lost))
        except* Transient as failed:
            self._back_off(hold, began_s, _first_line(failed))
        finally:
            try:
                await hold.release()
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
        delay_s = self._rest.after_failure(hold.key, began_s, _now_s())
        log.warning(telemetry.LEASE_RESTARTING, lease=hold.key, delay_s=round(delay_s, 3), error=error)


class _Rest:
    """Which leases failed here lately, and until when this process leaves them alone."""

    def __init__(self, settings: LeaseSettings) -> None:
        self._settings = settings
        # By key: failures in a row, and the loop time until which it rests.
        self._failures: dict[str, tuple[int, float]] = {}

    def keys(self, now_s: float) -> set[str]:
        return {key for key, (_, until_s) in self._failures.items() if now_s < until_s}

    def after_failure(self, key: str, began_s: float, now_s: float) -> float:
        """The delay before the next try: doubling, jittered. A long good run starts it afresh."""
        longest_s = self._settings.restart_delay_max_s
        in_a_row = 0 if now_s - began_s > longest_s else self._failures.get(key, (0, 0.0))[0]
        delay_s = min(self._settings.restart_delay_s * 2.0 ** min(in_a_row, 32), longest_s) * random.uniform(0.5, 1.0)
        self._failures[key] = (in_a_row + 1, now_s + delay_s)
        return delay_s


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
