"""The read memory: never more than the bound, nobody waits for ever, and nobody takes another's turn."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate import telemetry
from worker.memory import PAGE_BYTES, ReadMemory, Room, Share

MIB = 1024 * 1024


class Peak:
    """Stands for the gauge and remembers the highest value."""

    def __init__(self) -> None:
        self.bytes = 0.0

    def set(self, value: float) -> None:
        self.bytes = max(self.bytes, value)


async def ticks() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_finds_no_room_waits_until_some_is_given_back() -> None:
    memory = ReadMemory(100)
    with memory.share() as one, memory.share() as other:
        first = await one.take(60)
        waiting = asyncio.create_task(other.take(60))
        await ticks()
        assert not waiting.done()
        first.fit(40)
        assert (await waiting).size_bytes == 60
        assert memory.used_bytes == 100
        first.release()
        first.release()
        assert memory.used_bytes == 60
    assert memory.used_bytes == 0


async def test_a_bound_smaller_than_a_page_lets_one_page_at_a_time_through() -> None:
    memory = ReadMemory(10)
    with memory.share() as one, memory.share() as other:
        room = await one.take(PAGE_BYTES)
        assert memory.used_bytes == 10
        room.fit(7)
        waiting = asyncio.create_task(other.take(PAGE_BYTES))
        await ticks()
        assert not waiting.done()
        room.release()
        (await waiting).release()


async def test_room_is_given_in_the_order_of_asking() -> None:
    memory = ReadMemory(100)
    with memory.share() as holder, memory.share() as large, memory.share() as small:
        held = await holder.take(50)
        order: list[str] = []

        async def ask(name: str, share: Share, need: int) -> Room:
            room = await share.take(need)
            order.append(name)
            return room

        first = asyncio.create_task(ask("large", large, 80))
        await ticks()
        second = asyncio.create_task(ask("small", small, 10))
        await ticks()
        # 10 would fit, but then who asks for much would never have its turn.
        assert order == []
        held.release()
        await asyncio.gather(first, second)
        assert order == ["large", "small"]


async def test_who_holds_room_leaves_a_page_to_those_that_hold_none() -> None:
    memory = ReadMemory(100 * MIB)
    with memory.share() as stuck, memory.share() as healthy:
        for _ in range(9):
            await stuck.take(10 * MIB)
        greedy = asyncio.create_task(stuck.take(MIB))
        await ticks()
        assert not greedy.done()
        room = await healthy.take(PAGE_BYTES)
        room.release()
        await ticks()
        assert not greedy.done()
        greedy.cancel()


async def test_nor_does_a_page_larger_than_expected_take_what_is_left_for_them() -> None:
    memory = ReadMemory(24 * MIB)
    with memory.share() as stuck, memory.share() as healthy:
        assert (await stuck.take(MIB)).fit(10 * MIB)
        surprise = await stuck.take(MIB)
        assert not surprise.fit(10 * MIB)
        assert surprise.fit(4 * MIB)
        async with asyncio.timeout(1):
            await healthy.take(PAGE_BYTES)


async def test_who_gives_up_waiting_is_in_nobodys_way() -> None:
    memory = ReadMemory(100)
    with memory.share() as holder, memory.share() as large, memory.share() as small:
        await holder.take(50)
        first = asyncio.create_task(large.take(80))
        await ticks()
        second = asyncio.create_task(small.take(50))
        await ticks()
        first.cancel()
        assert (await second).size_bytes == 50


async def test_a_reader_that_is_cancelled_as_it_is_admitted_keeps_nothing() -> None:
    memory = ReadMemory(100)
    with memory.share() as holder, memory.share() as other:
        held = await holder.take(100)
        waiting = asyncio.create_task(other.take(100))
        await ticks()
        held.release()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert memory.used_bytes == 0


@given(
    limit=st.integers(1, 60),
    loads=st.lists(st.lists(st.integers(0, 40), max_size=6), min_size=1, max_size=8),
    ahead=st.integers(1, 2),
)
def test_every_page_comes_through_and_the_bound_is_kept(limit: int, loads: list[list[int]], ahead: int) -> None:
    """Each shard reads its pages one after the other and commits each only when `ahead` of them are there."""
    peak = Peak()

    async def shard(memory: ReadMemory, pages: list[int]) -> None:
        with memory.share() as share:
            rooms: list[Room] = []
            for size in pages:
                if len(rooms) >= ahead:
                    rooms.pop(0).release()
                expected = 10
                while True:
                    taking = asyncio.create_task(share.take(expected))
                    await ticks()
                    while not taking.done() and rooms:
                        rooms.pop(0).release()
                        await ticks()
                    room = await taking
                    await ticks()
                    if room.fit(size):
                        break
                    room.release()
                    expected = size
                rooms.append(room)

    async def run() -> None:
        memory = ReadMemory(limit)
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            for pages in loads:
                group.create_task(shard(memory, pages))
        assert memory.used_bytes == 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(telemetry, "READ_MEMORY_BYTES", peak)
        asyncio.run(run())
    assert peak.bytes <= limit
