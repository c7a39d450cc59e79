"""The poller ends at every point where it touches the outside, and nothing is lost.

One script of a back office's life is played against production code. First undisturbed, to count the calls to the
outside; then once for each call and side: the process ends right before the call, or right after its effect with a
publish half done. Another process takes the lease; in the end the stream's state must be the back office's.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import pytest

from poller.index_store import S3IndexStore
from poller.loop import SourceLoop
from poller.snapshot import Entry, State
from poller.source import Cursor
from tests.fakes.poller_world import PLAIN_THINGS, THINGS, Crash, World
from tidegate.bubble import Source

Act = Callable[[World], None]


def bulk(world: World) -> None:
    for _ in range(12):
        world.office.create()


def some_life(world: World) -> None:
    world.office.write("K0002")
    world.office.create()
    world.edit_silently("K0003", 7_001)
    world.edit_silently("K0004", -1)


def deletions(world: World) -> None:
    del world.office.rows["K0001"], world.office.rows["K0005"]
    world.edit_silently("K0003", 7_002)
    world.edit_silently("K0004", 7_003)


def comes_back_older(world: World) -> None:
    world.office.write("K0001")
    row = world.office.rows["K0001"]
    world.office.rows["K0001"] = row._replace(stamp=row.stamp.replace(hour=3))
    # What was published between must not stay, though the row is again what it once was.
    world.edit_silently("K0003", 7_001)


def nothing(_: World) -> None:
    """Time to heal."""


SCRIPT: list[tuple[Act, float]] = [(bulk, 4), (some_life, 36), (deletions, 36), (comes_back_older, 36), (nothing, 70)]
ORDINARY = {"request", "watermark"}


def is_never_ahead(world: World) -> Callable[[Cursor], None]:
    """The cursor vouches for a journal only when the stream has every event that it names."""
    vouched: set[tuple[int, int]] = set()

    def check(cursor: Cursor) -> None:
        if not cursor.journal or (cursor.journal, cursor.epoch) in vouched:
            return
        body = world.bucket.objects.get(f"things/journal/{cursor.journal:012d}-{cursor.epoch}")
        if body is None:
            # Of an earlier term, and vouched for then.
            return
        entries = msgspec.msgpack.decode(body, type=dict[str, Entry])
        taken = {(event.key.key, event.version) for event in world.stream.events}
        published = {(key, entry.version) for key, entry in entries.items() if entry.state is not State.QUARANTINED}
        assert published <= taken, "the cursor is ahead of the stream"
        vouched.add((cursor.journal, cursor.epoch))

    return check


async def play(world: World, *, late: bool = False) -> int:
    """The whole script; a process that ends is replaced, `late`: not before the next thing happened there.

    Answers how many processes ended.
    """
    crashes = 0
    loop: SourceLoop | None = None
    world.cursors.on_advance = is_never_ahead(world)
    for act, seconds in SCRIPT:
        act(world)
        end = world.clock_s + seconds
        while world.clock_s < end:
            try:
                loop = loop or await world.take()
                await world.spend(loop, end - world.clock_s)
            except Crash:
                crashes += 1
                loop = None
                if late and act is not nothing:
                    world.idle(end - world.clock_s)
    return crashes


def chosen(names: list[str]) -> list[int]:
    """All calls that change something durable, and some of the many others."""
    return [at for at, name in enumerate(names) if name not in ORDINARY or at % 31 == 0]


@pytest.mark.parametrize("late", [False, True], ids=["at-once", "late"])
@pytest.mark.parametrize("declared", [THINGS, PLAIN_THINGS], ids=["versions", "no-versions"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("reread_size", [4, 0], ids=["by-key", "no-reread"])
async def test_a_crash_at_any_call_loses_nothing(declared: Source, after: bool, reread_size: int, late: bool) -> None:
    undisturbed = World(declared=declared, reread_size=reread_size)
    assert await play(undisturbed) == 0
    assert undisturbed.stream.contents() == undisturbed.truth()
    names = undisturbed.fate.names
    assert {"put journal", "publish", "advance cursor", "put snapshot", "delete objects", "watermark"} <= set(names)
    for at in chosen(names):
        world = World(declared=declared, reread_size=reread_size)
        world.set_fate(at, after=after)
        crashes = await play(world, late=late)
        where = f"{'after' if after else 'before'} call {at}: {names[at]}"
        assert crashes == (names[at] != "request" or not after), where
        assert world.stream.contents() == world.truth(), where


@pytest.mark.parametrize("seed", range(12))
async def test_many_crashes_in_a_lively_back_office(seed: int) -> None:
    world = World(seed)
    dice = random.Random(seed)
    bulk(world)

    def everything_before_was_published(as_of: object) -> None:
        published = {(event.key.key, event.payload["content"]) for event in world.stream.events if event.payload}
        late = [row for row in world.office.rows.values() if row.changed_at < as_of]  # type: ignore[operator]
        assert [row for row in late if (row.key, row.content) not in published] == []

    world.stream.on_watermark = everything_before_was_published
    world.cursors.on_advance = is_never_ahead(world)
    for _ in range(15):
        world.set_fate(dice.randrange(60), after=dice.random() < 0.5)
        try:
            await world.spend(await world.take(), 20, changes=2)
        except Crash:
            continue
    world.set_fate(None)
    await world.spend(await world.take(), 70)
    assert world.stream.contents() == world.truth()
    assert world.stream.watermarks


async def test_a_cursor_that_runs_ahead_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lose(*_: object) -> None:
        return None

    world = World()
    monkeypatch.setattr(world.stream, "publish", lose)
    with pytest.raises(AssertionError, match="ahead of the stream"):
        await play(world)


async def test_the_proof_can_fail_without_journals(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that forgets what was half published keeps a row that is long gone: exactly what journals prevent."""

    async def forget(*_: object) -> None:
        return None

    monkeypatch.setattr(S3IndexStore, "append", forget)
    undisturbed = World(declared=PLAIN_THINGS)
    await play(undisturbed)
    wrong = 0
    for at in [at for at, name in enumerate(undisturbed.fate.names) if name == "publish"]:
        world = World(declared=PLAIN_THINGS)
        world.set_fate(at, after=True)
        await play(world, late=True)
        wrong += world.stream.contents() != world.truth()
    assert wrong
