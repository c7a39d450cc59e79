"""The scene of the chaos tests: stream, lease table, database, three workers and a writer, behind the fault proxies.

CHAOS_S (at least so many seconds of chaos), CHAOS_SEED and CHAOS_SUMMARY (a file for the figures, one line
of JSON for each test) turn the short runs of `make test` into the long ones of `make chaos`.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import asdict

from tests.chaos import audit
from tests.chaos.audit import LeaseWatch, RowWatch
from tests.chaos.fleet import Fleet, left_behind, sailing
from tests.chaos.proxy import FaultProxy, fronting
from tests.chaos.writer import Load, Writer, client_of
from tests.integration.worker_stack import query, running, wait_for
from tidegate.leases import DynamoLeaseStore
from tidegate.settings import LeaseSettings

IS_LONG = "CHAOS_S" in os.environ
SECONDS = float(os.environ.get("CHAOS_S", "0"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
# Far more than it takes: what is stuck is stuck for ever.
CATCH_UP_S = 90.0
SHARDS = 8
NAMES = ("one", "two", "three")
PASSWORD = "chaos"


def leases(**changed: float) -> dict[str, str]:
    """The environment that says so: the worker's own defaults, but for what is changed."""
    settings = asdict(LeaseSettings(**changed))  # type: ignore[arg-type]
    return {f"TIDEGATE_LEASES_{name.upper()}": str(value) for name, value in settings.items()}


# Leases that expire soon, and retries that do not outlast the storms by much.
QUICK_EXPIRY_S = 4.0
QUICK = {
    **leases(
        expiry_s=QUICK_EXPIRY_S, patience_s=3.2, renew_interval_s=1.2, request_timeout_s=1.5, plan_interval_s=0.4,
        hand_over_s=4, discover_interval_s=5, restart_delay_s=0.3, restart_delay_max_s=2, drain_budget_s=10,
    ),
    "TIDEGATE_AWS_READ_TIMEOUT_S": "2", "TIDEGATE_AWS_CONNECT_TIMEOUT_S": "1", "TIDEGATE_READ_RETRY_MAX_MS": "1000",
}  # fmt: skip
# Between the two: soon enough for a test, and no busy machine makes a holder miss four seconds.
BRISK_EXPIRY_S = 5.0
BRISK = leases(expiry_s=BRISK_EXPIRY_S, patience_s=4, renew_interval_s=1.5)
CALM_EXPIRY_S = LeaseSettings().expiry_s
CALM = leases()

Say = Callable[[str], None]


@dataclass(slots=True)
class Scene:
    """The writer is not at work yet; the fleet is."""

    fleet: Fleet
    writer: Writer
    watch: LeaseWatch
    rows: RowWatch
    kinesis: FaultProxy
    dynamodb: FaultProxy
    say: Say

    async def backlog(self, furthest: Mapping[str, int]) -> list[str]:
        """What the fleet has still to do to come as far as `furthest` (by shard, sequence number), in words."""
        stack = self.fleet.stack
        shards = (await stack.kinesis.list_shards(StreamName=stack.stream))["Shards"]
        positions = dict(await query(stack, "SELECT shard_id, sequence_number FROM tidegate.shard"))
        leases = await self.watch.look()
        found = []
        for shard in shards:
            shard_id, is_open = shard["ShardId"], "EndingSequenceNumber" not in shard["SequenceNumberRange"]
            lease, last = leases.get(shard_id), furthest.get(shard_id, 0)
            if not is_open:
                if shard_id in positions or (lease is not None and not lease.is_ended):
                    found.append(f"{shard_id} is closed and not read to its end: {lease}")
            elif int(positions.get(shard_id) or 0) < last:
                found.append(f"{shard_id} is at {positions.get(shard_id)}, not at {last}: {lease}")
            elif lease is None or (last and (not lease.checkpoint.is_number or int(lease.checkpoint.position) < last)):
                found.append(f"{shard_id} is not checkpointed at {last}: {lease}")
        return found

    async def catch_up(self) -> float:
        """Wait until all that is acknowledged by now is done and checkpointed; how many seconds that took."""
        loop = asyncio.get_running_loop()
        began_s, furthest = loop.time(), dict(self.writer.furthest)

        async def is_done() -> bool:
            return not await self.backlog(furthest)

        try:
            await wait_for(is_done, CATCH_UP_S)
        except TimeoutError:
            raise AssertionError(f"stuck after {CATCH_UP_S:g} s: {await self.backlog(furthest)}") from None
        took_s = loop.time() - began_s
        self.say(f"caught up {took_s:.1f} s later with {self.writer.acknowledged} records")
        return took_s

    async def end(self) -> None:
        """Nobody lags, every shard is held once, all end in good order and leave nothing behind."""
        shards = len(await self.fleet.stack.open_shards())

        async def is_calm() -> bool:
            held = await self.fleet.metrics("tidegate_leases_held")
            return held == shards and await self.fleet.metrics("tidegate_millis_behind_latest") == 0

        await wait_for(is_calm, CATCH_UP_S)
        async with asyncio.TaskGroup() as ending:
            for slot in self.fleet.slots:
                ending.create_task(self.fleet.terminate(slot))
        holders = {key: lease.holder for key, lease in (await self.watch.look()).items() if not lease.is_ended}
        assert set(holders.values()) == {None}, f"leases of processes that ended in good order: {holders}"
        assert left_behind(self.fleet.stack) == []


@asynccontextmanager
async def scene(folder: Path, settings: dict[str, str], load: Load) -> AsyncIterator[Scene]:
    """Set everything up. Whatever fails in the block, or beside it, is noted with the seed."""
    began_s = asyncio.get_running_loop().time()

    def say(text: str) -> None:
        print(f"{asyncio.get_running_loop().time() - began_s:7.1f} s  {text}", flush=True)

    try:
        async with AsyncExitStack() as stacked:
            stack = await stacked.enter_async_context(running(folder))
            await audit.install(stack, dict.fromkeys(NAMES, PASSWORD))
            await stack.fresh_stream("chaos", SHARDS)
            kinesis = await stacked.enter_async_context(fronting(stack.kinesis_url, SEED))
            dynamodb = await stacked.enter_async_context(fronting(stack.aws_url, SEED))
            # The workers and the writer go through the proxies; what watches them goes straight.
            stack.kinesis_url, stack.aws_url = kinesis.url, dynamodb.url
            of_each = {
                name: {**settings, "TIDEGATE_DATABASE_URL": stack.postgres.dsn_for(name, PASSWORD)} for name in NAMES
            }
            # A fleet on its way from one way of reading to the other.
            of_each["three"]["TIDEGATE_READ_MODE"] = "fan_out"
            fleet = await stacked.enter_async_context(sailing(stack, of_each))
            watch = LeaseWatch(DynamoLeaseStore(stack.dynamodb, stack.table), every_s=0.1)
            writer = Writer(await stacked.enter_async_context(client_of(kinesis.url)), "chaos", load, SEED)
            group = await stacked.enter_async_context(asyncio.TaskGroup())
            rows = RowWatch(stack, every_s=0.5)
            for each in (watch, rows):
                stacked.callback(group.create_task(each.run()).cancel)
            say(f"the fleet is ready; seed {SEED}")
            yield Scene(fleet, writer, watch, rows, kinesis, dynamodb, say)
    except BaseException as error:
        error.add_note(f"seed {SEED}; the same again: CHAOS_SEED={SEED} CHAOS_S={SECONDS:g}")
        raise


def report(figures: dict[str, Any]) -> None:
    """One line of JSON, to stdout and to CHAOS_SUMMARY."""
    text = json.dumps(figures)
    print(text, flush=True)
    if name := os.environ.get("CHAOS_SUMMARY"):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(text + "\n")
