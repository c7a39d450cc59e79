"""Replies over a real aiobotocore client: GetRecords in blocks, what breaks off on the way, and everything else as ever."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientResponse, web

from tests.fakes.aws_server import Answer, answering
from tests.unit.test_aws_pages import body, expected, record, shown
from tidegate import aws
from tidegate.aws import transport
from tidegate.errors import Fatal, Transient
from tidegate.settings import AwsSettings

RECORDS = [record(number) for number in range(4_000)]
BODY = body(RECORDS)
JSON = "application/x-amz-json-1.1"


@asynccontextmanager
async def kinesis(monkeypatch: pytest.MonkeyPatch, answer: Answer, **settings: Any) -> AsyncIterator[Any]:
    async with answering(monkeypatch, answer), aws.client("kinesis", AwsSettings(**settings)) as client:
        yield client


async def streamed(request: web.Request, *pieces: bytes, length: int | None = None) -> web.StreamResponse:
    """An answer that is sent piece by piece, and cut off when it was to be longer."""
    response = web.StreamResponse(headers={"Content-Type": JSON})
    response.content_length = sum(map(len, pieces)) if length is None else length
    await response.prepare(request)
    for piece in pieces:
        await response.write(piece)
        await asyncio.sleep(0)
    if length is not None:
        assert request.transport is not None
        request.transport.close()
    return response


@pytest.mark.parametrize("size", [700, 16_384, len(BODY)])
async def test_a_page_may_come_in_any_pieces(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return await streamed(request, *(BODY[at : at + size] for at in range(0, len(BODY), size)))

    async with kinesis(monkeypatch, answer) as client:
        for _ in range(2):
            # The second call uses the connection of the first.
            page = await aws.get_records(client, "it", 10_000)
            assert list(map(shown, page.records)) == expected(RECORDS)


async def test_a_page_that_breaks_off_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        whole = calls > 1
        return await streamed(request, *([BODY] if whole else [BODY[:500_000]]), length=None if whole else len(BODY))

    async with kinesis(monkeypatch, answer, max_attempts=2) as client:
        page = await aws.get_records(client, "it", 10_000)
    assert calls == 2
    assert list(map(shown, page.records)) == expected(RECORDS)


async def test_a_page_that_always_breaks_off_is_transient(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return await streamed(request, BODY[:500_000], length=len(BODY))

    async with kinesis(monkeypatch, answer, max_attempts=1) as client:
        with pytest.raises(Transient, match="read records"):
            await aws.get_records(client, "it", 10_000)


async def test_a_page_that_stalls_is_transient(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": JSON})
        response.content_length = len(BODY)
        await response.prepare(request)
        await response.write(BODY[:500_000])
        await asyncio.Event().wait()
        return response

    async with kinesis(monkeypatch, answer, max_attempts=1, read_timeout_s=0.2) as client:
        with pytest.raises(Transient, match="ReadTimeoutError"):
            await aws.get_records(client, "it", 10_000)


async def test_who_is_cancelled_while_a_page_comes_leaves_no_connection_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, hung_up = asyncio.Event(), asyncio.Event()
    read = transport._read

    async def noticed(response: ClientResponse) -> list[bytes]:
        reading.set()
        return await read(response)

    monkeypatch.setattr(transport, "_read", noticed)

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": JSON})
        response.content_length = len(BODY)
        await response.prepare(request)
        await response.write(BODY[:100_000])
        try:
            await asyncio.Event().wait()
        finally:
            # The server gives a request up whose connection is closed.
            hung_up.set()
        return response

    async with kinesis(monkeypatch, answer) as client, asyncio.timeout(10):
        call = asyncio.create_task(aws.get_records(client, "it", 10_000))
        await reading.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await hung_up.wait()


@pytest.mark.parametrize(
    ("status", "code", "kind"), [(400, "AccessDeniedException", Fatal), (500, "InternalFailure", Transient)]
)
async def test_an_error_is_read_as_ever(
    monkeypatch: pytest.MonkeyPatch, status: int, code: str, kind: type[Exception]
) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        text = json.dumps({"__type": code, "message": "so it is"}).encode()
        return web.Response(status=status, body=text, content_type=JSON)

    async with kinesis(monkeypatch, answer, max_attempts=1) as client:
        with pytest.raises(kind, match="so it is") as raised:
            await aws.get_records(client, "it", 10_000)
    assert aws.error_code(raised.value) == code
