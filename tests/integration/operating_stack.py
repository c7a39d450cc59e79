"""A whole deployment for the operator's drills: two back offices, poller, worker, a receiver, and databases to restore."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import msgspec
from aiobotocore.session import get_session
from aiohttp import web

from local import launch, provision
from local.demo_compare import projected
from local.legacy.customers import CustomerOffice
from local.legacy.office import BackOffice
from local.legacy.parcels import ParcelOffice
from local.legacy.server import Settings as OfficeSettings
from local.legacy.server import serving as serving_office
from tests.integration import letters_stack, worker_stack
from tests.integration.letters_stack import Said
from tests.integration.operating_bubble import bubble
from tests.integration.outbox_receiver import SECRET, Receiver, Told, receiving
from tests.integration.worker_stack import REGION, Stack, Worker, wait_for
from tidegate import migrate

BUBBLE = "tests.integration.operating_bubble"
KEY, BUCKET = "secret", "operating-state"
ENTITIES = {"parcels": ("parcel", "office"), "customers": ("customer",)}
KINDS: Mapping[str, type[BackOffice]] = {"parcels": ParcelOffice, "customers": CustomerOffice}
PASSWORDS = {login: f"{login} password" for login in (provision.OWNER, *provision.LOGINS)}
BURST = {"creates": 10, "updates": 30, "corrections": 5, "deletes": 6}
POLLER = {
    "TIDEGATE_STATE_BUCKET": BUCKET, "TIDEGATE_CURSOR_TABLE": "cursors", "TIDEGATE_POLLER_LEASE_TABLE": "poller-leases",
    "PARCELS_API_KEY": KEY, "CUSTOMERS_API_KEY": KEY, "TIDEGATE_BUBBLE": BUBBLE,
}  # fmt: skip
WORKER = {
    "TIDEGATE_BUBBLE": BUBBLE, "PARTNER_SECRET": SECRET, "TIDEGATE_OUTBOX_POLL_INTERVAL_MS": "100",
    "TIDEGATE_OUTBOX_RETRY_BASE_MS": "100", "TIDEGATE_OUTBOX_RETRY_MOST_S": "0.3", "TIDEGATE_OUTBOX_PAUSE_MOST_S": "0.3",
}  # fmt: skip


@dataclass(slots=True)
class Deployment:
    """`accepted` are the changes that the receiver took, in order; while `refusing` it takes every second one."""

    stack: Stack
    session: aiohttp.ClientSession
    receiver: Receiver
    urls: dict[str, str]
    refusing: bool = False
    accepted: list[Told] = field(default_factory=list)
    poller: asyncio.subprocess.Process | None = None
    worker: Worker | None = None

    async def answer(self, told: Told) -> web.StreamResponse:
        if self.refusing and int(told.id, 16) % 2:
            return web.Response(status=503)
        self.accepted.append(told)
        return web.Response(status=204)

    def database(self, login: str, database: str) -> str:
        return self.stack.postgres.dsn_for(login, PASSWORDS[login], database)

    def environment(self, database: str, login: str = "operator_login") -> dict[str, str]:
        """What an operator's shell would have, for one database."""
        own = self.stack.environment() | POLLER
        return {name: value for name, value in own.items() if name.startswith(("TIDEGATE_", "AWS_"))} | {
            "TIDEGATE_DATABASE_URL": self.database(login, database), "PARCELS_URL": self.urls["parcels"],
            "CUSTOMERS_URL": self.urls["customers"], "PARCELS_API_KEY": KEY, "CUSTOMERS_API_KEY": KEY,
        }  # fmt: skip

    async def tidegate(self, database: str, *arguments: object, login: str = "operator_login", **more: str) -> Said:
        with letters_stack.environment(self.environment(database, login) | more):
            return await letters_stack.cli(*arguments)

    # --- the programs

    async def start_poller(self) -> None:
        environment = self.stack.environment() | POLLER | {
            "PARCELS_URL": self.urls["parcels"], "CUSTOMERS_URL": self.urls["customers"], "TIDEGATE_HEALTH_PORT": "0",
        }  # fmt: skip
        with (self.stack.folder / "poller.log").open("ab") as output:
            self.poller = await asyncio.create_subprocess_exec(
                *launch.command([sys.executable, "-m", "poller"], death_signal=signal.SIGKILL),
                env=environment, cwd=worker_stack.ROOT, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip

    async def kill_poller(self) -> None:
        assert self.poller is not None
        self.poller.kill()
        await self.poller.wait()

    async def start_worker(self, database: str) -> None:
        settings: dict[str, Any] = {**WORKER, "PARTNER_URL": self.receiver.url}
        settings["TIDEGATE_DATABASE_URL"] = self.database("worker_login", database)
        self.worker = await self.stack.start_worker(**settings)

    async def stop_worker(self) -> None:
        assert self.worker is not None
        assert await self.worker.stop() == 0

    async def kill_worker(self) -> None:
        assert self.worker is not None
        await self.worker.kill()

    # --- the world

    async def burst(self) -> None:
        for url in self.urls.values():
            async with self.session.post(f"{url}/_sim/burst", json=BURST) as answer:
                assert answer.status == 200, await answer.text()

    async def truth(self, kind: str, entity: str) -> dict[str, Any]:
        async with self.session.get(f"{self.urls[kind]}/_sim/truth", params={"entity": entity}) as answer:
            lines = (await answer.text()).splitlines()
        rows = [msgspec.json.decode(line) for line in lines]
        return {row["key"]: row["row"] for row in rows}

    async def is_equal(self, database: str) -> bool:
        """Whether the front office shows exactly what the back offices say."""
        shapes = {shape.name: shape for shape in bubble.shapes}
        connection = await asyncpg.connect(self.database("operator_login", database))
        try:
            for kind, entities in ENTITIES.items():
                for entity in entities:
                    if await self.truth(kind, entity) != await projected(connection, shapes[entity]):
                        return False
        finally:
            await connection.close()
        return True

    async def fetch(self, database: str, text: str) -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(self.database("operator_login", database))
        try:
            return [tuple(row) for row in await connection.fetch(text)]
        finally:
            await connection.close()

    async def until_equal(self, database: str) -> None:
        """Asks seldom: each answer is all rows of both sides."""
        async with asyncio.timeout(60):
            while not await self.is_equal(database):
                await asyncio.sleep(0.3)

    async def until_told(self, database: str) -> None:
        async def is_empty() -> bool:
            return await self.fetch(database, "SELECT FROM tidegate.outbox WHERE state = 'waiting'") == []

        await wait_for(is_empty, 30)

    async def copy(self, old: str, new: str) -> None:
        """A restore: `new` is what `old` is now. Nobody may be connected to `old`."""
        connection = await asyncpg.connect(self.stack.postgres.dsn)
        try:
            await connection.execute(f'CREATE DATABASE "{new}" TEMPLATE "{old}" OWNER "{provision.OWNER}"')
        finally:
            await connection.close()

    def repeated(self) -> list[str]:
        """Ids of changes that the receiver took more than once."""
        return [told for told, times in Counter(told.id for told in self.accepted).items() if times > 1]


@asynccontextmanager
async def deployed(folder: Path) -> AsyncIterator[Deployment]:
    """Everything but the programs, for the block: two shards, the database `tidegate`, 100 rows in each back office."""
    receiver = Receiver()
    async with AsyncExitStack() as opened:
        stack = await opened.enter_async_context(worker_stack.running(folder))
        await opened.enter_async_context(receiving(receiver))
        session = await opened.enter_async_context(aiohttp.ClientSession())
        await stack.fresh_stream("operating", 2)
        await _make_bucket(stack)
        await _make_database(stack)
        urls = {}
        for name, kind in KINDS.items():
            office = kind(argparse.Namespace())
            settings = OfficeSettings(folder / name, KEY, rows=100, life_per_s=0)
            urls[name] = await opened.enter_async_context(serving_office(office, settings))
        made = Deployment(stack, session, receiver, urls)
        receiver.answer = made.answer
        try:
            yield made
        finally:
            if made.poller is not None and made.poller.returncode is None:
                await made.kill_poller()


async def _make_bucket(stack: Stack) -> None:
    login = {"aws_access_key_id": "local", "aws_secret_access_key": "local"}
    async with get_session().create_client("s3", endpoint_url=stack.aws_url, region_name=REGION, **login) as s3:
        await s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})


async def _make_database(stack: Stack) -> None:
    owner = stack.postgres.dsn_for(provision.OWNER, PASSWORDS[provision.OWNER], provision.DATABASE)
    await provision.make_database(stack.postgres.dsn, owner, PASSWORDS)
    folder = Path(sys.modules["examples.parcels.bubble"].__file__ or "").parent / "migrations"
    await asyncio.to_thread(migrate.upgrade, owner, bubble, folder)
    await provision.make_logins(stack.postgres.dsn, PASSWORDS)
