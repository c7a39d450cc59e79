"""A worker that died between two of its steps: what the next holder of the lease makes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.test_peer_faults import counter, metric, shows, working
from tests.integration.worker_stack import Stack, query, running, wait_for

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    folder: Path = tmp_path_factory.mktemp("half-done")
    async with running(folder) as made:
        yield made


@pytest.mark.parametrize("has_checkpoint", [True, False])
async def test_a_shard_that_ended_in_the_database_only_is_not_read_again(stack: Stack, *, has_checkpoint: bool) -> None:
    """The transaction that ends a shard was committed, and the lease was lost before SHARD_END could be written."""
    await query(stack, "TRUNCATE counters, tidegate.shard, tidegate.watermark, tidegate.dead_letter")
    await stack.fresh_stream(f"half-ended-{has_checkpoint}".lower(), 1)
    await stack.put([counter(number) for number in range(20)])
    [shard] = await stack.open_shards()
    parent, first = shard["ShardId"], shard["SequenceNumberRange"]["StartingSequenceNumber"]
    await stack.kinesis.split_shard(StreamName=stack.stream, ShardToSplit=parent, NewStartingHashKey=str(1 << 127))

    async def has_ended() -> bool:
        return bool((await stack.leases())[parent]["checkpoint"]["S"] == "SHARD_END")

    async with working(stack):
        await shows(stack, dict.fromkeys(range(20), 1))
        await wait_for(has_ended)
    # As if its last write had never been done.
    await stack.dynamodb.update_item(
        TableName=stack.table, Key={"leaseKey": {"S": parent}},
        UpdateExpression="SET checkpoint = :before REMOVE childShardIds",
        ExpressionAttributeValues={":before": {"S": first if has_checkpoint else "TRIM_HORIZON"}},
    )  # fmt: skip
    read = metric("tidegate_records_read_total")
    async with working(stack):
        await wait_for(has_ended)
        await stack.put([counter(number, 2) for number in range(20)])
        await shows(stack, dict.fromkeys(range(20), 2))
    assert metric("tidegate_records_read_total") == read + 20
    assert await query(stack, "SELECT message FROM tidegate.dead_letter") == [], "and it left no gap"
    children = {child["ShardId"] for child in await stack.open_shards()}
    assert {known for (known,) in await query(stack, "SELECT shard_id FROM tidegate.shard")} == children
