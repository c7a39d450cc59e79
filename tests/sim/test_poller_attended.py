"""A source with a person beside it: paused, resumed, and sent on errands, while changes go on being polled."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any, cast

import pytest
from msgspec.structs import replace

from poller.attended import Attended
from poller.drift import LEARN_ROWS, Shape, ShapeWatch
from poller.loop import SourceLoop
from poller.term import Stores, Term
from tests.fakes.poller_world import THINGS, Thing, World, translate
from tests.fakes.signals import MemorySignals
from tidegate.bubble import ByTime, RawRow, Rest, Source
from tidegate.event import Cause
from tidegate.signals import Control, Signal, Standing, Verb

assert isinstance(THINGS.feed, Rest)
BY_TIME = replace(THINGS, feed=replace(THINGS.feed, changes=ByTime(param="since", column="stamp")))


class MemoryArchive:
    """As `poller.archive.S3Archive`, in one dictionary."""

    def __init__(self) -> None:
        self.pages: dict[str, list[RawRow]] = {}

    async def write(self, source: str, epoch: int, journal: int, rows: Sequence[RawRow]) -> None:
        self.pages[f"{epoch:012d}-{journal:012d}"] = list(rows)

    async def names(self, source: str, since: date | None) -> list[str]:
        return sorted(self.pages)

    async def read(self, name: str) -> list[RawRow]:
        return self.pages[name]


class Scene:
    """A world, what is asked in it, and its archive."""

    def __init__(self, declared: Source = BY_TIME, **how: Any) -> None:
        self.world = World(declared=declared, **how)
        self.signals = MemorySignals()
        self.archive = MemoryArchive()
        for _ in range(12):
            self.world.office.create()

    async def take(self) -> Attended:
        term: Term = self.world.term()
        term.reading = term.reading._replace(watch=ShapeWatch(self.world.declared.drift))
        term._stores = Stores(*term._stores[:3], archive=self.archive)
        world = self.world
        loop = SourceLoop(term, world.stream, clock=world._monotonic_s, wall=world._wall_s)
        attended = Attended(loop, term, self.signals, self.archive, owner="me", clock=world._monotonic_s)
        await attended.open()
        return attended

    async def spend(self, attended: Attended, seconds: float, changes: int = 0) -> None:
        await self.world.spend(cast(Any, attended), seconds, changes)

    async def outcome(self, attended: Attended, verb: Verb, keys: Sequence[str] = (), **given: Any) -> Signal:
        """Of an errand that ends within a minute."""
        number = self.signals.ask(verb, keys, **given)
        await self.spend(attended, 60)
        assert self.signals.signals[number].is_over, self.signals.signals[number]
        return self.signals.signals[number]


async def test_a_paused_source_asks_nothing_and_goes_on_where_it_was() -> None:
    scene = Scene()
    attended = await scene.take()
    await scene.spend(attended, 20)
    scene.signals.control = Control(paused=True)
    scene.world.set_fate(None)
    await scene.spend(attended, 60, changes=2)
    assert "request" not in scene.world.fate.names
    assert scene.signals.states[-1].doing == "paused"
    scene.signals.control = Control()
    await scene.spend(attended, 60)
    assert scene.world.stream.contents() == scene.world.truth()


async def test_a_backfill_finds_what_was_lost_and_lets_live_changes_through() -> None:
    scene = Scene()
    attended = await scene.take()
    await scene.spend(attended, 10)
    scene.world.edit_silently("K0003", 7_777)
    before = scene.signals.ask(Verb.BACKFILL, since="2026-11-20T00:00:00+00:00")
    await scene.spend(attended, 3, changes=2)
    assert scene.signals.signals[before].standing is Standing.DONE
    assert scene.signals.signals[before].rows >= 12
    assert scene.world.stream.contents()["K0003"] == 7_777
    assert [e.cause for e in scene.world.stream.events if e.key.key == "K0003"][-1] is Cause.BACKFILL


async def test_live_changes_go_before_a_backfill_however_young_it_is() -> None:
    scene = Scene()
    attended = await scene.take()
    await scene.spend(attended, 10)
    scene.world.source.urgent.clear()
    await scene.spend(attended, 10)
    assert set(scene.world.source.urgent) == {True}
    done = await scene.outcome(attended, Verb.BACKFILL, since="2026-11-21T05:54:00Z")
    assert scene.world.source.urgent.count(False) >= done.rows // 5


async def test_a_backfill_publishes_what_is_known_only_if_asked() -> None:
    scene = Scene()
    attended = await scene.take()
    await scene.spend(attended, 10)
    plain = await scene.outcome(attended, Verb.BACKFILL, since="2026-11-20T00:00:00Z")
    assert plain.published == 0
    again = await scene.outcome(attended, Verb.BACKFILL, since="2026-11-20T00:00:00Z", again=True)
    assert again.published == 12
    versions = {(event.key, event.version, event.event_id) for event in scene.world.stream.events}
    assert len(versions) == 12, "under the version and identity that they have"


async def test_a_backfill_ends_at_its_end() -> None:
    scene = Scene()
    attended = await scene.take()
    await scene.spend(attended, 100)
    for _ in range(40):
        scene.world.office.create()
    await scene.spend(attended, 20)
    whole = await scene.outcome(attended, Verb.BACKFILL, since="2026-11-20T00:00:00Z")
    part = await scene.outcome(attended, Verb.BACKFILL, since="2026-11-20T00:00:00Z", until="2026-11-21T05:55:30Z")
    assert part.rows < whole.rows


@pytest.mark.parametrize(
    ("verb", "given", "says"),
    [
        (Verb.BACKFILL, {"since": "yesterday"}, "give a time"),
        (Verb.BACKFILL, {}, "needs --since"),
        (Verb.RETRANSLATE, {"since": "soon"}, "give a day"),
    ],
)
async def test_what_cannot_be_done_fails_with_a_text_and_polling_goes_on(verb: Verb, given: Any, says: str) -> None:
    scene = Scene()
    attended = await scene.take()
    failed = await scene.outcome(attended, verb, **given)
    assert failed.standing is Standing.FAILED
    assert says in failed.note
    assert scene.world.stream.contents() == scene.world.truth()


async def test_who_cannot_be_asked_so_says_what_to_do_instead() -> None:
    scene = Scene(THINGS, reread_size=0)
    attended = await scene.take()
    for verb in (Verb.BACKFILL, Verb.RESYNC):
        failed = await scene.outcome(attended, verb, ["K0001"], since="2026-11-20T00:00:00Z")
        assert "sources sweep" in failed.note


@pytest.mark.parametrize("size", [1, 4])
async def test_a_resync_publishes_the_key_and_buries_what_is_gone(size: int) -> None:
    scene = Scene(reread_size=size)
    attended = await scene.take()
    await scene.spend(attended, 10)
    scene.world.edit_silently("K0002", 7_002)
    del scene.world.office.rows["K0003"]
    keys = ["K0001", "K0002", "K0003", "K0004", "none"]
    done = await scene.outcome(attended, Verb.RESYNC, keys)
    assert (done.standing, done.rows, done.published, done.note) == (Standing.DONE, 5, 4, "")
    assert scene.world.stream.contents() == scene.world.truth()


async def test_a_resync_that_proves_nothing_deletes_nothing() -> None:
    scene = Scene()
    attended = await scene.take()
    await scene.spend(attended, 10)
    rows = dict(scene.world.office.rows)
    scene.world.office.rows.clear()
    number = scene.signals.ask(Verb.RESYNC, ["K0001"])
    await attended.step()
    scene.world.office.rows.update(rows)
    assert "not deleted" in scene.signals.signals[number].note
    assert scene.world.stream.contents() == scene.world.truth()


async def test_a_sweep_at_once_with_its_outcome() -> None:
    scene = Scene(replace(BY_TIME, sweep_interval_s=100_000))
    attended = await scene.take()
    await scene.spend(attended, 30)
    del scene.world.office.rows["K0003"]
    await scene.spend(attended, 60)
    assert scene.world.stream.contents() != scene.world.truth()
    done = await scene.outcome(attended, Verb.SWEEP)
    assert (done.rows, done.published) == (11, 1)
    assert scene.world.stream.contents() == scene.world.truth()
    again = await scene.outcome(attended, Verb.SWEEP, again=True)
    assert again.published >= 11


async def test_a_sweep_confirms_a_mass_deletion() -> None:
    scene = Scene(replace(BY_TIME, sweep_interval_s=100_000))
    for _ in range(60):
        scene.world.office.create()
    attended = await scene.take()
    await scene.spend(attended, 60)
    for key in list(scene.world.office.rows)[5:]:
        del scene.world.office.rows[key]
    held = await scene.outcome(attended, Verb.SWEEP)
    assert "--allow-mass-deletion" in held.note
    assert len(scene.world.stream.contents()) == 72
    await scene.outcome(attended, Verb.SWEEP, allow=True)
    assert scene.world.stream.contents() == scene.world.truth()


def doubled(row: RawRow) -> Thing:
    made = translate(row)
    made.content *= 2
    return made


async def test_a_mended_translator_is_run_over_the_archive_and_nobody_is_asked() -> None:
    scene = Scene(replace(BY_TIME, sweep_interval_s=100_000))
    attended = await scene.take()
    await scene.spend(attended, 30, changes=1)
    shown = scene.world.stream.contents()
    scene.world.declared = replace(scene.world.declared, translate=doubled, translation=2)
    attended = await scene.take()
    scene.world.source.outage = True
    scene.world.set_fate(None)
    done = await scene.outcome(attended, Verb.RETRANSLATE)
    assert done.standing is Standing.DONE
    assert done.published >= len(shown), "rows in quarantine are tried again, too"
    assert scene.world.stream.contents() == {key: 2 * content for key, content in shown.items()}
    retranslated = [event for event in scene.world.stream.events if event.version.translation == 2]
    assert {event.cause for event in retranslated} == {Cause.RETRANSLATE}
    assert (await scene.outcome(attended, Verb.RETRANSLATE)).published == 0, "once is enough"


async def test_while_the_back_office_is_closed_the_archive_can_be_read() -> None:
    scene = Scene(replace(BY_TIME, sweep_interval_s=100_000))
    attended = await scene.take()
    await scene.spend(attended, 30)
    scene.world.declared = replace(scene.world.declared, translate=doubled, translation=2)
    attended = await scene.take()
    attended._loop._closed_s = lambda: 100.0
    scene.world.set_fate(None)
    assert (await scene.outcome(attended, Verb.RETRANSLATE)).published == 12
    resync = scene.signals.ask(Verb.RESYNC, ["K0001"])
    await scene.spend(attended, 60)
    assert not scene.signals.signals[resync].is_over
    assert "request" not in scene.world.fate.names


async def test_rows_that_the_archive_lacks_are_told() -> None:
    scene = Scene(replace(BY_TIME, sweep_interval_s=100_000))
    attended = await scene.take()
    await scene.spend(attended, 30)
    scene.archive.pages.clear()
    scene.world.declared = replace(scene.world.declared, translation=2)
    attended = await scene.take()
    scene.world.source.outage = True
    assert "12 rows of an older translation" in (await scene.outcome(attended, Verb.RETRANSLATE)).note


async def test_rows_of_another_shape_stop_a_source_until_a_person_accepts() -> None:
    scene = Scene(replace(BY_TIME, drift="stop"))
    fields = {"key": ["text"], "content": ["number"]}
    scene.signals.kept = Shape(fields=fields, always=[*fields], rows=LEARN_ROWS)
    attended = await scene.take()
    await scene.spend(attended, 60)
    assert scene.world.stream.contents() == {}
    state = scene.signals.states[-1]
    assert state.drift == ("there is a new field 'stamp' (text)",)
    assert "sources resume things --accept-shape" in state.error
    scene.signals.control = Control(accepted=1)
    await scene.spend(attended, 10)
    assert scene.world.stream.contents() == scene.world.truth()
    assert scene.signals.states[-1].error == ""
    kept = scene.signals.kept
    assert kept is not None
    assert set(kept.fields) == {"key", "content", "stamp"}


async def test_an_errand_is_taken_over_where_it_stood() -> None:
    scene = Scene()
    attended = await scene.take()
    await scene.spend(attended, 10)
    number = scene.signals.ask(Verb.BACKFILL, since="2026-11-20T00:00:00Z", again=True)
    await attended.step()
    halfway = scene.signals.signals[number]
    assert (halfway.standing, 0 < halfway.rows < 12) == (Standing.RUNNING, True)
    other = await scene.take()
    await scene.spend(other, 10)
    assert scene.signals.signals[number].standing is Standing.DONE


@pytest.mark.parametrize("again", [False, True])
async def test_a_sweep_that_a_person_asks_for_begins_anew(again: bool) -> None:
    """Not where the sweep stood that another process was at."""
    scene = Scene(replace(BY_TIME, sweep_interval_s=20))
    scene.world.settings = replace(scene.world.settings, sweep_kept_s=0.01)
    attended = await scene.take()
    await scene.spend(attended, 10)
    while not await attended._term.remembered_sweep():
        await attended.step()
        scene.world.idle(0.02)
    # It has been walked past.
    scene.world.edit_silently("K0001", 7_777)
    done = await scene.outcome(await scene.take(), Verb.SWEEP, again=again)
    assert (done.rows, done.published) == (12, 12 if again else 1)


async def test_a_sweep_that_was_asked_for_goes_on_where_another_process_left_it() -> None:
    scene = Scene(replace(BY_TIME, sweep_interval_s=100_000))
    scene.world.settings = replace(scene.world.settings, sweep_kept_s=0.01)
    attended = await scene.take()
    await scene.spend(attended, 10)
    number = scene.signals.ask(Verb.SWEEP)
    while not await attended._term.remembered_sweep():
        await attended.step()
        scene.world.idle(0.02)
    scene.world.edit_silently("K0001", 7_777)
    await scene.spend(await scene.take(), 20)
    assert (scene.signals.signals[number].standing, scene.signals.signals[number].rows) == (Standing.DONE, 12)
    assert scene.world.stream.contents()["K0001"] != 7_777, "nobody walked there again"


async def test_an_errand_waits_out_a_failing_back_office() -> None:
    scene = Scene()
    attended = await scene.take()
    await scene.spend(attended, 10)
    scene.world.source.outage = True
    number = scene.signals.ask(Verb.SWEEP)
    resync = scene.signals.ask(Verb.RESYNC, ["K0001"])
    await scene.spend(attended, 30)
    assert scene.signals.states[-1].error == "nobody answers"
    assert not scene.signals.signals[number].is_over
    scene.world.source.outage = False
    await scene.spend(attended, 60)
    assert scene.signals.signals[number].is_over
    assert (scene.signals.signals[resync].standing, scene.signals.signals[resync].note) == (Standing.DONE, "")
    assert scene.signals.states[-1].error == ""
