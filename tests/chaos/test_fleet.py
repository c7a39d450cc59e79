"""A fleet of worker processes under everything that can happen to it, and what must hold all the same.

Three `python -m worker`, one of them with enhanced fan-out, eight shards that are split, merged, doubled and halved, a
real PostgreSQL that is killed, and a writer that does not stop; processes are killed, suspended past their leases and
told to stop; DynamoDB and Kinesis throttle, fail, hang, lose requests, lose replies and deliver requests late. After
each round of that the world heals and the fleet must catch up within a bound, the writer still writing. At the end:

- every acknowledged record is in the table, and of each row the newest version: nothing was lost, nothing resurrected;
- no row, no position, no fence, no checkpoint and no lease counter ever moved backwards;
- every shard that closed was read to its end, and nothing is stuck;
- whoever was told to stop ended with 0, nobody else ended, and nothing is left behind.

`make test` plays one round, `make chaos` as many as fit into five minutes.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import audit
from tests.chaos.audit import ONCE
from tests.chaos.moves import World
from tests.chaos.scene import QUICK, QUICK_EXPIRY_S, SECONDS, SEED, Scene, report, scene
from tests.chaos.writer import Load, Row
from tests.integration.worker_stack import query

PAUSE_S = 1.4


@pytest.mark.timeout(SECONDS + 600)
async def test_whatever_happens_nothing_is_lost_and_nothing_runs_backwards(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with scene(tmp_path, QUICK, Load()) as made, asyncio.TaskGroup() as group:
        world = World(
            made.fleet, made.watch, made.kinesis, made.dynamodb, random.Random(SEED), QUICK_EXPIRY_S, made.say
        )
        group.create_task(made.writer.run())
        until_s = loop.time() + SECONDS
        caught_up_s: list[float] = []
        while not caught_up_s or loop.time() < until_s:
            await world.deal(PAUSE_S)
            caught_up_s.append(await made.catch_up())
        await made.writer.finish()
        await made.catch_up()
        await made.end()
        report(await figures(made, world, caught_up_s))
        await check(made)
        # It was chaos indeed.
        assert world.moves.keys() == {move.__name__ for move in world.deck()}
        assert min(sum(made.kinesis.counts.values()), sum(made.dynamodb.counts.values())) > 0
        assert min(made.kinesis.passed["GetRecords"], made.kinesis.passed["SubscribeToShard"]) > 0


async def check(made: Scene) -> None:
    stack, writer = made.fleet.stack, made.writer
    rows = await query(stack, "SELECT number, _source_version, _deleted FROM counters WHERE number < $1", ONCE)
    table = {number: Row(version, is_deleted) for number, version, is_deleted in rows}
    assert table == writer.changing, "the table is not the newest version of each row"
    missing = await query(
        stack,
        "SELECT wanted FROM generate_series($1::bigint, $2::bigint - 1) AS wanted "
        "WHERE NOT EXISTS (SELECT FROM counters WHERE number = wanted AND total = 1) LIMIT 10",
        ONCE, writer.once,
    )  # fmt: skip
    assert missing == [], "acknowledged records are lost"
    letters = set(await query(stack, "SELECT shard_id, sequence_number::text FROM tidegate.dead_letter"))
    assert {(shard, str(sequence)) for shard, sequence in writer.poison} <= letters
    gaps = await query(stack, "SELECT shard_id, message FROM tidegate.dead_letter WHERE reason = 'gap'")
    assert gaps == [], "nothing was trimmed, so there is no gap"
    await audit.check_order(stack)
    assert made.watch.looks > 10
    assert made.rows.looks > 10


async def figures(made: Scene, world: World, caught_up_s: list[float]) -> dict[str, Any]:
    faults: dict[str, Counter[str]] = {"kinesis": Counter(), "dynamodb": Counter()}
    for name, proxy in (("kinesis", made.kinesis), ("dynamodb", made.dynamodb)):
        for (_, fault), count in proxy.counts.items():
            faults[name][fault.value] += count
    takeovers = sorted(
        taken_s for kill in world.kills for taken_s in made.watch.taken_after_s(kill.at_s, kill.epochs).values()
    )
    delivered, _ = await audit.deliveries(made.fleet.stack)
    [(rows,)] = await query(made.fleet.stack, "SELECT count(*) FROM counters")
    [(row_changes,)] = await query(made.fleet.stack, "SELECT count(*) FROM chaos.change")
    once = made.writer.once - ONCE
    return {
        "test": "fleet", "seed": SEED, "seconds": SECONDS, "moves": dict(sorted(world.moves.items())),
        "exits": dict(made.fleet.exits), "faults": faults, "records_acknowledged": made.writer.acknowledged,
        "records_sent_again": made.writer.in_doubt, "rows": rows, "row_changes": row_changes, "delivered_again": delivered - once,
        "caught_up_s": [round(each, 1) for each in caught_up_s],
        "takeovers_after_kill_s": [round(each, 2) for each in takeovers],
    }  # fmt: skip
