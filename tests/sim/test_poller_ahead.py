"""The next page is asked for while the one in hand is published, and nothing that is promised depends on it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from poller.changes import Record
from poller.csv_drop import CsvDropSource
from poller.gate import Gate
from poller.rest import RestSource
from poller.snapshot import Entry, Seen, State, judge
from poller.source import FullWalk, Page, Position, SinceRevision, SinceToken
from tests.fakes.poller_world import PLAIN_THINGS, THINGS, World
from tidegate.errors import Fatal
from tidegate.feeds import Env, Office, Rest


class Watched:
    """What was asked for and published, in order; each can be held up."""

    def __init__(self, world: World) -> None:
        self.told: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_publish = asyncio.Event()
        self.publishes = asyncio.Event()
        self.asks = asyncio.Event()
        self.given_up = 0
        self._fetch, self._publish = world.source.fetch, world.stream.publish
        world.source.fetch = self.fetch  # type: ignore[method-assign]
        world.stream.publish = self.publish  # type: ignore[method-assign]

    async def fetch(self, position: Position, mark: str = "", *, urgent: bool = True) -> Page:
        assert isinstance(position, FullWalk)
        self.told.append(f"ask {position.page or 1}")
        if position.page is not None:
            self.asks.set()
            try:
                await self.may_answer.wait()
            except asyncio.CancelledError:
                self.given_up += 1
                raise
        return await self._fetch(position, mark, urgent=urgent)

    async def publish(self, records: Sequence[Record]) -> None:
        self.publishes.set()
        await self.may_publish.wait()
        await self._publish(records)
        self.told.append(f"publish {len(records)}")


def walked(rows: int = 12, **how: object) -> World:
    """A back office without changes to ask for, so that each page is one of a walk; five rows a page."""
    world = World(by_time=False, **how)  # type: ignore[arg-type]
    for _ in range(rows):
        world.office.create()
    return world


async def test_a_page_is_asked_for_once_while_the_one_before_it_is_published() -> None:
    world = walked()
    loop, watched = await world.take(), Watched(world)
    watched.may_answer.set()
    async with asyncio.TaskGroup() as group:
        step = group.create_task(loop.step())
        await watched.asks.wait()
        await watched.publishes.wait()
        assert watched.told == ["ask 1", "ask 2"]
        assert not step.done()
        assert world.stream.events == []
        assert not world.cursors.items["things"].journal, "the cursor waits for the stream"
        watched.may_publish.set()
    await loop.step()
    await loop.step()
    assert watched.told == ["ask 1", "ask 2", "publish 5", "ask 3", "publish 5", "publish 2"]
    assert world.stream.contents() == world.truth()


async def test_who_stops_publishes_the_page_in_hand_and_waits_for_no_other() -> None:
    world = walked()
    term = world.term()
    loop, watched = await world.take(term=term), Watched(world)
    async with asyncio.TaskGroup() as group:
        group.create_task(loop.step())
        await watched.asks.wait()
        await watched.publishes.wait()
        term.stop.set()
        watched.may_publish.set()
    assert watched.told == ["ask 1", "ask 2", "publish 5"]
    assert watched.given_up == 1
    watched.may_answer.set()
    await world.spend(await world.take(), 10)
    assert world.stream.contents() == world.truth()
    assert len(world.stream.events) == 12, "nothing twice"


async def test_a_back_office_that_fails_meanwhile_does_not_hold_up_the_page_in_hand() -> None:
    world = walked()
    loop, watched = await world.take(), Watched(world)
    watched.may_publish.set()
    async with asyncio.TaskGroup() as group:
        step = group.create_task(loop.step())
        await watched.asks.wait()
        world.source.outage = True
        watched.may_answer.set()
    assert step.result() == 0.0
    assert watched.told == ["ask 1", "ask 2", "publish 5"]
    assert 0 < await loop.step() <= 0.5, "and is left alone as after any failure"
    world.source.outage = False
    await world.spend(loop, 5)
    assert watched.told[3:7] == ["ask 2", "ask 3", "publish 5", "publish 2"]
    assert world.stream.contents() == world.truth()


async def test_a_page_that_cannot_be_published_ends_the_asking_and_says_why_itself() -> None:
    world = walked()
    loop, watched = await world.take(), Watched(world)

    async def refuse(_: object) -> None:
        raise Fatal("no such stream")

    world.stream.publish = refuse  # type: ignore[method-assign,assignment]
    with pytest.raises(Fatal, match="no such stream"):
        await loop.step()
    assert (watched.told, watched.given_up) == (["ask 1", "ask 2"], 1)


@pytest.mark.parametrize("reread_size", [4, 0])
@pytest.mark.parametrize("declared", [THINGS, PLAIN_THINGS], ids=["versions", "no-versions"])
async def test_what_was_asked_for_ahead_cannot_undo_what_a_poll_showed_since(
    declared: object, reread_size: int
) -> None:
    world = World(declared=declared, reread_size=reread_size)  # type: ignore[arg-type]
    for _ in range(12):
        world.office.create()
    loop = await world.take()
    await world.spend(loop, 5)
    world.idle(40)
    asked: list[Position] = []
    honest = world.source.fetch

    async def fetch(position: Position, mark: str = "", *, urgent: bool = True) -> Page:
        asked.append(position)
        return await honest(position, mark, urgent=urgent)

    world.source.fetch = fetch  # type: ignore[method-assign]
    while not any(isinstance(each, FullWalk) and each.page == 2 for each in asked):
        await loop.step()
    # K0007 is on the second page, which is in memory now.
    world.office.write("K0007")
    newest = world.office.rows["K0007"].content
    while world.stream.contents()["K0007"] != newest:
        world.clock_s += 1
        world.office.pass_time(1)
        await loop.step()
    events = len(world.stream.events)
    await world.spend(loop, 100)
    assert world.stream.contents() == world.truth()
    assert [event.key.key for event in world.stream.events[events:]] == []


async def test_a_row_that_goes_after_its_page_was_asked_for_is_found_by_the_next_walk() -> None:
    world = walked(reread_size=0)
    loop, watched = await world.take(), Watched(world)
    watched.may_answer.set()
    watched.may_publish.set()
    await loop.step()
    assert watched.told[:2] == ["ask 1", "ask 2"]
    del world.office.rows["K0007"], world.office.rows["K0002"]
    await world.spend(loop, 30)
    assert world.stream.contents() == world.truth()


async def test_a_walk_that_is_paced_asks_for_nothing_ahead() -> None:
    world = walked(declared=replace(THINGS, sweep_requests_per_s=1.0))
    loop, watched = await world.take(), Watched(world)
    watched.may_answer.set()
    watched.may_publish.set()
    await loop.step()
    assert watched.told == ["ask 1", "publish 5"]


def test_who_may_be_asked_ahead() -> None:
    assert not CsvDropSource.may_ask_ahead(None, FullWalk(page=5))  # type: ignore[arg-type]
    office = Office(name="o", requests_per_s=10)
    feed = Rest(url=Env("URL"), path="/", rows="rows", key="key", paging=THINGS.feed.paging, office=office)  # type: ignore[union-attr]
    now = 100.0
    gate = Gate(office, clock=lambda: now)
    source = RestSource(THINGS, feed, None, {"URL": "http://o"}, gate)  # type: ignore[arg-type]
    assert source.may_ask_ahead(FullWalk(page=2))
    assert source.may_ask_ahead(SinceRevision(bound=5))
    assert not source.may_ask_ahead(SinceToken(token="t")), "it may say that what came before has arrived"
    gate.pause(5)
    assert not source.may_ask_ahead(FullWalk(page=2)), "it asked to be left alone"


VERSIONS = st.one_of(st.none(), st.integers(0, 3))


@given(
    known=st.builds(
        Entry, generation=st.integers(0, 1), source_version=st.integers(0, 3), epoch=st.just(7), read=st.integers(1, 9),
        translation=st.just(1), fingerprint=st.sampled_from([b"a" * 8, b"b" * 8]), state=st.sampled_from(State),
        unsure=st.booleans(),
    ),
    version=VERSIONS, read=st.integers(1, 9), keyed=st.booleans(),
)  # fmt: skip
def test_an_older_look_at_other_content_decides_nothing(
    known: Entry, version: int | None, read: int, keyed: bool
) -> None:
    entry = judge(known, Seen(b"c" * 8, version, 7, read, 1, keyed))
    if read < known.read:
        assert entry is None
    elif entry is not None and version is not None and version >= known.source_version and read > known.read:
        assert entry.version > known.version
