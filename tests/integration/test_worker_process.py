"""Worker processes over the wire: order, kill -9, resharding, a database that goes away, SIGTERM."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.worker_rows import NOW, change, gadget, watermark
from tests.integration.worker_stack import Stack, query, running, wait_for
from tidegate.event import ChangeEvent

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    folder: Path = tmp_path_factory.mktemp("worker")
    async with running(folder) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def stack(whole: Stack) -> AsyncIterator[Stack]:
    yield whole
    await whole.stop_workers()
    await query(whole, "TRUNCATE gadgets, counters, tidegate.shard, tidegate.watermark, tidegate.dead_letter")


def updates(keys: int, versions: range) -> list[ChangeEvent]:
    return [
        change(f"G{key:03}", version, gadget(f"G{key:03}", pieces=version))
        for version in versions
        for key in range(keys)
    ]


async def pieces(stack: Stack) -> dict[str, int]:
    return dict(await query(stack, "SELECT number, pieces FROM gadgets"))


async def all_at(stack: Stack, keys: int, version: int) -> bool:
    return await pieces(stack) == {f"G{key:03}": version for key in range(keys)}


async def test_changes_arrive_and_sigterm_hands_over_in_good_order(stack: Stack) -> None:
    await stack.fresh_stream("orderly", 2)
    await stack.put([*updates(100, range(1, 6)), b"poison", change("G001", 9, None)])
    worker = await stack.start_worker()

    async def done() -> bool:
        metrics = await worker.metrics()
        return sum(v for name, v in metrics.items() if name.startswith("tidegate_records_written_total")) == 502

    await wait_for(done)
    metrics = await worker.metrics()
    assert metrics["tidegate_records_read_total"] == 502
    assert metrics['tidegate_records_written_total{outcome="rejected"}'] == 1
    assert await query(stack, "SELECT count(*) FROM gadgets WHERE pieces = 5 AND NOT _deleted") == [(99,)]
    assert await worker.stop() == 0
    leases = await stack.leases()
    assert all("leaseOwner" not in lease for lease in leases.values())
    positions = dict(await query(stack, "SELECT shard_id, sequence_number::text FROM tidegate.shard"))
    assert {key: lease["checkpoint"]["S"] for key, lease in leases.items()} == positions


async def test_a_kill_loses_nothing_and_repeats_nothing(stack: Stack) -> None:
    await stack.fresh_stream("killed", 2)
    first = await stack.start_worker(TIDEGATE_BATCH_MAX_RECORDS="50")
    await stack.put(updates(100, range(1, 4)))

    async def begun() -> bool:
        return len(await pieces(stack)) > 20

    await wait_for(begun)
    await first.kill()
    await stack.put(updates(100, range(4, 6)))
    second = await stack.start_worker()
    await wait_for(lambda: all_at(stack, 100, 5))
    assert await query(stack, "SELECT count(*) FROM tidegate.dead_letter") == [(0,)]
    assert await second.stop() == 0


async def test_two_workers_share_the_shards(stack: Stack) -> None:
    await stack.fresh_stream("shared", 4)
    workers = [await stack.start_worker(TIDEGATE_NAME=name) for name in ("one", "two")]

    async def shared() -> bool:
        owners = [lease.get("leaseOwner", {}).get("S", "") for lease in (await stack.leases()).values()]
        return sorted(owner.split("-")[0] for owner in owners) == ["one", "one", "two", "two"]

    await wait_for(shared)
    await stack.put(updates(40, range(1, 4)))
    await wait_for(lambda: all_at(stack, 40, 3))
    assert [await worker.stop() for worker in workers] == [0, 0]


async def test_split_and_merge_keep_the_order_and_the_watermarks(stack: Stack) -> None:
    await stack.fresh_stream("resharded", 1)
    await stack.put(updates(60, range(1, 4)))
    await stack.put_to_every_shard(watermark(NOW))
    [parent] = await stack.open_shards()
    middle = str((1 << 127) + 12345)
    await stack.kinesis.split_shard(StreamName="resharded", ShardToSplit=parent["ShardId"], NewStartingHashKey=middle)
    await stack.put(updates(60, range(4, 7)))
    # Only one half says how fresh it is; the other speaks with its parent's voice.
    one, other = await stack.open_shards()
    worker = await stack.start_worker()
    await wait_for(lambda: all_at(stack, 60, 6))

    async def marks() -> dict[str, object]:
        return dict(await query(stack, "SELECT shard_id, as_of FROM tidegate.watermark"))

    assert await marks() == {one["ShardId"]: NOW, other["ShardId"]: NOW}
    later = NOW + timedelta(seconds=60)
    await stack.put_to_every_shard(watermark(later))

    async def moved() -> bool:
        return set((await marks()).values()) == {later}

    await wait_for(moved)
    await stack.kinesis.merge_shards(
        StreamName="resharded", ShardToMerge=one["ShardId"], AdjacentShardToMerge=other["ShardId"]
    )
    await stack.put(updates(60, range(7, 10)))
    await wait_for(lambda: all_at(stack, 60, 9))
    [child] = await stack.open_shards()
    assert await marks() == {child["ShardId"]: later}
    assert await query(stack, "SELECT shard_id FROM tidegate.shard") == [(child["ShardId"],)]
    # Had a child begun before its parents ended, it would have written newer versions under their older ones.
    assert (await worker.metrics())['tidegate_records_written_total{outcome="stale"}'] == 0
    assert await worker.stop() == 0
    assert worker.log.read_text().count('"event": "shard_ended"') == 3


async def test_while_the_database_is_down_nothing_is_lost_and_nobody_dies(stack: Stack) -> None:
    await stack.fresh_stream("outage", 1)
    worker = await stack.start_worker()
    await stack.put(updates(20, range(1, 2)))
    await wait_for(lambda: all_at(stack, 20, 1))
    await stack.postgres.kill()
    await stack.put(updates(20, range(2, 4)))

    async def noticed() -> bool:
        return (await worker.metrics())["tidegate_writes_retried_total"] >= 3

    await wait_for(noticed)
    read = (await worker.metrics())["tidegate_records_read_total"]
    assert worker.process.returncode is None
    await stack.postgres.start()
    await wait_for(lambda: all_at(stack, 20, 3))
    assert (await worker.metrics())["tidegate_records_read_total"] >= read
    await stack.postgres.kill()
    await stack.put(updates(20, range(4, 5)))
    assert await worker.stop() == 0, "nothing to hand over, but in good order"
    await stack.postgres.start()
    worker = await stack.start_worker()
    await wait_for(lambda: all_at(stack, 20, 4))
    assert await worker.stop() == 0


async def test_a_database_set_back_is_caught_up_from_its_own_position(stack: Stack) -> None:
    await stack.fresh_stream("restored", 1)
    worker = await stack.start_worker()
    await stack.put(updates(30, range(1, 3)))
    await wait_for(lambda: all_at(stack, 30, 2))
    assert await worker.stop() == 0
    # What a restore from before the stream began looks like.
    await query(stack, "TRUNCATE gadgets, tidegate.shard, tidegate.watermark")
    worker = await stack.start_worker()
    await wait_for(lambda: all_at(stack, 30, 2))
    assert await worker.stop() == 0


async def test_a_lease_table_made_anew_does_not_lock_the_worker_out(stack: Stack) -> None:
    await stack.fresh_stream("forgotten", 1)
    worker = await stack.start_worker()
    for version in range(1, 8):
        await stack.put(updates(3, range(version, version + 1)))
        await asyncio.sleep(0.25)
    await wait_for(lambda: all_at(stack, 3, 7))
    assert await worker.stop() == 0
    await query(stack, "UPDATE tidegate.shard SET lease_counter = lease_counter + 1000")
    await stack.dynamodb.delete_table(TableName=stack.table)
    worker = await stack.start_worker()
    await stack.put(updates(3, range(8, 9)))
    await wait_for(lambda: all_at(stack, 3, 8))
    assert "fence_replaced" in worker.log.read_text()
    assert await worker.stop() == 0


async def test_a_database_that_was_not_migrated_ends_the_worker_with_the_remedy(stack: Stack) -> None:
    await stack.fresh_stream("unmigrated", 1)
    await query(stack, "ALTER TABLE gadgets RENAME TO widgets")
    try:
        with pytest.raises(AssertionError, match="run `tidegate migrate`"):
            await stack.start_worker()
        assert stack.workers[-1].process.returncode == 1
    finally:
        await query(stack, "ALTER TABLE widgets RENAME TO gadgets")
