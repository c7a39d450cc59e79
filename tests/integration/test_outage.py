"""The back office stops: reads go on and say how old they are. It starts again: the front office catches up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from local.demo_compare import ApiReader, truth
from local.demo_once import live
from local.folder import Folder
from local.stack import Stack, running

COLLECTION = "/v1/parcels?limit=1"


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    folder = Folder(tmp_path, "parcels")
    with folder.opened(reset=False):
        async with running(folder, "examples.parcels.bubble", say=print) as stack:
            await live(stack, 0)
            yield stack


@pytest.mark.timeout(180)
async def test_reads_go_on_and_age_while_the_back_office_is_down_and_catch_up_after(stack: Stack) -> None:
    clerk = await ApiReader.signed_in(stack, stack.demo.users[3])
    await until(lambda: is_fresher_than(stack, clerk, 8), within_s=60)

    await outage(stack, on=True)
    stopped_at = datetime.now(UTC)
    # An answer that was on its way may still be sent; after that the time stands still.
    await until(lambda: is_older_than(stack, clerk, 6), within_s=30)
    key = next(iter(await truth(stack, stack.offices[0], "parcel", "office:101")))
    await post(stack, "edit", {"entity": "parcel", "key": key, "fields": {"shipping_cost": "77.75"}})
    first, second = await as_of(stack, clerk), await as_of(stack, clerk)
    assert first == second
    assert first is not None
    assert first < stopped_at
    assert not await costs(clerk, key, "77.75")

    await outage(stack, on=False)
    await until(lambda: is_fresher_than(stack, clerk, 6), within_s=60)
    await until(lambda: costs(clerk, key, "77.75"), within_s=20)


async def as_of(stack: Stack, reader: ApiReader) -> datetime | None:
    """`Data-As-Of` of the parcels, and that they are served at all."""
    async with stack.session.get(f"{stack.deployment.api_url}{COLLECTION}", headers=reader.headers) as answer:
        assert answer.status == 200, await answer.text()
        text = answer.headers.get("Data-As-Of")
    return None if text is None else datetime.fromisoformat(text)


async def is_fresher_than(stack: Stack, reader: ApiReader, seconds: float) -> bool:
    known = await as_of(stack, reader)
    return known is not None and (datetime.now(UTC) - known).total_seconds() < seconds


async def is_older_than(stack: Stack, reader: ApiReader, seconds: float) -> bool:
    return not await is_fresher_than(stack, reader, seconds)


async def costs(reader: ApiReader, key: str, amount: str) -> bool:
    _, row = await reader.row("parcels", key)
    return row is not None and row["shipping_cost"] == amount


async def until(holds: Callable[[], Awaitable[bool]], within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while not await holds():
            await asyncio.sleep(0.2)


async def outage(stack: Stack, *, on: bool) -> None:
    await post(stack, "outage", {"on": on})


async def post(stack: Stack, what: str, body: object) -> None:
    async with stack.session.post(f"{stack.offices[0].url}/_sim/{what}", json=body) as answer:
        assert answer.status == 200, await answer.text()
