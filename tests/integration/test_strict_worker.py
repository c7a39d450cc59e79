"""Strict order on the whole way: parked by a worker, shown to a person, written by the next worker on the next shard."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.letters_stack import cli, environment, working
from tests.integration.worker_rows import change
from tests.integration.worker_stack import Stack, query, running, wait_for
from tidegate.event import ChangeEvent

pytestmark = pytest.mark.asyncio(loop_scope="module")

LETTERS = "dead-letters"
PARKED = "SELECT count(*) FROM tidegate.dead_letter WHERE parked_at IS NOT NULL AND resolved_at IS NULL"
OPEN = "SELECT count(*) FROM tidegate.dead_letter WHERE resolved_at IS NULL"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    folder: Path = tmp_path_factory.mktemp("strict")
    async with running(folder) as made:
        await made.fresh_stream("strict", 1)
        quick = {"TIDEGATE_BUBBLE": "tests.integration.strict_bubble", "TIDEGATE_DRAIN_INTERVAL_MS": "50"}
        with environment({**made.environment(), **quick}):
            yield made


def total(number: int, value: object, version: int) -> ChangeEvent:
    return change(str(number), version, {"number": number, "total": value}, entity="counter")


async def until(stack: Stack, text: str, expected: object) -> None:
    async def is_so() -> bool:
        return [tuple(row) for row in await query(stack, text)] == [expected]

    await wait_for(is_so)


def shown(key: int) -> str:
    return f"SELECT total, _source_version FROM counters WHERE number = {key}"


async def test_a_person_closes_the_failure_and_the_key_goes_on(stack: Stack) -> None:
    async with working():
        await stack.put(
            [total(1, 10, 1), total(1, "much", 2), *(total(1, version * 10, version) for version in (3, 4, 5))]
        )
        await stack.put([total(2, 7, 1)])
        await until(stack, PARKED, (3,))
        await until(stack, shown(2), (7, 1))
        await until(stack, shown(1), (10, 1))
        [failed] = [
            number for (number,) in await query(stack, "SELECT id FROM tidegate.dead_letter WHERE parked_at IS NULL")
        ]
        listed = (await cli(LETTERS, "list", "--json")).json
        assert {group["reason"]: (group["letters"], group["waiting"]) for group in listed["groups"]} == {
            "parked": (3, 0), "invalid": (1, 3),
        }  # fmt: skip
        each = (await cli(LETTERS, "list", "--each", "--parked", "--json")).json["each"]
        assert [letter["state"] for letter in each] == ["parked"] * 3
        assert "3 later changes of its key follow" in (await cli(LETTERS, "show", failed)).out
        parked = (await cli(LETTERS, "show", each[0]["id"])).out
        assert f"follows by itself: close {failed} first" in parked
        refused = await cli(LETTERS, "replay", each[0]["id"])
        assert (refused.code, "it waits for older letters" in refused.err) == (1, True)
        assert (await cli(LETTERS, "replay", "--all", "--dry-run", "--json")).json["skipped"] == []
        assert (await cli(LETTERS, "drop", "--entity", "counter", "--dry-run", "--json")).json["would_drop"] == 1
        assert (await cli(LETTERS, "drop", failed, "--json")).json["dropped"] == 1
        await until(stack, shown(1), (50, 5))
        await until(stack, OPEN, (0,))


async def test_what_waits_survives_a_restart_and_a_reshard_and_follows_the_replay(stack: Stack) -> None:
    await query(stack, "ALTER TABLE counters ADD CONSTRAINT small CHECK (total < 100)")
    async with working():
        await stack.put([total(3, 10, 1), total(3, 100, 2), total(3, 30, 3)])
        await until(stack, PARKED, (1,))
    [shard] = (await stack.kinesis.list_shards(StreamName=stack.stream))["Shards"]
    await stack.kinesis.split_shard(
        StreamName=stack.stream, ShardToSplit=shard["ShardId"], NewStartingHashKey=str(1 << 127)
    )
    await stack.put([total(3, 40, 4)])
    async with working(TIDEGATE_NAME="other"):
        await until(stack, PARKED, (2,))
        assert await query(stack, shown(3)) == [(10, 1)]
        await query(stack, "ALTER TABLE counters DROP CONSTRAINT small")
        assert (await cli(LETTERS, "replay", "--key", "3")).code == 0
        await until(stack, shown(3), (40, 4))
        await until(stack, OPEN, (0,))
    closed = "SELECT version[2]::int, resolution FROM tidegate.dead_letter WHERE key = '3' ORDER BY 1"
    assert await query(stack, closed) == [(2, "written"), (3, "superseded"), (4, "written")]
