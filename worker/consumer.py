"""One shard's life: read → decode → batch → write → checkpoint, and at its end make way for its children.

Who calls: the coordinator, once for each lease that this process takes. One task reads ahead and one writes. The
reader may be one delivery ahead of the one in hand, never more, and both have their room in the process's read memory
until they are committed: while the database is away reading stops. What one shard's batch meets is its own affair: it
is tried again until it works, and the other shards go on. On `stop` the batch in hand is finished and its position
goes to the table with the lease; on cancellation (lease lost, budget spent) nothing does: what was committed without its
checkpoint is read again by the next holder, and changes nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TypeVar

from msgspec.structs import replace

from tidegate import claim, telemetry
from tidegate.errors import Superseded, Transient
from tidegate.leases import Checkpoint, Hold, Lease, at
from tidegate.letter import LetterKind
from tidegate.record import Part, Records
from worker.batch import Batch, BatchBuilder, BatchLimits, BatchSize, DeadLetter, Position
from worker.dead_letter import Breaker
from worker.ports import Claims, Delivery, RecordDecoder, RecordReader, Room, ShardState, Sink, WriteResult
from worker.settings import BatchSettings, ConsumerSettings
from worker.shards import Shard, children_of, gap_at_start, lease_of, start_position, unleased_parents

log = telemetry.get_logger(__name__)
Result = TypeVar("Result")

_RETRY_BASE_S = 0.1
_WRITTEN = [telemetry.RECORDS_WRITTEN.labels(outcome) for outcome in WriteResult._fields]


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """Makes the life of each shard; what all shards of the process share is given once.

    register     makes the stream's other shards known to the database, unless they are
    get_lease    one lease by its key, read consistently
    claims       resolves references to records too large for the stream; None: there are to be none
    """

    reader: RecordReader
    sink: Sink
    decoder: RecordDecoder
    breaker: Breaker
    batch: BatchSettings
    settings: ConsumerSettings
    register: Callable[[], Awaitable[None]]
    get_lease: Callable[[str], Awaitable[Lease | None]]
    claims: Claims | None = None

    async def run(self, hold: Hold) -> None:
        """Work until the shard ends, `hold.stop` is set, or the lease is lost.

        Raises Superseded (lost, fenced), Transient (reading failed for good; try later) or Fatal.
        """
        try:
            await _Life(self, hold).run()
        finally:
            telemetry.forget_shard(hold.key)


class _Life:
    """One lease's work, from take to return."""

    def __init__(self, shared: Consumer, hold: Hold) -> None:
        self._shared = shared
        self._hold = hold
        self._sink = shared.sink
        batch = shared.batch
        self._size = BatchSize(batch.least_records, batch.max_records, batch.target_ms / 1000)
        limits = BatchLimits(
            max_records=self._size.records,
            max_bytes=batch.max_bytes,
            max_age_s=batch.max_age_ms / 1000,
        )
        self._builder = BatchBuilder(hold.key, limits)
        self._reached = Position(0, 0)
        self._expected: Position | None = None
        # Nothing of the shard was ever read.
        self._is_unread = False
        # What the deliveries take whose records are all in the batch, or before it.
        self._rooms: list[Room] = []

    async def run(self) -> None:
        state = await self._open()
        if state is None:
            log.info(telemetry.SHARD_ENDED_BEFORE, shard=self._hold.key)
            return await self._end(())
        start = await self._start(state)
        deliveries = self._shared.reader.read(self._hold.key, start)
        async with aclosing(deliveries), asyncio.TaskGroup() as group:
            ahead = _ReadAhead(deliveries)
            pump = group.create_task(ahead.pump())
            stopper = group.create_task(ahead.end_on(self._hold.stop))
            ended = await self._consume(ahead)
            pump.cancel()
            stopper.cancel()
        if ended is not None:
            await self._end(ended.children)
        return None

    async def _open(self) -> ShardState | None:
        """Announce ourselves to the database, and learn what it knows of the shard; None: that it has ended."""
        shard_id = self._hold.key
        await self._persist(self._shared.register, "register")
        state = await self._persist(lambda: self._sink.open(shard_id, self._hold.counter), "open")
        if state is None:
            # The look that was registered is too old, or somebody ended the shard and lost the lease before it could
            # say so there. The children tell: they are known from the transaction on that ends it.
            children = children_of(shard_id, await self._shared.reader.list_shards())
            lineage = [(shard_id, child.id) for child in children]
            await self._persist(lambda: self._sink.register([shard_id], lineage, ()), "register")
            state = await self._persist(lambda: self._sink.open(shard_id, self._hold.counter), "open")
        return state

    async def _start(self, state: ShardState) -> Checkpoint:
        """Find out where to begin, and whether that leaves a gap."""
        shard_id = self._hold.key
        if state.lease_counter > self._hold.counter:
            # Either I am the one who is late, or the lease table was made anew and counts from the beginning. A
            # conditional write to the lease tells: it fails if anybody took the lease since.
            await self._hold.renew()
            log.warning(telemetry.FENCE_REPLACED, shard=shard_id, stored=state.lease_counter, mine=self._hold.counter)
            higher = state.lease_counter
            replaced = await self._persist(lambda: self._sink.open(shard_id, self._hold.counter, higher), "open")
            if replaced is None or replaced.lease_counter > self._hold.counter:
                raise Superseded(f"shard {shard_id} is fenced or was ended by another worker just now")
            state = replaced
        checkpoint, stored, former = self._hold.lease.checkpoint, state.position, None
        if stored is not None and self._shared.reader.is_foreign(shard_id, stored.sequence):
            former = f"the database was at {stored.sequence} of a former stream of this name; what came after is lost"
            stored = None
        start = start_position(checkpoint, stored)
        log.info(telemetry.SHARD_OPENED, shard=shard_id, start=str(start), lease=str(checkpoint))
        self._judge_start(start, checkpoint, stored)
        self._is_unread = stored is None and former is None and not checkpoint.is_number
        if gap := former or gap_at_start(checkpoint, stored):
            await self._note_gap(gap)
        return start

    def _judge_start(self, start: Checkpoint, checkpoint: Checkpoint, stored: Position | None) -> None:
        """Remember how far the shard had come, and what the first record must prove."""
        number = next((each for each in (start, checkpoint) if each.is_number), None)
        if number is not None:
            self._reached = Position(int(number.position), number.sub_sequence)
        elif stored is not None:
            # From the horizon, though the database has come further: the reader knows nothing of its position.
            self._reached = self._expected = stored

    async def _consume(self, ahead: _ReadAhead) -> Delivery | None:
        """Write what comes until the end; returns the shard's last delivery, or None when asked to stop."""
        while True:
            delivery = await ahead.next(self._builder.due_s)
            if delivery is None:
                await self._write_rest()
                if ahead.is_stopped:
                    return None
                continue
            self._hold.note_read(delivery.size_bytes)
            await self._take(delivery)
            if delivery.room is not None:
                self._rooms.append(delivery.room)
            if delivery.is_end or delivery.millis_behind == 0 or self._builder.is_empty:
                # At the tip there is nothing to wait for.
                await self._write_rest()
            if delivery.is_end:
                return delivery

    async def _take(self, delivery: Delivery) -> None:
        """Decode as many records as a batch takes; a full batch is written before the next record is looked at."""
        if gap := delivery.gap or self._overtaken(delivery) or await self._begun_late(delivery):
            await self._note_gap(gap)
        async for part in self._resolved(delivery.records):
            telemetry.RECORDS_READ.inc(len(part))
            is_inner = part[-1].sub > 0
            taken = 0
            while taken < len(part):
                taken = self._builder.fill(part, taken, self._shared.decoder.decode_all, _now_s())
                if self._builder.is_full:
                    await self._write_rest()
            part.let_go()
            if is_inner:
                # They came out of an aggregate, which took its time; other shards and the renewals of leases want their turn.
                await asyncio.sleep(0)

    async def _resolved(self, records: Records) -> AsyncGenerator[Part, None]:
        """The same records in their order; a reference alone, as what it stands for, so that only one is in memory."""
        claims = self._shared.claims
        for part in records.parts():
            if claims is None or not any(claim.is_claim(record.data) for record in part):
                yield part
                continue
            for is_reference, alike in groupby(part, lambda record: claim.is_claim(record.data)):
                if not is_reference:
                    yield Part(list(alike))
                    continue
                for record in alike:
                    fetch = partial(claims.fetch, record.data)
                    yield Part([replace(record, data=await self._persist(fetch, "read a claim"))])

    def _overtaken(self, delivery: Delivery) -> str | None:
        """A gap when the horizon lies beyond the position of the database. Judged once, by the first record."""
        expected = self._expected
        if expected is None or not (delivery.records or delivery.millis_behind == 0):
            return None
        self._expected = None
        if (first := delivery.records.first) and first.position.sequence <= expected.sequence:
            return None
        return f"reading begins after the position of the database, {expected.sequence}; what lies between is missing"

    async def _begun_late(self, delivery: Delivery) -> str | None:
        """A gap when the first record of a shard of which nothing was ever read is one that the stream is about to trim.

        Those before it, if there were any, are trimmed already, and nobody had read them.
        """
        if not (self._is_unread and delivery.records):
            return None
        self._is_unread = False
        ask = partial(self._shared.reader.is_at_the_edge, delivery.records.arrival)
        if not await self._persist(ask, "ask how long the stream keeps records"):
            return None
        return "nothing of the shard was read until its first records were about to be trimmed; some may be missing"

    async def _note_gap(self, gap: str) -> None:
        """Lost records are said loudly, counted, and filed at once, for perhaps no other record follows."""
        telemetry.GAPS.inc()
        log.error(telemetry.STREAM_GAP, shard=self._hold.key, gap=gap)
        position = Position(self._reached.sequence, -1)
        letter = DeadLetter(
            position=position, stage="read", reason="gap", message=gap, payload=b"", kind=LetterKind.GAP
        )
        await self._persist(lambda: self._sink.note(self._hold.key, self._hold.counter, letter), "file a gap")

    async def _write_rest(self) -> None:
        """Commit what is collected; of the deliveries taken so far nothing is kept then."""
        if not self._builder.is_empty:
            batch = self._builder.close()
            # Judged before anything is filed: what a wrong release rejects must still be unread for the right one.
            undecoded = sum(letter.stage == "decode" for letter in batch.dead)
            self._shared.breaker.note(batch.delivered, undecoded, _now_s())
            telemetry.BATCH_RECORDS.observe(batch.size)
            with telemetry.BATCH_SECONDS.time():
                await self._persist(lambda: self._write(batch), "write")
            self._advance(batch.last)
        while self._rooms:
            self._rooms.pop().release()

    async def _write(self, batch: Batch) -> None:
        began_s = _now_s()
        result = await self._sink.write(batch, self._hold.counter)
        # The try that worked: how long the database was away says nothing about the size.
        self._size.note(batch.size, _now_s() - began_s)
        self._builder.limit(self._size.records)
        for counter, count in zip(_WRITTEN, result, strict=True):
            if count:
                counter.inc(count)
        if result.rejected:
            log.warning(telemetry.RECORDS_REJECTED, shard=batch.shard_id, count=result.rejected)
        if result.parked:
            log.warning(telemetry.RECORDS_PARKED, shard=batch.shard_id, count=result.parked)
        if undecided := result.rejected - len(batch.dead):
            self._shared.breaker.note(0, undecided, _now_s())

    def _advance(self, reached: Position) -> None:
        """Tell the lease how far the database is; it is written with the next renewal, or when the lease is given up."""
        self._reached = reached
        checkpoint = at(str(reached.sequence), reached.sub)
        # Else a restored database is catching up: the lease is ahead already, and never goes back.
        if checkpoint > self._hold.lease.checkpoint:
            self._hold.advance(checkpoint)

    async def _end(self, known: Sequence[Shard]) -> None:
        """The shard is read to its end: hand its watermarks and its keys over to its children, `known` or not."""
        children = known or await self._listed_children()
        kin = {child.id for child in children}.union(*(child.parent_ids for child in children))
        leased = {key for key in sorted(kin) if await self._shared.get_lease(key) is not None}
        if unleased := unleased_parents(children, leased):
            listed = {shard.id for shard in await self._shared.reader.list_shards()}
            if blocking := sorted(unleased & listed):
                raise Transient(f"the children of shard {self._hold.key} must wait until {blocking} have leases")
        child_ids = [child.id for child in children]
        await self._persist(lambda: self._sink.end(self._hold.key, self._hold.counter, child_ids), "end")
        await self._hold.end([lease_of(child) for child in children])
        log.info(telemetry.SHARD_ENDED, shard=self._hold.key, children=child_ids)

    async def _listed_children(self) -> list[Shard]:
        """Raises Transient while the stream lists the shard as open: such an end, without children, was none."""
        shards = await self._shared.reader.list_shards()
        if any(shard.id == self._hold.key and not shard.is_closed for shard in shards):
            raise Transient(f"reading shard {self._hold.key} came to an end, but the stream lists it as open")
        return children_of(self._hold.key, shards)

    async def _persist(self, step: Callable[[], Awaitable[Result]], doing: str) -> Result:
        """Try until it works: the database may be away for long. Ends with the lease, or when asked to stop."""
        wait_s = _RETRY_BASE_S
        while True:
            self._hold.check()
            try:
                return await step()
            except Transient as error:
                telemetry.WRITES_RETRIED.inc()
                log.warning(telemetry.WRITE_FAILED, shard=self._hold.key, doing=doing, error=str(error))
                if self._hold.stop.is_set():
                    raise
            await _wait(self._hold.stop, random.uniform(0, wait_s))
            wait_s = min(wait_s * 2, self._shared.settings.retry_max_ms / 1000)


class _ReadAhead:
    """One delivery between the task that reads and the task that writes; the next is read only when that is taken."""

    def __init__(self, deliveries: AsyncGenerator[Delivery, None]) -> None:
        self._deliveries = deliveries
        self._room = asyncio.Semaphore(1)
        self._queue: asyncio.Queue[Delivery | None] = asyncio.Queue(maxsize=2)
        self.is_stopped = False

    async def pump(self) -> None:
        await self._room.acquire()
        async for delivery in self._deliveries:
            await self._queue.put(delivery)
            await self._room.acquire()

    async def end_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self.is_stopped = True
        await self._queue.put(None)

    async def next(self, due_s: float | None) -> Delivery | None:
        """The next delivery; None when `due_s` (loop time) comes first, or once stopped."""
        if self.is_stopped:
            return None
        try:
            async with asyncio.timeout_at(due_s):
                delivery = await self._queue.get()
        except TimeoutError:
            return None
        self._room.release()
        return delivery


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return


def _now_s() -> float:
    return asyncio.get_running_loop().time()
