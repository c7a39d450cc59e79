"""What the worker needs around it, over the wire: Kinesis, DynamoDB, PostgreSQL, and worker processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
from aiobotocore.session import get_session

from local import launch
from local.kinesis.server import serving
from local.kinesis.settings import Settings
from local.postgres import Postgres
from tests.integration.worker_rows import create_tables
from tidegate import codec
from tidegate.event import ChangeEvent, StreamEvent

ROOT = Path(__file__).parent.parent.parent
REGION = "eu-central-1"
# Quick leases, so that a killed worker's shards are free within two seconds.
QUICK_LEASES = {
    "TIDEGATE_LEASES_EXPIRY_S": "2", "TIDEGATE_LEASES_PATIENCE_S": "1.6", "TIDEGATE_LEASES_RENEW_INTERVAL_S": "0.6",
    "TIDEGATE_LEASES_REQUEST_TIMEOUT_S": "1", "TIDEGATE_LEASES_PLAN_INTERVAL_S": "0.3",
    "TIDEGATE_LEASES_RESTART_DELAY_S": "0.3",
}  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def wait_for(condition: Callable[[], Awaitable[bool]], within_s: float = 20.0) -> None:
    """Ask until it is true; a time-out fails the test."""
    async with asyncio.timeout(within_s):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.05)


@dataclass(slots=True)
class Worker:
    """A worker process."""

    process: asyncio.subprocess.Process
    health: str
    log: Path

    async def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), 20)

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()

    async def metrics(self) -> dict[str, float]:
        async with aiohttp.ClientSession() as session, session.get(f"{self.health}/metrics") as answer:
            lines = [line.rsplit(" ", 1) for line in (await answer.text()).splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines}

    async def is_ready(self) -> bool:
        if self.process.returncode is not None:
            raise AssertionError(f"the worker ended with {self.process.returncode}: {self.log.read_text()[-3000:]}")
        try:
            async with aiohttp.ClientSession() as session, session.get(f"{self.health}/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False


@dataclass(slots=True)
class Stack:
    """One stream, one lease table and one database, and the workers started on them."""

    kinesis_url: str
    aws_url: str
    postgres: Postgres
    kinesis: Any
    dynamodb: Any
    folder: Path
    stream: str = ""
    workers: list[Worker] = field(default_factory=list)

    @property
    def table(self) -> str:
        return f"{self.stream}-leases"

    async def fresh_stream(self, name: str, shards: int) -> None:
        self.stream = name
        await self.kinesis.create_stream(StreamName=name, ShardCount=shards)

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local", "AWS_ENDPOINT_URL": self.aws_url,
            "AWS_ENDPOINT_URL_KINESIS": self.kinesis_url, "TIDEGATE_STREAM": self.stream,
            "TIDEGATE_BUBBLE": "tests.integration.worker_bubble", "TIDEGATE_LEASE_TABLE": self.table,
            "TIDEGATE_DATABASE_URL": self.postgres.dsn, **QUICK_LEASES,
        }  # fmt: skip

    async def start_worker(self, *, module: str = "worker", ready_within_s: float = 20.0, **settings: str) -> Worker:
        port = free_port()
        log = self.folder / f"{self.stream}-{port}.log"
        argv = launch.command([sys.executable, "-m", module], death_signal=signal.SIGKILL)
        environment = {**self.environment(), "TIDEGATE_HEALTH_PORT": str(port), **settings}
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *argv, env=environment, cwd=ROOT, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output
            )
        worker = Worker(process, f"http://127.0.0.1:{port}", log)
        self.workers.append(worker)
        try:
            await wait_for(worker.is_ready, ready_within_s)
        except TimeoutError:
            raise AssertionError(f"the worker is not ready: {log.read_text()[-3000:]}") from None
        return worker

    async def put(self, events: Sequence[StreamEvent | bytes]) -> None:
        """Each event under its own key, as the poller does; bytes go under a key of their own."""
        for begin in range(0, len(events), 500):
            records = [_entry(number, event) for number, event in enumerate(events[begin : begin + 500])]
            answer = await self.kinesis.put_records(StreamName=self.stream, Records=records)
            assert answer["FailedRecordCount"] == 0

    async def put_to_every_shard(self, event: StreamEvent) -> None:
        for shard in await self.open_shards():
            await self.kinesis.put_record(
                StreamName=self.stream, Data=codec.encode(event), PartitionKey=event.event_id,
                ExplicitHashKey=shard["HashKeyRange"]["StartingHashKey"],
            )  # fmt: skip

    async def open_shards(self) -> list[dict[str, Any]]:
        shards = (await self.kinesis.list_shards(StreamName=self.stream))["Shards"]
        return [shard for shard in shards if "EndingSequenceNumber" not in shard["SequenceNumberRange"]]

    async def leases(self) -> dict[str, dict[str, Any]]:
        items = (await self.dynamodb.scan(TableName=self.table))["Items"]
        return {item["leaseKey"]["S"]: item for item in items if "entityType" not in item}

    async def stop_workers(self) -> None:
        for worker in self.workers:
            if worker.process.returncode is None:
                await worker.kill()
        self.workers.clear()


def _entry(number: int, event: StreamEvent | bytes) -> dict[str, Any]:
    if isinstance(event, bytes):
        return {"Data": event, "PartitionKey": f"raw{number}"}
    key = str(event.key) if isinstance(event, ChangeEvent) else event.event_id
    return {"Data": codec.encode(event), "PartitionKey": key}


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Stack]:
    """The stand-ins for the block; Kinesis runs in this process."""
    async with AsyncExitStack() as stack:
        postgres = await stack.enter_async_context(Postgres(folder / "postgres", port=free_port()))
        await create_tables(postgres.dsn)
        kinesis_url = await stack.enter_async_context(serving(Settings(folder / "kinesis", port=0, region=REGION)))
        aws_url = await stack.enter_async_context(_ministack(folder))
        options = {"region_name": REGION, "aws_access_key_id": "local", "aws_secret_access_key": "local"}
        session = get_session()
        kinesis = await stack.enter_async_context(session.create_client("kinesis", endpoint_url=kinesis_url, **options))
        dynamodb = await stack.enter_async_context(session.create_client("dynamodb", endpoint_url=aws_url, **options))
        made = Stack(kinesis_url, aws_url, postgres, kinesis, dynamodb, folder)
        try:
            yield made
        finally:
            await made.stop_workers()


@asynccontextmanager
async def _ministack(folder: Path) -> AsyncIterator[str]:
    port = free_port()
    environment = {
        **os.environ, "BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "MINISTACK_REGION": REGION,
        "STATE_DIR": str(folder / "ministack"), "DOCKER_HOST": f"unix://{folder}/none.sock", "SFTP_ENABLED": "0",
        "IOT_MTLS_ENABLED": "0", "LOG_LEVEL": "WARNING",
    }  # fmt: skip
    with (folder / "ministack.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *launch.command([sys.executable, "-m", "ministack"], death_signal=signal.SIGKILL),
            env=environment, cwd=folder, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    async def answers() -> bool:
        try:
            async with aiohttp.ClientSession() as session, session.get(f"{url}/_ministack/health") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    try:
        await wait_for(answers)
        yield url
    finally:
        process.kill()
        await process.wait()


async def query(stack: Stack, text: str, *arguments: object) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(stack.postgres.dsn)
    try:
        return [tuple(row) for row in await connection.fetch(text, *arguments)]
    finally:
        await connection.close()
