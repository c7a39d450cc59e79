"""A server on the loopback in the place of Kinesis, whose answers a test makes itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def answering(monkeypatch: pytest.MonkeyPatch, answer: Answer) -> AsyncIterator[str]:
    """Its address, to which `aws.client("kinesis")` goes from now on."""
    application = web.Application()
    application.router.add_post("/", answer)
    async with TestServer(application) as server:
        url = str(server.make_url("/"))
        monkeypatch.setenv("AWS_ENDPOINT_URL_KINESIS", url)
        monkeypatch.setenv("AWS_REGION", "eu-central-1")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "local")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")
        yield url
