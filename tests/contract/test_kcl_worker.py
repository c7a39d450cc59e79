"""A worker process takes over where a KCL application stopped, and leaves the table so that it could go on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.contract.kcl_tables import SIDE_ITEMS, kcl_lease, read_lease
from tests.integration.worker_rows import change, gadget
from tests.integration.worker_stack import Stack, query, running, wait_for
from tests.unit.test_worker_kpl import aggregate
from tidegate import codec
from tidegate.cli import leases_plan
from tidegate.cli.leases_plan import normal
from tidegate.cli.leases_table import LeaseTable
from tidegate.leases import DynamoLeaseStore

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHARD = "shardId-000000000000"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    folder: Path = tmp_path_factory.mktemp("kcl")
    async with running(folder) as made:
        yield made


async def left_by_kcl(stack: Stack, *items: dict[str, Any]) -> None:
    await DynamoLeaseStore(stack.dynamodb, stack.table).ensure_table()
    for item in (*items, *SIDE_ITEMS.values()):
        await stack.dynamodb.put_item(TableName=stack.table, Item=item)


def encoded(key: str) -> bytes:
    return codec.encode(change(key, 1, gadget(key)))


async def put(stack: Stack, data: bytes) -> str:
    answer = await stack.kinesis.put_record(StreamName=stack.stream, Data=data, PartitionKey="k")
    number: str = answer["SequenceNumber"]
    return number


async def test_a_worker_goes_on_inside_the_aggregate_and_hands_back_what_kcl_reads(stack: Stack) -> None:
    """A and B were KCL's, and the database was told so; C to E are ours, each exactly once."""
    await stack.fresh_stream("taken-over", 1)
    await put(stack, encoded("A"))
    whole = await put(stack, aggregate([("k", None, encoded(key)) for key in "BCD"]))
    last = await put(stack, encoded("E"))
    lease = kcl_lease(SHARD, whole, 0, leaseOwner={"S": "kcl-1"}, entityType={"S": "LEASE"}, extra={"BOOL": True})
    await left_by_kcl(stack, lease)
    await query(
        stack, "INSERT INTO tidegate.shard (stream, shard_id, sequence_number, sub_sequence) VALUES ($1, $2, $3, 0)",
        stack.stream, SHARD, int(whole),
    )  # fmt: skip
    worker = await stack.start_worker()

    async def reached() -> bool:
        return (await query(stack, "SELECT sequence_number::text FROM tidegate.shard")) == [(last,)]

    await wait_for(reached)
    assert await worker.stop() == 0
    assert await query(stack, "SELECT number FROM gadgets ORDER BY 1") == [("C",), ("D",), ("E",)]
    assert await query(stack, "SELECT count(*) FROM tidegate.dead_letter") == [(0,)], "no gap, nothing refused"

    tool = LeaseTable(stack.dynamodb, stack.table)
    for write in leases_plan.hand_back(await tool.items(), [SHARD]).writes:
        assert await tool.write(write)
    items = {leases_plan.key_in(item): item for item in await tool.items()}
    assert {key: items[key] for key in SIDE_ITEMS} == {key: normal(item) for key, item in SIDE_ITEMS.items()}
    assert items.keys() == {SHARD, *SIDE_ITEMS}
    found = read_lease(items[SHARD])
    assert (found.checkpoint, found.owner, found.checkpoint_owner) == ((last, 0), None, None)
    assert items[SHARD]["extra"] == {"BOOL": True}


async def test_a_table_of_several_streams_is_refused_in_one_line(stack: Stack) -> None:
    await stack.fresh_stream("several", 1)
    key = f"123456789012:several:1700000000:{SHARD}"
    shared = kcl_lease(key, "TRIM_HORIZON", streamName={"S": key.rpartition(":")[0]}, shardId={"S": SHARD})
    await left_by_kcl(stack, shared)
    before = (await stack.leases())[key]
    try:
        worker = await stack.start_worker()
    except AssertionError:
        # It may end before it was ready.
        worker = stack.workers[-1]
    assert await worker.process.wait() == 1
    log = worker.log.read_text()
    assert "the lease table is one of a multi-stream application" in log
    assert "Traceback" not in log
    assert (await stack.leases())[key] == before
