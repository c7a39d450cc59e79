"""Streams and shards: life, paging, filters, resharding. The same tests over every server that can."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.contract.kinesis_peers import (
    SHARD_0,
    SHARD_1,
    SHARD_2,
    SHARD_3,
    active,
    code_of,
    contract,
    is_open,
    iterator,
    new_stream,
    read_all,
    read_on,
    shards_of,
    wait_for,
)

HASH_KEYS = 1 << 128
HALF = str(HASH_KEYS // 2)


async def put_low_and_high(client: Any, stream: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """One record in each half of the hash keys."""
    low = await client.put_record(StreamName=stream, Data=b"low", PartitionKey="k", ExplicitHashKey="1")
    high = await client.put_record(StreamName=stream, Data=b"high", PartitionKey="k", ExplicitHashKey=HALF)
    return low, high


async def split_in_half(client: Any, stream: str) -> None:
    await client.split_shard(StreamName=stream, ShardToSplit=SHARD_0, NewStartingHashKey=HALF)
    await active(client, stream)


def covered(shards: list[dict[str, Any]]) -> bool:
    """Whether the open shards cover every hash key exactly once."""
    ranges = sorted(
        (int(shard["HashKeyRange"]["StartingHashKey"]), int(shard["HashKeyRange"]["EndingHashKey"]))
        for shard in shards
        if is_open(shard)
    )
    joined = all(low[1] + 1 == high[0] for low, high in pairwise(ranges))
    return joined and ranges[0][0] == 0 and ranges[-1][1] == HASH_KEYS - 1


@contract("streams")
async def test_a_stream_is_made_described_listed_and_deleted(kinesis: Any) -> None:
    stream = await new_stream(kinesis, 2)
    description = (await kinesis.describe_stream(StreamName=stream))["StreamDescription"]
    assert description["StreamName"] == stream
    assert [shard["ShardId"] for shard in description["Shards"]] == [SHARD_0, SHARD_1]
    assert description["HasMoreShards"] is False
    assert description["RetentionPeriodHours"] == 24
    summary = (await kinesis.describe_stream_summary(StreamName=stream))["StreamDescriptionSummary"]
    assert summary["OpenShardCount"] == 2
    names = (await kinesis.list_streams(Limit=100))["StreamNames"]
    assert stream in names
    with pytest.raises(ClientError) as raised:
        await kinesis.create_stream(StreamName=stream, ShardCount=1)
    assert code_of(raised) == "ResourceInUseException"
    await kinesis.delete_stream(StreamName=stream)

    async def gone() -> bool:
        return stream not in (await kinesis.list_streams(Limit=100))["StreamNames"]

    await wait_for(gone, "the stream is deleted")


@contract("streams")
async def test_the_shards_of_a_new_stream_are_even(kinesis: Any) -> None:
    shards = await shards_of(kinesis, await new_stream(kinesis, 3))
    assert covered(shards)
    sizes = [
        int(shard["HashKeyRange"]["EndingHashKey"]) - int(shard["HashKeyRange"]["StartingHashKey"]) for shard in shards
    ]
    assert max(sizes) - min(sizes) <= 3


@contract("shard-paging")
async def test_list_shards_pages(kinesis: Any) -> None:
    stream = await new_stream(kinesis, 5)
    answer = await kinesis.list_shards(StreamName=stream, MaxResults=2)
    found = [shard["ShardId"] for shard in answer["Shards"]]
    assert len(found) == 2
    while "NextToken" in answer:
        answer = await kinesis.list_shards(NextToken=answer["NextToken"], MaxResults=2)
        assert len(answer["Shards"]) <= 2
        found += [shard["ShardId"] for shard in answer["Shards"]]
    assert found == [f"shardId-{index:012d}" for index in range(5)]


@contract("shard-paging")
async def test_a_token_names_the_stream_by_itself(kinesis: Any) -> None:
    stream = await new_stream(kinesis, 2)
    token = (await kinesis.list_shards(StreamName=stream, MaxResults=1))["NextToken"]
    with pytest.raises(ClientError) as raised:
        await kinesis.list_shards(StreamName=stream, NextToken=token)
    assert code_of(raised) == "InvalidArgumentException"


@contract("describe-paging")
async def test_describe_stream_pages(kinesis: Any) -> None:
    stream = await new_stream(kinesis, 3)
    first = (await kinesis.describe_stream(StreamName=stream, Limit=2))["StreamDescription"]
    assert ([shard["ShardId"] for shard in first["Shards"]], first["HasMoreShards"]) == ([SHARD_0, SHARD_1], True)
    rest = (await kinesis.describe_stream(StreamName=stream, ExclusiveStartShardId=SHARD_1))["StreamDescription"]
    assert ([shard["ShardId"] for shard in rest["Shards"]], rest["HasMoreShards"]) == ([SHARD_2], False)


@contract("reshard")
async def test_a_split_leaves_a_readable_parent_and_two_children(kinesis: Any) -> None:
    stream = await new_stream(kinesis)
    before = await put_low_and_high(kinesis, stream)
    await split_in_half(kinesis, stream)
    parent, low, high = await shards_of(kinesis, stream)
    assert [is_open(shard) for shard in (parent, low, high)] == [False, True, True]
    assert (low["ParentShardId"], high["ParentShardId"]) == (SHARD_0, SHARD_0)
    assert "AdjacentParentShardId" not in low
    assert (low["HashKeyRange"]["EndingHashKey"], high["HashKeyRange"]["StartingHashKey"]) == (str(int(HALF) - 1), HALF)
    after = await put_low_and_high(kinesis, stream)
    assert [answer["ShardId"] for answer in after] == [SHARD_1, SHARD_2]
    assert max(int(one["SequenceNumber"]) for one in before) < min(int(one["SequenceNumber"]) for one in after)
    assert [record["Data"] for record in await read_all(kinesis, stream, SHARD_0)] == [b"low", b"high"]
    assert [record["Data"] for record in await read_all(kinesis, stream, SHARD_1)] == [b"low"]


@contract("shard-end")
async def test_the_last_answer_of_a_closed_shard_names_its_children(kinesis: Any) -> None:
    stream = await new_stream(kinesis)
    await put_low_and_high(kinesis, stream)
    opened = await iterator(kinesis, stream, SHARD_0)
    await split_in_half(kinesis, stream)
    records, last = await read_on(kinesis, opened, limit=1)
    assert [record["Data"] for record in records] == [b"low", b"high"]
    assert last.get("NextShardIterator") is None
    assert last["MillisBehindLatest"] == 0
    children = {child["ShardId"]: child for child in last["ChildShards"]}
    assert set(children) == {SHARD_1, SHARD_2}
    assert children[SHARD_1]["ParentShards"] == [SHARD_0]
    assert children[SHARD_2]["HashKeyRange"]["StartingHashKey"] == HALF


@contract("shard-end")
async def test_latest_on_a_closed_shard_is_its_end(kinesis: Any) -> None:
    stream = await new_stream(kinesis)
    await put_low_and_high(kinesis, stream)
    await split_in_half(kinesis, stream)
    records, last = await read_on(kinesis, await iterator(kinesis, stream, SHARD_0, "LATEST"))
    assert records == []
    assert {child["ShardId"] for child in last["ChildShards"]} == {SHARD_1, SHARD_2}


@contract("ending-sequence")
async def test_the_ending_sequence_number_lies_between_the_parent_and_its_children(kinesis: Any) -> None:
    stream = await new_stream(kinesis)
    _, last = await put_low_and_high(kinesis, stream)
    await split_in_half(kinesis, stream)
    parent, low, high = await shards_of(kinesis, stream)
    ending = int(parent["SequenceNumberRange"]["EndingSequenceNumber"])
    assert int(last["SequenceNumber"]) <= ending
    assert ending < min(int(child["SequenceNumberRange"]["StartingSequenceNumber"]) for child in (low, high))


@contract("reshard")
async def test_a_merge_has_two_parents(kinesis: Any) -> None:
    stream = await new_stream(kinesis, 2)
    before = await put_low_and_high(kinesis, stream)
    opened = [await iterator(kinesis, stream, shard) for shard in (SHARD_0, SHARD_1)]
    await kinesis.merge_shards(StreamName=stream, ShardToMerge=SHARD_0, AdjacentShardToMerge=SHARD_1)
    await active(kinesis, stream)
    child = (await shards_of(kinesis, stream))[2]
    assert (child["ParentShardId"], child["AdjacentParentShardId"]) == (SHARD_0, SHARD_1)
    assert (child["HashKeyRange"]["StartingHashKey"], child["HashKeyRange"]["EndingHashKey"]) == (
        "0",
        str(HASH_KEYS - 1),
    )
    for payload, start in zip((b"low", b"high"), opened, strict=True):
        records, last = await read_on(kinesis, start)
        assert [record["Data"] for record in records] == [payload]
        (named,) = last["ChildShards"]
        assert (named["ShardId"], sorted(named["ParentShards"])) == (SHARD_2, [SHARD_0, SHARD_1])
    after = await put_low_and_high(kinesis, stream)
    assert {answer["ShardId"] for answer in after} == {SHARD_2}
    assert max(int(one["SequenceNumber"]) for one in before) < min(int(one["SequenceNumber"]) for one in after)


@contract("reshard")
async def test_what_cannot_be_split_or_merged_is_refused(kinesis: Any) -> None:
    stream = await new_stream(kinesis, 3)
    with pytest.raises(ClientError) as raised:
        await kinesis.split_shard(StreamName=stream, ShardToSplit=SHARD_0, NewStartingHashKey=str(HASH_KEYS - 2))
    assert code_of(raised) == "InvalidArgumentException"
    with pytest.raises(ClientError) as raised:
        await kinesis.merge_shards(StreamName=stream, ShardToMerge=SHARD_0, AdjacentShardToMerge=SHARD_2)
    assert code_of(raised) == "InvalidArgumentException"
    with pytest.raises(ClientError) as raised:
        await kinesis.split_shard(StreamName=stream, ShardToSplit="shardId-000000000009", NewStartingHashKey=HALF)
    assert code_of(raised) == "ResourceNotFoundException"


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 3), (3, 5), (2, 1)])
@contract("reshard")
async def test_update_shard_count_scales_evenly_and_loses_nothing(kinesis: Any, before: int, after: int) -> None:
    stream = await new_stream(kinesis, before)
    entries: list[dict[str, Any]] = [
        {"Data": str(number).encode(), "PartitionKey": f"key-{number}"} for number in range(50)
    ]
    await kinesis.put_records(StreamName=stream, Records=entries)
    answer = await kinesis.update_shard_count(StreamName=stream, TargetShardCount=after, ScalingType="UNIFORM_SCALING")
    assert (answer["CurrentShardCount"], answer["TargetShardCount"]) == (before, after)
    await active(kinesis, stream)
    shards = await shards_of(kinesis, stream)
    assert sum(is_open(shard) for shard in shards) == after
    assert covered(shards)
    found = [record["Data"] for shard in shards for record in await read_all(kinesis, stream, shard["ShardId"])]
    assert sorted(found) == sorted(entry["Data"] for entry in entries)


@contract("rescale-bounds")
async def test_update_shard_count_stops_at_double_and_half(kinesis: Any) -> None:
    stream = await new_stream(kinesis, 3)
    for target in (7, 1):
        with pytest.raises(ClientError) as raised:
            await kinesis.update_shard_count(StreamName=stream, TargetShardCount=target, ScalingType="UNIFORM_SCALING")
        assert code_of(raised) in {"InvalidArgumentException", "LimitExceededException"}


async def ids(client: Any, stream: str, kind: str, **more: Any) -> list[str]:
    found = await shards_of(client, stream, ShardFilter={"Type": kind, **more})
    return [str(shard["ShardId"]) for shard in found]


@contract("reshard")
async def test_the_shard_filters_of_the_tip_and_of_ids(kinesis: Any) -> None:
    stream = await new_stream(kinesis, 1)
    await split_in_half(kinesis, stream)
    assert await ids(kinesis, stream, "AT_LATEST") == [SHARD_1, SHARD_2]
    assert await ids(kinesis, stream, "FROM_TRIM_HORIZON") == [SHARD_0, SHARD_1, SHARD_2]
    assert await ids(kinesis, stream, "AFTER_SHARD_ID", ShardId=SHARD_1) == [SHARD_2]


@contract("reshard", "at-trim-horizon")
async def test_at_trim_horizon_finds_the_oldest_generation(kinesis: Any) -> None:
    stream = await new_stream(kinesis, 1)
    await split_in_half(kinesis, stream)
    assert await ids(kinesis, stream, "AT_TRIM_HORIZON") == [SHARD_0]


@contract("reshard", "filter-timestamps")
async def test_the_shard_filters_of_time(kinesis: Any) -> None:
    stream = await new_stream(kinesis, 1)
    # Wall clock between the two generations: the service compares it in milliseconds.
    await asyncio.sleep(0.05)
    before = datetime.now(UTC)
    await asyncio.sleep(0.05)
    await split_in_half(kinesis, stream)
    await asyncio.sleep(0.05)
    after = datetime.now(UTC)
    assert await ids(kinesis, stream, "AT_TIMESTAMP", Timestamp=before) == [SHARD_0]
    assert await ids(kinesis, stream, "AT_TIMESTAMP", Timestamp=after) == [SHARD_1, SHARD_2]
    assert await ids(kinesis, stream, "FROM_TIMESTAMP", Timestamp=before) == [SHARD_0, SHARD_1, SHARD_2]
    assert await ids(kinesis, stream, "FROM_TIMESTAMP", Timestamp=after) == [SHARD_1, SHARD_2]


@contract("reshard")
async def test_splitting_twice_makes_grandchildren(kinesis: Any) -> None:
    stream = await new_stream(kinesis, 1)
    await split_in_half(kinesis, stream)
    await kinesis.split_shard(StreamName=stream, ShardToSplit=SHARD_1, NewStartingHashKey=str(HASH_KEYS // 4))
    await active(kinesis, stream)
    shards = {shard["ShardId"]: shard for shard in await shards_of(kinesis, stream)}
    assert shards[SHARD_3]["ParentShardId"] == SHARD_1
    assert covered(list(shards.values()))
    parent_start = int(shards[SHARD_1]["SequenceNumberRange"]["StartingSequenceNumber"])
    assert int(shards[SHARD_3]["SequenceNumberRange"]["StartingSequenceNumber"]) > parent_start


@contract("retention")
async def test_retention_is_raised_and_lowered_within_bounds(kinesis: Any) -> None:
    stream = await new_stream(kinesis)

    async def hours() -> int:
        answer = await kinesis.describe_stream_summary(StreamName=stream)
        return int(answer["StreamDescriptionSummary"]["RetentionPeriodHours"])

    await kinesis.increase_stream_retention_period(StreamName=stream, RetentionPeriodHours=48)
    assert await hours() == 48
    with pytest.raises(ClientError) as raised:
        await kinesis.increase_stream_retention_period(StreamName=stream, RetentionPeriodHours=30)
    assert code_of(raised) == "InvalidArgumentException"
    await kinesis.decrease_stream_retention_period(StreamName=stream, RetentionPeriodHours=24)
    assert await hours() == 24
