"""The rules of shards, sequence numbers, budgets and frames of the embedded Kinesis."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from local.kinesis import eventstream, model
from local.kinesis.errors import LogDamaged
from local.kinesis.limits import READ_BYTES_PER_S, Budget, ShardLimits
from local.kinesis.log import LINE_END, Line, ShardLog, payload_bytes
from local.kinesis.model import HASH_KEYS, HashRange, Shard, ShardFilter

NOW_MS = 1_790_000_000_000
seconds = st.integers(1_600_000_000, 2_500_000_000)
indexes = st.integers(0, 1 << 31)
positions = st.integers(0, 1 << 60)


@given(seconds, indexes, positions, seconds)
def test_a_sequence_number_can_be_taken_apart(created_s: int, index: int, position: int, arrival_s: int) -> None:
    text = str(model.sequence_number(model.sequence_base(created_s, index), position, arrival_s))
    assert len(text) == 56
    assert model.parse_sequence(text) == (created_s, index, position, arrival_s)


@given(seconds, indexes, positions, st.integers(1, 1 << 40), seconds, seconds)
def test_sequence_numbers_rise_with_the_position(
    created_s: int, index: int, position: int, step: int, arrival_s: int, other_s: int
) -> None:
    base = model.sequence_base(created_s, index)
    lower = model.sequence_number(base, position, arrival_s)
    assert lower < model.sequence_number(base, position + step, other_s)


@pytest.mark.parametrize("text", ["", "-1", "abc", "1", "٣" * 56, "9" * 200, "4" * 56])
def test_what_is_no_sequence_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        model.parse_sequence(text)


@given(st.text(min_size=1, max_size=256).filter(lambda text: text.isprintable()))
def test_the_hash_key_is_the_md5(key: str) -> None:
    assert model.hash_key(key) == int(hashlib.md5(key.encode()).hexdigest(), 16)


def covers_all(shards: list[Shard]) -> bool:
    ranges = sorted((shard.hash_range.start, shard.hash_range.end) for shard in shards)
    starts = [start for start, _ in ranges] + [HASH_KEYS]
    return starts[0] == 0 and [end + 1 for _, end in ranges] == starts[1:]


@given(st.integers(1, 60), st.lists(st.integers(0, HASH_KEYS - 1), max_size=20))
def test_every_key_has_one_of_the_initial_shards(count: int, keys: list[int]) -> None:
    shards = model.initial_shards(count, NOW_MS)
    router = model.Router(shards)
    assert covers_all(shards)
    for key in keys:
        (owner,) = [shard for shard in shards if key in shard.hash_range]
        assert router.shard_id_of(key) == owner.id


class World:
    """All shards of a stream, resharded as `Stream` does it, without disk or clock."""

    def __init__(self, count: int) -> None:
        self.all = {shard.index: shard for shard in model.initial_shards(count, NOW_MS)}

    @property
    def open(self) -> list[Shard]:
        return [shard for shard in self.all.values() if shard.is_open]

    def replace(self, parents: list[Shard], children: list[Shard]) -> None:
        for parent in parents:
            self.all[parent.index] = model.closed(parent, 7, NOW_MS)
        self.all |= {child.index: child for child in children}

    def step(self, step: model.Split | model.Merge) -> None:
        match step:
            case model.Split(shard, at):
                self.replace([shard], list(model.split(shard, at, len(self.all), NOW_MS)))
            case model.Merge(one, other):
                self.replace([one, other], [model.merge(one, other, len(self.all), NOW_MS)])

    def rescale(self, target: int) -> None:
        for _ in range(300):
            step = model.rescale_step(self.open, target)
            if step is None:
                return
            self.step(step)
        pytest.fail("rescaling does not end")


@given(st.integers(1, 12), st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_rescaling_ends_in_even_shards_that_sort_above_their_parents(count: int, targets: list[int]) -> None:
    world = World(count)
    for target in targets:
        world.rescale(target)
        assert covers_all(world.open)
        assert sorted(shard.hash_range.start for shard in world.open) == model.boundaries(target)
    by_id = {shard.id: shard for shard in world.all.values()}
    for shard in world.all.values():
        for parent in shard.parent_ids:
            ending = by_id[parent].ending_sequence_number
            assert ending is not None
            assert int(ending) < int(shard.starting_sequence_number)


@given(st.integers(0, HASH_KEYS - 1))
def test_a_split_cuts_inside_only(at: int) -> None:
    parent = Shard(0, HashRange(10, 1 << 127), NOW_MS // 1000, NOW_MS)
    if 10 < at <= 1 << 127:
        low, high = model.split(parent, at, 1, NOW_MS)
        assert (low.hash_range, high.hash_range) == (HashRange(10, at - 1), HashRange(at, 1 << 127))
    else:
        with pytest.raises(ValueError):
            model.split(parent, at, 1, NOW_MS)


def test_only_neighbours_merge_and_their_order_does_not_matter() -> None:
    first, second, third = model.initial_shards(3, NOW_MS)
    with pytest.raises(ValueError):
        model.merge(first, third, 3, NOW_MS)
    child = model.merge(second, first, 3, NOW_MS)
    assert child.hash_range == HashRange(first.hash_range.start, second.hash_range.end)
    assert child.parent_ids == (second.id, first.id)


def generations() -> list[Shard]:
    """Shard 0 open in [0, 100), its children 1 and 2 from 100 on, 1 closed at 200 with its children 3 and 4."""
    whole = Shard(0, HashRange(0, 99), 0, 0, None, None, 100, 5)
    return [
        whole,
        Shard(1, HashRange(0, 49), 1, 100, 0, None, 200, 5),
        Shard(2, HashRange(50, 99), 1, 100, 0),
        Shard(3, HashRange(0, 24), 2, 200, 1),
        Shard(4, HashRange(25, 49), 2, 200, 1),
    ]


@pytest.mark.parametrize(
    ("chosen", "horizon_ms", "expected"),
    [
        (ShardFilter("AT_LATEST"), 0, [2, 3, 4]),
        (ShardFilter("AT_TRIM_HORIZON"), 0, [0]),
        (ShardFilter("AT_TRIM_HORIZON"), 150, [1, 2]),
        (ShardFilter("FROM_TRIM_HORIZON"), 0, [0, 1, 2, 3, 4]),
        (ShardFilter("AT_TIMESTAMP", timestamp_ms=99), 0, [0]),
        (ShardFilter("AT_TIMESTAMP", timestamp_ms=100), 0, [1, 2]),
        (ShardFilter("AT_TIMESTAMP", timestamp_ms=10), 150, [1, 2]),
        (ShardFilter("FROM_TIMESTAMP", timestamp_ms=150), 0, [1, 2, 3, 4]),
        (ShardFilter("FROM_TIMESTAMP", timestamp_ms=250), 0, [2, 3, 4]),
        (ShardFilter("AFTER_SHARD_ID", shard_id="shardId-000000000002"), 0, [3, 4]),
    ],
)
def test_filters(chosen: ShardFilter, horizon_ms: int, expected: list[int]) -> None:
    assert [shard.index for shard in model.select(generations(), chosen, horizon_ms)] == expected


def test_an_unknown_filter_is_refused() -> None:
    with pytest.raises(ValueError):
        model.select(generations(), ShardFilter("SOMETIMES"), 0)


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 400_000)), max_size=200))
def test_no_second_admits_more_than_its_budget_and_what_was_saved(attempts: list[tuple[float, int]]) -> None:
    limits, now_s, admitted = ShardLimits(), 0.0, 0
    for pause_s, size_bytes in attempts:
        now_s += pause_s
        if limits.admit_write(size_bytes, now_s):
            admitted += size_bytes
        assert admitted <= (now_s + 1) * 1024 * 1024 + 1e-3


def test_a_large_answer_is_paid_for_in_full() -> None:
    budget = Budget(READ_BYTES_PER_S)
    budget.charge(10 * 1024 * 1024, 100.0)
    assert budget.ready_in_s(100.0) == pytest.approx(5.0)
    assert budget.ready_in_s(104.0) == pytest.approx(1.0)
    assert budget.ready_in_s(105.1) == 0


@given(st.dictionaries(st.text("abc:-", min_size=1, max_size=20), st.text(max_size=50)), st.binary(max_size=200))
def test_frames_are_read_by_botocore(headers: dict[str, str], payload: bytes) -> None:
    buffer = EventStreamBuffer()
    buffer.add_data(eventstream.frame(headers, payload))
    (frame,) = list(buffer)
    assert (frame.headers, frame.payload) == (headers, payload)


@given(st.binary(max_size=100))
def test_the_size_of_a_payload_is_known_from_its_base64(payload: bytes) -> None:
    assert payload_bytes(base64.b64encode(payload).decode()) == len(payload)


def line(position: int, arrival_ms: int = NOW_MS, payload: str = "eA==") -> Line:
    sequence = model.sequence_number(model.sequence_base(1_790_000_000, 0), position, arrival_ms // 1000)
    text = (
        f'{{"ApproximateArrivalTimestamp":{arrival_ms / 1000:.3f},"Data":"{payload}",'
        f'"PartitionKey":"k","SequenceNumber":"{sequence}"}}'
    )
    return Line(text.encode() + LINE_END, arrival_ms, 2)


def test_a_log_reads_what_fits_and_at_least_one_record(tmp_path: Path) -> None:
    log = ShardLog(tmp_path, "shard", 1_000_000)
    log.append([line(position) for position in range(1, 11)])
    assert (log.read(1, 3, 1_000).count, log.read(1, 100, 5).count, log.read(4, 100, 1).count) == (3, 2, 1)
    run = log.read(9, 100, 1_000)
    assert (run.count, run.next_position, run.size_bytes) == (2, 11, 4)
    assert log.read(11, 100, 1_000).count == 0
    log.close()


def test_a_log_in_segments_is_found_again_and_trimmed(tmp_path: Path) -> None:
    log = ShardLog(tmp_path, "shard", 300)
    for position in range(1, 21):
        log.append([line(position, NOW_MS + position)])
    log.close()
    again = ShardLog(tmp_path, "shard", 300)
    assert (again.first_position, again.next_position, again.last_arrival_ms) == (1, 21, NOW_MS + 20)
    assert len(list(tmp_path.iterdir())) > 3
    assert again.position_at(NOW_MS + 7) == 7
    again.trim(NOW_MS + 15)
    assert again.first_position == 15
    assert again.read(1, 1, 1_000).next_position == 16
    again.trim(NOW_MS + 1_000)
    again.close()
    emptied = ShardLog(tmp_path, "shard", 300)
    assert (emptied.first_position, emptied.next_position) == (21, 21)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_missing_segment_is_noticed(tmp_path: Path) -> None:
    log = ShardLog(tmp_path, "shard", 300)
    for position in range(1, 10):
        log.append([line(position)])
    log.close()
    sorted(tmp_path.iterdir())[1].unlink()
    with pytest.raises(LogDamaged):
        ShardLog(tmp_path, "shard", 300)
