"""Which sources a poller process takes, and that a request to publish again is done once."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import aiohttp
import pytest

from poller.app import Poller, chosen
from poller.settings import PollerSettings
from poller.term import Stores
from tests.fakes.poller_world import THINGS, World
from tests.fakes.signals import MemorySignals
from tidegate.bubble import Bubble
from tidegate.errors import Fatal, Superseded
from tidegate.settings import read

ENVIRON = {
    "TIDEGATE_BUBBLE": "some.bubble", "TIDEGATE_STREAM": "s", "TIDEGATE_STATE_BUCKET": "b",
    "TIDEGATE_CURSOR_TABLE": "c", "TIDEGATE_POLLER_LEASE_TABLE": "l", "TIDEGATE_REPUBLISH": "things",
}  # fmt: skip


def test_a_source_to_republish_must_be_one_of_the_bubble() -> None:
    bubble = Bubble(name="b", entities=(THINGS.entity,), sources=(THINGS,))
    assert chosen(read(PollerSettings, ENVIRON), bubble) == {"things": THINGS}
    with pytest.raises(Fatal, match="'thinks'"):
        chosen(read(PollerSettings, {**ENVIRON, "TIDEGATE_REPUBLISH": "thinks"}), bubble)


class _Hold:
    """A lease that is lost as soon as the rows were published and a watermark sent."""

    key, epoch = "things", 0

    def __init__(self, world: World) -> None:
        self.stop = asyncio.Event()
        self._world = world
        self._watermarks = len(world.stream.watermarks)

    def check(self) -> None:
        if len(self._world.stream.watermarks) > self._watermarks:
            raise Superseded("the lease is gone")


@pytest.mark.looptime
async def test_publishing_again_is_done_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    for _ in range(4):
        world.office.create()
    await world.spend(await world.take(), 10)
    term = world.term()
    monkeypatch.setattr(Poller, "_source", lambda self, declared: world.source)
    stores = Stores(world.cursors, term._stores.indexes, world.stream)
    async with aiohttp.ClientSession() as session:
        poller = Poller(
            read(PollerSettings, ENVIRON),
            {"things": THINGS},
            stores,
            session=session,
            drops=cast(Any, None),
            environ={},
            signals=lambda _: MemorySignals(),
            owner="me",
        )
        counts: list[int] = []
        for _ in range(2):
            counts.append(len(world.stream.events))
            world.idle(60)
            with pytest.raises(Superseded):
                async with asyncio.timeout(10):
                    await poller.poll(cast(Any, _Hold(world)))
        counts.append(len(world.stream.events))
    assert counts == [4, 8, 8]
