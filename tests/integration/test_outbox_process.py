"""Whole workers, from the stream to a receiver: killed while they send, and started again from the beginning."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.integration.outbox_receiver import SECRET, Receiver, Told, receiving
from tests.integration.worker_rows import change, gadget
from tests.integration.worker_stack import Stack, query, running, wait_for
from tidegate.event import Cause, ChangeEvent

KEYS = [f"G{n:02}" for n in range(20)]
SETTINGS: dict[str, Any] = {
    "TIDEGATE_BUBBLE": "tests.integration.outbox_bubble", "PARTNER_SECRET": SECRET,
    "TIDEGATE_OUTBOX_CLAIM_MARGIN_S": "0.5", "TIDEGATE_OUTBOX_POLL_INTERVAL_MS": "100",
}  # fmt: skip


def updates(versions: range, cause: Cause = Cause.LIVE) -> list[ChangeEvent]:
    """Each content stays for two versions, so every second change changes nothing."""
    return [change(key, version, gadget(key, pieces=version // 2), cause=cause) for version in versions for key in KEYS]


async def test_workers_that_are_killed_and_replayed_tell_of_every_change_in_order_and_of_nothing_else(
    tmp_path: Path,
) -> None:
    receiver = Receiver()
    async with running(tmp_path) as stack, receiving(receiver):
        settings = {**SETTINGS, "PARTNER_URL": receiver.url}
        await stack.fresh_stream("told", 2)
        await _kill_while_it_sends(stack, receiver, settings)
        told = {key: [told.version for told in receiver.done.values() if told.key == key] for key in KEYS}
        # 1 to 3 show what the backfill brought; then only 4, 6, 8 and 10 are something new.
        assert told == {key: [4, 6, 8, 10] for key in KEYS}
        await _replay_everything(stack, receiver, settings)


async def _kill_while_it_sends(stack: Stack, receiver: Receiver, settings: dict[str, Any]) -> None:
    held, go = asyncio.Event(), asyncio.Event()

    async def answer(told: Told) -> web.Response:
        if len(receiver.told) > 30 and not go.is_set():
            held.set()
            await go.wait()
        return web.Response()

    receiver.answer = answer
    await stack.put(updates(range(1, 3), Cause.BACKFILL))
    await stack.put(updates(range(3, 9)))
    first = await stack.start_worker(**settings)
    await asyncio.wait_for(held.wait(), 20)
    await first.kill()
    go.set()
    second = await stack.start_worker(**settings, TIDEGATE_NAME="second")
    await stack.put(updates(range(9, 11)))

    async def all_sent() -> bool:
        return await query(stack, "SELECT state, count(*) FROM tidegate.outbox GROUP BY 1") == [("sent", 4 * 20)]

    await wait_for(all_sent)
    assert (await second.metrics())['tidegate_outbox_sent_total{destination="partner"}'] > 0
    assert await second.stop() == 0


async def _replay_everything(stack: Stack, receiver: Receiver, settings: dict[str, Any]) -> None:
    """From the start of the stream, with nothing left of what was sent."""
    await query(stack, "TRUNCATE tidegate.outbox, tidegate.shard CASCADE")
    count = len(receiver.told)
    third = await stack.start_worker(**settings, TIDEGATE_LEASE_TABLE="anew", TIDEGATE_NAME="third")

    async def replayed() -> bool:
        metrics = await third.metrics()
        return sum(v for name, v in metrics.items() if name.startswith("tidegate_records_written_total")) == 200

    await wait_for(replayed)
    await stack.put([change("G00", 12, gadget("G00", pieces=99))])

    async def told_of_the_new_one() -> bool:
        return receiver.told[-1].version == 12

    await wait_for(told_of_the_new_one)
    assert await third.stop() == 0
    assert len(receiver.told) == count + 1, "a replay tells nobody"
