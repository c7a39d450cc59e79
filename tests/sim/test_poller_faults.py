"""A back office that lies, refuses or forgets: rows stay, watermarks claim no more than is proven, others go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from poller.index_store import S3IndexStore
from poller.loop import SourceLoop
from poller.source import FullWalk, Page, Position, Refused
from tests.fakes.poller_world import World
from tidegate import telemetry
from tidegate.errors import Transient
from tidegate.event import Cause, Operation


async def loaded(rows: int = 12, **how: Any) -> tuple[World, SourceLoop]:
    """A world whose rows are all published and swept once."""
    world = World(**how)
    for _ in range(rows):
        world.office.create()
    loop = await world.take()
    await world.spend(loop, 10)
    return world, loop


def change_pages(world: World, monkeypatch: pytest.MonkeyPatch, change: Callable[[Position, Page], Page]) -> None:
    """What the back office answers from now on to everything but keyed re-reads."""
    honest = world.source.fetch

    async def fetch(position: Position, mark: str = "", *, urgent: bool = True) -> Page:
        return change(position, await honest(position, mark, urgent=urgent))

    monkeypatch.setattr(world.source, "fetch", fetch)


def is_in_doubt(world: World) -> bool:
    return world.cursors.items["things"].progress.doubt


def emptied(position: Position, page: Page) -> Page:
    return replace(page, rows=(), has_more=False, following=position)


# ---------------------------------------------------------------- records that were lost


@pytest.mark.parametrize("by_time", [True, False])
async def test_records_lost_from_the_stream_come_back_on_request_under_the_same_versions(by_time: bool) -> None:
    world, loop = await loaded(by_time=by_time)
    del world.office.rows["K0004"]
    await world.spend(loop, 70)
    before = dict(world.stream.state)
    assert before["K0004"].operation is Operation.DELETE
    world.stream.state.clear()
    await world.spend(loop, 70)
    assert world.stream.state == {}, "sweeps compare with what was published"
    count = len(world.stream.events)
    loop = await world.take(republish=True)
    await world.spend(loop, 40)
    after = world.stream.state
    assert {key: event.event_id for key, event in after.items()} == {k: e.event_id for k, e in before.items()}
    assert loop.has_republished
    again = world.stream.events[count:]
    assert Cause.LIVE not in {event.cause for event in again}, "no news for the outside"
    await world.spend(loop, 100)
    assert len(world.stream.events) - count == len(again) <= 12 + 2, "once"


async def test_many_tombstones_published_again_are_no_mass_deletion() -> None:
    world, loop = await loaded(rows=40)
    for key in sorted(world.office.rows)[:18]:
        del world.office.rows[key]
    await world.spend(loop, 70)
    for key in sorted(world.office.rows)[:12]:
        del world.office.rows[key]
    await world.spend(loop, 70)
    assert len(world.stream.contents()) == 10
    world.stream.state.clear()
    loop = await world.take(republish=True)
    await world.spend(loop, 20)
    assert len(world.stream.state) == 40
    assert not is_in_doubt(world), "nothing was held"
    assert world.stream.contents() == world.truth()


async def test_without_its_cursor_everything_is_published_again() -> None:
    world, loop = await loaded()
    del world.office.rows["K0004"]
    await world.spend(loop, 70)
    before = dict(world.stream.state)
    world.stream.state.clear()
    world.cursors.items.clear()
    loop = await world.take()
    await world.spend(loop, 70)
    assert {k: e.event_id for k, e in world.stream.state.items()} == {k: e.event_id for k, e in before.items()}


# ---------------------------------------------------------------- watermarks


async def test_no_watermark_while_a_mass_deletion_waits_also_after_a_restart() -> None:
    world, loop = await loaded(rows=60)
    for key in sorted(world.office.rows)[:30]:
        del world.office.rows[key]
    await world.spend(loop, 40)
    count = len(world.stream.watermarks)
    await world.spend(loop, 100)
    await world.spend(await world.take(), 40)
    assert len(world.stream.watermarks) == count
    await world.spend(await world.take(allowed=True), 20)
    assert len(world.stream.watermarks) > count


async def test_a_mass_deletion_stays_held_where_two_walks_decide() -> None:
    world, loop = await loaded(rows=60, reread_size=0, by_time=False)
    for key in sorted(world.office.rows)[:30]:
        del world.office.rows[key]
    await world.spend(loop, 40)
    count = len(world.stream.watermarks)
    await world.spend(loop, 200)
    assert len(world.stream.watermarks) == count
    assert len(world.stream.contents()) == 60


async def test_doubt_stays_until_a_sweep_proves_something(monkeypatch: pytest.MonkeyPatch) -> None:
    world, loop = await loaded()
    honest = world.source.fetch

    def unproven(at: Position, page: Page) -> Page:
        return replace(page, as_of=None) if isinstance(at, FullWalk) else page

    def doubtful(at: Position, page: Page) -> Page:
        return unproven(at, replace(page, doubt=not isinstance(at, FullWalk)))

    change_pages(world, monkeypatch, doubtful)
    await world.spend(loop, 4)
    monkeypatch.setattr(world.source, "fetch", honest)
    change_pages(world, monkeypatch, unproven)
    count = len(world.stream.watermarks)
    await world.spend(loop, 100)
    assert is_in_doubt(world)
    assert len(world.stream.watermarks) == count
    monkeypatch.setattr(world.source, "fetch", honest)
    await world.spend(loop, 40)
    assert not is_in_doubt(world)
    assert len(world.stream.watermarks) > count


@pytest.mark.parametrize("by_time", [True, False])
async def test_a_clock_far_ahead_makes_no_watermark_of_the_future(
    by_time: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, loop = await loaded(by_time=by_time)
    honest = world.source.fetch
    year = timedelta(days=365)

    def ahead(_: Position, page: Page) -> Page:
        as_of = None if page.as_of is None else page.as_of + year
        return replace(page, as_of=as_of, served_at=page.served_at + year)

    change_pages(world, monkeypatch, ahead)
    count = len(world.stream.watermarks)
    with capture_logs() as logs:
        await world.spend(loop, 30)
        monkeypatch.setattr(world.source, "fetch", honest)
        await world.spend(loop, 30)
    assert len(world.stream.watermarks) > count, "by our own clock it goes on"
    assert max(world.stream.watermarks) <= world.office.now
    told = [line["event"] for line in logs if "clock" in line["event"]]
    assert told == [telemetry.POLLER_CLOCK_AHEAD, telemetry.POLLER_CLOCK_RIGHT], "once per change"


# ---------------------------------------------------------------- deletions that nothing proves


@pytest.mark.parametrize("reread_size", [4, 1])
@pytest.mark.parametrize("by_time", [True, False])
async def test_empty_answers_to_everything_delete_nothing(
    reread_size: int, by_time: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, loop = await loaded(reread_size=reread_size, by_time=by_time)
    honest, honest_reread = world.source.fetch, world.source.reread
    change_pages(world, monkeypatch, emptied)

    async def nothing(keys: Sequence[str]) -> Page:
        return replace(await honest_reread(keys), rows=())

    monkeypatch.setattr(world.source, "reread", nothing)
    await world.spend(loop, 100)
    assert len(world.stream.contents()) == 12
    monkeypatch.setattr(world.source, "fetch", honest)
    await world.spend(loop, 100)
    assert len(world.stream.contents()) == 12, "nor does a re-read that shows nothing"


@pytest.mark.parametrize("reread_size", [4, 1])
async def test_a_reread_that_shows_nothing_proves_nothing(reread_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    world, loop = await loaded(reread_size=reread_size)
    honest = world.source.reread

    async def nothing(keys: Sequence[str]) -> Page:
        return replace(await honest(keys), rows=())

    monkeypatch.setattr(world.source, "reread", nothing)
    world.source.hidden = {"K0003"}
    await world.spend(loop, 100)
    assert len(world.stream.contents()) == 12
    monkeypatch.setattr(world.source, "reread", honest)
    world.source.hidden = set()
    del world.office.rows["K0003"]
    await world.spend(loop, 70)
    assert world.stream.contents() == world.truth(), "a canary in a request of its own is enough"


async def test_a_back_office_that_is_really_empty_waits_for_a_person() -> None:
    world, loop = await loaded()
    world.office.rows.clear()
    await world.spend(loop, 70)
    assert len(world.stream.contents()) == 12
    await world.spend(await world.take(allowed=True), 40)
    assert world.stream.contents() == {}


# ---------------------------------------------------------------- failures of one source


async def test_a_source_that_refuses_waits_long_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    world, loop = await loaded()
    honest = world.source.fetch
    asked: list[float] = []

    async def refuse(position: Position, mark: str = "", *, urgent: bool = True) -> Page:
        asked.append(world.clock_s)
        raise Refused("it answered 404")

    monkeypatch.setattr(world.source, "fetch", refuse)
    with capture_logs() as logs:
        await world.spend(loop, 1800)
    assert 4 <= len(asked) <= 40, "polls and sweeps, not every second"
    assert {line["log_level"] for line in logs if line["event"] == telemetry.POLLER_REFUSED} == {"error"}
    monkeypatch.setattr(world.source, "fetch", honest)
    key = world.office.create()
    await world.spend(loop, 600)
    assert key in world.stream.contents()


@pytest.mark.parametrize("reread_size", [4, 0])
async def test_a_key_twice_in_one_answer_keeps_its_newer_version(
    reread_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, loop = await loaded(rows=3, reread_size=reread_size, by_time=False)

    def twice(_: Position, page: Page) -> Page:
        old = [dict(row, stamp=datetime(2020, 1, 1, tzinfo=UTC).isoformat(), content=77) for row in page.rows]
        return replace(page, rows=(*page.rows, *old))

    change_pages(world, monkeypatch, twice)
    count = len(world.stream.events)
    await world.spend(loop, 40)
    assert len(world.stream.events) == count, "nothing flaps"


async def test_with_nobody_to_ask_a_falling_version_in_the_same_answer_is_left_alone() -> None:
    world, _ = await loaded(rows=1, reread_size=0, by_time=False)
    term = world.term()
    await term.open(0)
    read, page = await term.fetch(FullWalk())
    newer = dict(page.rows[0], stamp="2026-12-01T00:00:00+00:00", content=1)
    older = dict(newer, stamp="2026-11-30T00:00:00+00:00", content=2)
    changes = await term.settle([newer, older], term.sight(read, page, Cause.LIVE))
    assert len(changes.records) == 1
    assert changes.entries["K0001"].source_version == int(datetime(2026, 12, 1, tzinfo=UTC).timestamp() * 1_000_000)


async def test_journals_are_bounded_though_no_sweep_ever_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    world, loop = await loaded()
    world.settings = replace(world.settings, journals_most=10)
    loop = await world.take()
    honest = world.source.fetch

    async def no_walks(position: Position, mark: str = "", *, urgent: bool = True) -> Page:
        if isinstance(position, FullWalk):
            raise Transient("listing is down")
        return await honest(position, mark, urgent=urgent)

    monkeypatch.setattr(world.source, "fetch", no_walks)
    await world.spend(loop, 300, changes=3)
    assert sum("/journal/" in key for key in world.bucket.objects) <= 11
    opened = await S3IndexStore(world.bucket, "state").load(world.cursors.items["things"])
    assert opened.index.unsure() == []
