"""When a source is polled and swept: intervals that grow, cron expressions, and sweeps that are bounded."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from typing import Any

from msgspec.structs import replace

from poller.source import FullWalk, Page, Position
from tests.fakes.poller_world import THINGS, World


class Watched(World):
    """Notes when it was asked: `polls` and `walks`, in seconds of its own clock, and by its wall clock."""

    def __init__(self, **changed: Any) -> None:
        super().__init__(declared=replace(THINGS, **changed))
        for _ in range(12):
            self.office.create()
        self.polls: list[float] = []
        self.walks: list[float] = []
        self.polled_at: list[datetime] = []
        self.walked_at: list[datetime] = []
        honest = self.source.fetch

        async def fetch(position: Position, mark: str = "", *, urgent: bool = True) -> Page:
            is_walk = isinstance(position, FullWalk)
            (self.walks if is_walk else self.polls).append(self.clock_s)
            (self.walked_at if is_walk else self.polled_at).append(self.office.now)
            return await honest(position, mark, urgent=urgent)

        self.source.fetch = fetch  # type: ignore[method-assign]

    def forget(self) -> None:
        for seen in (self.polls, self.walks, self.polled_at, self.walked_at):
            seen.clear()


def gaps(times: list[float]) -> list[int]:
    """Whole seconds between requests; the pages of one poll follow each other at once."""
    return [gap for before, after in pairwise(times) if (gap := round(after - before))]


async def test_the_pause_grows_while_nothing_changes_and_ends_with_the_first_change() -> None:
    world = Watched(poll_interval_s=2, poll_most_s=20, sweep_interval_s=100_000, overlap_s=0)
    loop = await world.take()
    await world.spend(loop, 200)
    quiet = gaps(world.polls)[-4:]
    assert quiet == [20] * 4, "bounded"
    assert sorted(gaps(world.polls)) == gaps(world.polls), "slower and slower"
    world.office.create()
    world.forget()
    await world.spend(loop, 60)
    assert gaps(world.polls)[:3] == [2, 3, 4]


async def test_polls_by_the_clock() -> None:
    world = Watched(poll_cron="*/5 * * * *", sweep_interval_s=100_000)
    loop = await world.take()
    await world.spend(loop, 60)
    world.forget()
    await world.spend(loop, 1_800)
    assert {at.minute % 5 for at in world.polled_at} == {0}
    assert len({at.replace(second=0, microsecond=0) for at in world.polled_at}) == 6


async def test_sweeps_by_the_clock_of_their_zone() -> None:
    world = Watched(poll_interval_s=60, sweep_cron="30 7 * * *", zone="Europe/Zurich")
    loop = await world.take()
    await world.spend(loop, 60)
    assert world.walks, "a poller that takes a source cannot know what was missed, and sweeps once"
    world.forget()
    await world.spend(loop, 3_600)
    assert {(at.hour, at.minute) for at in world.walked_at} == {(6, 30)}, "UTC"


async def test_a_sweep_asks_no_more_often_than_it_may_and_polls_go_on_beside_it() -> None:
    world = Watched(poll_interval_s=1, sweep_interval_s=100_000, sweep_requests_per_s=0.25, overlap_s=0)
    loop = await world.take()
    await world.spend(loop, 40)
    assert loop.sweeps == 1
    assert gaps(world.walks) == [4] * (len(world.walks) - 1)
    assert len(world.walks) > 2
    assert len(world.polls) > 20
