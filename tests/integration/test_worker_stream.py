"""The worker and its stream: where it starts, how the stream is named, pushed records, and a stream that is another one.

The workers run in this process, as tasks: what is tested is theirs, and a process of its own adds nothing here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio
from prometheus_client import REGISTRY

from tests.integration.worker_rows import NOW, change, gadget, watermark
from tests.integration.worker_stack import Stack, query, running, wait_for
from tidegate.errors import Fatal
from tidegate.event import ChangeEvent
from worker import app

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    folder: Path = tmp_path_factory.mktemp("worker-stream")
    async with running(folder) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def stack(whole: Stack) -> AsyncIterator[Stack]:
    yield whole
    await query(whole, "TRUNCATE gadgets, counters, tidegate.shard, tidegate.watermark, tidegate.dead_letter")


@asynccontextmanager
async def working(
    stack: Stack, settings: dict[str, str] | None = None, *, fails: bool = False
) -> AsyncIterator[asyncio.Task[None]]:
    """A worker for the block, then stopped in good order; one that `fails` must end by itself, look at it afterwards."""
    stop = asyncio.Event()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {**stack.environment(), "TIDEGATE_HEALTH_PORT": "0", **(settings or {})}.items():
            environment.setenv(name, value)
        task = asyncio.create_task(app.run(stop))
        try:
            yield task
            if not fails:
                stop.set()
            done, _ = await asyncio.wait([task], timeout=20)
            assert done, "the worker goes on"
        finally:
            task.cancel()
    if not fails:
        task.result()


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


async def leased(stack: Stack, checkpoint: str) -> bool:
    """Every shard has a lease in somebody's hands, and it says this."""
    if stack.table not in (await stack.dynamodb.list_tables())["TableNames"]:
        return False
    leases = (await stack.leases()).values()
    return bool(leases) and all("leaseOwner" in lease and lease["checkpoint"]["S"] == checkpoint for lease in leases)


def written(outcome: str) -> float:
    return REGISTRY.get_sample_value("tidegate_records_written_total", {"outcome": outcome}) or 0.0


def fatal(task: asyncio.Task[None]) -> str:
    """Why a worker ended, which must be for a person to read."""
    errors, texts = [task.exception()], []
    while errors:
        error = errors.pop()
        if isinstance(error, BaseExceptionGroup):
            errors += error.exceptions
        else:
            assert isinstance(error, Fatal)
            texts.append(str(error))
    return "; ".join(texts)


async def test_pushed_records_arrive_through_a_split_and_a_merge(stack: Stack) -> None:
    await stack.fresh_stream("pushed", 1)
    await stack.put(updates(40, range(1, 4)))
    await stack.put_to_every_shard(watermark(NOW))
    [parent] = await stack.open_shards()
    before = written("stale")
    async with working(stack, {"TIDEGATE_READ_MODE": "fan_out"}):
        await wait_for(lambda: all_at(stack, 40, 3))
        consumers = (await stack.kinesis.list_stream_consumers(StreamARN=await arn(stack)))["Consumers"]
        assert [consumer["ConsumerName"] for consumer in consumers] == [stack.table]
        await stack.kinesis.split_shard(
            StreamName="pushed", ShardToSplit=parent["ShardId"], NewStartingHashKey=str((1 << 127) + 12345)
        )
        await stack.put(updates(40, range(4, 7)))
        await wait_for(lambda: all_at(stack, 40, 6))
        one, other = await stack.open_shards()
        await stack.kinesis.merge_shards(
            StreamName="pushed", ShardToMerge=one["ShardId"], AdjacentShardToMerge=other["ShardId"]
        )
        await stack.put(updates(40, range(7, 9)))
        await wait_for(lambda: all_at(stack, 40, 8))
    [child] = await stack.open_shards()
    assert await query(stack, "SELECT shard_id FROM tidegate.shard") == [(child["ShardId"],)]
    assert written("stale") == before
    assert await query(stack, "SELECT count(*) FROM tidegate.dead_letter") == [(0,)]


async def arn(stack: Stack) -> str:
    answer = await stack.kinesis.describe_stream_summary(StreamName=stack.stream)
    return str(answer["StreamDescriptionSummary"]["StreamARN"])


@pytest.mark.parametrize("mode", ["polling", "fan_out"])
async def test_after_a_graceful_stop_nothing_is_read_twice(stack: Stack, mode: str) -> None:
    """Stopped again and again while records keep coming; each is written by exactly one worker, once."""
    await stack.fresh_stream(f"exact-{mode.replace('_', '-')}", 2)
    before = {outcome: written(outcome) for outcome in ("applied", "unchanged", "stale", "coalesced")}
    settings = {"TIDEGATE_READ_MODE": mode, "TIDEGATE_BATCH_MAX_RECORDS": "7"}

    async def keep_putting() -> None:
        for version in range(1, 31):
            await stack.put(updates(20, range(version, version + 1)))
            await asyncio.sleep(0.05)

    putting = asyncio.create_task(keep_putting())
    # A shard that was subscribed to just now must wait five seconds for its next subscription.
    for _ in range(2 if mode == "polling" else 1):
        came = sum(written(outcome) for outcome in before)
        async with working(stack, settings):

            async def more(least: float = came) -> bool:
                return sum(written(outcome) for outcome in before) > least + 20

            await wait_for(more)
    await putting
    async with working(stack, settings):
        await wait_for(lambda: all_at(stack, 20, 30))
    now = {outcome: written(outcome) - before[outcome] for outcome in before}
    assert sum(now.values()) == 20 * 30
    assert now["unchanged"] == now["stale"] == 0


async def test_latest_begins_when_the_stream_was_first_looked_at(stack: Stack) -> None:
    await stack.fresh_stream("latest", 2)
    await stack.put(updates(5, range(1, 2)))
    # The service tells the time in whole seconds.
    await asyncio.sleep(1.1)
    async with working(stack, {"TIDEGATE_START_POSITION": "LATEST"}):
        await wait_for(lambda: leased(stack, "LATEST"))
    await stack.put(updates(3, range(2, 3)))
    async with working(stack, {"TIDEGATE_START_POSITION": "LATEST"}):
        await wait_for(lambda: all_at(stack, 3, 2))
    assert await query(stack, "SELECT count(*) FROM tidegate.dead_letter") == [(0,)]


async def test_a_time_to_begin_at(stack: Stack) -> None:
    await stack.fresh_stream("timed", 2)
    await stack.put(updates(5, range(1, 2)))
    [parent, _] = await stack.open_shards()
    await asyncio.sleep(1.1)
    begin = datetime.now(UTC).isoformat(timespec="seconds")
    await stack.put(updates(3, range(2, 3)))
    await stack.kinesis.split_shard(
        StreamName="timed", ShardToSplit=parent["ShardId"], NewStartingHashKey=str(1 << 126)
    )
    await stack.put(updates(4, range(3, 4)))
    settings = {
        "TIDEGATE_STREAM": await arn(stack), "TIDEGATE_START_TIME": begin, "TIDEGATE_START_POSITION": "AT_TIMESTAMP",
    }  # fmt: skip
    async with working(stack, settings):
        await wait_for(lambda: all_at(stack, 4, 3))
    assert await query(stack, "SELECT count(*) FROM tidegate.dead_letter") == [(0,)]
    # Named by its ARN, and still known by its name.
    assert {row[0] for row in await query(stack, "SELECT DISTINCT stream FROM tidegate.shard")} == {"timed"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"TIDEGATE_START_POSITION": "AT_TIMESTAMP"}, "START_TIME must say which"),
        ({"TIDEGATE_START_TIME": "yesterday"}, "no time in ISO 8601"),
        ({"TIDEGATE_START_TIME": "2026-01-01T00:00:00"}, "which zone"),
        ({"TIDEGATE_START_TIME": "2999-01-01T00:00:00Z", "TIDEGATE_START_POSITION": "AT_TIMESTAMP"}, "in the future"),
        ({"TIDEGATE_STREAM": "arn:aws:sqs:eu-central-1:000000000000:queue"}, "neither a name nor"),
        ({"TIDEGATE_STREAM": "nowhere"}, "nowhere"),
    ],
    ids=["no-time", "no-date", "no-zone", "future", "foreign-arn", "no-stream"],
)
async def test_a_wrong_start_is_refused_with_the_reason(stack: Stack, settings: dict[str, str], words: str) -> None:
    if not stack.stream:
        await stack.fresh_stream("refused", 1)
    async with working(stack, settings, fails=True) as task:
        pass
    assert words in fatal(task)


async def test_a_stream_that_was_created_anew_is_never_taken_for_the_old_one(stack: Stack) -> None:
    await stack.fresh_stream("reborn", 2)
    await stack.put(updates(10, range(1, 3)))
    async with working(stack):
        await wait_for(lambda: all_at(stack, 10, 2))
    await stack.kinesis.delete_stream(StreamName="reborn")
    await asyncio.sleep(1.1)
    await stack.fresh_stream("reborn", 2)
    await stack.put(updates(10, range(3, 4)))
    async with working(stack, fails=True) as task:
        pass
    assert "created anew" in fatal(task)
    assert "tidegate leases reset --all" in fatal(task)
    assert await all_at(stack, 10, 2)
    # What the message says to do: the leases go, the note about the stream may stay.
    for key in await stack.leases():
        await stack.dynamodb.delete_item(TableName=stack.table, Key={"leaseKey": {"S": key}})
    async with working(stack):
        await wait_for(lambda: all_at(stack, 10, 3))
    gaps = await query(stack, "SELECT DISTINCT reason FROM tidegate.dead_letter")
    assert gaps == [("gap",)], "what the former stream held after the database's position is lost, and said so"


async def test_a_stream_that_is_created_anew_under_a_running_worker_ends_it(stack: Stack) -> None:
    await stack.fresh_stream("replaced", 1)
    await stack.put(updates(5, range(1, 2)))
    async with working(stack, {"TIDEGATE_LEASES_DISCOVER_INTERVAL_S": "0.2"}, fails=True) as task:
        await wait_for(lambda: all_at(stack, 5, 1))
        await stack.kinesis.delete_stream(StreamName="replaced")
        await stack.fresh_stream("replaced", 1)
    assert "deleted" in fatal(task) or "created anew" in fatal(task)


async def test_leases_from_elsewhere_are_believed_only_if_they_fit(stack: Stack) -> None:
    """KCL's table, say: nothing is noted beside the leases, but their positions are from before the shards."""
    await stack.fresh_stream("inherited", 1)
    await stack.put(updates(5, range(1, 2)))
    async with working(stack):
        await wait_for(lambda: all_at(stack, 5, 1))
    await stack.dynamodb.delete_item(TableName=stack.table, Key={"leaseKey": {"S": "tidegate#stream"}})
    async with working(stack):
        await stack.put(updates(5, range(2, 3)))
        await wait_for(lambda: all_at(stack, 5, 2))
    await stack.dynamodb.delete_item(TableName=stack.table, Key={"leaseKey": {"S": "tidegate#stream"}})
    await stack.kinesis.delete_stream(StreamName="inherited")
    await asyncio.sleep(1.1)
    await stack.fresh_stream("inherited", 1)
    async with working(stack, fails=True) as task:
        pass
    assert "from before these shards" in fatal(task)
