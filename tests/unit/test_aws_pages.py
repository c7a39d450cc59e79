"""A large GetRecords reply is decoded part by part, and holds what it holds when it is decoded at once."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.aws import RecordsPage
from tidegate.aws.records import decode_page
from tidegate.errors import Transient
from tidegate.record import Record

COMPACT = (",", ":")
# Texts that look like the places at which a page is cut.
KEYS = st.sampled_from(
    ["a", '"', "},{", '},{"', '"},{"Data":"', '}],"', "\\", '\\"},{"A', '{"Records":[{"', "ü]}"]
) | st.text(max_size=5)
CHILD = {
    "ShardId": "shardId-1", "ParentShards": ["shardId-0"],
    "HashKeyRange": {"StartingHashKey": "0", "EndingHashKey": "9"},
}  # fmt: skip


def record(number: int, key: str = "key", size: int = 600) -> dict[str, Any]:
    data = number.to_bytes(4, "big") * (size // 4)
    return {
        "SequenceNumber": str(10**55 + number),
        "ApproximateArrivalTimestamp": 1_700_000_000.5 + number,
        "Data": base64.b64encode(data).decode(),
        "PartitionKey": key,
    }


def body(records: list[dict[str, Any]], separators: tuple[str, str] = COMPACT, **stated: Any) -> bytes:
    reply = {"Records": records, "NextShardIterator": "next", "MillisBehindLatest": 7} | stated
    return json.dumps(reply, separators=separators, ensure_ascii=False).encode()


def in_blocks(text: bytes, size: int) -> list[bytes]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def decoded(text: bytes) -> RecordsPage:
    return decode_page([text])


def expected(records: list[dict[str, Any]]) -> list[tuple[str, bytes]]:
    return [(each["SequenceNumber"], base64.b64decode(each["Data"])) for each in records]


def shown(record: Record | None) -> tuple[str, bytes] | None:
    return None if record is None else (record.sequence_number, record.data)


def check(page: RecordsPage, records: list[dict[str, Any]], parts: int | None = None) -> None:
    told = expected(records)
    assert list(map(shown, page.records)) == told
    # A second look is the same as the first.
    taken = list(page.records.parts())
    assert [shown(each) for part in taken for each in part] == told
    # And so is one at what was let go of.
    for part in taken:
        part.let_go()
    assert [shown(each) for part in taken for each in part] == told
    assert all(taken)
    ends = shown(page.records.first), shown(page.records.last)
    assert ends == ((told[0], told[-1]) if told else (None, None))
    stamps = [each["ApproximateArrivalTimestamp"] for each in records]
    assert [each.arrival for each in page.records.stamped()] == stamps
    assert page.records.arrival == (stamps[0] if stamps else 0.0)
    assert parts is None or (len(taken) > 1) == (parts > 1)


@given(
    st.lists(KEYS, min_size=1, max_size=20),
    st.permutations(list(record(0))),
    st.booleans(),
    st.integers(100, 3_000) | st.integers(100_000, 2_000_000),
)
def test_every_record_comes_once_and_in_order_whatever_the_keys_look_like(
    keys: list[str], members: list[str], are_last: bool, size: int
) -> None:
    # The keys are long enough for the cuts to fall near them.
    alike = [record(number, keys[number % len(keys)] * 50) for number in range(1_000)]
    records = [{name: each[name] for name in members} for each in alike]
    text = body(records)
    if are_last:
        text = (
            b'{"MillisBehindLatest":7,"NextShardIterator":"next","Records":'
            + text[len(b'{"Records":') : text.rindex(b"]") + 1]
            + b"}"
        )
    page = decode_page(in_blocks(text, size))
    check(page, records)
    assert (page.next_iterator, page.millis_behind_latest, page.child_shards) == ("next", 7, None)


def test_a_large_page_comes_in_parts_and_a_small_one_whole() -> None:
    few, many = [record(number) for number in range(10)], [record(number) for number in range(5_000)]
    check(decoded(body(few)), few, parts=1)
    check(decoded(body(many)), many, parts=2)
    check(decode_page(in_blocks(body(many), 100)), many, parts=2)
    check(decode_page([body(many)[:5], body(many)[5:]]), many, parts=2)
    check(decoded(body([])), [], parts=1)
    spaced = (", ", ": ")
    check(decoded(body(many, spaced)), many, parts=1)


def test_one_record_may_be_larger_than_a_part() -> None:
    records = [record(number, size=1_000_000) for number in range(3)]
    check(decoded(body(records)), records, parts=2)
    check(decoded(body(records[:1])), records[:1])
    check(decode_page(in_blocks(body(records), 50_000)), records)


@pytest.mark.parametrize("size", [1_000, 10_000_000])
@pytest.mark.parametrize("children", [[CHILD], [CHILD, CHILD]])
def test_the_last_page_of_a_shard_may_be_large(children: list[dict[str, Any]], size: int) -> None:
    records = [record(number) for number in range(5_000)]
    page = decode_page(in_blocks(body(records, NextShardIterator=None, ChildShards=children), size))
    check(page, records)
    assert page.next_iterator is None
    assert page.child_shards is not None
    assert [child.shard_id for child in page.child_shards] == ["shardId-1"] * len(children)


@pytest.mark.parametrize("block_bytes", [50_000, 10_000_000])
@pytest.mark.parametrize("size", [0, 40, 4_000])
def test_the_size_of_a_page_is_known_before_all_of_it_is_decoded(size: int, block_bytes: int) -> None:
    records = [record(number, size=size) for number in range(3_000_000 // (size + 200))]
    found = decode_page(in_blocks(body(records), block_bytes)).records.size_bytes
    assert found == pytest.approx(size * len(records), rel=0.02)


def test_a_page_that_is_spaced_at_its_end_only_is_decoded_whole() -> None:
    records = [record(number) for number in range(5_000)]
    before, _, last = body(records).rpartition(b',{"SequenceNumber')
    check(decoded(before + b' ,{"SequenceNumber' + last), records, parts=1)


def test_a_key_that_ends_as_a_record_begins_is_not_where_a_page_is_cut() -> None:
    records = [*(record(number, "},{") for number in range(5_000)), record(5_000)]
    check(decoded(body(records)), records, parts=2)


@pytest.mark.parametrize("at", [0, 4_999])
def test_a_page_that_is_broken_where_it_begins_or_ends_is_none(at: int) -> None:
    records = [record(number) for number in range(5_000)]
    records[at]["Data"] = "***"
    with pytest.raises(msgspec.DecodeError):
        decoded(body(records))


@pytest.mark.parametrize("left_out", ["Records", "SequenceNumber"])
def test_what_is_no_page_of_records_is_none(left_out: str) -> None:
    text = body([record(number) for number in range(5_000)])
    with pytest.raises(msgspec.DecodeError):
        decoded(text.replace(left_out.encode(), b"Something"))
    with pytest.raises(msgspec.DecodeError):
        decoded(b'{"Inner":' + text + b"}")


def test_what_comes_before_a_broken_record_is_delivered_and_then_the_page_is_transient() -> None:
    records = [record(number) for number in range(5_000)]
    records[3_000]["Data"] = "***"
    found: list[Record] = []
    with pytest.raises(Transient, match="not readable"):
        found.extend(decoded(body(records)).records)
    assert list(map(shown, found)) == expected(records)[: len(found)]
    assert 0 < len(found) <= 3_000
