"""Putting and reading records: the same tests over every server."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.contract.kinesis_peers import (
    SHARD_0,
    SHARD_1,
    SHARD_2,
    arn_of,
    code_of,
    contract,
    iterator,
    new_stream,
    read_all,
    read_on,
    shards_of,
)

# The service tells these two apart by rules of its own; both mean that the request itself is wrong.
REFUSED = {"ValidationException", "InvalidArgumentException"}
# aiohttp warns when a client posts more than a mebibyte at once; aiobotocore always does, and these tests want to.
large_body = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")


async def put(client: Any, stream: str, *payloads: bytes) -> list[str]:
    """Put one after the other; returns the sequence numbers."""
    return [
        (await client.put_record(StreamName=stream, Data=payload, PartitionKey="key"))["SequenceNumber"]
        for payload in payloads
    ]


def payloads(records: list[dict[str, Any]]) -> list[bytes]:
    return [record["Data"] for record in records]


@contract("put-get")
async def test_a_record_comes_back_as_it_was_put(kinesis: Any) -> None:
    stream = await new_stream(kinesis)
    before = datetime.now(UTC) - timedelta(seconds=2)
    payload, key = bytes(range(256)), 'key "with" quotes, é and \\'
    answer = await kinesis.put_record(StreamName=stream, Data=payload, PartitionKey=key)
    (record,) = await read_all(kinesis, stream, SHARD_0)
    assert (record["Data"], record["PartitionKey"]) == (payload, key)
    assert record["SequenceNumber"] == answer["SequenceNumber"]
    assert answer["ShardId"] == SHARD_0
    assert before < record["ApproximateArrivalTimestamp"] < datetime.now(UTC) + timedelta(seconds=2)


@contract("put-get")
async def test_an_empty_payload_is_a_record(kinesis: Any) -> None:
    stream = await new_stream(kinesis)
    await put(kinesis, stream, b"", b"after")
    assert payloads(await read_all(kinesis, stream, SHARD_0)) == [b"", b"after"]


@contract("put-get")
async def test_put_records_answers_entry_by_entry_and_keeps_the_order(kinesis: Any) -> None:
    stream = await new_stream(kinesis)
    entries = [{"Data": str(number).encode(), "PartitionKey": f"key-{number}"} for number in range(500)]
    answer = await kinesis.put_records(StreamName=stream, Records=entries)
    assert answer["FailedRecordCount"] == 0
    records = await read_all(kinesis, stream, SHARD_0)
    assert payloads(records) == [entry["Data"] for entry in entries]
    put_numbers = [entry["SequenceNumber"] for entry in answer["Records"]]
    assert [record["SequenceNumber"] for record in records] == put_numbers
    assert sorted({int(number) for number in put_numbers}) == [int(number) for number in put_numbers]


@contract("sequence-format")
async def test_sequence_numbers_have_the_format_of_the_service(kinesis: Any) -> None:
    stream = await new_stream(kinesis, 2)
    starts = [shard["SequenceNumberRange"]["StartingSequenceNumber"] for shard in await shards_of(kinesis, stream)]
    numbers = await put(kinesis, stream, b"1", b"2")
    assert {len(number) for number in starts + numbers} == {56}
    assert {number[:2] for number in starts + numbers} == {"49"}
    assert int(numbers[0]) > min(map(int, starts))


@contract("put-get")
async def test_md5_of_the_key_chooses_the_shard(kinesis: Any) -> None:
    stream = await new_stream(kinesis, 3)
    ranges = {
        shard["ShardId"]: (int(shard["HashKeyRange"]["StartingHashKey"]), int(shard["HashKeyRange"]["EndingHashKey"]))
        for shard in await shards_of(kinesis, stream)
    }
    keys = [f"Schlüssel {number}" for number in range(30)]
    entries = [{"Data": b"x", "PartitionKey": key} for key in keys]
    answer = await kinesis.put_records(StreamName=stream, Records=entries)
    for key, entry in zip(keys, answer["Records"], strict=True):
        start, end = ranges[entry["ShardId"]]
        assert start <= int.from_bytes(hashlib.md5(key.encode()).digest()) <= end
    assert {entry["ShardId"] for entry in answer["Records"]} == set(ranges)


@contract("put-get")
async def test_an_explicit_hash_key_overrides_the_partition_key(kinesis: Any) -> None:
    stream = await new_stream(kinesis, 3)
    for shard in await shards_of(kinesis, stream):
        for edge in ("StartingHashKey", "EndingHashKey"):
            answer = await kinesis.put_record(
                StreamName=stream, Data=b"x", PartitionKey="same", ExplicitHashKey=shard["HashKeyRange"][edge]
            )
            assert answer["ShardId"] == shard["ShardId"]


@contract("iterators")
async def test_the_iterator_types_begin_where_they_say(kinesis: Any) -> None:
    stream = await new_stream(kinesis)
    numbers = await put(kinesis, stream, b"0", b"1", b"2")
    middle = {"StartingSequenceNumber": numbers[1]}
    at, _ = await read_on(kinesis, await iterator(kinesis, stream, SHARD_0, "AT_SEQUENCE_NUMBER", **middle))
    after, _ = await read_on(kinesis, await iterator(kinesis, stream, SHARD_0, "AFTER_SEQUENCE_NUMBER", **middle))
    latest = await iterator(kinesis, stream, SHARD_0, "LATEST")
    await put(kinesis, stream, b"3")
    new, _ = await read_on(kinesis, latest)
    assert payloads(at) == [b"1", b"2"]
    assert payloads(after) == [b"2"]
    assert payloads(new) == [b"3"]
    assert payloads(await read_all(kinesis, stream, SHARD_0)) == [b"0", b"1", b"2", b"3"]


@contract("iterators")
async def test_after_the_last_record_comes_the_next_one(kinesis: Any) -> None:
    stream = await new_stream(kinesis)
    (last,) = await put(kinesis, stream, b"old")
    start = await iterator(kinesis, stream, SHARD_0, "AFTER_SEQUENCE_NUMBER", StartingSequenceNumber=last)
    answer = await kinesis.get_records(ShardIterator=start)
    assert (answer["Records"], answer["MillisBehindLatest"]) == ([], 0)
    await put(kinesis, stream, b"new")
    records, _ = await read_on(kinesis, answer["NextShardIterator"])
    assert payloads(records) == [b"new"]


@contract("iterators")
async def test_the_same_iterator_reads_the_same_records_again(kinesis: Any) -> None:
    stream = await new_stream(kinesis)
    await put(kinesis, stream, b"0", b"1")
    start = await iterator(kinesis, stream, SHARD_0)
    first = await kinesis.get_records(ShardIterator=start)
    again = await kinesis.get_records(ShardIterator=start)
    assert first["Records"] == again["Records"]


@contract("iterators")
async def test_at_timestamp_finds_the_first_record_not_before(kinesis: Any) -> None:
    stream = await new_stream(kinesis)
    await put(kinesis, stream, b"0", b"1")
    records = await read_all(kinesis, stream, SHARD_0)
    moment = records[1]["ApproximateArrivalTimestamp"]
    expected = [record["Data"] for record in records if record["ApproximateArrivalTimestamp"] >= moment]
    found, _ = await read_on(kinesis, await iterator(kinesis, stream, SHARD_0, "AT_TIMESTAMP", Timestamp=moment))
    assert payloads(found) == expected
    early = moment - timedelta(minutes=5)
    found, _ = await read_on(kinesis, await iterator(kinesis, stream, SHARD_0, "AT_TIMESTAMP", Timestamp=early))
    assert payloads(found) == [b"0", b"1"]


@contract("behind")
async def test_millis_behind_latest_is_zero_at_the_tip_only(kinesis: Any) -> None:
    stream = await new_stream(kinesis)
    await put(kinesis, stream, b"0", b"1")
    answer = await kinesis.get_records(ShardIterator=await iterator(kinesis, stream, SHARD_0), Limit=1)
    assert payloads(answer["Records"]) == [b"0"]
    assert answer["MillisBehindLatest"] > 0
    answer = await kinesis.get_records(ShardIterator=answer["NextShardIterator"], Limit=1)
    assert payloads(answer["Records"]) == [b"1"]
    assert answer["MillisBehindLatest"] == 0


@large_body
@contract("get-cap")
async def test_an_answer_holds_ten_mebibytes_at_most(kinesis: Any) -> None:
    stream = await new_stream(kinesis)
    payload = bytes(1_000_000)
    for _ in range(11):
        await put(kinesis, stream, payload)
    answer = await kinesis.get_records(ShardIterator=await iterator(kinesis, stream, SHARD_0))
    assert 5 <= len(answer["Records"]) <= 10
    assert answer["MillisBehindLatest"] > 0
    rest, _ = await read_on(kinesis, answer["NextShardIterator"])
    assert len(answer["Records"]) + len(rest) == 11


@contract("arn")
async def test_a_stream_is_found_by_its_arn(kinesis: Any) -> None:
    stream = await new_stream(kinesis)
    arn = await arn_of(kinesis, stream)
    assert arn.endswith(f":stream/{stream}")
    await kinesis.put_record(StreamARN=arn, Data=b"1", PartitionKey="k")
    await kinesis.put_records(StreamARN=arn, Records=[{"Data": b"2", "PartitionKey": "k"}])
    start = (await kinesis.get_shard_iterator(StreamARN=arn, ShardId=SHARD_0, ShardIteratorType="TRIM_HORIZON"))[
        "ShardIterator"
    ]
    answer = await kinesis.get_records(StreamARN=arn, ShardIterator=start)
    assert payloads(answer["Records"]) == [b"1", b"2"]


@contract("errors")
async def test_what_does_not_exist_is_not_found(kinesis: Any) -> None:
    stream = await new_stream(kinesis)
    with pytest.raises(ClientError) as raised:
        await kinesis.put_record(StreamName="no-such-stream", Data=b"x", PartitionKey="k")
    assert code_of(raised) == "ResourceNotFoundException"
    with pytest.raises(ClientError) as raised:
        await kinesis.describe_stream(StreamName="no-such-stream")
    assert code_of(raised) == "ResourceNotFoundException"
    with pytest.raises(ClientError) as raised:
        await iterator(kinesis, stream, SHARD_2)
    assert code_of(raised) == "ResourceNotFoundException"


@contract("garbage-iterator")
async def test_garbage_is_not_an_iterator(kinesis: Any) -> None:
    with pytest.raises(ClientError) as raised:
        await kinesis.get_records(ShardIterator="AAAAAAAA")
    assert code_of(raised) == "InvalidArgumentException"


@contract("foreign-sequence")
async def test_a_sequence_number_of_another_shard_is_refused(kinesis: Any) -> None:
    stream = await new_stream(kinesis, 2)
    answer = await kinesis.put_record(StreamName=stream, Data=b"1", PartitionKey="key")
    foreign = SHARD_1 if answer["ShardId"] == SHARD_0 else SHARD_0
    with pytest.raises(ClientError) as raised:
        await iterator(kinesis, stream, foreign, "AT_SEQUENCE_NUMBER", StartingSequenceNumber=answer["SequenceNumber"])
    assert code_of(raised) == "InvalidArgumentException"


@contract("hash-key-range")
async def test_a_hash_key_has_128_bits(kinesis: Any) -> None:
    stream = await new_stream(kinesis)
    with pytest.raises(ClientError) as raised:
        await kinesis.put_record(StreamName=stream, Data=b"x", PartitionKey="k", ExplicitHashKey=str(1 << 128))
    assert code_of(raised) == "InvalidArgumentException"


@contract("500-records")
async def test_a_call_has_500_records_at_most(kinesis: Any) -> None:
    stream = await new_stream(kinesis)
    with pytest.raises(ClientError) as raised:
        await kinesis.put_records(StreamName=stream, Records=[{"Data": b"x", "PartitionKey": "k"}] * 501)
    assert code_of(raised) in REFUSED
    assert await read_all(kinesis, stream, SHARD_0) == []


@large_body
@contract("record-size")
async def test_a_record_has_a_mebibyte_at_most(kinesis: Any) -> None:
    stream = await new_stream(kinesis)
    with pytest.raises(ClientError) as raised:
        await kinesis.put_record(StreamName=stream, Data=bytes(1024 * 1024 + 1), PartitionKey="k")
    assert code_of(raised) in REFUSED
    assert await read_all(kinesis, stream, SHARD_0) == []


@contract("key-length")
async def test_a_partition_key_has_256_characters_at_most(kinesis: Any) -> None:
    stream = await new_stream(kinesis)
    await kinesis.put_record(StreamName=stream, Data=b"x", PartitionKey="é" * 256)
    with pytest.raises(ClientError) as raised:
        await kinesis.put_record(StreamName=stream, Data=b"x", PartitionKey="k" * 257)
    assert code_of(raised) in REFUSED


@large_body
@contract("call-size")
async def test_a_call_of_more_than_ten_mebibytes_is_refused(kinesis: Any) -> None:
    stream = await new_stream(kinesis)
    with pytest.raises(ClientError) as raised:
        await kinesis.put_records(StreamName=stream, Records=[{"Data": bytes(1_000_000), "PartitionKey": "k"}] * 11)
    assert code_of(raised) in REFUSED
    assert await read_all(kinesis, stream, SHARD_0) == []
