"""A real poller is killed with SIGKILL at every step of its work, again and again, over one embedded stack.

After each kill nothing runs, and Kinesis, the table of cursors and the bucket say how things stand: whatever the saved
cursors vouch for must be on Kinesis. The next poller goes on from there, and is killed elsewhere. In the end one is left
alone, and the front office equals the back office and the dropped files.

Each poller has leases and a budget of its own: waiting until those of a dead one expire is the subject of other tests
(test_poller_process, tests/sim/test_poller_budget).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from aiohttp import web

from poller.cursor_store import DynamoCursorStore
from poller.files import Fate
from poller.index_store import S3IndexStore
from poller.ledger import TableLedger
from poller.snapshot import State
from poller.source import Cursor, InFiles, SinceTime
from tests.contract.kinesis_peers import Server, start_ministack
from tests.fakes.liar import Liar
from tests.integration.doomed_poller import STEPS
from tests.integration.poller_stack import LOGIN, REGION, ROOT, Stack, answering, running, wait_for
from tidegate import aws
from tidegate.signals import SIGNAL, Signal, Standing, Verb
from tidegate.source_table import SourceTable

SETTINGS = {
    "TIDEGATE_BUBBLE": "tests.integration.doomed_bubble", "TIDEGATE_DROPS_PAGE_ROWS": "5",
    "TIDEGATE_LOOP_SWEEP_KEPT_S": "0.001", "TIDEGATE_SIGNALS_INTERVAL_S": "0.1",
    # Dead pollers are of no concern to these leases.
    "TIDEGATE_LEASES_EXPIRY_S": "10", "TIDEGATE_LEASES_PATIENCE_S": "8", "TIDEGATE_LEASES_RENEW_INTERVAL_S": "4",
}  # fmt: skip
SOURCES = ("liar", "extracts", "changes")
ROWS = 12

AFTER, BOTH, PUT = ("after",), ("before", "after"), ("amid", "after")
# Before a step is mostly after the one that precedes it.
DOOMS: dict[str, dict[str, tuple[str, ...]]] = {
    "liar": {
        # Polling for changes. The shape of rows is learned from the first ones.
        "shape": AFTER, "open": AFTER, "load": AFTER, "request": AFTER, "journal": AFTER, "archive": AFTER, "put": PUT,
        "publish": AFTER, "cursor": BOTH, "watermark": BOTH,
        # A sweep: the walk and what it corrects, the keyed re-read and what it deletes, what is kept of its progress.
        "walk": AFTER, "walk > put": PUT, "walk > cursor": AFTER, "keyed": AFTER, "confirm > journal": AFTER,
        "confirm > put": PUT, "confirm > cursor": AFTER, "strangers": AFTER, "snapshot > object": AFTER,
        "snapshot": AFTER, "snapshot > cursor": AFTER, "clean": AFTER, "standing": AFTER,
        # A person's errand, and what is said of the source.
        "tell": BOTH, "say": AFTER,
    },
    "extracts": {
        "list": AFTER, "bring": AFTER, "walk > journal": AFTER, "walk > put": PUT, "walk > cursor": AFTER,
        "bury": ("before",), "bury > put": PUT, "bury > cursor": AFTER, "ledger": BOTH,
    },
    "changes": {"bring": AFTER, "journal": AFTER, "put": PUT, "cursor": AFTER, "ledger": BOTH},
}  # fmt: skip


class Doom(NamedTuple):
    source: str
    chain: str
    side: str


def dooms() -> list[Doom]:
    return [
        Doom(source, chain, side)
        for source, chains in DOOMS.items()
        for chain, sides in chains.items()
        for side in sides
    ]


class World:
    """The back office, the dropped files, and what is known of them. `forker` makes the pollers."""

    def __init__(self, stack: Stack, name: str, clients: dict[str, Any], forker: Process) -> None:
        self.stack = stack
        self.liar = Liar(random.Random(5), frozenset())
        self.files: dict[str, dict[str, dict[str, int]]] = {"extracts": {}, "changes": {}}
        self.forker = forker
        self.pid: int | None = None
        self._name = name
        self._s3 = clients["s3"]
        self._drops = stack.environment["DROPS_BUCKET"]
        self.cursors = DynamoCursorStore(clients["dynamodb"], stack.environment["TIDEGATE_CURSOR_TABLE"])
        self._indexes = S3IndexStore(self._s3, stack.environment["TIDEGATE_STATE_BUCKET"])
        self._table = SourceTable(clients["dynamodb"], stack.environment["TIDEGATE_SOURCE_TABLE"])
        self._ledger = TableLedger(self._table)
        self._numbers = itertools.count(1)

    async def answer(self, request: web.Request) -> web.Response:
        self.liar.now = datetime.now(UTC)
        return web.json_response(self.liar.listed({name: request.query.getall(name) for name in request.query}))

    # ---------------------------------------------------------------- what happens there

    async def live(self, source: str) -> None:
        """Rows come, change and go, one of them without a new time; or a file is dropped."""
        if source != "liar":
            await self._drop(source)
            return
        liar = self.liar
        liar.now = datetime.now(UTC)
        for _ in range(20 if not liar.rows else 1):
            liar.create()
        keys = liar.rng.sample(sorted(liar.rows), 8)
        for key in keys[:6]:
            liar.write(key)
        liar._edit(keys[6])
        liar._delete(keys[7])

    async def ask(self) -> None:
        """A person sends the poller on an errand."""
        now = datetime.now(UTC)
        signal = Signal(id=f"{now:%Y%m%dT%H%M%S.%f}", verb=Verb.BACKFILL, asked_at=now, since="2026-01-01")
        await self._table.put("liar", SIGNAL + signal.id, signal, 0)

    async def _drop(self, source: str) -> None:
        """An extract lacks some rows of the one before; a file of changes has none that was deleted."""
        number = next(self._numbers)
        keys = [f"k{(number + at) % (2 * ROWS)}" for at in range(ROWS)]
        rows = {key: number if at % 2 else 0 for at, key in enumerate(keys)}
        name = f"{source}/x-{date(2026, 1, 1) + timedelta(days=number):%Y%m%d}.csv"
        self.files[source][name] = rows
        text = "key,content\n" + "".join(f"{key},{content}\n" for key, content in rows.items())
        await self._s3.put_object(Bucket=self._drops, Key=name, Body=text.encode())

    # ---------------------------------------------------------------- pollers

    async def poller(self, doom: Doom | None = None, *, lose: bool = False) -> None:
        """Start one. It polls the doomed source, or all."""
        assert self.forker.stdin is not None
        assert self.forker.stdout is not None
        number = next(self._numbers)
        own = {"TIDEGATE_POLLER_LEASE_TABLE": f"{self._name}-leases-{number}", "LIAR_OFFICE": f"liar-{number}"}
        if doom is not None:
            own["TIDEGATE_SOURCES"] = doom.source
        order = {
            "environment": {**self.stack.environment, **own}, "chain": "" if doom is None else doom.chain,
            "side": "before" if doom is None else doom.side, "lose": lose,
        }  # fmt: skip
        self.forker.stdin.write(msgspec.json.encode(order) + b"\n")
        self.pid = int(await self.forker.stdout.readline())

    async def ended(self) -> int:
        assert self.forker.stdout is not None
        async with asyncio.timeout(20):
            code = int(await self.forker.stdout.readline())
        self.pid = None
        return code

    # ---------------------------------------------------------------- what must be so

    async def check(self) -> None:
        """What the cursors vouch for is on Kinesis. Nothing runs meanwhile."""
        await self.stack.reader.read()
        for source in SOURCES:
            cursor = await self.cursors.look(source)
            if cursor is not None:
                await self.check_index(cursor)
                await self.check_position(cursor)
        self._check_watermarks()

    def _published(self, source: str) -> set[tuple[str, int]]:
        events = [event for event in self.stack.reader.events if event.source == source]
        return {(event.key.key, event.payload["content"]) for event in events if event.payload is not None}

    async def check_index(self, cursor: Cursor) -> None:
        index = (await self._indexes.load(cursor)).index
        sure = {key: entry for key, entry in index.entries().items() if not entry.unsure}
        vouched = {(key, entry.version) for key, entry in sure.items() if entry.state is not State.QUARANTINED}
        taken = {(event.key.key, event.version) for event in self.stack.reader.events if event.source == cursor.source}
        assert vouched <= taken, f"the index of {cursor.source} is ahead of Kinesis"

    async def check_position(self, cursor: Cursor) -> None:
        live, source = cursor.progress.live, cursor.source
        published = self._published(source)
        passed: set[tuple[str, int]] = set()
        if isinstance(live, SinceTime):
            passed = self._stamped_before(live.bound)
        elif isinstance(live, InFiles) and live.name:
            passed = set(list(self.files[source][live.name].items())[: live.row])
        if cursor.progress.mark:
            passed |= set(self.files[source][cursor.progress.mark.rpartition(" ")[0]].items())
        for entry in (await self._ledger.entries(source)).values():
            if entry.fate is Fate.DONE:
                passed |= set(self.files[source][entry.name].items())
        assert passed <= published, f"the cursor of {source} is ahead of Kinesis: {sorted(passed - published)[:5]}"

    def _check_watermarks(self) -> None:
        published = self._published("liar")
        for (source, _), times in self.stack.reader.watermarks.items():
            if source == "liar":
                promised = self._stamped_before(max(times).replace(tzinfo=None))
                assert promised <= published, "a watermark promised what was not published"

    def _stamped_before(self, bound: datetime) -> set[tuple[str, int]]:
        """Rows that polls for changes have passed; what was changed under its old time no poll can know."""
        rows = [(key, row) for key, row in self.liar.rows.items() if key not in self.liar.unseen]
        return {(key, row.content) for key, row in rows if row.stamp is not None and row.stamp < bound}

    async def is_over(self) -> bool:
        """Whether what a worker would keep of Kinesis is what the office and the files say, and all that was asked is done."""
        await self.stack.reader.read()
        changed: dict[str, int] = {}
        for rows in self.files["changes"].values():
            changed |= rows
        truth = {"timed": self.liar.truth(), "extracted": list(self.files["extracts"].values())[-1], "changed": changed}
        shown = {
            entity: {key: row["content"] for key, row in self.stack.reader.rows(entity).items()} for entity in truth
        }
        errands = {item.read(Signal).standing for item in await self._table.items("liar", SIGNAL)}
        fates = {
            source: {entry.fate for entry in (await self._ledger.entries(source)).values()} for source in self.files
        }
        is_read = fates == {"extracts": {Fate.DONE, Fate.SUPERSEDED}, "changes": {Fate.DONE}}
        return shown == truth and errands == {Standing.DONE} and is_read


@pytest.fixture(scope="module")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_ministack(tmp_path_factory.mktemp("ministack"))
    yield server
    server.stop()


@asynccontextmanager
async def forking() -> AsyncIterator[Process]:
    forker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.integration.doomed_poller", cwd=ROOT, stdin=PIPE, stdout=PIPE
    )
    try:
        yield forker
    finally:
        forker.kill()
        await forker.communicate()


@pytest.fixture
async def world(
    ministack: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> AsyncIterator[World]:
    for name, value in {**REGION, **LOGIN, "AWS_ENDPOINT_URL": ministack.url, "AWS_ENDPOINT_URL_KINESIS": ""}.items():
        monkeypatch.setenv(name, value)
    name = "kills-" + str(len(request.node.name))
    async with AsyncExitStack() as stack:
        clients = {each: await stack.enter_async_context(aws.client(each)) for each in ("s3", "dynamodb")}
        for bucket in (f"{name}-state", f"{name}-drops"):
            location = {"LocationConstraint": REGION["AWS_REGION"]}
            await clients["s3"].create_bucket(Bucket=bucket, CreateBucketConfiguration=location)
        made = await stack.enter_async_context(running(ministack, tmp_path))
        made.environment |= {
            **SETTINGS, "TIDEGATE_STATE_BUCKET": f"{name}-state", "TIDEGATE_ARCHIVE_BUCKET": f"{name}-state",
            "DROPS_BUCKET": f"{name}-drops", "TIDEGATE_CURSOR_TABLE": f"{name}-cursors",
            "TIDEGATE_SOURCE_TABLE": f"{name}-sources", "POLLER_LOG": str(tmp_path / "poller.log"),
        }  # fmt: skip
        there = World(made, name, clients, await stack.enter_async_context(forking()))
        made.environment["LIAR_URL"] = await stack.enter_async_context(answering(there.answer))
        await there.cursors.ensure_table()
        await there._table.ensure()
        try:
            yield there
        finally:
            if there.pid is not None:
                os.kill(there.pid, signal.SIGKILL)


async def test_a_kill_at_every_step_loses_nothing_and_no_cursor_is_ahead_of_kinesis(world: World) -> None:
    for doom in dooms():
        await world.live(doom.source)
        if doom.chain == "tell":
            await world.ask()
        await world.poller(doom)
        assert await world.ended() == -signal.SIGKILL, doom
        await world.check()
    await world.poller()
    await wait_for(world.is_over, 90)
    assert world.pid is not None
    os.kill(world.pid, signal.SIGTERM)
    assert await world.ended() == 0
    await world.check()
    assert world.stack.reader.quarantined == []


async def test_a_cursor_that_is_ahead_of_kinesis_is_noticed(world: World) -> None:
    """The position in a file, and the index behind it, of pollers whose records go nowhere."""
    for source, chain in (("liar", "cursor"), ("extracts", "cursor"), ("changes", "ledger")):
        await world.live(source)
        await world.poller(Doom(source, chain, "after"), lose=True)
        assert await world.ended() == -signal.SIGKILL
        await world.stack.reader.read()
        cursor = await world.cursors.look(source)
        assert cursor is not None
        with pytest.raises(AssertionError, match=f"the index of {source} is ahead of Kinesis"):
            await world.check_index(cursor)
        if source == "changes":
            with pytest.raises(AssertionError, match="the cursor of changes is ahead of Kinesis"):
                await world.check_position(cursor)


def test_every_step_is_named_somewhere() -> None:
    assert {step for doom in dooms() for step in doom.chain.split(" > ")} == STEPS.keys()
