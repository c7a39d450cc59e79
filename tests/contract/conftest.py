"""Fixtures of the Kinesis contract: each server is started once for all of its tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.contract.kinesis_peers import STARTERS, Server, client_of


@pytest.fixture(scope="session")
def _running_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    running: dict[str, Server] = {}
    with ExitStack() as stack:
        stack.callback(lambda: [server.stop() for server in running.values()])
        yield running


@pytest.fixture
def kinesis_server(
    request: pytest.FixtureRequest, _running_servers: dict[str, Server], tmp_path_factory: pytest.TempPathFactory
) -> Server:
    """The server that `@contract` chose, started when the first test asks for it."""
    name: str = request.param
    if name not in _running_servers:
        _running_servers[name] = STARTERS[name](tmp_path_factory.mktemp(name))
    return _running_servers[name]


@pytest.fixture
async def kinesis(kinesis_server: Server) -> AsyncIterator[Any]:
    """A client of that server."""
    async with client_of(kinesis_server.url) as client:
        yield client
