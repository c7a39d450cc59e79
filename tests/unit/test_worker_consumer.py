"""One shard's life with a scripted reader and a sink in memory: what is written, checkpointed, waited for, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from msgspec.structs import replace

from tests.fakes.shard_life import CHILDREN, PARENT, MemorySink, ScriptedReader, delivery, until, working, world
from tidegate.errors import Fatal, Superseded, Transient
from tidegate.leases import LATEST, SHARD_END, TRIM_HORIZON, Checkpoint, at
from tidegate.record import Position, Records, StampedRecord
from worker.batch import Batch
from worker.ports import Delivery, WriteResult
from worker.settings import BatchSettings, RejectSettings
from worker.shards import HashRange, Shard, lease_of


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


async def test_while_behind_batches_grow_as_long_as_the_database_is_quick() -> None:
    batch = BatchSettings(least_records=2, max_records=8, target_ms=60_000)
    made = await world(ScriptedReader(delivery(*range(1, 31), behind=9), delivery(31)), batch=batch)
    async with working(made):
        await until(lambda: made.checkpoint == at("31"))
    assert [len(each.dead) for each in made.sink.batches] == [2, 4, 8, 8, 8, 1]


async def test_batches_stay_small_where_the_database_is_slow() -> None:
    batch = BatchSettings(least_records=2, max_records=8, target_ms=1)
    made = await world(ScriptedReader(delivery(*range(1, 9))), batch=batch)
    write = made.sink.write

    async def slowly(whole: Batch, counter: int) -> WriteResult:
        await asyncio.sleep(0.002)
        return await write(whole, counter)

    made.sink.write = slowly  # type: ignore[assignment, method-assign]
    async with working(made):
        await until(lambda: made.checkpoint == at("8"))
    assert [len(each.dead) for each in made.sink.batches] == [2, 2, 2, 2]


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
    made = await world(ScriptedReader(delivery(1, 2)))
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


@pytest.mark.parametrize(
    ("edge_s", "position", "checkpoint", "gaps"),
    [
        (100.0, None, TRIM_HORIZON, 1),
        (100.0, None, LATEST, 1),
        (99.0, None, TRIM_HORIZON, 0),  # the first record is younger than what will be trimmed next
        (None, None, TRIM_HORIZON, 0),  # the stream has not been looked at for so long
        (100.0, Position(5, 0), TRIM_HORIZON, 0),  # a person rewound it, and nothing is missing
    ],
)
async def test_what_was_never_read_and_begins_where_the_stream_is_trimmed_may_have_a_gap(
    edge_s: float | None, position: Position | None, checkpoint: Checkpoint, gaps: int
) -> None:
    first = StampedRecord("5", b"not an event", arrival=99.0)
    reader = ScriptedReader(delivery(behind=1), replace(delivery(behind=1), records=Records([first])), delivery(7))
    reader.edge_s = edge_s
    made = await world(reader, MemorySink(position), checkpoint)
    async with working(made):
        await until(lambda: bool(made.sink.batches) and made.sink.positions[-1] == 7)
    assert [(note.position, note.reason) for note in made.sink.notes] == [(Position(0, -1), "gap")] * gaps


async def test_two_gaps_of_one_life_are_two_letters() -> None:
    deliveries = [delivery(9, gap="one"), delivery(20, gap="another")]
    made = await world(ScriptedReader(*deliveries), MemorySink(Position(5, 0)), at("5"))
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


async def test_the_children_come_from_the_last_response_and_nothing_is_listed() -> None:
    made = await world(ScriptedReader(delivery(1, end=True)))
    made.reader.shards = []
    await made.run()
    assert made.reader.listed == 0
    assert {leases.key for leases in made.store.leases.values()} == {"shard-0", "shard-1", "shard-2"}
    assert made.store.leases["shard-2"].starting_hash_key == "5"


async def test_where_the_last_response_named_no_children_they_are_listed() -> None:
    """A stand-in that does not, or a shard that the stream has forgotten."""
    made = await world(ScriptedReader(replace(delivery(1, end=True), children=())))
    await made.run()
    assert made.sink.ended == [["shard-1", "shard-2"]]
    assert made.checkpoint == SHARD_END


async def test_an_end_without_children_of_a_shard_that_is_open_is_not_believed() -> None:
    """Such as an answer that lost its iterator on the way: SHARD_END would skip the rest of the shard for good."""
    made = await world(ScriptedReader(replace(delivery(1, end=True), children=())))
    made.reader.shards = [replace(PARENT, is_closed=False)]
    with pytest.raises(Transient, match="shard-0"):
        await made.run()
    assert (made.sink.positions, made.sink.ended, made.checkpoint) == ([1], [], at("1"))


async def test_a_shard_that_ended_in_the_database_only_is_not_read_again() -> None:
    made = await world(ScriptedReader(delivery(1)), checkpoint=at("7"))
    registered: list[object] = []

    async def has_ended(shard_id: str, counter: int, replaces: int | None = None) -> None:
        return None

    async def register(shard_ids: object, lineage: object, finished: object) -> list[str]:
        registered.append((shard_ids, lineage))
        return []

    made.sink.open, made.sink.register = has_ended, register  # type: ignore[method-assign, assignment]
    await made.run()
    assert made.reader.asked == 0
    assert registered == [(["shard-0"], [("shard-0", "shard-1"), ("shard-0", "shard-2")])]
    assert (made.sink.ended, made.sink.notes) == ([["shard-1", "shard-2"]], [])
    assert made.checkpoint == SHARD_END


async def test_a_merge_waits_until_the_other_parent_has_its_lease() -> None:
    other = Shard("shard-9", (), HashRange(10, 19), is_closed=True)
    child = Shard("shard-1", ("shard-0", "shard-9"), HashRange(0, 19), is_closed=False)
    reader = ScriptedReader(replace(delivery(1, end=True), children=(child,)))
    reader.shards = [PARENT, other, child]
    made = await world(reader)
    with pytest.raises(Transient, match="shard-9"):
        await made.run()
    assert made.sink.ended == []
    assert made.checkpoint == at("1")
    await made.store.create(lease_of(other))
    await made.take_again()
    await made.run()
    assert made.checkpoint == SHARD_END
    assert made.store.leases["shard-1"].parent_keys == {"shard-0", "shard-9"}


async def test_a_parent_that_the_stream_forgot_holds_up_no_merge() -> None:
    child = Shard("shard-1", ("shard-0", "shard-9"), HashRange(0, 19), is_closed=False)
    reader = ScriptedReader(replace(delivery(1, end=True), children=(child,)))
    reader.shards = [PARENT, child]
    made = await world(reader)
    await made.run()
    assert made.checkpoint == SHARD_END


class Held:
    """Stands for a delivery's room."""

    def __init__(self) -> None:
        self.is_held = True

    def release(self) -> None:
        self.is_held = False


async def test_room_is_given_back_when_the_last_record_of_the_delivery_is_committed() -> None:
    rooms = [Held(), Held(), Held()]
    pages = [delivery(1, 2, 3, behind=9), delivery(4, behind=9), delivery()]
    made = await world(
        ScriptedReader(*(replace(page, room=room) for page, room in zip(pages, rooms, strict=True))),
        batch=BatchSettings(max_records=2, max_age_ms=60_000),
    )
    held: list[list[bool]] = []
    made.sink.fail = lambda: held.append([room.is_held for room in rooms])
    async with working(made):
        await until(lambda: made.checkpoint == at("4"))
        await until(lambda: not any(room.is_held for room in rooms))
    # While [1, 2] and [3, 4] are written: 3 belongs to the first delivery, so its room is still needed.
    assert held == [[True, True, True], [True, True, True]]


async def test_room_is_given_back_at_once_when_everything_is_written() -> None:
    """Else the next read might wait for it for ever: with nothing in the batch, no time-out would come."""
    room = Held()
    made = await world(ScriptedReader(), batch=BatchSettings(max_records=2, max_age_ms=60_000))

    async def waits_for_room(shard_id: str, start: Checkpoint) -> AsyncGenerator[Delivery, None]:
        yield replace(delivery(1, 2, behind=9), room=room)
        await until(lambda: not room.is_held)
        yield delivery(3)
        await asyncio.Event().wait()

    made.reader.read = waits_for_room  # type: ignore[method-assign]
    async with working(made):
        await until(lambda: made.checkpoint == at("3"))


async def test_what_was_read_is_told_to_the_lease() -> None:
    made = await world(ScriptedReader(delivery(1, 2, behind=5), delivery(3)))
    noted: list[int] = []
    made.hold.note_read = noted.append  # type: ignore[method-assign, assignment]
    async with working(made):
        await until(lambda: made.checkpoint == at("3"))
    assert noted[:2] == [2, 1]


async def test_a_position_of_a_former_stream_is_a_gap_and_not_a_start() -> None:
    made = await world(ScriptedReader(delivery(900)), MemorySink(Position(5, 0)), LATEST)
    made.reader.first_sequence = 600
    async with working(made):
        await until(lambda: made.checkpoint == at("900"))
    assert made.reader.start == LATEST
    assert [note.reason for note in made.sink.notes] == ["gap"]
    assert "former stream" in made.sink.notes[0].message
