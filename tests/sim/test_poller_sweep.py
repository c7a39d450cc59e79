"""Sweeps, generations and limits, played against an office in memory; time is the test's own."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from poller.source import FullWalk, Page, Position
from tests.fakes.poller_world import PLAIN_THINGS, THINGS, World
from tidegate.errors import Superseded
from tidegate.event import Cause, Operation


async def loaded(rows: int = 12, **how: object) -> World:
    """A world whose rows are all published and swept once."""
    world = World(**how)  # type: ignore[arg-type]
    for _ in range(rows):
        world.office.create()
    return world


async def test_the_first_load_is_a_backfill_and_what_follows_is_live() -> None:
    world = await loaded()
    loop = await world.take()
    await world.spend(loop, 5)
    assert {event.cause for event in world.stream.events} == {Cause.BACKFILL}
    world.office.write("K0002")
    await world.spend(loop, 5)
    assert [(event.key.key, event.cause) for event in world.stream.events[12:]] == [("K0002", Cause.LIVE)]


async def test_a_silent_change_and_a_deletion_are_found_by_the_sweep() -> None:
    world = await loaded()
    loop = await world.take()
    await world.spend(loop, 5)
    world.edit_silently("K0003", 999)
    del world.office.rows["K0004"]
    await world.spend(loop, 40)
    found = {(event.key.key, event.operation, event.cause) for event in world.stream.events[12:]}
    assert found == {("K0003", Operation.UPSERT, Cause.SWEEP), ("K0004", Operation.DELETE, Cause.SWEEP)}


async def test_a_row_that_slips_a_walk_is_asked_for_and_lives() -> None:
    world = await loaded()
    loop = await world.take()
    await world.spend(loop, 5)
    world.source.hidden = {"K0003"}
    await world.spend(loop, 100)
    assert len(world.stream.events) == 12


async def test_without_a_reread_a_second_walk_decides() -> None:
    world = await loaded(reread_size=0)
    loop = await world.take()
    await world.spend(loop, 5)
    del world.office.rows["K0003"]
    await world.spend(loop, 40)
    assert world.stream.contents() == world.truth()


@pytest.mark.parametrize("reread_size", [4, 0])
async def test_a_deleted_key_that_is_back_gets_a_new_generation(reread_size: int) -> None:
    world = await loaded(reread_size=reread_size)
    loop = await world.take()
    await world.spend(loop, 5)
    row = world.office.rows.pop("K0003")
    await world.spend(loop, 70)
    assert world.stream.contents() == world.truth()
    world.office.rows["K0003"] = row
    await world.spend(loop, 40)
    assert world.stream.contents() == world.truth()
    assert world.stream.state["K0003"].version.generation == 1


async def test_more_deletions_than_the_limit_wait_for_a_person_and_polling_goes_on() -> None:
    world = await loaded(rows=60)
    loop = await world.take()
    await world.spend(loop, 5)
    for key in sorted(world.office.rows)[:30]:
        del world.office.rows[key]
    await world.spend(loop, 80)
    assert len(world.stream.contents()) == 60, "nothing is deleted, not even in part"
    key = world.office.create()
    await world.spend(loop, 5)
    assert key in world.stream.contents()
    await world.spend(await world.take(allowed=True), 40)
    assert world.stream.contents() == world.truth()


@pytest.mark.parametrize("by_time", [True, False])
async def test_an_empty_walk_with_nobody_to_ask_deletes_nothing(by_time: bool) -> None:
    world = await loaded(rows=5, reread_size=0, by_time=by_time)
    loop = await world.take()
    await world.spend(loop, 5)
    world.source.hidden = set(world.office.rows)
    await world.spend(loop, 100)
    assert len(world.stream.contents()) == 5


async def test_a_reread_that_ignores_its_keys_deletes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await loaded()
    loop = await world.take()
    await world.spend(loop, 5)
    world.source.hidden = {"K0003"}
    honest = world.source.reread
    monkeypatch.setattr(world.source, "reread", lambda keys: honest(["K0009"]))
    await world.spend(loop, 40)
    monkeypatch.setattr(world.source, "reread", lambda keys: honest(["nobody"]))
    await world.spend(loop, 80)
    assert len(world.stream.contents()) == 12


async def test_a_new_translation_republishes_everything_at_once() -> None:
    world = await loaded()
    loop = await world.take()
    await world.spend(loop, 40)
    world.declared = replace(THINGS, translation=2)
    await world.spend(await world.take(), 5)
    assert [event.cause for event in world.stream.events[12:]] == [Cause.RETRANSLATE] * 12
    await world.spend(await world.take(), 40)
    assert len(world.stream.events) == 24, "once"


async def test_a_source_without_changes_is_walked_all_the_time() -> None:
    world = await loaded(by_time=False)
    loop = await world.take()
    await world.spend(loop, 4)
    assert {event.cause for event in world.stream.events} == {Cause.BACKFILL}
    world.office.write("K0001")
    del world.office.rows["K0002"]
    await world.spend(loop, 8)
    assert {event.cause for event in world.stream.events[12:]} == {Cause.LIVE}
    assert world.stream.contents() == world.truth()
    assert world.stream.watermarks == sorted(set(world.stream.watermarks)) != []


async def test_an_outage_only_ages_the_watermark() -> None:
    world = await loaded()
    loop = await world.take()
    await world.spend(loop, 10)
    before = len(world.stream.watermarks)
    world.source.outage = True
    await world.spend(loop, 60)
    assert len(world.stream.watermarks) == before
    world.office.write("K0001")
    world.source.outage = False
    await world.spend(loop, 40)
    assert world.stream.contents() == world.truth()
    assert len(world.stream.watermarks) > before


async def test_an_older_poller_cannot_move_the_cursor_nor_write_over_the_index() -> None:
    world = await loaded()
    old = await world.take()
    await world.spend(old, 5)
    new = await world.take()
    world.office.write("K0001")
    with pytest.raises(Superseded):
        await world.spend(old, 10)
    await world.spend(new, 40)
    assert world.stream.contents() == world.truth()
    after = await world.take()
    count = len(world.stream.events)
    await world.spend(after, 40)
    assert len(world.stream.events) == count, "the index that was loaded knows everything"


async def test_what_an_older_poller_published_too_late_is_put_right() -> None:
    world = await loaded(declared=PLAIN_THINGS)
    old = await world.take()
    await world.spend(old, 40)
    new = await world.take()
    row = world.office.rows["K0001"]
    world.office.write("K0001")
    with pytest.raises(Superseded):
        await world.spend(old, 10)
    # The old one published it; the new one never sees it, for the row is again as it knows it.
    assert world.stream.contents() == world.truth()
    world.office.rows["K0001"] = row
    await world.spend(new, 70)
    assert world.stream.contents() == world.truth()


async def test_a_lost_cursor_table_starts_over_and_stays_right() -> None:
    world = await loaded()
    await world.spend(await world.take(), 10)
    world.office.write("K0001")
    del world.office.rows["K0002"]
    world.cursors.items.clear()
    await world.spend(await world.take(), 70)
    assert world.stream.contents() == world.truth()


async def test_a_lease_that_is_lost_stops_before_the_next_write() -> None:
    world = await loaded()
    is_lost = False

    def check() -> None:
        if is_lost:
            raise Superseded("the lease is gone")

    loop = await world.take(term=world.term(check))
    await world.spend(loop, 5)
    is_lost = True
    count = len(world.fate.names)
    with pytest.raises(Superseded):
        await world.spend(loop, 60)
    assert len(world.fate.names) == count


@pytest.mark.parametrize("reread_size", [4, 0])
async def test_a_sweep_goes_on_where_another_poller_left_it(reread_size: int) -> None:
    world = await loaded(rows=60, reread_size=reread_size)
    world.settings = replace(world.settings, sweep_kept_s=0.01)
    loop = await world.take()
    await world.spend(loop, 5)
    for key in ("K0002", "K0058"):
        del world.office.rows[key]
    world.fate.names.clear()
    asked: list[int] = []
    honest = world.source.fetch

    async def fetch(position: Position, mark: str = "", *, urgent: bool = True) -> Page:
        if isinstance(position, FullWalk):
            asked.append(int(position.page or 1))
        return await honest(position, mark, urgent=urgent)

    world.source.fetch = fetch  # type: ignore[method-assign]
    while max(asked, default=0) < 7:
        await world.spend(loop, 0.01)
    new = world.office.create()
    before = list(asked)
    loop = await world.take()
    await world.spend(loop, 6)
    resumed = asked[len(before) :]
    assert min(resumed[:3]) >= 6, "it does not begin anew"
    await world.spend(loop, 40)
    assert world.stream.contents() == world.truth()
    assert new in world.stream.contents()


async def test_a_sweep_that_was_over_is_not_gone_on_with() -> None:
    world = await loaded(rows=30)
    world.settings = replace(world.settings, sweep_kept_s=0.01)
    await world.spend(await world.take(), 40)
    assert world.bucket.objects["things/sweep"] == b""
    del world.office.rows["K0002"]
    await world.spend(await world.take(), 20)
    assert world.stream.contents() == world.truth()
