"""What our AWS clients say about themselves."""

from __future__ import annotations

from collections.abc import Iterator

import aiobotocore
import botocore
import pytest
from aiohttp import web

from tests.fakes.aws_server import answering
from tidegate import aws
from tidegate.aws import clients


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """The text is made once for each process; here once for each test."""
    clients._user_agent.cache_clear()
    yield
    clients._user_agent.cache_clear()


async def _agents(monkeypatch: pytest.MonkeyPatch, calls: int) -> list[str]:
    """The User-Agent of each call that reached a server."""
    heard: list[str] = []

    async def serve(request: web.Request) -> web.Response:
        heard.append(request.headers["User-Agent"])
        return web.Response(body=b'{"Shards": []}', content_type="application/x-amz-json-1.1")

    async with answering(monkeypatch, serve), aws.client("kinesis") as client:
        for _ in range(calls):
            await client.list_shards(StreamName="stream")
    return heard


async def test_every_call_names_the_libraries_and_the_execution_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EXECUTION_ENV", "AWS_ECS_FARGATE")
    [first, second] = await _agents(monkeypatch, 2)
    assert first == second
    named = first.split()
    assert {f"aiobotocore/{aiobotocore.__version__}", f"Botocore/{botocore.__version__}"} <= set(named)
    assert "exec-env/AWS_ECS_FARGATE" in named
    assert not any(name.startswith("app/") for name in named)


async def test_the_application_is_named_as_botocore_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SDK_UA_APP_ID", "front-office")
    # botocore looks such settings up once for each session.
    clients._session.cache_clear()
    [agent] = await _agents(monkeypatch, 1)
    clients._session.cache_clear()
    assert "app/front-office" in agent.split()
