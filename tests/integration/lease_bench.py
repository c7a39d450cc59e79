"""What the tests of the lease tools stand on: a table, a stream, a live holder, and verbs run as a person runs them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tidegate.cli import main
from tidegate.cli.leases_plan import normal
from tidegate.leases import DynamoLeaseStore, Hold, Lease
from tidegate.leases.items import item_of
from tidegate.settings import LeaseSettings

QUICK = LeaseSettings(expiry_s=6, patience_s=5, renew_interval_s=0.3, request_timeout_s=1)
# Longer than a few renewals of these.
WATCH = ("--watch-s", "1.2")
LEADER = {
    "leaseKey": {"S": "Leader"},
    "entityType": {"S": "LEADER"},
    "rvn": {"S": "1"},
    "load": {"M": {"x": {"N": "1"}}},
}


@dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Bench:
    """The clients, and the names that the environment gives to the tool."""

    dynamodb: Any
    kinesis: Any
    capsys: pytest.CaptureFixture[str]
    table: str
    stream: str
    clock: list[int]

    async def run(self, *arguments: str) -> Answer:
        """One verb, in a thread: it has an event loop of its own."""
        self.capsys.readouterr()
        code = await asyncio.to_thread(main, ["leases", *arguments])
        shown = self.capsys.readouterr()
        return Answer(code, shown.out, shown.err)

    @property
    def store(self) -> DynamoLeaseStore:
        return DynamoLeaseStore(self.dynamodb, self.table)

    async def put(self, *items: Any) -> None:
        for each in items:
            await self.dynamodb.put_item(TableName=self.table, Item=item_of(each) if isinstance(each, Lease) else each)

    async def items(self, table: str | None = None) -> dict[str, Any]:
        found = (await self.dynamodb.scan(TableName=table or self.table, ConsistentRead=True))["Items"]
        return {item["leaseKey"]["S"]: normal(item) for item in found}

    async def leases(self) -> dict[str, Lease]:
        return {lease.key: lease for lease in await self.store.scan()}

    @asynccontextmanager
    async def holder(self, *keys: str) -> AsyncIterator[list[Hold]]:
        """A live process that holds these leases and believes in them, for the length of the block."""
        held: list[Hold] = []
        async with asyncio.TaskGroup() as renewers:
            for key in keys:
                sent_s = asyncio.get_running_loop().time()
                await self.store.create(Lease(key=key))
                taken = await self.store.take((await self.leases())[key], "holder")
                assert taken is not None
                held.append(Hold(self.store, taken, QUICK, sent_s=sent_s))
                renewers.create_task(held[-1].keep())
            yield held
            for hold in held:
                await hold.release()
