"""One shard's life with a scripted reader and a sink in memory: what is written, checkpointed, waited for, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import asynccontextmanager

import pytest

from tests.fakes.lease_store import MemoryLeaseStore
from tidegate.errors import Fatal, Superseded, Transient
from tidegate.leases import LATEST, SHARD_END, TRIM_HORIZON, Checkpoint, Hold, Lease, at
from tidegate.settings import LeaseSettings
from worker.batch import Batch, DeadLetter, Position
from worker.consumer import Consumer
from worker.dead_letter import Breaker
from worker.decode import Decoder
from worker.ports import Delivery, Record, ShardState, WriteResult
from worker.settings import BatchSettings, ConsumerSettings, RejectSettings
from worker.shards import HashRange, Shard, lease_of

PARENT = Shard("shard-0", (), HashRange(0, 9), is_closed=True)
CHILDREN = [
    Shard("shard-1", ("shard-0",), HashRange(0, 4), False),
    Shard("shard-2", ("shard-0",), HashRange(5, 9), False),
]


def delivery(*numbers: int, behind: int = 0, end: bool = False, gap: str | None = None) -> Delivery:
    records = tuple(Record(Position(number, 0), b"not an event") for number in numbers)
    child_ids = tuple(child.id for child in CHILDREN) if end else ()
    return Delivery(records=records, millis_behind=behind, is_end=end, child_ids=child_ids, gap=gap)


class ScriptedReader:
    """Delivers what it was given, then empty pages for ever. `asked` counts the reads begun."""

    def __init__(self, *deliveries: Delivery) -> None:
        self.deliveries = deliveries
        self.asked = 0
        self.start: Checkpoint | None = None
        self.shards = [PARENT, *CHILDREN]

    async def read(self, shard_id: str, start: Checkpoint) -> AsyncGenerator[Delivery, None]:
        self.start = start
        for each in self.deliveries:
            self.asked += 1
            yield each
            if each.is_end:
                return
        while True:
            await asyncio.sleep(0.005)
            yield delivery()

    async def list_shards(self) -> list[Shard]:
        return self.shards


class MemorySink:
    """Keeps what was written. `fail` is asked before each write; an error it returns is raised."""

    def __init__(self, position: Position | None = None, lease_counter: int = 0) -> None:
        self.state = ShardState(position, lease_counter)
        self.batches: list[Batch] = []
        self.notes: list[DeadLetter] = []
        self.ended: list[Sequence[str]] = []
        self.written = asyncio.Event()
        self.fail: Callable[[], Exception | None] = lambda: None
        self.gate = asyncio.Event()
        self.gate.set()

    async def register(
        self, shard_ids: Collection[str], lineage: Collection[tuple[str, str]], finished: Collection[str]
    ) -> list[str]:
        return []

    async def open(self, shard_id: str, counter: int, replaces: int | None = None) -> ShardState:
        if self.state.lease_counter <= counter or self.state.lease_counter == replaces:
            self.state = self.state._replace(lease_counter=counter)
        return self.state

    async def write(self, batch: Batch, counter: int) -> WriteResult:
        await self.gate.wait()
        if error := self.fail():
            raise error
        self.batches.append(batch)
        self.written.set()
        return WriteResult(rejected=len(batch.dead))

    async def note(self, shard_id: str, counter: int, letter: DeadLetter) -> None:
        self.notes.append(letter)

    async def end(self, shard_id: str, counter: int, child_ids: Sequence[str]) -> None:
        self.ended.append(child_ids)

    @property
    def positions(self) -> list[int]:
        return [letter.position.sequence for batch in self.batches for letter in batch.dead]


class World:
    """A held lease on shard-0 and a consumer at work on it."""

    def __init__(
        self, reader: ScriptedReader, sink: MemorySink, lease: Lease, store: MemoryLeaseStore, **given: object
    ):
        self.reader, self.sink, self.store = reader, sink, store
        settings = LeaseSettings(renew_retry_s=0.01)
        self.hold = Hold(store, lease, settings, sent_s=asyncio.get_running_loop().time())
        self.consumer = Consumer(
            reader=reader, sink=sink, decoder=Decoder(()), register=self.nothing, list_leases=store.scan,
            breaker=Breaker(given.get("reject", RejectSettings(minimum=10_000))),  # type: ignore[arg-type]
            batch=given.get("batch", BatchSettings()),  # type: ignore[arg-type]
            settings=given.get("settings", ConsumerSettings(checkpoint_interval_ms=0, retry_max_ms=5)),  # type: ignore[arg-type]
        )  # fmt: skip

    async def nothing(self) -> None:
        return

    @property
    def checkpoint(self) -> Checkpoint:
        return self.store.leases["shard-0"].checkpoint

    async def run(self) -> None:
        """To the end, or until the time-out that fails the test."""
        async with asyncio.timeout(5):
            await self.consumer.run(self.hold)


async def world(
    reader: ScriptedReader, sink: MemorySink | None = None, checkpoint: Checkpoint = TRIM_HORIZON, **given: object
) -> World:
    store = MemoryLeaseStore()
    await store.create(Lease(key="shard-0", checkpoint=checkpoint, counter=4))
    lease = await store.take(store.leases["shard-0"], "me")
    assert lease is not None
    return World(reader, sink or MemorySink(), lease, store, **given)


@asynccontextmanager
async def working(made: World) -> AsyncGenerator[asyncio.Task[None], None]:
    """The consumer as a task; when the block ends it is asked to stop and must do so."""
    task = asyncio.create_task(made.consumer.run(made.hold))
    try:
        yield task
        made.hold.stop.set()
        async with asyncio.timeout(5):
            await task
    finally:
        task.cancel()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        for _ in range(100_000):
            if condition():
                return
            await asyncio.sleep(0.001)


async def test_what_comes_is_written_and_then_checkpointed() -> None:
    made = await world(ScriptedReader(delivery(1, 2, behind=5), delivery(3)))
    async with working(made):
        await until(lambda: made.checkpoint == at("3"))
    assert made.sink.positions == [1, 2, 3]


async def test_the_checkpoint_never_passes_what_is_committed() -> None:
    made = await world(ScriptedReader(delivery(1), delivery(2)))
    made.sink.gate.clear()
    async with working(made):
        await until(lambda: made.reader.asked == 2)
        assert made.checkpoint == TRIM_HORIZON
        made.sink.gate.set()
        await until(lambda: made.checkpoint == at("2"))


async def test_while_nothing_can_be_written_one_delivery_is_read_ahead_and_no_more() -> None:
    made = await world(ScriptedReader(*(delivery(number) for number in range(1, 20))))
    made.sink.gate.clear()
    async with working(made):
        await until(lambda: made.reader.asked == 2)
        for _ in range(50):
            await asyncio.sleep(0)
        assert made.reader.asked == 2
        made.sink.gate.set()
        await until(lambda: made.checkpoint == at("19"))
    assert made.sink.positions == list(range(1, 20))


async def test_full_batches_are_written_while_behind_and_the_rest_when_it_is_due() -> None:
    batch = BatchSettings(max_records=3, max_age_ms=30)
    made = await world(ScriptedReader(delivery(1, 2, 3, 4, 5, behind=9), delivery(6, behind=9)), batch=batch)
    made.reader.shards = []

    async def stuck() -> AsyncGenerator[Delivery, None]:
        for each in made.reader.deliveries:
            yield each
        await asyncio.Event().wait()

    made.reader.read = lambda shard_id, start: stuck()  # type: ignore[method-assign]
    async with working(made):
        await until(lambda: len(made.sink.batches) == 2)
        assert [len(each.dead) for each in made.sink.batches] == [3, 3]


async def test_a_lone_record_behind_the_tip_waits_for_its_age_only() -> None:
    made = await world(ScriptedReader(), batch=BatchSettings(max_age_ms=20))

    async def stuck() -> AsyncGenerator[Delivery, None]:
        yield delivery(1, behind=9)
        await asyncio.Event().wait()

    made.reader.read = lambda shard_id, start: stuck()  # type: ignore[method-assign]
    async with working(made):
        await asyncio.wait_for(made.sink.written.wait(), 5)
    assert made.sink.positions == [1]


async def test_on_stop_the_delivery_in_hand_is_finished_and_checkpointed() -> None:
    settings = ConsumerSettings(checkpoint_interval_ms=3_600_000)
    made = await world(ScriptedReader(delivery(1, 2)), settings=settings)
    made.sink.gate.clear()
    async with working(made):
        await until(lambda: made.reader.asked == 1)
        await asyncio.sleep(0.01)
        made.hold.stop.set()
        await asyncio.sleep(0.01)
        made.sink.gate.set()
    assert made.sink.positions == [1, 2]
    assert made.checkpoint == at("2")


async def test_a_database_that_is_away_is_waited_for() -> None:
    made = await world(ScriptedReader(delivery(1)))
    tries = iter(range(1, 6))
    made.sink.fail = lambda: Transient("away") if next(tries, None) else None
    async with working(made):
        await until(lambda: made.checkpoint == at("1"))
    assert made.sink.positions == [1]


async def test_asked_to_stop_while_the_database_is_away_it_gives_up_and_checkpoints_nothing() -> None:
    made = await world(ScriptedReader(delivery(1)))
    failed = asyncio.Event()

    def away() -> Exception:
        failed.set()
        return Transient("away")

    made.sink.fail = away
    task = asyncio.create_task(made.run())
    await asyncio.wait_for(failed.wait(), 5)
    made.hold.stop.set()
    with pytest.raises(ExceptionGroup) as raised:
        await task
    assert raised.group_contains(Transient)
    assert made.checkpoint == TRIM_HORIZON


async def test_a_fenced_write_ends_it_quietly_for_its_caller() -> None:
    made = await world(ScriptedReader(delivery(1)))
    made.sink.fail = lambda: Superseded("fenced")
    with pytest.raises(ExceptionGroup) as raised:
        await made.run()
    assert raised.group_contains(Superseded)
    assert made.checkpoint == TRIM_HORIZON


async def test_too_many_rejections_end_the_process_before_they_are_written() -> None:
    made = await world(ScriptedReader(delivery(*range(1, 51))), reject=RejectSettings(minimum=50))
    with pytest.raises(ExceptionGroup) as raised:
        await made.run()
    assert raised.group_contains(Fatal)
    assert made.sink.batches == []
    assert made.checkpoint == TRIM_HORIZON


async def test_a_gap_is_filed_at_the_checkpoint_before_anything_else() -> None:
    made = await world(ScriptedReader(delivery(9, gap="trimmed")), MemorySink(Position(5, 0)), at("5"))
    async with working(made):
        await until(lambda: made.checkpoint == at("9"))
    [note] = made.sink.notes
    assert (note.position, note.stage, note.reason, note.message) == (Position(5, -1), "read", "gap", "trimmed")


async def test_a_database_that_knows_nothing_of_the_shard_misses_what_was_trimmed() -> None:
    made = await world(ScriptedReader(delivery(900)), MemorySink(), at("500"))
    async with working(made):
        await until(lambda: made.checkpoint == at("900"))
    assert made.reader.start == TRIM_HORIZON
    [note] = made.sink.notes
    assert (note.position, note.stage, note.reason) == (Position(500, -1), "read", "gap")
    assert "500" in note.message


@pytest.mark.parametrize(("first", "gaps"), [(4, 0), (5, 0), (9, 1), (None, 1)])
async def test_from_the_horizon_the_position_of_the_database_must_be_there(first: int | None, gaps: int) -> None:
    deliveries = [delivery(behind=7), delivery() if first is None else delivery(first), delivery(20), delivery(30)]
    made = await world(ScriptedReader(*deliveries), MemorySink(Position(5, 2)), TRIM_HORIZON)
    async with working(made):
        await until(lambda: made.checkpoint == at("30"))
    assert made.reader.start == TRIM_HORIZON
    assert [note.position for note in made.sink.notes] == [Position(5, -1)] * gaps


async def test_two_gaps_of_one_life_are_two_letters() -> None:
    deliveries = [delivery(9, gap="one"), delivery(20, gap="another")]
    never = ConsumerSettings(checkpoint_interval_ms=3_600_000)
    made = await world(ScriptedReader(*deliveries), MemorySink(Position(5, 0)), at("5"), settings=never)
    async with working(made):
        await until(lambda: made.sink.positions == [9, 20])
    assert [note.position for note in made.sink.notes] == [Position(5, -1), Position(9, -1)]


async def test_a_restored_database_is_caught_up_and_the_lease_does_not_go_back() -> None:
    made = await world(ScriptedReader(delivery(4), delivery(5), delivery(9)), MemorySink(Position(3, 0)), at("8"))
    seen: list[Checkpoint] = []
    made.sink.fail = lambda: seen.append(made.checkpoint)
    async with working(made):
        await until(lambda: made.checkpoint == at("9"))
    assert seen == [at("8")] * 3
    assert made.reader.start == at("3")


async def test_the_position_of_the_database_stands_in_for_a_lease_at_latest() -> None:
    made = await world(ScriptedReader(), MemorySink(Position(3, 1)), LATEST)
    async with working(made):
        await until(lambda: made.reader.start is not None)
    assert made.reader.start == at("3", 1)


async def test_a_higher_fence_is_replaced_only_after_the_lease_proves_ours() -> None:
    made = await world(ScriptedReader(delivery(1)), MemorySink(lease_counter=500))
    async with working(made):
        await until(lambda: made.checkpoint == at("1"))
    assert made.sink.state.lease_counter < 500

    late = await world(ScriptedReader(delivery(1)), MemorySink(lease_counter=500))
    await late.store.take(late.store.leases["shard-0"], "somebody else")
    with pytest.raises(Superseded):
        await late.run()
    assert late.sink.state.lease_counter == 500
    assert late.sink.batches == []


async def test_at_the_end_the_children_inherit_and_get_their_leases() -> None:
    made = await world(ScriptedReader(delivery(1, behind=9), delivery(2, end=True)))
    await made.run()
    assert made.sink.positions == [1, 2]
    assert made.sink.ended == [["shard-1", "shard-2"]]
    leases = made.store.leases
    assert leases["shard-0"].checkpoint == SHARD_END
    assert leases["shard-0"].child_keys == {"shard-1", "shard-2"}
    assert {leases[child.id].checkpoint for child in CHILDREN} == {TRIM_HORIZON}
    assert leases["shard-1"].parent_keys == {"shard-0"}


async def test_a_merge_waits_until_the_other_parent_has_its_lease() -> None:
    other = Shard("shard-9", (), HashRange(10, 19), is_closed=True)
    child = Shard("shard-1", ("shard-0", "shard-9"), HashRange(0, 19), is_closed=False)
    reader = ScriptedReader(delivery(1, end=True))
    reader.shards = [PARENT, other, child, CHILDREN[1]]
    made = await world(reader)
    with pytest.raises(Transient, match="shard-9"):
        await made.run()
    assert made.sink.ended == []
    assert made.checkpoint == at("1")
    await made.store.create(lease_of(other))
    await made.run()
    assert made.checkpoint == SHARD_END


async def test_children_that_are_not_listed_yet_are_waited_for() -> None:
    reader = ScriptedReader(delivery(1, end=True))
    reader.shards = [PARENT, CHILDREN[0]]
    made = await world(reader)
    with pytest.raises(Transient, match="shard-2"):
        await made.run()
    assert "shard-1" not in made.store.leases
