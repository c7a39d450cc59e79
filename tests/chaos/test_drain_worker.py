"""SIGTERM under full load: a worker hands its leases over and ends with 0 in time, and no record is projected twice.

Two worker processes, tuned as the task definition of k8s_or_ecs/ecs/services.yaml does it, read a stream that is written
to as fast as it takes: every shard at Kinesis' limit. One is told to stop while it is far behind, with all that it may read
ahead and a commit under way that a lock holds up. Each record is a row of its own, so a trigger in the database counts
every delivery.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from tests.chaos import audit
from tests.chaos.audit import ONCE, LeaseWatch
from tests.chaos.fleet import Fleet, Slot, sailing
from tests.chaos.scene import PASSWORD, leases
from tests.chaos.writer import Load, Writer
from tests.deploy.ecs.rules import DRAIN_MOST_S
from tests.deploy.ecs.templates import containers, load, tuning
from tests.integration.worker_stack import Stack, query, running, wait_for
from tidegate.leases import DynamoLeaseStore
from tidegate.settings import LeaseSettings

SHARDS = 4
# As fast as it goes: nobody waits between two calls.
FLAT_OUT = Load(rate=10_000_000, batch=450, changing=0)
CALM_LOAD = Load(rate=400, changing=0, batch=50)
# Behind by so many records a worker has more to do than the batch in hand. Seconds at the stream's limit.
BACKLOG = 8_000


@dataclass(slots=True)
class Pair:
    """Two workers at work, and who watches them."""

    stack: Stack
    fleet: Fleet
    watch: LeaseWatch
    writer: Writer
    container: dict[str, object]

    async def backlog(self) -> int:
        """Records that are on the stream and not in the database."""
        [(rows,)] = await query(self.stack, "SELECT count(*) FROM counters WHERE number >= $1", ONCE)
        return self.writer.acknowledged - len(self.writer.poison) - int(rows)

    async def is_shared(self) -> bool:
        await self.watch.look()
        return all(len(self.watch.held_by(slot.name)) == SHARDS // 2 for slot in self.fleet.slots)

    async def is_done(self) -> bool:
        return await self.backlog() == 0


@asynccontextmanager
async def pair(folder: Path) -> AsyncIterator[Pair]:
    templates = load()
    container = dict(containers(templates))["services.Worker"]
    tuned = {**leases(), **tuning(templates["services"], container)}
    async with AsyncExitStack() as stacked:
        stack = await stacked.enter_async_context(running(folder))
        names = ("one", "two")
        await audit.install(stack, dict.fromkeys(names, PASSWORD))
        await stack.fresh_stream("drain", SHARDS)
        of_each = {name: {**tuned, "TIDEGATE_DATABASE_URL": stack.postgres.dsn_for(name, PASSWORD)} for name in names}
        fleet = await stacked.enter_async_context(sailing(stack, of_each))
        # Its client is patient: a call that is given up and made again would put its records on the stream twice.
        writer = Writer(stack.kinesis, "drain", CALM_LOAD, seed=1)
        watch = LeaseWatch(DynamoLeaseStore(stack.dynamodb, stack.table), every_s=0.1)
        group = await stacked.enter_async_context(asyncio.TaskGroup())
        stacked.callback(group.create_task(watch.run()).cancel)
        group.create_task(writer.run())
        made = Pair(stack, fleet, watch, writer, container)
        await wait_for(made.is_shared, 120)
        yield made


@pytest.mark.timeout(300)
async def test_a_worker_told_to_stop_under_full_load_hands_over_in_time_and_nothing_is_projected_twice(
    tmp_path: Path,
) -> None:
    async with pair(tmp_path) as made:
        one, two = made.fleet.slots
        made.writer.load = FLAT_OUT
        drained_s = await told_to_stop(made, one)
        behind = await made.backlog()
        await made.writer.finish()
        await wait_for(made.is_done, 120)
        count, repeated = await audit.deliveries(made.stack)
        assert repeated == {}
        assert count == made.writer.once - ONCE == made.writer.acknowledged - len(made.writer.poison)
        assert made.watch.held_by(two.name) == set(made.watch.leases)
        print(f"drained in {drained_s:.2f} s, {behind} records behind; {count} records, each delivered once")


async def told_to_stop(made: Pair, slot: Slot) -> float:
    """SIGTERM; exit code 0 in time, and its leases pass to the other without expiring. Seconds until it was gone."""
    loop = asyncio.get_running_loop()

    async def is_far_behind() -> bool:
        return await made.backlog() >= BACKLOG

    async with held_up(made.stack):
        await wait_for(is_far_behind, 120)
        await made.watch.look()
        epochs = {key: made.watch.leases[key].epoch for key in made.watch.held_by(slot.name)}
        assert len(epochs) == SHARDS // 2
        made.fleet.doomed.add(slot.process.pid)
        since_s = loop.time()
        slot.process.send_signal(signal.SIGTERM)
    code = await asyncio.wait_for(slot.process.wait(), DRAIN_MOST_S)
    gone_s = loop.time() - since_s
    assert code == 0
    assert gone_s < float(str(made.container["StopTimeout"]))

    async def are_taken() -> bool:
        await made.watch.look()
        return made.watch.taken_after_s(since_s, epochs).keys() == epochs.keys()

    await wait_for(are_taken, 120)
    taken_s = made.watch.taken_after_s(since_s, epochs)
    assert max(taken_s.values()) - gone_s < LeaseSettings().expiry_s / 2, "they were not handed over, they expired"
    return gone_s


@asynccontextmanager
async def held_up(stack: Stack) -> AsyncIterator[None]:
    """No row can be written during the block; whoever commits waits for its end."""
    connection = await asyncpg.connect(stack.postgres.dsn)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE counters IN EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()
