"""What the simulation counts: a watch that overlooked something would prove nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
from msgspec.structs import replace

from local.fleet.faults import Trouble, was_away
from local.fleet.report import quantiles
from local.fleet.watch import Watch, Worker
from tidegate.leases import Hold, Lease, at

EXPIRY_S, PATIENCE_S = 10.0, 8.0


class Someone:
    """A worker as far as the watch knows it; its clock shows what it is told to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_dead = False
        self.clock = 0.0
        self.troubles: list[Trouble] = []

    def clock_s(self) -> float:
        return self.clock

    def was_away(self, since_s: float, until_s: float, longer_than_s: float) -> bool:
        return was_away(self.troubles, since_s, until_s, longer_than_s)


class Scene:
    """A watch, three workers, and a table that says what is written."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.watch = Watch(lambda: self.now_s, 2, expiry_s=EXPIRY_S, patience_s=PATIENCE_S)
        self.a, self.b, self.c = Someone("a"), Someone("b"), Someone("c")
        for worker in (self.a, self.b, self.c):
            self.watch.join(cast(Worker, worker))
        self.leases = {"x": Lease(key="x"), "y": Lease(key="y")}

    def take(self, key: str, worker: Someone) -> None:
        before = self.leases[key]
        self.leases[key] = replace(before, owner=worker.name, epoch=before.epoch + 1, counter=before.counter + 1)
        self.watch.written(before, self.leases[key])

    def hold(self, key: str, until_s: float) -> Hold:
        return cast(Hold, SimpleNamespace(key=key, is_valid=lambda now_s: now_s < until_s))


def test_two_that_believe_at_once_are_seen_when_the_later_one_begins() -> None:
    scene = Scene()
    scene.watch.began(scene.a, scene.hold("x", until_s=8.0))
    scene.a.clock = 7.9
    scene.watch.began(scene.b, scene.hold("x", until_s=99.0))
    assert scene.watch.two_believers == 1


def test_a_belief_is_judged_by_the_believers_own_clock() -> None:
    scene = Scene()
    scene.watch.began(scene.a, scene.hold("x", until_s=8.0))
    scene.now_s, scene.a.clock = 5.0, 8.1
    work = scene.watch.began(scene.b, scene.hold("x", until_s=99.0))
    assert scene.watch.two_believers == 0
    scene.a.clock = 7.0  # were it to believe again
    scene.watch.stepped(work)
    assert scene.watch.two_believers == 1


def test_the_dead_believe_nothing() -> None:
    scene = Scene()
    scene.watch.began(scene.a, scene.hold("x", until_s=99.0))
    scene.watch.killed(scene.a)
    scene.a.is_dead = True
    scene.now_s = 11.5
    scene.watch.began(scene.b, scene.hold("x", until_s=99.0))
    assert (scene.watch.two_believers, scene.watch.takeovers_s) == (0, [11.5])


def test_a_first_take_and_a_take_from_the_dead_are_no_moves() -> None:
    scene = Scene()
    scene.take("x", scene.a)
    scene.take("x", scene.a)
    scene.a.is_dead = True
    scene.take("x", scene.b)
    assert scene.watch.moves.total() == 0


@pytest.mark.parametrize(
    ("begins_s", "lasts_s", "kind"),
    [
        (100.0, 20.0, "forced"),
        (85.0, 10.0, "forced"),  # it came back just before: the expiry had passed already
        (100.0, 3.0, "unexplained"),  # short: to be survived
        (60.0, 20.0, "unexplained"),  # over for longer than the expiry
        (111.0, 20.0, "unexplained"),  # not begun
    ],
)
def test_only_a_long_and_recent_absence_explains_a_move(begins_s: float, lasts_s: float, kind: str) -> None:
    scene = Scene()
    scene.take("x", scene.a)
    scene.a.troubles.append(Trouble("long_stall", 0, begins_s, lasts_s))
    scene.now_s = 104.0 if begins_s != 111.0 else 110.0
    scene.take("x", scene.b)
    assert dict(scene.watch.moves) == {kind: 1}


def test_what_was_lost_by_force_may_come_back_once_and_no_more() -> None:
    scene = Scene()
    for key in ("x", "y"):
        scene.take(key, scene.a if key == "x" else scene.b)
    scene.a.troubles.append(Trouble("long_cut", 0, 100.0, 20.0))
    scene.now_s = 112.0
    scene.take("x", scene.b)
    scene.now_s = 200.0
    scene.take("y", scene.a)
    assert dict(scene.watch.moves) == {"forced": 2}
    scene.take("x", scene.a)
    assert dict(scene.watch.moves) == {"forced": 2, "unexplained": 1}


def test_a_checkpoint_that_falls_is_seen() -> None:
    scene = Scene()
    forward = replace(scene.leases["x"], checkpoint=at("10"))
    scene.watch.written(scene.leases["x"], forward)
    assert scene.watch.checkpoints_back == 0
    scene.watch.written(forward, replace(forward, checkpoint=at("9")))
    assert scene.watch.checkpoints_back == 1


def test_full_means_that_every_lease_is_worked_on() -> None:
    scene = Scene()
    x = scene.watch.began(scene.a, scene.hold("x", until_s=9.0))
    assert not scene.watch.is_full()
    scene.watch.began(scene.b, scene.hold("y", until_s=9.0))
    assert scene.watch.is_full()
    assert scene.watch.believed() == 2
    scene.a.clock = 10.0
    assert scene.watch.believed() == 1
    scene.watch.ended(x)
    assert not scene.watch.is_full()


def test_quantiles_are_cases_that_occurred() -> None:
    assert quantiles([float(value) for value in range(1, 101)]) == quantiles(list(map(float, range(100, 0, -1))))
    figures = quantiles([float(value) for value in range(1, 101)])
    assert (figures.p50, figures.p99, figures.max) == (50, 99, 100)
    assert quantiles([]).max == 0
