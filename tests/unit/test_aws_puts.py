"""PutRecords over a real aiobotocore client: what the server gets and what the caller is told are as botocore has them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiobotocore.session import get_session
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from tidegate import aws
from tidegate.aws import PutEntry
from tidegate.aws.puts import encode_puts
from tidegate.errors import Fatal, Transient
from tidegate.settings import AwsSettings

TARGET = {"StreamName": "s"}
ENTRIES = [PutEntry("parcel:Grüße", b"\x00\xff{}"), PutEntry("k" * 256, b"", "340282366920938463463374607431768211455")]
TAKEN = {"ShardId": "shardId-000000000000", "SequenceNumber": "49"}
REFUSED = {"ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": "Rate exceeded"}


class Server:
    """Gives the replies in turn, the last one for ever, and keeps what it was asked."""

    def __init__(self, *replies: tuple[int, Any]) -> None:
        self.replies = list(replies)
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []

    async def serve(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.read())
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        status, reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        body = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        return web.Response(status=status, body=body, content_type="application/x-amz-json-1.1")


def taken(*outcomes: dict[str, str]) -> tuple[int, Any]:
    return 200, {"FailedRecordCount": sum("ErrorCode" in each for each in outcomes), "Records": outcomes}


@asynccontextmanager
async def kinesis(monkeypatch: pytest.MonkeyPatch, server: Server, attempts: int = 1) -> AsyncIterator[Any]:
    application = web.Application()
    application.router.add_post("/", server.serve)
    async with TestServer(application) as listening:
        monkeypatch.setenv("AWS_ENDPOINT_URL_KINESIS", str(listening.make_url("/")))
        for name, value in (("REGION", "eu-central-1"), ("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "x")):
            monkeypatch.setenv(f"AWS_{name}", value)
        async with aws.client("kinesis", AwsSettings(max_attempts=attempts)) as client:
            yield client


async def test_the_server_gets_what_the_stock_client_would_send(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(taken(TAKEN, TAKEN))
    plain = [
        {"PartitionKey": entry.partition_key, "Data": entry.data}
        | ({"ExplicitHashKey": entry.explicit_hash_key} if entry.explicit_hash_key else {})
        for entry in ENTRIES
    ]
    async with kinesis(monkeypatch, server) as client:
        await aws.put_records(client, TARGET, ENTRIES)
        await client.put_records(StreamName="s", Records=plain)
        url = client.meta.endpoint_url
        async with get_session().create_client("kinesis", endpoint_url=url, region_name="eu-central-1") as stock:
            await stock.put_records(StreamName="s", Records=plain)
    assert len(server.bodies) == 3
    assert [json.loads(body) for body in server.bodies] == [json.loads(server.bodies[2])] * 3
    for name in ("x-amz-target", "content-type"):
        assert len({headers[name] for headers in server.headers}) == 1
    assert all(
        int(headers["content-length"]) == len(body) for headers, body in zip(server.headers, server.bodies, strict=True)
    )


async def test_the_signature_covers_the_body_that_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    signed: list[bytes] = []
    server = Server(taken(TAKEN, TAKEN))
    async with kinesis(monkeypatch, server) as client:
        client.meta.events.register("before-sign.kinesis", lambda request, **_: signed.append(request.body))
        await aws.put_records(client, TARGET, ENTRIES)
    assert [hashlib.sha256(body).digest() for body in signed] == [hashlib.sha256(server.bodies[0]).digest()]
    assert server.headers[0]["authorization"].startswith("AWS4-HMAC-SHA256")


async def test_a_failure_of_some_is_told_entry_by_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    async with kinesis(monkeypatch, Server(taken(TAKEN, REFUSED))) as client:
        assert await aws.put_records(client, TARGET, ENTRIES) == [TAKEN, REFUSED]


async def test_a_call_that_is_tried_again_sends_the_same_body(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server((500, {"__type": "InternalFailure"}), taken(TAKEN, TAKEN))
    async with kinesis(monkeypatch, server, attempts=2) as client:
        assert await aws.put_records(client, TARGET, ENTRIES) == [TAKEN, TAKEN]
    assert server.bodies[0] == server.bodies[1]
    assert len(json.loads(server.bodies[1])["Records"]) == 2


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        ((400, {"__type": "ProvisionedThroughputExceededException", "message": "slow"}), Transient),
        ((400, {"__type": "ResourceNotFoundException", "message": "no stream"}), Fatal),
        ((200, b'{"Records": ['), Transient),
        ((200, b'{"FailedRecordCount": "none"}'), Transient),
        ((503, b"<html>"), Transient),
    ],
)
async def test_errors_are_told_as_ours(
    monkeypatch: pytest.MonkeyPatch, reply: tuple[int, Any], error: type[Exception]
) -> None:
    async with kinesis(monkeypatch, Server(reply)) as client:
        with pytest.raises(error, match="put records to s"):
            await aws.put_records(client, TARGET, ENTRIES)


@given(st.lists(st.builds(PutEntry, st.text(min_size=1), st.binary(), st.none() | st.integers(0, 2**128 - 1).map(str))))
def test_every_entry_is_written_whole(entries: list[PutEntry]) -> None:
    found = json.loads(encode_puts({**TARGET, "Records": entries}))
    assert found["StreamName"] == "s"
    assert entries == [
        PutEntry(each["PartitionKey"], base64.b64decode(each["Data"], validate=True), each.get("ExplicitHashKey"))
        for each in found["Records"]
    ]
