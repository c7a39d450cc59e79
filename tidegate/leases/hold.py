"""A lease while we have it: its fencing token, its deadline, and the only way to move its checkpoint.

Who calls: the coordinator makes a hold after a take and runs `keep`; the lease's task calls `check` before it
writes to the outside world and `advance` after, which the next renewal takes to the table: a checkpoint costs no write
of its own. Who waits: nobody; whoever needs it written now awaits `checkpoint`, for one request time-out at most a try.

Why two processes never believe in one lease at the same time: others call it free when they saw its counter stand
still for `expiry_s` on their own clock. Our belief ends `patience_s` (less than that) after we *sent* the last write
that succeeded, which was before anybody could see it. No clocks of two machines are compared. When a reply is lost,
the later try that finds the write done counts from the first try, since that one may have done it.

After a take by force from a live owner that argument does not hold: the victim learns of it at its next write, or at
its deadline. So a stolen lease's work begins one patience after the steal (`starts_s`).

Another process may ask for the lease (`handover`). We learn of it from our own next write or from a look at the
table, set `stop`, and stay the holder, renewals and checkpoints included, until `release` gives the lease to it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

from tidegate import telemetry
from tidegate.errors import Superseded, Transient
from tidegate.leases.lease import Checkpoint, Lease
from tidegate.leases.meter import Meter
from tidegate.leases.store import LeaseStore, in_time
from tidegate.settings import LeaseSettings

log = telemetry.get_logger(__name__)


class Hold:
    """One lease in our hands. `stop` asks its task to be graceful, `lost` says that it is too late for that."""

    def __init__(
        self, store: LeaseStore, lease: Lease, settings: LeaseSettings, *, sent_s: float, starts_s: float | None = None
    ) -> None:
        """`sent_s`: when the take was sent (loop time). `starts_s`: when work may begin, default at once."""
        self.key = lease.key
        self.epoch = lease.epoch
        self.starts_s = sent_s if starts_s is None else starts_s
        self.stop = asyncio.Event()
        self.lost = asyncio.Event()
        self._store = store
        self._lease = lease
        self._settings = settings
        self._renewed_s = sent_s
        # What is done and not written yet.
        self._advanced: Checkpoint | None = None
        self._meter = Meter(lease.throughput_kbps, sent_s)
        # When the first write at the present counter was sent, while none of them is known to have succeeded.
        self._unanswered_s: float | None = None
        # A renewal and a checkpoint that raced each other on the counter would each take the other for a stranger.
        self._lock = asyncio.Lock()
        self._closed = asyncio.Event()

    @property
    def lease(self) -> Lease:
        """The lease as last written or read by us; `lease.checkpoint` is where work goes on."""
        return self._lease

    @property
    def counter(self) -> int:
        """The fencing token now. It rises while we hold the lease, and every later holder's is higher."""
        return self._lease.counter

    @property
    def deadline_s(self) -> float:
        """Loop time from which on we must not believe in this lease any more."""
        return self._renewed_s + self._settings.patience_s

    def is_valid(self, now_s: float | None = None) -> bool:
        """Whether the lease is ours at `now_s` (loop time; default now) for all we know."""
        return not self._closed.is_set() and (_now_s() if now_s is None else now_s) < self.deadline_s

    def check(self) -> None:
        """Raise Superseded unless the lease is ours. Call it before every write to the outside world."""
        if not self.is_valid():
            self.fence("not renewed in time")
            raise Superseded(f"lease {self.key} is lost")

    def heed(self, lease: Lease) -> None:
        """Look at the lease as just read or written: if it is asked for, be graceful from now on.

        Not before work may begin: until then we may not give the lease on, so letting go would help nobody. A later
        epoch says that another took it.
        """
        if lease.epoch > self.epoch:
            self.fence(f"{lease.holder} took it")
        is_wanted = lease.checkpoint_owner is not None and lease.holder == self._lease.holder
        if is_wanted and lease.epoch == self.epoch and not self.stop.is_set() and _now_s() >= self.starts_s:
            log.info(telemetry.LEASE_WANTED, lease=self.key, by=lease.owner)
            self.stop.set()

    def fence(self, reason: str) -> None:
        """Stop believing, for good. Wakes whoever waits for `lost`; does nothing to a closed hold."""
        if self._closed.is_set():
            return
        self._closed.set()
        self.lost.set()
        telemetry.LEASES_LOST.inc()
        log.warning(telemetry.LEASE_LOST, lease=self.key, counter=self.counter, reason=reason)

    def advance(self, checkpoint: Checkpoint) -> None:
        """Say that everything up to `checkpoint` is done. Written with the next renewal, or when the lease is given up.

        Never goes back: raises ValueError when `checkpoint` is before an earlier one (a bug of the caller). Says
        nothing about whether the lease is still ours; when it is not, this is never written.
        """
        reached = self._advanced or self._lease.checkpoint
        if checkpoint < reached:
            raise ValueError(f"lease {self.key}: checkpoint {checkpoint} is before {reached}")
        if checkpoint != self._lease.checkpoint:
            self._advanced = checkpoint

    def note_read(self, size_bytes: int) -> None:
        """So many bytes more were read under this lease; 0 when there was nothing. Leases are balanced by it."""
        self._meter.note(size_bytes)

    async def checkpoint(self, checkpoint: Checkpoint) -> None:
        """As `advance`, and written when this returns. Counts as a renewal.

        Raises ValueError as `advance`, Superseded when the lease is lost, Transient when the store did not answer
        `checkpoint_attempts` times; then the checkpoint is written with the next renewal.
        """
        self.advance(checkpoint)
        if self._advanced is None:
            self.check()
            return
        await self._persist(self._renew)

    async def end(self, children: Sequence[Lease] = ()) -> None:
        """The shard is finished: create the children's leases if absent, then write SHARD_END. The task returns next.

        Children come first: a crash in between leaves a parent that is finished again, never a child nobody knows.
        Raises as `checkpoint` does.
        """

        async def finish(lease: Lease) -> Lease:
            self._advanced = None  # SHARD_END is behind everything
            for child in children:
                await self._store.create(child)
            return await self._store.end(lease, [child.key for child in children])

        await self._persist(finish)
        log.info(telemetry.LEASE_ENDED, lease=self.key, children=[child.key for child in children])

    async def renew(self) -> None:
        """One try to keep the lease. Raises Superseded when it is lost, Transient when the outcome is unknown."""
        await self._write(self._renew)

    async def _renew(self, lease: Lease) -> Lease:
        advanced = self._advanced
        renewed = await self._store.renew(lease, advanced, self._meter.sample(_now_s()))
        if self._advanced is advanced:
            self._advanced = None  # else there is more by now
        return renewed

    async def keep(self) -> None:
        """Renew until the hold is closed; fence it when its deadline passes. Never raises for a lost lease."""
        retry_s = 0.0
        while not self._closed.is_set():
            due_s = retry_s or self._renewed_s + self._settings.renew_interval_s
            await self._closed_before(min(due_s, self.deadline_s))
            if self._closed.is_set():
                return
            retry_s = 0.0
            try:
                await self.renew()
            except Superseded:
                return
            except Transient as error:
                log.warning(telemetry.LEASE_WRITE_FAILED, lease=self.key, error=str(error))
                retry_s = _now_s() + random.uniform(0, self._settings.renew_retry_s)

    async def release(self, to: str | None = None) -> Lease | None:
        """Close the hold and give the lease up: from here on another may work, so our task must have ended.

        It goes to the one that asked for it, else `to` a live process if one is named, else to nobody; what `advance`
        said last is written in the same step. Returns the lease as it was left; None when it was lost, or will expire
        instead: the store did not answer, or the one we stole it from may still believe in it and a next owner would
        not know.
        """
        if self._closed.is_set():
            return None
        self._closed.set()
        if _now_s() < self.starts_s:
            return None
        try:
            left = await in_time(self._release(to), 2 * self._settings.request_timeout_s)
        except Transient as error:
            log.warning(telemetry.LEASE_WRITE_FAILED, lease=self.key, error=str(error))
            return None
        if left is not None:
            self._note_release(left.owner, to)
        return left

    def _note_release(self, owner: str | None, to: str | None) -> None:
        """Say and count whom the lease went to; `to` is whom we chose."""
        if owner is not None and owner == to:
            telemetry.LEASES_GIVEN.labels("push").inc()
            log.info(telemetry.LEASE_PUSHED, lease=self.key, to=to)
        else:
            telemetry.LEASES_GIVEN.labels("free" if owner is None else "hand_over").inc()
            log.info(telemetry.LEASE_RELEASED, lease=self.key)

    async def _release(self, to: str | None) -> Lease | None:
        """Tries until it works, also after one that hung: whoever waits for the lease would else wait for its expiry."""
        async with self._lock:
            while True:
                try:
                    release = self._store.release(self._lease, self._advanced, to)
                    return await in_time(release, self._settings.request_timeout_s)
                except Transient as error:
                    log.warning(telemetry.LEASE_WRITE_FAILED, lease=self.key, error=str(error))
                await asyncio.sleep(random.uniform(0, self._settings.renew_retry_s))

    async def _persist(self, write: Callable[[Lease], Awaitable[Lease]]) -> None:
        """A write that its caller cannot do without: a few tries, which the deadline may cut short."""
        for tries_left in reversed(range(self._settings.checkpoint_attempts)):
            try:
                return await self._write(write)
            except Transient:
                if not tries_left:
                    raise
            await self._closed_before(_now_s() + random.uniform(0, self._settings.renew_retry_s))

    async def _write(self, write: Callable[[Lease], Awaitable[Lease]]) -> None:
        """One compare-and-set, bounded by the request time-out and by the deadline; a success moves the deadline."""
        async with self._lock:
            self.check()
            now_s = _now_s()
            if self._unanswered_s is None:
                self._unanswered_s = now_s
            limit_s = min(now_s + self._settings.request_timeout_s, self.deadline_s)
            try:
                async with asyncio.timeout_at(limit_s):
                    self._lease = await write(self._lease)
            except TimeoutError:
                raise Transient(f"no reply in time for lease {self.key}") from None
            except Superseded as error:
                self.fence(str(error))
                raise
            done_s = _now_s()
            telemetry.LEASE_RENEW_SECONDS.observe(done_s - now_s)
            telemetry.LEASE_MARGIN_SECONDS.observe(self.deadline_s - done_s)
            self._renewed_s, self._unanswered_s = self._unanswered_s, None
            self.heed(self._lease)

    async def _closed_before(self, until_s: float) -> None:
        """Wait until `until_s`, or until the hold closes, whichever comes first."""
        try:
            async with asyncio.timeout_at(until_s):
                await self._closed.wait()
        except TimeoutError:
            return


def _now_s() -> float:
    return asyncio.get_running_loop().time()
