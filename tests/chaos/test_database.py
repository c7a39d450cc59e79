"""PostgreSQL is killed and restarted under full load, and its connections are cut: nothing shows of it.

They are cut at any moment, and right after a commit as well.

A worker with a destination, two writers. One writes rows that nobody is told of, as fast as it can be told to. The other
writes what a receiver must be told of, and what it must not: contents that were there before, changes of a backfill,
replays, and versions that come too late. At the end:

- the table is the model of the stream, and so are the dead letters;
- what the worker counted, in five ways, sums to what the stream holds: every record once, however often it was tried;
- the outbox has one row for each applied change, and the receiver saw each of them, and nothing else.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.audit import ONCE
from tests.chaos.scene import CALM, IS_LONG, SECONDS, SEED, report
from tests.chaos.writer import Load, Row, Writer, client_of
from tests.integration.cable import COMMIT_ANSWERED, Cable
from tests.integration.outbox_receiver import SECRET, Receiver, receiving
from tests.integration.worker_rows import change, gadget
from tests.integration.worker_stack import Stack, Worker, query, running, wait_for
from tidegate.event import Cause, ChangeEvent

KILLS = 10 if IS_LONG else 2
CUTS = 4 if IS_LONG else 2
KEYS = [f"G{number:02}" for number in range(20)]
SHARDS = 4
LOAD = Load(rate=1_600, batch=100, changing=40)


@dataclass
class Teller:
    """Writes what somebody is told of. `told` is what the receiver must see of each key, in order."""

    stack: Stack
    dice: random.Random
    version: int = 0
    pieces: dict[str, int] = field(default_factory=dict)
    told: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    written: list[ChangeEvent] = field(default_factory=list)
    skipped: list[tuple[str, int]] = field(default_factory=list)
    is_stopping: bool = False

    async def run(self) -> None:
        while not self.is_stopping:
            await self.stack.put(self._round())
            await asyncio.sleep(0.1)

    def _round(self) -> list[ChangeEvent]:
        """A new version of every key, one that is left out until it is too late, and some that were there before."""
        self.version += 2
        events = []
        for key in KEYS:
            pieces = self.dice.randrange(3)
            cause = self.dice.choice([Cause.LIVE, Cause.LIVE, Cause.LIVE, Cause.BACKFILL])
            event = change(key, self.version, gadget(key, pieces=pieces), cause=cause)
            if cause is Cause.LIVE and self.pieces.get(key) != pieces:
                self.told[key].append(event.event_id)
            self.pieces[key] = pieces
            events.append(event)
        self.skipped.append((self.dice.choice(KEYS), self.version - 1))
        replayed = self.dice.sample(self.written, min(10, len(self.written)))
        self.written += events
        return [*events, *replayed]

    async def speak_too_late(self) -> None:
        """The versions that were left out. The table has newer ones of all of them by now."""
        await self.stack.put([change(key, version, gadget(key, pieces=9)) for key, version in self.skipped])


@dataclass
class World:
    """What the chaos works on."""

    stack: Stack
    cable: Cable
    worker: Worker
    dice: random.Random
    terminated: int = 0

    async def kill_the_database(self) -> None:
        await self.stack.postgres.kill()
        await asyncio.sleep(self.dice.uniform(0, 0.5))
        await self.stack.postgres.start()
        await self.until_it_goes_on()

    async def cut_connections(self) -> None:
        """On the way, at a moment that is as good as any."""
        self.cable.cut()
        await asyncio.sleep(self.dice.uniform(0, 0.5))

    async def lose_an_answer(self) -> None:
        """A commit is done, and nobody hears of it."""
        self.cable.lose = COMMIT_ANSWERED
        await asyncio.sleep(self.dice.uniform(0, 0.5))

    async def terminate_backends(self) -> None:
        text = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name ^@ 'tidegate-worker'"
        self.terminated += len(await query(self.stack, text))
        await asyncio.sleep(self.dice.uniform(0, 0.5))

    async def until_it_goes_on(self) -> None:
        """Something is committed that was not before."""
        text = "SELECT coalesce(sum(sequence_number), 0) FROM tidegate.shard"
        before = await query(self.stack, text)

        async def is_further() -> bool:
            assert self.worker.process.returncode is None, self.worker.log.read_text()[-3000:]
            return await query(self.stack, text) != before

        await wait_for(is_further, 60)


@pytest.mark.timeout(SECONDS + 300)
async def test_a_database_that_is_killed_and_cut_off_under_full_load_shows_nothing_of_it(tmp_path: Path) -> None:
    receiver = Receiver()
    async with running(tmp_path) as stack, receiving(receiver), Cable(stack.postgres.port).plugged() as cable:
        await stack.fresh_stream("database", SHARDS)
        dsn = stack.postgres.dsn.replace(f":{stack.postgres.port}/", f":{cable.port}/")
        worker = await stack.start_worker(**settings(receiver, dsn))
        dice = random.Random(SEED)
        world, teller = World(stack, cable, worker, dice), Teller(stack, random.Random(SEED))
        async with client_of(stack.kinesis_url) as client:
            writer = Writer(client, stack.stream, LOAD, SEED)
            async with asyncio.TaskGroup() as load:
                load.create_task(writer.run())
                load.create_task(teller.run())
                await world.until_it_goes_on()
                await do_harm(world)
                teller.is_stopping = True
                await writer.finish()
            await catch_up(stack, await positions(stack))
            await teller.speak_too_late()
        delivered = await positions(stack)
        await catch_up(stack, delivered)
        await until_all_is_told(stack)
        await check(world, writer, teller, receiver, sum(map(len, delivered.values())))
        assert await worker.stop() == 0


def settings(receiver: Receiver, dsn: str) -> dict[str, Any]:
    """The worker's environment: the usual leases, and short waits for what comes back."""
    return {
        **CALM, "TIDEGATE_BUBBLE": "tests.integration.outbox_bubble", "TIDEGATE_DATABASE_URL": dsn,
        "PARTNER_URL": receiver.url, "PARTNER_SECRET": SECRET, "TIDEGATE_OUTBOX_CLAIM_MARGIN_S": "0.5",
        "TIDEGATE_OUTBOX_POLL_INTERVAL_MS": "100", "TIDEGATE_OUTBOX_RETRY_BASE_MS": "50",
        "TIDEGATE_CONSUMER_RETRY_MAX_MS": "200",
    }  # fmt: skip


async def do_harm(world: World) -> None:
    for _ in range(KILLS):
        for _ in range(CUTS):
            await world.dice.choice([world.cut_connections, world.terminate_backends, world.lose_an_answer])()
        await world.kill_the_database()
    for move in [world.cut_connections, world.terminate_backends, world.lose_an_answer] * CUTS:
        await move()
        await world.until_it_goes_on()
    # It was chaos indeed.
    assert min(world.cable.cuts, world.cable.lost, world.terminated) > 0


async def positions(stack: Stack) -> dict[str, list[int]]:
    """The sequence numbers of all records of the stream, by shard."""
    found = {}
    for shard in await stack.open_shards():
        answer = await stack.kinesis.get_shard_iterator(
            StreamName=stack.stream, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )
        numbers: list[int] = []
        iterator, behind = answer["ShardIterator"], 1
        while behind:
            page = await stack.kinesis.get_records(ShardIterator=iterator, Limit=10_000)
            numbers += [int(record["SequenceNumber"]) for record in page["Records"]]
            iterator, behind = page["NextShardIterator"], page["MillisBehindLatest"]
        found[shard["ShardId"]] = numbers
    return found


async def catch_up(stack: Stack, delivered: dict[str, list[int]]) -> None:
    """Until everything that was delivered is committed."""
    wanted = {shard_id: numbers[-1] for shard_id, numbers in delivered.items()}

    async def is_done() -> bool:
        return dict(await query(stack, "SELECT shard_id, sequence_number::numeric FROM tidegate.shard")) == wanted

    await wait_for(is_done, 90)


async def until_all_is_told(stack: Stack) -> None:
    async def is_told() -> bool:
        return [state for (state,) in await query(stack, "SELECT DISTINCT state FROM tidegate.outbox")] == ["sent"]

    await wait_for(is_told, 90)


async def check(world: World, writer: Writer, teller: Teller, receiver: Receiver, delivered: int) -> None:
    stack = world.stack
    rows = await query(stack, "SELECT number, _source_version, _deleted FROM counters WHERE number < $1", ONCE)
    assert {number: Row(version, is_deleted) for number, version, is_deleted in rows} == writer.changing
    once = await query(stack, "SELECT number FROM counters WHERE number >= $1 ORDER BY 1", ONCE)
    assert [number for (number,) in once] == list(range(ONCE, writer.once))
    gadgets = await query(stack, "SELECT number, _source_version, pieces FROM gadgets")
    assert {number: (version, pieces) for number, version, pieces in gadgets} == {
        key: (teller.version, teller.pieces[key]) for key in KEYS
    }
    letters = await query(stack, "SELECT shard_id, sequence_number::numeric, attempts FROM tidegate.dead_letter")
    assert {(shard, int(sequence)) for shard, sequence, _ in letters} >= writer.poison
    assert [attempts for _, _, attempts in letters] == [1] * len(letters), "each was filed once"
    metrics = await world.worker.metrics()
    counts = {name: value for name, value in metrics.items() if name.startswith("tidegate_records_written_total")}
    assert sum(counts.values()) == delivered
    told = {event_id for ids in teller.told.values() for event_id in ids}
    queued = [event_id for (event_id,) in await query(stack, "SELECT event_id FROM tidegate.outbox")]
    assert sorted(queued) == sorted(told)
    assert {told.id for told in receiver.told} == told
    assert receiver.done.keys() == told
    for key in KEYS:
        assert [each.id for each in receiver.done.values() if each.key == key] == teller.told[key]
    report(_figures(world, counts, len(told), len(receiver.told), metrics))


def _figures(
    world: World, counts: dict[str, float], told: int, posts: int, metrics: dict[str, float]
) -> dict[str, Any]:
    outcomes = {name.partition('outcome="')[2].partition('"')[0]: int(count) for name, count in counts.items()}
    return {
        "test": "database", "seed": SEED, "kills": KILLS, "connections_cut": world.cable.cuts,
        "answers_lost": world.cable.lost, "backends_terminated": world.terminated,
        "writes_retried": int(metrics["tidegate_writes_retried_total"]),
        "outcomes": outcomes, "told": told, "posts": posts,
    }  # fmt: skip
