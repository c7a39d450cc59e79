"""Faults that other consumers of Kinesis have, measured or reported, and that this one must not have.

Each test plays the situation on the whole worker: its entry point runs in this process, on the embedded Kinesis, a real
DynamoDB stand-in and a real PostgreSQL. What the parts promise on their own stands elsewhere:

| peer | fault | here | finer tests |
|---|---|---|---|
| async-kinesis 3.0.1 | a slow handler loses the rest of its batch | test_async_kinesis_… | test_worker_consumer |
| | one undecodable record stalls every shard | | test_worker_decode, test_worker_letters |
| | the second parent of a merge is not looked at | | test_worker_shards, test_leases_planner, sim/test_coordinator |
| | a lost lease only logs a warning | | sim/test_hold, sim/test_coordinator |
| KCL | a batch is skipped when its handler raises | test_kcl_… | test_worker_consumer, test_worker_sink |
| | an aggregate is dropped when one record hashes outside | | test_worker_kpl, test_record_readers |
| | 1.5 s of sleep between reads although behind | | test_worker_reader |
| redpanda connect | a shard that closed while nobody held it is not read | test_redpanda_… | test_worker_shards |
| vmware-go-kcl | a zombie moves checkpoints back | test_vmware_… | contract/test_lease_store, chaos/test_fleet |
| alpakka | the last answer of a closed shard is not emitted | test_alpakka_… | test_record_readers |
| kinsumer | the checkpoint says what was handed out, not what is done | test_kinsumer_… | test_worker_consumer |
| | the lease of an idle shard is not renewed | | sim/test_hold |

Faults of pollers (airbyte-cdk, dlt) are played in tests/sim/test_poller_*, those of row-level security in
tests/integration/test_api*.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from prometheus_client import REGISTRY

from local.kinesis.model import hash_key
from tests.integration.worker_rows import change
from tests.integration.worker_stack import Stack, query, running, wait_for
from tests.unit.test_worker_kpl import aggregate
from tidegate import codec
from tidegate.event import ChangeEvent
from worker import app

pytestmark = pytest.mark.asyncio(loop_scope="module")
MIDDLE = 1 << 127
# No worker can write a row.
LOCK = "LOCK TABLE counters IN EXCLUSIVE MODE"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    folder: Path = tmp_path_factory.mktemp("peers")
    async with running(folder) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def stack(whole: Stack) -> AsyncIterator[Stack]:
    yield whole
    await query(whole, "TRUNCATE counters, tidegate.shard, tidegate.watermark, tidegate.dead_letter")


@asynccontextmanager
async def working(stack: Stack, **settings: str) -> AsyncIterator[None]:
    """A worker at work in this process; at the end of the block it is told to stop, and must do so in good order."""
    stop = asyncio.Event()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {**stack.environment(), "TIDEGATE_HEALTH_PORT": "0", **settings}.items():
            environment.setenv(name, value)
        async with asyncio.TaskGroup() as group:
            group.create_task(app.run(stop))
            try:
                await wait_for(partial(is_at_work, stack))
                yield
            finally:
                stop.set()


async def is_at_work(stack: Stack) -> bool:
    """Whether any shard's lease is held."""
    try:
        return any("leaseOwner" in item for item in (await stack.leases()).values())
    except stack.dynamodb.exceptions.ResourceNotFoundException:
        return False


@asynccontextmanager
async def holding(stack: Stack, statement: str) -> AsyncIterator[Callable[[], Any]]:
    """A transaction that stands in the way until the block ends, or the given function is awaited."""
    connection = await asyncpg.connect(stack.postgres.dsn)
    try:
        await connection.execute("BEGIN")
        await connection.execute(statement)
        yield lambda: connection.execute("COMMIT")
    finally:
        await connection.close()


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def wait_until(condition: Callable[[], bool]) -> None:
    async def holds() -> bool:
        return condition()

    await wait_for(holds)


def counter(number: int, version: int = 1) -> ChangeEvent:
    return change(str(number), version, {"number": number, "total": version}, entity="counter")


async def rows(stack: Stack) -> dict[int, int]:
    return dict(await query(stack, "SELECT number, total FROM counters"))


async def shows(stack: Stack, expected: dict[int, int]) -> None:
    async def is_there() -> bool:
        return await rows(stack) == expected

    await wait_for(is_there)


def in_half(upper: bool, count: int) -> list[int]:
    """Numbers whose partition keys belong to the upper or the lower half of all hash keys."""
    found = (number for number in range(1_000_000) if (hash_key(f"counter:{number}") >= MIDDLE) is upper)
    return [next(found) for _ in range(count)]


async def lease(stack: Stack, shard: str) -> dict[str, Any]:
    return (await stack.leases())[shard]


async def counter_moves(stack: Stack, shard: str, times: int) -> None:
    """Wait until the holder of the shard's lease wrote to it so many times: the worker is alive and had its chance."""
    first = int((await lease(stack, shard))["leaseCounter"]["N"])

    async def moved() -> bool:
        return int((await lease(stack, shard))["leaseCounter"]["N"]) >= first + times

    await wait_for(moved)


async def steal(stack: Stack, shard: str, checkpoint: int | None = None) -> None:
    """Another owner takes the lease by force, and perhaps checkpoints: in KCL's own attributes, compare-and-set."""
    while True:
        item = await lease(stack, shard)
        now = item["leaseCounter"]["N"]
        changed = "SET leaseOwner = :owner, leaseCounter = :next, tidegateEpoch = :epoch"
        values = {
            ":owner": {"S": "thief"}, ":now": {"N": now}, ":next": {"N": str(int(now) + 1)},
            ":epoch": {"N": str(int(item["tidegateEpoch"]["N"]) + 1)},
        }  # fmt: skip
        if checkpoint is not None:
            changed += ", checkpoint = :checkpoint"
            values[":checkpoint"] = {"S": str(checkpoint)}
        try:
            await stack.dynamodb.update_item(
                TableName=stack.table, Key={"leaseKey": {"S": shard}}, UpdateExpression=changed,
                ConditionExpression="leaseCounter = :now", ExpressionAttributeValues=values,
            )  # fmt: skip
        except stack.dynamodb.exceptions.ConditionalCheckFailedException:
            continue
        return


async def keep_stolen(stack: Stack, shard: str) -> None:
    """The thief renews, until cancelled."""
    while True:
        await stack.dynamodb.update_item(
            TableName=stack.table, Key={"leaseKey": {"S": shard}}, UpdateExpression="ADD leaseCounter :one",
            ExpressionAttributeValues={":one": {"N": "1"}},
        )  # fmt: skip
        await asyncio.sleep(0.3)


async def shard_ids(stack: Stack) -> list[str]:
    return [shard["ShardId"] for shard in (await stack.kinesis.list_shards(StreamName=stack.stream))["Shards"]]


async def put(stack: Stack, numbers: Iterable[int], version: int = 1) -> None:
    await stack.put([counter(number, version) for number in numbers])


async def test_async_kinesis_a_slow_handler_loses_nothing(stack: Stack) -> None:
    """async-kinesis drops the rest of a batch after a queue time-out and still advances its iterator."""
    await stack.fresh_stream("slow", 3)
    before = metric("tidegate_writes_retried_total")
    small = {"TIDEGATE_READ_LIMIT_RECORDS": "200", "TIDEGATE_DATABASE_STATEMENT_TIMEOUT_S": "0.2"}
    async with working(stack, **small), holding(stack, LOCK) as let_go:
        await put(stack, range(2_450))
        # Slower than every time-out it has.
        await wait_until(lambda: metric("tidegate_writes_retried_total") >= before + 9)
        await let_go()
        await shows(stack, dict.fromkeys(range(2_450), 1))


async def test_async_kinesis_an_undecodable_record_stalls_nobody(stack: Stack) -> None:
    """In async-kinesis one undecodable record stalls every shard."""
    await stack.fresh_stream("poisoned", 2)
    for shard in await stack.open_shards():
        await stack.kinesis.put_record(
            StreamName="poisoned", Data=b"\xff\x00", PartitionKey="p",
            ExplicitHashKey=shard["HashKeyRange"]["StartingHashKey"],
        )  # fmt: skip
    await put(stack, range(100))
    async with working(stack):
        await shows(stack, dict.fromkeys(range(100), 1))
    letters = await query(stack, "SELECT shard_id, payload FROM tidegate.dead_letter ORDER BY shard_id")
    assert letters == [(shard, b"\xff\x00") for shard in await shard_ids(stack)]


async def test_async_kinesis_a_merged_shard_waits_for_both_parents(stack: Stack) -> None:
    """async-kinesis never looks at the second parent of a merge, so that its child overtakes it."""
    await stack.fresh_stream("merged", 2)
    lower, upper = in_half(False, 20), in_half(True, 20)
    first, second = await shard_ids(stack)
    await put(stack, [*lower, *upper])
    await stack.kinesis.merge_shards(StreamName="merged", ShardToMerge=first, AdjacentShardToMerge=second)
    await put(stack, [*lower, *upper], version=2)
    child = (await shard_ids(stack))[-1]
    stale = metric("tidegate_records_written_total", outcome="stale")
    # The second parent's first row cannot be written for now.
    blocker = f"INSERT INTO counters SELECT {upper[0]}, 0, 0, 0, 0, 0, 0, true, '', now(), now()"
    async with holding(stack, blocker) as let_go, working(stack):

        async def first_has_ended() -> bool:
            return bool((await lease(stack, first))["checkpoint"]["S"] == "SHARD_END")

        await wait_for(first_has_ended)
        await counter_moves(stack, second, 4)
        assert await rows(stack) == dict.fromkeys(lower, 1)
        assert (await lease(stack, child)).get("leaseOwner") is None
        await let_go()
        await shows(stack, dict.fromkeys([*lower, *upper], 2))
    assert metric("tidegate_records_written_total", outcome="stale") == stale


async def test_async_kinesis_who_lost_a_lease_stops_its_work(stack: Stack) -> None:
    """In async-kinesis a lost lease only logs a warning, and two read the shard from then on."""
    await stack.fresh_stream("lost", 2)
    lower, upper = in_half(False, 20), in_half(True, 20)
    lost = metric("tidegate_leases_lost_total")
    async with working(stack):
        await put(stack, [lower[0], upper[0]])
        await shows(stack, {lower[0]: 1, upper[0]: 1})
        first, _ = await shard_ids(stack)
        async with asyncio.TaskGroup() as group:
            await steal(stack, first)
            thief = group.create_task(keep_stolen(stack, first))
            await wait_until(lambda: metric("tidegate_leases_lost_total") == lost + 1)
            await put(stack, lower[1:])
            for number in upper[1:4]:
                await put(stack, [number])
                await shows(stack, dict.fromkeys([lower[0], *upper[: upper.index(number) + 1]], 1))
            thief.cancel()
        await shows(stack, dict.fromkeys([*lower, *upper[:4]], 1))


async def test_kcl_a_handler_that_raises_gets_the_batch_again(stack: Stack) -> None:
    """KCL logs what the handler raises and goes on with the next batch."""
    await stack.fresh_stream("raising", 1)
    await query(stack, "CREATE SEQUENCE tries")
    connection = await asyncpg.connect(stack.postgres.dsn)
    await connection.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF nextval('tries') <= 3 THEN RAISE EXCEPTION 'not now' USING ERRCODE = '40001'; END IF; RETURN NULL; END $$; "
        "CREATE TRIGGER refuse AFTER INSERT ON counters FOR EACH STATEMENT EXECUTE FUNCTION refuse()"
    )
    try:
        await put(stack, range(300))
        async with working(stack):
            await shows(stack, dict.fromkeys(range(300), 1))
        assert await query(stack, "SELECT last_value >= 4 FROM tries") == [(True,)]
        assert await query(stack, "SELECT count(*) FROM tidegate.dead_letter") == [(0,)]
    finally:
        await connection.execute("DROP TRIGGER refuse ON counters; DROP FUNCTION refuse; DROP SEQUENCE tries")
        await connection.close()


async def test_kcl_an_aggregate_across_a_reshard_is_kept_whole(stack: Stack) -> None:
    """KCL drops a whole aggregate when one of its records hashes outside of the shard."""
    await stack.fresh_stream("aggregated", 2)
    records: list[tuple[str, int | None, bytes]] = [
        (f"counter:{number}", hash_key(f"counter:{number}"), codec.encode(counter(number))) for number in range(20)
    ]
    before = metric("tidegate_records_outside_total")
    await stack.kinesis.put_record(
        StreamName="aggregated", PartitionKey="a", ExplicitHashKey="0", Data=aggregate(records)
    )
    async with working(stack):
        await shows(stack, dict.fromkeys(range(20), 1))
    outside = sum(hash_key(key) >= MIDDLE for key, _, _ in records)
    assert outside > 0
    assert metric("tidegate_records_outside_total") == before + outside


async def test_kcl_behind_the_tip_there_is_no_sleep(stack: Stack) -> None:
    """KCL sleeps 1.5 s between reads even when it is behind. Here one sleep would outlast the test."""
    await stack.fresh_stream("behind", 1)
    for number in range(6):
        await put(stack, [number])
    sleepy = {"TIDEGATE_READ_TIP_WAIT_MS": "600000", "TIDEGATE_READ_TIP_WAIT_MAX_MS": "600000"}
    async with working(stack, TIDEGATE_READ_LIMIT_RECORDS="1", **sleepy):
        await shows(stack, dict.fromkeys(range(6), 1))


async def test_redpanda_a_shard_that_closed_while_nobody_held_it_is_read(stack: Stack) -> None:
    """redpanda connect never reads what is left in it (#2649)."""
    await stack.fresh_stream("closed", 1)
    async with working(stack):
        await put(stack, range(10))
        await shows(stack, dict.fromkeys(range(10), 1))
    await put(stack, range(10, 30))
    [parent] = await shard_ids(stack)
    await stack.kinesis.split_shard(StreamName="closed", ShardToSplit=parent, NewStartingHashKey=str(MIDDLE))
    await put(stack, range(20, 40), version=2)
    async with working(stack):
        await shows(stack, dict.fromkeys(range(20), 1) | dict.fromkeys(range(20, 40), 2))
    assert (await lease(stack, parent))["checkpoint"]["S"] == "SHARD_END"


async def test_vmware_a_zombie_does_not_move_the_checkpoint(stack: Stack) -> None:
    """vmware-go-kcl writes checkpoints unconditionally, so one who lost the lease moves them back."""
    await stack.fresh_stream("zombie", 1)
    [shard] = await shard_ids(stack)
    lost = metric("tidegate_leases_lost_total")
    async with working(stack):
        await put(stack, [0])
        await shows(stack, {0: 1})
        async with holding(stack, LOCK) as let_go:
            # It has a batch in hand when the lease is taken from it, and the next owner is far ahead.
            read = metric("tidegate_records_read_total")
            await put(stack, range(1, 50))
            await wait_until(lambda: metric("tidegate_records_read_total") == read + 49)
            ahead = int(
                (await stack.kinesis.put_record(StreamName="zombie", Data=b"x", PartitionKey="x"))["SequenceNumber"]
            )
            await steal(stack, shard, ahead)
            async with asyncio.TaskGroup() as group:
                thief = group.create_task(keep_stolen(stack, shard))
                await let_go()
                await wait_until(lambda: metric("tidegate_leases_lost_total") == lost + 1)
                await counter_moves(stack, shard, 3)
                item = await lease(stack, shard)
                thief.cancel()
    assert (item["leaseOwner"]["S"], item["checkpoint"]["S"]) == ("thief", str(ahead))


async def test_alpakka_the_last_answer_of_a_closed_shard_is_emitted(stack: Stack) -> None:
    """alpakka ends before it emits the answer that says that there is no next iterator, and its records."""
    await stack.fresh_stream("last", 1)
    await put(stack, range(7))
    [parent] = await shard_ids(stack)
    # Nothing was read yet, so the first answer is the last, and all the records are in it.
    await stack.kinesis.split_shard(StreamName="last", ShardToSplit=parent, NewStartingHashKey=str(MIDDLE))
    async with working(stack):
        await shows(stack, dict.fromkeys(range(7), 1))


async def test_kinsumer_the_checkpoint_says_what_is_done(stack: Stack) -> None:
    """kinsumer checkpoints a record when it is handed out, so that a crash loses it."""
    await stack.fresh_stream("handed-out", 1)
    [shard] = await shard_ids(stack)
    read = metric("tidegate_records_read_total")
    async with working(stack), holding(stack, LOCK) as let_go:
        await put(stack, range(50))
        await wait_until(lambda: metric("tidegate_records_read_total") == read + 50)
        await counter_moves(stack, shard, 3)
        assert (await lease(stack, shard))["checkpoint"]["S"] == "TRIM_HORIZON"
        await let_go()
        await shows(stack, dict.fromkeys(range(50), 1))
    assert (await lease(stack, shard))["checkpoint"]["S"].isdigit()


async def test_kinsumer_the_lease_of_an_idle_shard_is_renewed(stack: Stack) -> None:
    """kinsumer renews by checkpointing, so that an idle shard is taken for one without an owner."""
    await stack.fresh_stream("idle", 1)
    [shard] = await shard_ids(stack)
    lost = metric("tidegate_leases_lost_total")
    async with working(stack):
        held = await lease(stack, shard)
        # Longer than the expiry: five renewals at a third of it.
        await counter_moves(stack, shard, 5)
        now = await lease(stack, shard)
    assert (now["leaseOwner"], now["tidegateEpoch"]) == (held["leaseOwner"], held["tidegateEpoch"])
    assert metric("tidegate_leases_lost_total") == lost
