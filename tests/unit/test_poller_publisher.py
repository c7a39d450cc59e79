"""PutRecords: what failed is sent again and nothing else, nothing is overtaken, every open shard gets its watermark."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from poller.changes import Record
from poller.publisher import KinesisPublisher
from poller.settings import PublishSettings
from tidegate import codec
from tidegate.aws import PutEntry
from tidegate.errors import Fatal, Transient

SETTINGS = PublishSettings(attempts=4, retry_s=0.001, retry_most_s=0.001)
NOW = datetime(2026, 11, 21, 5, 55, 3, tzinfo=UTC)
OK = ""


class FakeKinesis:
    """`judge(call number, record) → error code`; a record with a hash key lands in the shard that begins there."""

    def __init__(self, judge: Callable[[int, PutEntry], str] = lambda *_: OK) -> None:
        self.judge = judge
        self.calls: list[list[PutEntry]] = []
        self.shards = {"0": "shard-0", "100": "shard-1"}
        self.closed = {"50": "shard-old"}
        self.lists = 0

    async def put_records(self, *, StreamName: str, Records: list[PutEntry]) -> dict[str, Any]:  # noqa: N803
        self.calls.append(Records)
        codes = [self.judge(len(self.calls), record) for record in Records]
        results = [
            {"ErrorCode": code} if code else {"ShardId": self._shard(record), "SequenceNumber": "1"}
            for record, code in zip(Records, codes, strict=True)
        ]
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
        start = int(record.explicit_hash_key or "0")
        return self.shards[str(max(int(key) for key in self.shards if int(key) <= start))]


def publisher(kinesis: FakeKinesis, clock: Callable[[], float] = lambda: 0.0) -> KinesisPublisher:
    return KinesisPublisher(kinesis, "s", SETTINGS, clock=clock)


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


async def test_a_later_call_waits_for_the_one_before() -> None:
    kinesis = FakeKinesis(lambda call, _: "InternalFailure" if call < 3 else OK)
    await publisher(kinesis).publish(records(501))
    assert [call[0].partition_key for call in kinesis.calls] == ["thing:0"] * 3 + ["thing:500"]


async def test_every_open_shard_gets_the_watermark() -> None:
    kinesis = FakeKinesis()
    sender = publisher(kinesis)
    await sender.watermark("things", NOW)
    await sender.watermark("things", NOW)
    assert [record.explicit_hash_key for record in kinesis.calls[0]] == ["0", "100"]
    assert codec.decode(kinesis.calls[0][0].data) == codec.decode(kinesis.calls[0][1].data)
    assert kinesis.lists == 1, "the list is kept for a while"


async def test_a_reshard_is_noticed_by_where_records_land() -> None:
    kinesis = FakeKinesis()
    sender = publisher(kinesis)
    await sender.watermark("things", NOW)
    kinesis.shards = {"0": "shard-2", "50": "shard-3", "100": "shard-1"}
    await sender.watermark("things", NOW)
    assert [record.explicit_hash_key for record in kinesis.calls[-1]] == ["0", "50", "100"], "at once, not in 10 s"
    kinesis.shards = {"0": "shard-4", "100": "shard-5"}
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
