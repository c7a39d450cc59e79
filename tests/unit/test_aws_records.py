"""GetRecords over a real aiobotocore client: the fast decoder sees what the stock parser sees."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiobotocore.session import get_session
from aiohttp import web

from tests.fakes.aws_server import answering
from tidegate import aws
from tidegate.errors import Fatal, Transient
from tidegate.settings import AwsSettings

RECORDS = [
    {
        "SequenceNumber": f"4959033827149025660855969253836157109592157598913658889{index}",
        "Data": base64.b64encode(bytes([index, 0, 255, 243, 137, 154, 194])).decode(),
        "PartitionKey": f"parcel:Grüße/{index}",
        "ApproximateArrivalTimestamp": 1_700_000_000.123 + index,
        "EncryptionType": "KMS",
    }
    for index in range(3)
]
CHILD = {
    "ShardId": "shardId-000000000002",
    "ParentShards": ["shardId-000000000000", "shardId-000000000001"],
    "HashKeyRange": {"StartingHashKey": "0", "EndingHashKey": str(2**128 - 1)},
}
Answer = Callable[[], web.Response]


@asynccontextmanager
async def kinesis(monkeypatch: pytest.MonkeyPatch, answer: Answer) -> AsyncIterator[tuple[Any, str]]:
    """Our client of a server that gives one answer to everything."""

    async def serve(_: web.Request) -> web.Response:
        return answer()

    async with (
        answering(monkeypatch, serve) as url,
        aws.client("kinesis", AwsSettings(max_attempts=1)) as client,
    ):
        yield client, url


def page(body: dict[str, Any]) -> Answer:
    return lambda: web.Response(body=json.dumps(body).encode(), content_type="application/x-amz-json-1.1")


async def test_the_fast_decoder_agrees_with_the_stock_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"Records": RECORDS, "NextShardIterator": "next", "MillisBehindLatest": 1200, "Unknown": {"a": 1}}
    async with kinesis(monkeypatch, page(body)) as (client, url):
        fast = await aws.get_records(client, "it", 100)
        stock_session = get_session().create_client("kinesis", endpoint_url=url, region_name="eu-central-1")
        async with stock_session as stock_client:
            stock = await stock_client.get_records(ShardIterator="it", Limit=100)
    assert fast.next_iterator == stock["NextShardIterator"] == "next"
    assert fast.millis_behind_latest == stock["MillisBehindLatest"] == 1200
    assert [
        (record.sequence_number, record.data, pytest.approx(record.arrival)) for record in fast.records.stamped()
    ] == [
        (
            record["SequenceNumber"],
            record["Data"],
            record["ApproximateArrivalTimestamp"].timestamp(),
        )
        for record in stock["Records"]
    ]


async def test_the_last_page_of_a_closed_shard_names_the_children(monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"Records": RECORDS[:1], "NextShardIterator": None, "MillisBehindLatest": 0, "ChildShards": [CHILD]}
    async with kinesis(monkeypatch, page(body)) as (client, _):
        last = await aws.get_records(client, "it", 100)
    assert last.next_iterator is None
    assert len([*last.records]) == 1
    assert last.child_shards is not None
    [child] = last.child_shards
    assert (child.shard_id, child.parent_shards) == (CHILD["ShardId"], CHILD["ParentShards"])
    assert child.hash_key_range.ending_hash_key == str(2**128 - 1)


async def test_an_error_reply_keeps_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def expired() -> web.Response:
        body = {"__type": "ExpiredIteratorException", "message": "too old"}
        return web.Response(status=400, body=json.dumps(body).encode(), content_type="application/x-amz-json-1.1")

    async with kinesis(monkeypatch, expired) as (client, _):
        with pytest.raises(Transient, match="too old") as raised:
            await aws.get_records(client, "it", 100)
    assert aws.error_code(raised.value) == "ExpiredIteratorException"


@pytest.mark.parametrize(
    "body", [b"{}", b'{"Records": [', b'{"Records": [{"Data": "***"}]}', b'{"NextShardIterator":"\xff"}', b"<html>"]
)
async def test_a_garbled_page_is_transient(monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    async with kinesis(monkeypatch, lambda: web.Response(body=body)) as (client, _):
        with pytest.raises(Transient):
            await aws.get_records(client, "it", 100)


async def test_other_operations_use_the_stock_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"StreamNames": ["a", "b"], "HasMoreStreams": False}
    async with kinesis(monkeypatch, page(body)) as (client, _):
        reply = await client.list_streams()
    assert reply["StreamNames"] == ["a", "b"]


async def test_a_client_without_a_region_is_fatal(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path_factory.mktemp("aws") / "none"))
    with pytest.raises(Fatal, match="region"):
        async with aws.client("kinesis"):
            pass
