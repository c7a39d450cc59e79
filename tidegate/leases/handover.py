"""Hand-over: how a lease moves from a live owner to a process that has too few, without a pause in its work.

It is KCL 3.x' protocol, in the same attributes. `old` works, `new` wants:

    leaseOwner  checkpointOwner  written by
    old         –                old   renews and checkpoints: counter + 1 each time
    new         old              new   *asks*: counter and epoch untouched. `old` works on, renews and checkpoints,
                                       notices (its next write, or its next look at the table), lets its task finish
                                       the batch in hand and checkpoint, and stops believing in the lease
    new         –                old   *hands over*: counter + 1, epoch untouched
    new         –                new   *takes*, as it takes any lease: counter + 1, epoch + 1. Work begins at once

`new` looks at the item every `hand_over_look_s` while its request is open, so the pause in the work is about that long.

A process that stops does not wait to be asked: it gives each of its leases to another live process (*push*), by the
same write. The receiver sees it in the index on the owner within `own_look_s`, and takes it as if it had asked.

Why still no two processes believe in one lease: only the holder (`Lease.holder`) moves the counter between two takes,
so a lease in my name alone that I do not hold was given to me by somebody who had stopped believing, or I took it
myself: names are never used twice, and nobody takes a lease for another. My own takes raise the epoch, and I remember
those whose reply was lost (`Attempts`); after one by force I wait like after any other. The take is a
compare-and-set upon what the look showed, and our belief counts from when that look was sent.

When somebody fails on the way:
- `old` is gone: the counter stands still for the expiry, and anybody takes the lease as a free one.
- `old` lives and does not answer: `new` takes it by force after `hand_over_s`, and begins one patience later.
- `new` is gone: `old` hands over all the same, and the lease expires in the name of `new`.
- a request is lost: `new` sees nothing of it and plans afresh. It arrives late: the next look at our name follows it,
  or finds it answered.
- who is given a lease is gone: the lease expires in its name. Who stops itself gives on what it is given until it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence, Set
from enum import Enum

from tidegate import telemetry
from tidegate.errors import Transient
from tidegate.leases.lease import Lease
from tidegate.leases.store import LeaseStore, in_time
from tidegate.leases.watch import Watch
from tidegate.settings import LeaseSettings

log = telemetry.get_logger(__name__)

_ASK_ATTEMPTS = 5


class Way(Enum):
    """How a lease comes to us. Only after STEAL may somebody else still believe in it."""

    TAKE = "take"  # it was free, or expired
    HAND_OVER = "hand_over"  # we asked, and its owner gave it to us
    PUSH = "push"  # a process that stops gave it to us
    STEAL = "steal"  # by force


# Takes the lease as it is given, and answers whether that worked; the time is when it was read, or earlier.
Take = Callable[[Lease, Way, float], Awaitable[bool]]


class Attempts:
    """What we tried and do not know the end of: it may still arrive, and then bear our name."""

    def __init__(self) -> None:
        # By key, the epoch of the owner that was asked last.
        self._asked: dict[str, int] = {}
        # By key, a take without a reply: the epoch that it leaves if it arrives, and its way.
        self._unsure: dict[str, tuple[int, Way]] = {}

    def ask(self, lease: Lease) -> None:
        """We are about to ask for this lease."""
        self._asked[lease.key] = lease.epoch

    def take(self, lease: Lease, way: Way) -> None:
        """We are about to take this lease."""
        self._unsure[lease.key] = lease.epoch + 1, way

    def settle(self, key: str) -> None:
        """The take was answered, either way."""
        self._unsure.pop(key, None)
        self._asked.pop(key, None)

    def is_unsure(self, key: str) -> bool:
        """Whether an earlier take of this lease may still arrive."""
        return key in self._unsure

    def way_of(self, lease: Lease) -> Way:
        """How a lease came to us that is in our name alone, though we do not hold it."""
        epoch, way = self._unsure.get(lease.key, (None, Way.PUSH))
        if epoch == lease.epoch:
            return Way.STEAL if way is Way.STEAL else Way.TAKE
        return Way.HAND_OVER if self._asked.get(lease.key) == lease.epoch else Way.PUSH


class Requests:
    """What this process asks live owners for. One task follows each request until it is answered."""

    def __init__(
        self,
        store: LeaseStore,
        me: str,
        settings: LeaseSettings,
        watch: Watch,
        attempts: Attempts,
        take: Take,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._store = store
        self._me = me
        self._settings = settings
        self._watch = watch
        self._attempts = attempts
        self._take = take
        self._tasks = tasks
        self._open: dict[str, Lease] = {}

    @property
    def keys(self) -> Set[str]:
        """Leases asked for and not answered yet: nobody but the task that follows may take them."""
        return self._open.keys()

    @property
    def leases(self) -> Collection[Lease]:
        """The same leases, as they were when they were asked for."""
        return self._open.values()

    def ask(self, leases: Sequence[Lease]) -> None:
        """Ask for these leases of live owners."""
        for lease in leases:
            if lease.key not in self._open:
                self._start(lease)

    def adopt(self, lease: Lease) -> None:
        """Follow a request in our name that we believed lost, if this is one."""
        is_ours = lease.owner == self._me and lease.holder != self._me
        if is_ours and not lease.is_ended and lease.key not in self._open:
            self._start(lease)

    def _start(self, lease: Lease) -> None:
        self._open[lease.key] = lease
        self._attempts.ask(lease)
        self._tasks.create_task(self._follow(lease), name=f"ask for {lease.key}")

    async def _follow(self, lease: Lease) -> None:
        overdue_s = _now_s() + self._settings.hand_over_s
        try:
            is_over = lease.owner != self._me and not await self._ask(lease)
            while not is_over:
                await asyncio.sleep(self._settings.hand_over_look_s)
                is_overdue = _now_s() >= overdue_s
                is_over = await self._look(lease, is_overdue=is_overdue) or is_overdue
        finally:
            self._open.pop(lease.key, None)

    async def _ask(self, lease: Lease) -> bool:
        """Whether the request was made, for all we know: without a reply the next look will tell.

        A busy owner moves the counter all the time, so what the plan read is too old, and more than one try may be due.
        """
        try:
            for _ in range(_ASK_ATTEMPTS):
                current = await self._watch.get(lease.key)
                if current is None or _hold_of(current) != _hold_of(lease) or current.is_ended:
                    return False
                if await in_time(self._store.ask(current, self._me), self._settings.request_timeout_s):
                    log.info(telemetry.LEASE_ASKED, lease=lease.key, owner=lease.owner)
                    return True
                telemetry.LEASE_CONFLICTS.labels("ask").inc()
        except Transient as error:
            log.warning(telemetry.LEASE_WRITE_FAILED, lease=lease.key, error=str(error))
            return True
        return False

    async def _look(self, lease: Lease, *, is_overdue: bool) -> bool:
        """Look once, and take the lease if it may be taken. True when nothing is left to wait for."""
        sent_s = _now_s()
        try:
            current = await self._watch.get(lease.key)
            if current is None or current.owner != self._me or current.is_ended:
                return True
            way = self._way(current, is_overdue=is_overdue)
            return way is not None and await self._take(current, way, sent_s)
        except Transient as error:
            log.warning(telemetry.LEASE_WRITE_FAILED, lease=lease.key, error=str(error))
            return False

    def _way(self, current: Lease, *, is_overdue: bool) -> Way | None:
        """How the lease may be taken now; None while its holder works on."""
        if current.checkpoint_owner is None:
            return self._attempts.way_of(current)
        if self._watch.is_silent(current):
            return Way.TAKE
        return Way.STEAL if is_overdue else None


def _hold_of(lease: Lease) -> tuple[str | None, str | None, int]:
    """What stays as it is while one process holds a lease that nobody asks for."""
    return lease.owner, lease.checkpoint_owner, lease.epoch


def _now_s() -> float:
    return asyncio.get_running_loop().time()
