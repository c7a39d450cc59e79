"""Fixtures of the Kinesis and lease table contracts: each server is started once for all of its tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from itertools import count
from typing import Any
from uuid import uuid4

import pytest

from local.fleet.store import TableStore
from local.fleet.table import Table
from tests.contract.kinesis_peers import STARTERS, Server, client_of, start_ministack
from tests.fakes.lease_store import MemoryLeaseStore
from tidegate import aws
from tidegate.leases import DynamoLeaseStore, LeaseStore


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


@pytest.fixture(scope="session")
def dynamodb_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = start_ministack(tmp_path_factory.mktemp("leases"))
    yield server.url
    server.stop()


@asynccontextmanager
async def dynamodb_client(url: str) -> AsyncIterator[Any]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL_DYNAMODB", url)
        environment.setenv("AWS_REGION", "us-east-1")
        environment.setenv("AWS_ACCESS_KEY_ID", "local")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "local")
        async with aws.client("dynamodb") as client:
            yield client


@pytest.fixture
async def dynamodb(dynamodb_url: str) -> AsyncIterator[Any]:
    async with dynamodb_client(dynamodb_url) as client:
        yield client


@pytest.fixture(params=["memory", "fleet", "dynamodb"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[LeaseStore]:
    if request.param == "memory":
        yield MemoryLeaseStore()
        return
    if request.param == "fleet":
        # A clock that leaps a second at every look, so that eventually consistent reads show the newest state.
        yield TableStore(Table(count().__next__, lambda before, after: None, seed=1, item_bytes=400))
        return
    async with dynamodb_client(request.getfixturevalue("dynamodb_url")) as client:
        real = DynamoLeaseStore(client, f"leases-{uuid4().hex[:8]}")
        await real.ensure_table()
        yield real


@pytest.fixture
async def table(dynamodb: Any) -> str:
    name = f"kcl-{uuid4().hex[:8]}"
    await DynamoLeaseStore(dynamodb, name).ensure_table()
    return name
