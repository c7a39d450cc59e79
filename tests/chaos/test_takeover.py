"""How long a shard rests and how much is read twice when its process is stopped or killed; otherwise all is well.

Every record of these tests is a row of its own, so the audit counts each delivery of each record. The times are
protocol bounds: a shard whose process was told to stop is handed over, not waited for, and one whose process was
killed is taken when its lease expires. `make chaos` holds them to a second or two, `make test` asserts only what
cannot be a matter of speed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.chaos import audit
from tests.chaos.audit import ONCE
from tests.chaos.fleet import Slot
from tests.chaos.scene import (
    BRISK,
    BRISK_EXPIRY_S,
    CALM,
    CALM_EXPIRY_S,
    IS_LONG,
    SEED,
    SHARDS,
    Scene,
    report,
    scene,
)
from tests.chaos.writer import Load
from tests.integration.worker_stack import query, wait_for

ROUNDS = 4 if IS_LONG else 2
LOAD = Load(rate=2000, changing=0, keeps_places=True)


@asynccontextmanager
async def calm(folder: Path, settings: dict[str, str]) -> AsyncIterator[Scene]:
    """The fleet, at work."""
    async with scene(folder, settings, LOAD) as made, asyncio.TaskGroup() as group:
        group.create_task(made.writer.run())
        await at_work(made)
        yield made


async def finish(made: Scene) -> set[int]:
    """Everything is written, and all end in good order. Returns the numbers that were delivered more than once."""
    await made.writer.finish()
    await made.catch_up()
    count, repeated = await audit.deliveries(made.fleet.stack)
    [(rows,)] = await query(made.fleet.stack, "SELECT count(*) FROM counters WHERE number >= $1", ONCE)
    assert rows == made.writer.once - ONCE
    assert count - rows == sum(times - 1 for times in repeated.values())
    await made.end()
    return set(repeated)


async def at_work(made: Scene) -> None:
    """Every process has a share, and every shard has come somewhere."""

    async def is_shared() -> bool:
        shares = [len(made.watch.held_by(slot.name)) for slot in made.fleet.slots]
        begun = [lease for lease in made.watch.leases.values() if lease.checkpoint.is_number]
        return sum(shares) == SHARDS and min(shares) > 0 and len(begun) == SHARDS

    await wait_for(is_shared, 60)


Ending = Callable[[Slot], Awaitable[None]]


async def take_over(made: Scene, slot: Slot, end: Ending) -> tuple[float, float]:
    """End a process; seconds until all of its leases were taken, and until new records of all its shards were written."""
    await made.watch.look()
    epochs = {key: made.watch.leases[key].epoch for key in made.watch.held_by(slot.name)}
    since_s, since = asyncio.get_running_loop().time(), datetime.now(UTC)
    await end(slot)

    async def is_resumed() -> bool:
        resumed = await audit.resumed_after_s(made.fleet.stack, since, set(epochs), slot.name)
        return resumed.keys() == epochs.keys()

    await wait_for(is_resumed, 60)
    await made.watch.look()
    taken = made.watch.taken_after_s(since_s, epochs)
    assert taken.keys() == epochs.keys()
    resumed = await audit.resumed_after_s(made.fleet.stack, since, set(epochs), slot.name)
    made.say(
        f"{slot.name}: {len(epochs)} leases taken {max(taken.values()):.2f} s, resumed {max(resumed.values()):.2f} s later"
    )
    return max(taken.values()), max(resumed.values())


@pytest.mark.timeout(300)
async def test_told_to_stop_it_hands_over_at_once_and_no_record_is_delivered_twice(tmp_path: Path) -> None:
    dice = random.Random(SEED)
    taken, resumed = [], []
    async with calm(tmp_path, CALM) as made:
        for _ in range(ROUNDS):
            slot = dice.choice(made.fleet.slots)
            taken_s, resumed_s = await take_over(made, slot, made.fleet.terminate)
            taken.append(round(taken_s, 3))
            resumed.append(round(resumed_s, 3))
            await made.fleet.start(slot)
            # Joining moves leases too, and that repeats nothing either.
            await at_work(made)
        assert await finish(made) == set()
    report({"test": "sigterm", "expiry_s": CALM_EXPIRY_S, "taken_s": taken, "resumed_s": resumed})
    assert max(taken) < CALM_EXPIRY_S / 2, "the leases were not handed over, they expired"
    if IS_LONG:
        # Noise only adds, so the quickest is what the protocol needs.
        assert min(taken) <= 1.0


@pytest.mark.timeout(300)
async def test_after_a_kill_only_what_came_after_the_checkpoint_is_delivered_twice(tmp_path: Path) -> None:
    settings, expiry_s = (CALM, CALM_EXPIRY_S) if IS_LONG else (BRISK, BRISK_EXPIRY_S)
    checkpoints: list[dict[str, int]] = []
    async with calm(tmp_path, settings) as made:

        async def kill(slot: Slot) -> None:
            held = made.watch.held_by(slot.name)
            await made.fleet.kill(slot)
            # Nobody may take them yet, so this is how far it said to have come.
            found = await made.watch.look()
            checkpoints.append({key: int(found[key].checkpoint.position) for key in held})

        slot = random.Random(SEED).choice(made.fleet.slots)
        taken_s, resumed_s = await take_over(made, slot, kill)
        await made.fleet.start(slot)
        await at_work(made)
        repeated = [made.writer.places[number] for number in await finish(made)]
    report(
        {"test": "sigkill", "expiry_s": expiry_s, "taken_s": round(taken_s, 3), "resumed_s": round(resumed_s, 3)}
        | {"delivered_twice": len(repeated)}
    )
    [reached] = checkpoints
    assert all(shard in reached and sequence > reached[shard] for shard, sequence in repeated)
    if IS_LONG:
        assert taken_s <= expiry_s + 2.0
