"""PutRecords: what failed is sent again and nothing else, nothing is overtaken, every open shard gets its watermark."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from poller.changes import Record
from poller.claim_check import ClaimCheck
from poller.publisher import KinesisPublisher
from poller.settings import PublishSettings
from tidegate import claim, codec
from tidegate.aws import PutEntry
from tidegate.errors import Fatal, Transient
from worker import kpl

UNBOUND = 1e12
SETTINGS = PublishSettings(
    attempts=4,
    retry_s=0.001,
    retry_most_s=0.001,
    shard_records_per_s=UNBOUND,
    shard_bytes_per_s=UNBOUND,
    parallel_calls=1,
)
NOW = datetime(2026, 11, 21, 5, 55, 3, tzinfo=UTC)
OK = ""
QUARTER, HALF, THREE_QUARTERS = (str(part * 2**126) for part in (1, 2, 3))


class FakeKinesis:
    """`judge(call number, record) → error code`. A record lands in the shard whose range holds its hash key."""

    def __init__(self, judge: Callable[[int, PutEntry], str] = lambda *_: OK) -> None:
        self.judge = judge
        self.calls: list[list[PutEntry]] = []
        self.landed: list[tuple[str, PutEntry]] = []
        self.shards = {"0": "shard-0", HALF: "shard-1"}
        self.closed = {"50": "shard-old"}
        self.lists = 0
        self.under_way = self.most_under_way = 0
        self.gate: asyncio.Event | None = None

    async def put_records(self, *, StreamName: str, Records: list[PutEntry]) -> dict[str, Any]:  # noqa: N803
        self.calls.append(Records)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        if self.gate is not None:
            await self.gate.wait()
        self.under_way -= 1
        codes = [self.judge(len(self.calls), record) for record in Records]
        results = [
            {"ErrorCode": code} if code else {"ShardId": self._shard(record), "SequenceNumber": "1"}
            for record, code in zip(Records, codes, strict=True)
        ]
        self.landed += [(self._shard(each), each) for each, code in zip(Records, codes, strict=True) if not code]
        return {"FailedRecordCount": sum(map(bool, codes)), "Records": results}

    async def list_shards(self, **question: str) -> dict[str, Any]:
        # One shard a page, as a paging service may do.
        if "NextToken" not in question:
            self.lists += 1
        listed = [(key, name, False) for key, name in self.shards.items()]
        listed += [(key, name, True) for key, name in self.closed.items()]
        at = int(question.get("NextToken", "0"))
        start, name, is_closed = listed[at]
        numbers = {"StartingSequenceNumber": "1", **({"EndingSequenceNumber": "2"} if is_closed else {})}
        shard = {"ShardId": name, "HashKeyRange": {"StartingHashKey": start}, "SequenceNumberRange": numbers}
        return {"Shards": [shard], **({"NextToken": str(at + 1)} if at + 1 < len(listed) else {})}

    def _shard(self, record: PutEntry) -> str:
        start = int(record.explicit_hash_key or kpl.hash_key(record.partition_key))
        return self.shards[str(max(int(key) for key in self.shards if int(key) <= start))]


def publisher(
    kinesis: FakeKinesis, clock: Callable[[], float] | None = None, settings: PublishSettings = SETTINGS
) -> KinesisPublisher:
    return KinesisPublisher(kinesis, "s", settings, clock=clock)


def records(count: int, size: int = 10) -> list[Record]:
    return [Record(f"thing:{at}", b"x" * size, "live") for at in range(count)]


async def test_only_what_failed_is_sent_again() -> None:
    kinesis = FakeKinesis(
        lambda call, r: "ProvisionedThroughputExceededException" if call < 3 and "7" in r.partition_key else OK
    )
    await publisher(kinesis).publish(records(10))
    assert [len(call) for call in kinesis.calls] == [10, 1, 1]
    assert {record.partition_key for record in kinesis.calls[2]} == {"thing:7"}


async def test_the_tries_are_bounded() -> None:
    kinesis = FakeKinesis(lambda *_: "InternalFailure")
    with pytest.raises(Transient, match="3 records not taken: InternalFailure"):
        await publisher(kinesis).publish(records(3))
    assert len(kinesis.calls) == SETTINGS.attempts


async def test_a_record_that_is_refused_for_good_is_fatal() -> None:
    with pytest.raises(Fatal, match="KMSAccessDeniedException"):
        await publisher(FakeKinesis(lambda *_: "KMSAccessDeniedException")).publish(records(1))


async def test_calls_are_cut_by_count_and_by_bytes() -> None:
    kinesis = FakeKinesis()
    await publisher(kinesis).publish(records(1201))
    await publisher(kinesis).publish(records(5, size=1_500_000))
    assert [len(call) for call in kinesis.calls] == [500, 500, 201, 2, 2, 1]


async def test_no_call_has_more_for_a_shard_than_it_takes_in_a_second() -> None:
    kinesis = FakeKinesis()
    bound = replace(SETTINGS, shard_bytes_per_s=1_048_576.0)
    await publisher(kinesis, settings=bound).publish([Record("thing:1", b"x" * 600_000, "live")] * 2)
    assert [len(call) for call in kinesis.calls] == [1, 1]


async def test_a_key_that_comes_twice_waits_for_its_own_first() -> None:
    kinesis = FakeKinesis(lambda call, r: "InternalFailure" if call < 3 and r.data == b"a2" else OK)
    twice = [Record("a", b"a1", "live"), Record("b", b"b1", "live"), Record("a", b"a2", "live")]
    await publisher(kinesis, settings=replace(SETTINGS, parallel_calls=8)).publish(twice)
    assert [[each.data for each in call] for call in kinesis.calls] == [[b"a1", b"b1"], [b"a2"], [b"a2"]]


async def test_calls_go_side_by_side_but_no_more_than_the_bound() -> None:
    kinesis = FakeKinesis()
    kinesis.gate = asyncio.Event()
    sender = publisher(kinesis, settings=replace(SETTINGS, parallel_calls=3))
    async with asyncio.TaskGroup() as group:
        group.create_task(sender.publish(records(5_000)))
        group.create_task(sender.publish([Record("other", b"x", "live")]))
        for _ in range(20):
            await asyncio.sleep(0)
        assert kinesis.under_way == 3
        kinesis.gate.set()
    assert kinesis.most_under_way == 3
    assert len(kinesis.landed) == 5_001


async def test_what_others_have_under_way_is_let_finish_when_one_fails() -> None:
    kinesis = FakeKinesis(lambda _, r: "InternalFailure" if r.partition_key == "thing:0" else OK)
    with pytest.raises(Transient, match="1 records not taken"):
        await publisher(kinesis, settings=replace(SETTINGS, parallel_calls=2)).publish(records(1_000))
    assert len(kinesis.landed) == 999


@pytest.mark.looptime
async def test_a_shard_is_sent_no_more_than_its_budget() -> None:
    loop = asyncio.get_running_loop()
    kinesis = FakeKinesis()
    bound = replace(SETTINGS, shard_records_per_s=1_000.0, shard_bytes_per_s=1_048_576.0, parallel_calls=4)
    began = loop.time()
    await publisher(kinesis, settings=bound).publish(records(10_000))
    fullest = max(Counter(shard for shard, _ in kinesis.landed).values())
    assert loop.time() - began == pytest.approx((fullest - 1_000) / 1_000, abs=0.6), "a second's worth is saved up"
    began = loop.time()
    await publisher(kinesis, settings=bound).publish(records(10, size=1_000_000))
    assert loop.time() - began >= 3, "one of the two shards gets five of them at least"


class Resharding(FakeKinesis):
    """Becomes another set of shards after so many calls."""

    def __init__(self, after: int, becomes: dict[str, str]) -> None:
        super().__init__()
        self.after, self.becomes = after, becomes

    async def put_records(self, *, StreamName: str, Records: list[PutEntry]) -> dict[str, Any]:  # noqa: N803
        if len(self.calls) == self.after:
            self.shards = self.becomes
        return await super().put_records(StreamName=StreamName, Records=Records)


AGGREGATING = replace(SETTINGS, aggregate=True, aggregate_bytes=2_000)
BECOMES = st.sampled_from(
    [
        {"0": "child-0", QUARTER: "child-1", HALF: "shard-1"},
        {"0": "shard-0", HALF: "child-2", THREE_QUARTERS: "child-3"},
        {"0": "merged"},
        {"0": "a", QUARTER: "b", HALF: "c", THREE_QUARTERS: "d"},
    ]
)


@given(count=st.integers(1, 400), after=st.integers(0, 3), becomes=BECOMES, size=st.integers(1, 900))
async def test_each_user_record_of_an_aggregate_arrives_on_the_shard_of_its_own_key(
    count: int, after: int, becomes: dict[str, str], size: int
) -> None:
    kinesis = Resharding(after, becomes)
    small = replace(AGGREGATING, call_bytes=1_100_000)
    await KinesisPublisher(kinesis, "s", small, dice=lambda: 0.0).publish(records(count, size))
    bounds = {"shard-0": (0, int(HALF)), "shard-1": (int(HALF), 2**128)}
    starts = [*map(int, becomes), 2**128]
    bounds |= {name: (start, end) for name, start, end in zip(becomes.values(), starts, starts[1:], strict=False)}
    home: set[str] = set()
    for shard, entry in kinesis.landed:
        inner = kpl.split(entry.data) or [kpl.UserRecord(entry.partition_key, kpl.hash_key(entry.partition_key), b"")]
        assert entry.partition_key == inner[0].partition_key
        home |= {each.partition_key for each in inner if bounds[shard][0] <= each.hash_key < bounds[shard][1]}
    assert home == {record.partition_key for record in records(count)}


async def test_many_small_records_become_few() -> None:
    kinesis = FakeKinesis()
    await publisher(kinesis, settings=AGGREGATING).publish(records(400))
    assert all(len(entry.data) <= 2_000 for _, entry in kinesis.landed)
    assert len(kinesis.landed) < 20
    inner = [each for _, entry in kinesis.landed for each in kpl.split(entry.data) or ()]
    assert {(each.partition_key, each.data) for each in inner} == {(r.partition_key, r.data) for r in records(400)}


class Claims:
    """An S3 that notes what is put; with `refuses` it does not take it."""

    def __init__(self, refuses: str = "") -> None:
        self.objects: dict[str, bytes] = {}
        self.refuses = refuses

    async def put_object(self, *, Bucket: str, Key: str, Body: bytes) -> None:  # noqa: N803
        if self.refuses:
            raise ClientError({"Error": {"Code": self.refuses, "Message": "because"}}, "PutObject")
        self.objects[Key] = Body


async def test_a_record_too_large_is_kept_first_and_then_referred_to() -> None:
    kinesis, s3 = FakeKinesis(), Claims()
    sender = KinesisPublisher(kinesis, "s", SETTINGS, claims=ClaimCheck(s3, "claims", 5_000_000))
    large = Record("thing:large", b"x" * 3_000_000, "live")
    assert sender.most_record_bytes == 5_000_000
    await sender.publish([*records(2), large])
    [reference] = [entry.data for _, entry in kinesis.landed if entry.partition_key == "thing:large"]
    name = claim.name_in(reference)
    assert name is not None
    assert s3.objects == {name: large.data}
    s3.refuses = "SlowDown"
    with pytest.raises(Transient):
        await sender.publish([replace(large, partition_key="thing:other")])
    assert not [entry for _, entry in kinesis.landed if entry.partition_key == "thing:other"]


async def test_every_open_shard_gets_the_watermark() -> None:
    kinesis = FakeKinesis()
    sender = publisher(kinesis)
    await sender.watermark("things", NOW)
    await sender.watermark("things", NOW)
    assert [record.explicit_hash_key for record in kinesis.calls[0]] == ["0", HALF]
    assert codec.decode(kinesis.calls[0][0].data) == codec.decode(kinesis.calls[0][1].data)
    assert kinesis.lists == 1, "the list is kept for a while"


async def test_a_reshard_is_noticed_by_where_records_land() -> None:
    kinesis = FakeKinesis()
    sender = publisher(kinesis)
    await sender.watermark("things", NOW)
    kinesis.shards = {"0": "shard-2", "50": "shard-3", HALF: "shard-1"}
    await sender.watermark("things", NOW)
    assert [record.explicit_hash_key for record in kinesis.calls[-1]] == ["0", "50", HALF], "at once, not in 10 s"
    kinesis.shards = {"0": "shard-4", HALF: "shard-5"}
    await sender.publish(records(1))
    lists = kinesis.lists
    await sender.watermark("things", NOW)
    assert kinesis.lists == lists + 1, "a change that landed elsewhere tells it too"


async def test_the_list_of_shards_grows_old() -> None:
    kinesis, now = FakeKinesis(), [0.0]
    sender = publisher(kinesis, lambda: now[0])
    await sender.watermark("things", NOW)
    now[0] = SETTINGS.shards_refresh_s + 0.1
    await sender.watermark("things", NOW)
    assert kinesis.lists == 2
