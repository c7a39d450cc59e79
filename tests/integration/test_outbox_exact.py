"""Exactly one place in the outbox for each applied change: generated histories on a real PostgreSQL, against a model.

The model applies each batch one change at a time, in the order of versions: what is newer than the row and shows
something else was applied, and whoever wants it is told. Crashes, replays, zombies, changes in any order and several
of a row in one batch must not add a place or lose one, also when what was sent has been deleted from the outbox.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from local.postgres import Postgres
from tests.integration.worker_rows import SHAPES, batch, change, create_tables, gadget, rows
from tidegate.bubble import Env, Webhook
from tidegate.database import Connection, Database, DatabaseSettings, connect
from tidegate.errors import Superseded, Transient
from tidegate.event import Cause, ChangeEvent, Operation
from worker import dead_letter
from worker.aurora import AuroraSink
from worker.ports import WriteResult
from worker.routes import Routes

KEYS, VERSIONS = 3, 6
POISON = 100
HOOK = Webhook(name="live", url=Env("URL"), secrets=(Env("SECRET", secret=True),))
GONE = Webhook(
    name="gone", url=Env("URL"), secrets=(Env("SECRET", secret=True),),
    operations=(Operation.DELETE,), causes=(Cause.LIVE, Cause.SWEEP),
)  # fmt: skip
ROUTES = Routes((HOOK, GONE), [shape.name for shape in SHAPES])


class Faulty(Database):
    """A database that dies before, or right after, the next commit."""

    fault: str | None = None

    @asynccontextmanager
    async def transaction(self, doing: str) -> AsyncIterator[Connection]:
        async with super().transaction(doing) as connection:
            yield connection
            self._die("before")
        self._die("after")

    def _die(self, when: str) -> None:
        if self.fault == when:
            self.fault = None
            raise Transient(f"died {when} the commit, and nobody knows")


@dataclass
class Model:
    """What the table shows of each key, and who must have been told of what, in which order."""

    rows: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    told: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))

    def apply(self, events: list[ChangeEvent]) -> None:
        for event in sorted(events, key=lambda event: event.version):
            total = None if event.payload is None else int(event.payload["total"])
            stored = self.rows.get(event.key.key)
            if total == POISON or (stored is not None and event.version.source_version <= stored[0]):
                continue
            self.rows[event.key.key] = (event.version.source_version, total)
            if stored is None or stored[1] != total:
                for name in ROUTES.of(event):
                    self.told[name, event.key.key].append(event.event_id)


@dataclass
class World:
    """One PostgreSQL, one loop, and a range of keys for each history."""

    runner: asyncio.Runner
    database: Faulty
    sql: asyncpg.Connection[asyncpg.Record]
    offsets: Iterator[int] = field(default_factory=lambda: itertools.count(1, KEYS))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        yield runner.run(_make(runner, stack))
        runner.run(stack.aclose())


async def _make(runner: asyncio.Runner, stack: AsyncExitStack) -> World:
    postgres = await stack.enter_async_context(Postgres())
    await create_tables(postgres.dsn)
    sql = await asyncpg.connect(postgres.dsn)
    stack.push_async_callback(sql.close)
    await sql.execute(f"ALTER TABLE counters ADD CONSTRAINT small CHECK (total < {POISON})")
    database = await stack.enter_async_context(connect(postgres.dsn, DatabaseSettings(), "test"))
    return World(runner, Faulty(database._pool, DatabaseSettings()), sql)


drawn_events = st.lists(
    st.tuples(
        st.integers(0, KEYS - 1),
        st.integers(1, VERSIONS),
        st.sampled_from([Cause.LIVE, Cause.LIVE, Cause.LIVE, Cause.SWEEP, Cause.BACKFILL]),
    ),
    min_size=1,
    max_size=7,
)
# What each version of each key says. Few contents, so that many changes change nothing; None deletes.
contents = st.lists(st.sampled_from([None, 1, 1, 2, 2, POISON]), min_size=KEYS * VERSIONS, max_size=KEYS * VERSIONS)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), drawn_events),
        st.tuples(st.sampled_from(["die before", "die after", "zombie", "other shard"]), drawn_events),
        st.tuples(st.just("replay"), st.lists(st.integers(0, 9), min_size=1, max_size=3)),
        st.tuples(st.just("forget"), st.just([])),
    ),
    min_size=1,
    max_size=8,
)
Steps = list[tuple[str, list[tuple[int, int, Cause]] | list[int]]]


class History:
    """Runs the steps of one generated history on the sink and on the model."""

    def __init__(
        self,
        database: Faulty,
        sql: asyncpg.Connection[asyncpg.Record],
        first_key: int,
        totals: list[int | None],
    ) -> None:
        self.database = database
        self.sql = sql
        self.model = Model()
        self.sink = AuroraSink(database, "stream", SHAPES, dead_letter.file, ROUTES)
        self.told: dict[tuple[str, str], list[str]] = defaultdict(list)
        self.written: list[list[ChangeEvent]] = []
        self._first_key = first_key
        self._totals = totals
        self._position = itertools.count(1, 100)

    async def step(self, kind: str, drawn: list[object]) -> None:
        if kind == "forget":
            return await self.collect()
        if kind == "replay":
            # Several earlier batches, whole and in any order, in one.
            picked = [self.written[int(str(each)) % len(self.written)] for each in drawn] if self.written else []
            if events := [event for each in picked for event in each]:
                await self.write(events)
            return None
        events = [self._event(*each) for each in drawn]  # type: ignore[misc]
        if kind == "zombie":
            with pytest.raises(Superseded):
                await self.sink.write(batch(*events, first=next(self._position)), 4)
            return None
        if kind == "die before":
            self.database.fault = "before"
            with pytest.raises(Transient):
                await self.sink.write(batch(*events, first=next(self._position)), 5)
            return None
        if kind == "die after":
            self.database.fault = "after"
            with pytest.raises(Transient):
                await self.write(events)
        await self.write(events, shard_id="shard-1" if kind == "other shard" else "shard-0")
        return None

    async def write(self, events: list[ChangeEvent], shard_id: str = "shard-0") -> None:
        self.model.apply(events)
        self.written.append(events)
        whole = batch(*events, first=next(self._position), shard_id=shard_id)
        assert sum(await self.sink.write(whole, 5)) == whole.delivered == len(events)

    async def collect(self) -> None:
        """What stands in the outbox, and away with it, as if it had been sent long ago."""
        mine = [str(key) for key in range(self._first_key, self._first_key + KEYS)]
        query = "DELETE FROM tidegate.outbox WHERE key = ANY ($1) RETURNING id, destination, key, event_id"
        for _, name, key, event_id in sorted(await rows(self.sql, query, mine)):
            self.told[name, key].append(event_id)

    def _event(self, key: int, version: int, cause: Cause) -> ChangeEvent:
        number, total = self._first_key + key, self._totals[key * VERSIONS + version - 1]
        payload = None if total is None else {"number": number, "total": total}
        return change(str(number), version, payload, entity="counter", cause=cause)


# Drawing is slow on a machine with much else to do, and that is no fault.
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(contents, steps)
def test_the_outbox_holds_what_the_model_applied_once_and_in_order(
    world: World, totals: list[int | None], drawn: Steps
) -> None:
    async def run() -> None:
        world.database.fault = None
        history = History(world.database, world.sql, next(world.offsets), totals)
        for shard in ("shard-0", "shard-1"):
            await history.sink.register([shard], [], [])
            await take(history.sink, shard, 5)
        for kind, events in drawn:
            await history.step(kind, list(events))
        await history.collect()
        assert dict(history.told) == {where: ids for where, ids in history.model.told.items() if ids}

    world.runner.run(run())


def test_writers_that_race_for_the_same_rows_tell_of_each_applied_change_once_and_in_order(world: World) -> None:
    """As a parent's zombie and its child's holder would: two shards, the same keys, nobody fenced."""
    first = 1_000_000
    dice = random.Random(5)

    def events(number: int) -> list[ChangeEvent]:
        # Versions that rise from batch to batch, and overlap with the others': in any interleaving much is applied.
        drawn = [(dice.randrange(10), 10 * number + dice.randrange(30), dice.randrange(3)) for _ in range(20)]
        return [
            change(str(first + key), version, {"number": first + key, "total": total}, entity="counter")
            for key, version, total in drawn
        ]

    async def write(sink: AuroraSink, shard_id: str, batches: list[list[ChangeEvent]]) -> int:
        applied = 0
        for number, each in enumerate(batches):
            applied += (await sink.write(batch(*each, shard_id=shard_id, first=number * 50 + 1), 5)).applied
        return applied

    async def run() -> None:
        sinks = [AuroraSink(world.database, "race", SHAPES, dead_letter.file, ROUTES) for _ in range(4)]
        for number, sink in enumerate(sinks):
            await sink.register([f"shard-{number}"], [], [])
            await take(sink, f"shard-{number}", 5)
        work = [write(sink, f"shard-{n}", [events(number) for number in range(15)]) for n, sink in enumerate(sinks)]
        applied = sum(await asyncio.gather(*work))
        query = "SELECT key, payload FROM tidegate.outbox WHERE entity = 'counter' AND key::bigint >= $1 ORDER BY id"
        told = await rows(world.sql, query, first)
        versions: dict[str, list[int]] = defaultdict(list)
        for key, payload in told:
            versions[key].append(version_of(payload))
        assert len(told) == applied > 60
        assert all(each == sorted(set(each)) for each in versions.values())

    world.runner.run(run())


def test_results_and_the_outbox_for_what_coalescing_drops_from_the_table(world: World) -> None:
    queued: list[dict[str, int]] = []

    async def run() -> None:
        told = AuroraSink(
            world.database, "counts", SHAPES, dead_letter.file, ROUTES, lambda counts: queued.append(dict(counts))
        )
        await told.register(["shard-0"], [], [])
        await take(told, "shard-0", 1)
        some = [change("A", n, gadget("A", pieces=n // 2)) for n in (3, 1, 5, 2, 4, 2)]
        filled = [change(f"B{n}", 1, gadget(f"B{n}"), cause=Cause.BACKFILL) for n in range(20)]
        whole = batch(*some, *filled, change("B1", 2, gadget("B1", pieces=9), cause=Cause.BACKFILL))
        # pieces are 0, 1, 1, 2, 2 for versions 1 to 5: three times something new. Version 2 came twice.
        assert await told.write(whole, 1) == WriteResult(applied=3 + 20, unchanged=2, coalesced=1 + 1)
        assert queued == [{"live": 3}]
        assert await told.write(whole, 1) == WriteResult(unchanged=1 + 20, coalesced=5 + 1)
        older = batch(change("A", 4, gadget("A", pieces=7)), change("A", 6, gadget("A", pieces=8)), first=200)
        assert await told.write(older, 1) == WriteResult(applied=1, coalesced=1)
        assert await told.write(batch(change("A", 4, gadget("A", pieces=7)), first=300), 1) == WriteResult(stale=1)
        assert queued == [{"live": 3}, {"live": 1}]
        payloads = await rows(world.sql, "SELECT payload FROM tidegate.outbox WHERE key = 'A' ORDER BY id")
        assert [version_of(payload) for (payload,) in payloads] == [1, 2, 4, 6]

    world.runner.run(run())


def test_a_replay_beside_a_newer_version_of_the_same_content_tells_nobody_again(world: World) -> None:
    """The newer one leaves the replayed one's id in the row, though it was not written."""
    first, same = change("R", 1, gadget("R")), change("R", 2, gadget("R"))

    async def run() -> None:
        sink = AuroraSink(world.database, "again", SHAPES, dead_letter.file, ROUTES)
        await take(sink, "shard-0", 1)
        assert await sink.write(batch(first), 1) == WriteResult(applied=1)
        assert await rows(world.sql, "DELETE FROM tidegate.outbox WHERE key = 'R' RETURNING key") == [("R",)]
        assert await sink.write(batch(first, same, first=10), 1) == WriteResult(unchanged=1, coalesced=1)
        assert await rows(world.sql, "SELECT FROM tidegate.outbox WHERE key = 'R'") == []

    world.runner.run(run())


def test_what_the_table_refuses_is_told_to_nobody_and_what_came_before_and_after_is(world: World) -> None:
    async def run() -> None:
        sink = AuroraSink(world.database, "poison", SHAPES, dead_letter.file, ROUTES)
        await sink.register(["shard-0"], [], [])
        await take(sink, "shard-0", 1)
        names = ["one", "nul\0", "two", "two", "nul\0again"]
        events = [change("P", version, gadget("P", name=name)) for version, name in enumerate(names, 1)]
        assert await sink.write(batch(*events), 1) == WriteResult(applied=2, unchanged=1, rejected=2)
        payloads = await rows(world.sql, "SELECT payload FROM tidegate.outbox WHERE key = 'P' ORDER BY id")
        assert [version_of(payload) for (payload,) in payloads] == [1, 3]

    world.runner.run(run())


def test_another_writers_long_or_broken_ids_find_their_place(world: World) -> None:
    async def run() -> None:
        odd = ["x" * 5_000, "line\r\nbreak: evil", "", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"]
        events = [
            replace(change("ODD", version, gadget("ODD", pieces=version)), event_id=event_id)
            for version, event_id in enumerate(odd, 1)
        ]
        sink = AuroraSink(world.database, "odd", SHAPES, dead_letter.file, ROUTES)
        await sink.register(["shard-0"], [], [])
        await take(sink, "shard-0", 1)
        assert await sink.write(batch(*events), 1) == WriteResult(applied=4)
        stored = await rows(world.sql, "SELECT event_id FROM tidegate.outbox WHERE key = 'ODD'")
        assert len(set(stored)) == 4
        assert all(event_id.startswith("hashed-") for (event_id,) in stored)

    world.runner.run(run())


async def take(sink: AuroraSink, shard_id: str, counter: int) -> None:
    """As a consumer takes a shard."""
    await sink.register([shard_id], [], [])
    assert await sink.open(shard_id, counter) is not None


def version_of(payload: bytes) -> int:
    return int(json.loads(payload)["tidegateversion"].split(".")[1])
