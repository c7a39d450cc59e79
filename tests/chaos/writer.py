"""Writes changes to a stream as fast as it is told to, and remembers what Kinesis acknowledged: the model of the stream.

Two kinds of rows. A few are changed and deleted again and again, with rising versions: they show order. Most are
written once: a batch that got lost anywhere shows for ever, for no later version covers it up.

As a poller does, a lane has one call under way and one record of a key in it, and sends what was not acknowledged
again before it goes on. A lost reply therefore makes real duplicates in the stream, and a request that arrives late
makes an old version stand behind a newer one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session

from tests.chaos.audit import ONCE
from tests.integration.worker_rows import change
from tests.integration.worker_stack import REGION
from tidegate import codec
from tidegate.aws import aws_errors
from tidegate.errors import Transient

_LANES = 4
_DELETED_EVERY = 7
_POISON_EVERY = 20


class Row(NamedTuple):
    """What the table should show of a number."""

    version: int
    is_deleted: bool


class _Entry(NamedTuple):
    """One record on its way. `number` 0: not an event at all."""

    number: int
    row: Row
    wire: dict[str, Any]


@dataclass(slots=True)
class Load:
    """How much is written.

    rate          records a second, over all lanes
    changing      rows that are changed again and again, in each lane
    keeps_places  remember where each record is; for short runs
    """

    rate: int = 4000
    batch: int = 200
    changing: int = 80
    keeps_places: bool = False


@dataclass(slots=True)
class Writer:
    """`run` until `finish`; then everything is acknowledged."""

    client: Any
    stream: str
    load: Load
    seed: int
    is_stopping: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    changing: dict[int, Row] = field(default_factory=dict)
    once: int = ONCE  # the next number that is written once; all before it were
    acknowledged: int = 0
    in_doubt: int = 0  # sent again although they may have arrived
    furthest: dict[str, int] = field(default_factory=dict)  # by shard, the last acknowledged sequence number
    places: dict[int, tuple[str, int]] = field(default_factory=dict)  # by number written once, shard and sequence
    poison: set[tuple[str, int]] = field(default_factory=set)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as lanes:
            for lane in range(_LANES):
                lanes.create_task(self._lane(lane))
        self.ended.set()

    async def finish(self) -> None:
        """Write nothing new, and wait until all is acknowledged."""
        self.is_stopping = True
        await self.ended.wait()

    async def _lane(self, lane: int) -> None:
        dice = random.Random(f"{self.seed} {lane}")
        loop = asyncio.get_running_loop()
        due_s, round_number = loop.time(), 0
        while not self.is_stopping:
            round_number += 1
            await self._deliver(self._batch(lane, round_number), dice)
            # Lost time is made up for only a little: a burst after an outage, not a flood.
            due_s = max(due_s, loop.time() - 1) + self.load.batch * _LANES / self.load.rate
            await asyncio.sleep(max(0.0, due_s - loop.time()))

    def _batch(self, lane: int, round_number: int) -> list[_Entry]:
        first = lane * self.load.changing
        entries = []
        for number in range(first, first + self.load.changing):
            entries.append(_entry(number, Row(round_number, round_number % _DELETED_EVERY == 0)))
        while len(entries) < self.load.batch:
            entries.append(_entry(self.once, Row(1, False)))
            self.once += 1
        if round_number % _POISON_EVERY == 0:
            wire = {"Data": b"poison", "PartitionKey": f"poison {lane} {round_number}"}
            entries.append(_Entry(0, Row(0, False), wire))
        return entries

    async def _deliver(self, entries: list[_Entry], dice: random.Random) -> None:
        """Until every entry is acknowledged."""
        wait_s = 0.02
        while entries:
            try:
                with aws_errors("put records"):
                    answer = await self.client.put_records(
                        StreamName=self.stream, Records=[entry.wire for entry in entries]
                    )
            except Transient:
                self.in_doubt += len(entries)
            else:
                entries = [
                    entry
                    for entry, told in zip(entries, answer["Records"], strict=True)
                    if not self._acknowledge(entry, told)
                ]
            if entries:
                await asyncio.sleep(dice.uniform(0, wait_s))
                wait_s = min(wait_s * 2, 0.5)

    def _acknowledge(self, entry: _Entry, told: dict[str, Any]) -> bool:
        if "SequenceNumber" not in told:
            return False
        shard, sequence = told["ShardId"], int(told["SequenceNumber"])
        self.furthest[shard] = max(sequence, self.furthest.get(shard, 0))
        if entry.number >= ONCE:
            if self.load.keeps_places:
                self.places[entry.number] = (shard, sequence)
        elif entry.row.version:
            self.changing[entry.number] = entry.row
        else:
            self.poison.add((shard, sequence))
        self.acknowledged += 1
        return True


def _entry(number: int, row: Row) -> _Entry:
    payload = None if row.is_deleted else {"number": number, "total": row.version}
    event = change(str(number), row.version, payload, entity="counter")
    return _Entry(number, row, {"Data": codec.encode(event), "PartitionKey": str(event.key)})


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[Any]:
    """A client for a writer: it gives up soon, and retries nothing on its own."""
    config = AioConfig(retries={"total_max_attempts": 1}, read_timeout=2, connect_timeout=1)
    create = get_session().create_client(
        "kinesis", endpoint_url=url, region_name=REGION, config=config,
        aws_access_key_id="local", aws_secret_access_key="local",
    )  # fmt: skip
    async with create as client:
        yield client
