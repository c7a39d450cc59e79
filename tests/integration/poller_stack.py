"""What the poller needs around it, over the wire: Kinesis, DynamoDB and S3, back offices, and poller processes."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from local.kinesis.server import serving as serving_kinesis
from local.kinesis.settings import Settings as KinesisSettings
from local.legacy.office import BackOffice
from local.legacy.server import Settings as OfficeSettings
from local.legacy.server import serving as serving_office
from tests.contract.kinesis_peers import Server
from tidegate import aws, codec
from tidegate.event import ChangeEvent, EntityKey, QuarantineRecord, Watermark

ROOT = Path(__file__).parent.parent.parent
KEY = "secret"
STREAM, BUCKET, DROPS = "tests-stream", "tests-state", "tests-drops"
REGION = {"AWS_REGION": "eu-central-1", "AWS_DEFAULT_REGION": "eu-central-1"}
LOGIN = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}
POLLER = {
    "TIDEGATE_STREAM": STREAM, "TIDEGATE_STATE_BUCKET": BUCKET, "TIDEGATE_CURSOR_TABLE": "tests-cursors",
    "TIDEGATE_POLLER_LEASE_TABLE": "tests-leases", "TIDEGATE_HEALTH_PORT": "0", "TIDEGATE_LEASES_EXPIRY_S": "2",
    "TIDEGATE_LEASES_PATIENCE_S": "1.6", "TIDEGATE_LEASES_RENEW_INTERVAL_S": "0.6",
    "TIDEGATE_LEASES_REQUEST_TIMEOUT_S": "1", "TIDEGATE_LEASES_PLAN_INTERVAL_S": "0.3",
}  # fmt: skip


async def wait_for(condition: Callable[[], Awaitable[bool]], within_s: float = 20.0) -> None:
    """Ask until it is true; a time-out fails the test."""
    async with asyncio.timeout(within_s):
        while not await condition():
            await asyncio.sleep(0.1)


class Reader:
    """Reads the whole stream and keeps what a worker would: the newest version of each row."""

    def __init__(self, kinesis: Any) -> None:
        self._kinesis = kinesis
        self._iterators: dict[str, str | None] = {}
        self.events: list[ChangeEvent] = []
        self.state: dict[EntityKey, ChangeEvent] = {}
        self.watermarks: dict[tuple[str, str], list[datetime]] = {}
        self.quarantined: list[QuarantineRecord] = []

    async def read(self) -> None:
        for shard in (await self._kinesis.list_shards(StreamName=STREAM))["Shards"]:
            if shard["ShardId"] not in self._iterators:
                reply = await self._kinesis.get_shard_iterator(
                    StreamName=STREAM, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
                )
                self._iterators[shard["ShardId"]] = reply["ShardIterator"]
        for shard_id in self._iterators:
            await self._read_shard(shard_id)

    async def _read_shard(self, shard_id: str) -> None:
        while (iterator := self._iterators[shard_id]) is not None:
            page = await aws.get_records(self._kinesis, iterator, 10_000)
            self._iterators[shard_id] = page.next_iterator
            for record in page.records:
                self._take(codec.decode(record.data), shard_id)
            if not page.records:
                return

    def _take(self, event: ChangeEvent | Watermark | QuarantineRecord, shard_id: str) -> None:
        match event:
            case Watermark():
                self.watermarks.setdefault((event.source, shard_id), []).append(event.as_of)
            case QuarantineRecord():
                self.quarantined.append(event)
            case ChangeEvent():
                self.events.append(event)
                known = self.state.get(event.key)
                if known is None or known.version < event.version:
                    self.state[event.key] = event

    def rows(self, entity: str) -> dict[str, dict[str, Any]]:
        return {k.key: e.payload for k, e in self.state.items() if k.entity == entity and e.payload is not None}


class Stack:
    """Everything that runs. `environment` is what a poller process gets."""

    def __init__(self, environment: dict[str, str], kinesis: Any, session: aiohttp.ClientSession, folder: Path) -> None:
        self.environment = environment
        self.kinesis = kinesis
        self.session = session
        self.folder = folder
        self.reader = Reader(kinesis)
        self.urls: dict[str, str] = {}

    @asynccontextmanager
    async def poller(self, bubble: str, program: str = "poller") -> AsyncIterator[asyncio.subprocess.Process]:
        """A poller process; killed at the end of the block if it still runs."""
        log = self.folder / "poller.log"
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", program, cwd=ROOT, stdout=output, stderr=output,
                env={**os.environ, **self.environment, "TIDEGATE_BUBBLE": bubble},
            )  # fmt: skip
            try:
                yield process
            finally:
                if process.returncode is None:
                    process.kill()
                await process.wait()

    async def stop(self, process: asyncio.subprocess.Process) -> int:
        process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(process.wait(), 20)

    async def tell(self, kind: str, what: str, body: Mapping[str, object]) -> None:
        async with self.session.post(f"{self.urls[kind]}/_sim/{what}", json=body) as answer:
            assert answer.status == 200, await answer.text()

    async def truth(self, kind: str, entity: str) -> dict[str, dict[str, Any]]:
        async with self.session.get(f"{self.urls[kind]}/_sim/truth", params={"entity": entity}) as answer:
            lines = (await answer.text()).splitlines()
        rows = [msgspec.json.decode(line) for line in lines]
        return {row["key"]: row["row"] for row in rows}

    async def is_true(self, kind: str, *entities: str) -> bool:
        """Whether the stream's state is exactly what the back office says."""
        await self.reader.read()
        return all([await self.truth(kind, each) == self.reader.rows(each) for each in entities])


@asynccontextmanager
async def offices(stack: Stack, **kinds: tuple[type[BackOffice], argparse.Namespace]) -> AsyncIterator[None]:
    async with AsyncExitStack() as running:
        for name, (kind, options) in kinds.items():
            settings = OfficeSettings(stack.folder / name, KEY, rows=300, life_per_s=0)
            stack.urls[name] = await running.enter_async_context(serving_office(kind(options), settings))
            stack.environment[f"{name.upper()}_URL"] = stack.urls[name]
            stack.environment[f"{name.upper()}_API_KEY"] = KEY
        yield


@asynccontextmanager
async def answering(answer: Callable[[web.Request], Awaitable[web.Response]]) -> AsyncIterator[str]:
    """A server whose every path is this; its address."""
    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def running(ministack: Server, folder: Path) -> AsyncIterator[Stack]:
    """Kinesis with an empty stream of two shards; DynamoDB and S3 of `ministack`. The AWS_… variables must be set."""
    async with AsyncExitStack() as stack:
        kinesis_url = await stack.enter_async_context(
            serving_kinesis(KinesisSettings(folder / "kinesis", port=0, enforce_limits=False))
        )
        os.environ["AWS_ENDPOINT_URL_KINESIS"] = kinesis_url
        kinesis = await stack.enter_async_context(aws.client("kinesis"))
        await kinesis.create_stream(StreamName=STREAM, ShardCount=2)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        environment = {
            **REGION, **LOGIN, **POLLER, "AWS_ENDPOINT_URL": ministack.url, "AWS_ENDPOINT_URL_KINESIS": kinesis_url,
            "DROPS_BUCKET": DROPS,
        }  # fmt: skip
        yield Stack(environment, kinesis, session, folder)
