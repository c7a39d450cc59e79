"""Any interleaving of what can happen to rows, on a real PostgreSQL, against a model in plain values.

A back office whose rows are changed, deleted, created again with a lower revision, and whose clock is set back; a
poller that starts anew, reads twice, is late, and translates again; a stream that holds records twice and out of
order; a worker that reads any range of it at any time, a zombie beside it, and a database that is restored from
yesterday's copy. After each write the tables are the model's, row by row.

`make chaos` plays hundreds of these histories (CHAOS_S seconds' worth), `make test` a few.
"""

from __future__ import annotations

import asyncio
import copy
import os
from collections import defaultdict
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import asyncpg
import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from msgspec.structs import replace

from local.postgres import Postgres
from tests.integration.projection_model import TOO_MANY, Fault, Letter, Model, Office, Poller, Put, Row
from tests.integration.worker_rows import DECODER, SHAPES, batch, create_tables, rows
from tidegate.bubble import Env, Webhook
from tidegate.database import DatabaseSettings, connect
from tidegate.errors import Superseded
from tidegate.event import Cause, Operation, Version
from worker import dead_letter
from worker.aurora import AuroraSink
from worker.batch import Batch
from worker.drain import Drain
from worker.ports import WriteResult
from worker.routes import Routes
from worker.settings import DrainSettings

Result = TypeVar("Result")

# A history takes about a tenth of a second.
EXAMPLES = max(120, int(float(os.environ.get("CHAOS_S", "0")) * 2))
SHARD = "shard-0"
KEYS = ("A", "B", "C")
TABLES = ("gadgets", "tidegate.shard", "tidegate.dead_letter", "tidegate.outbox")
LIVE = Webhook(name="live", url=Env("URL"), secrets=(Env("SECRET", secret=True),))
GONE = Webhook(
    name="gone", url=Env("URL"), secrets=(Env("SECRET", secret=True),),
    operations=(Operation.DELETE,), causes=(Cause.LIVE, Cause.SWEEP),
)  # fmt: skip
DROP = "ALTER TABLE gadgets DROP CONSTRAINT IF EXISTS few"
CHECK = {False: DROP, True: f"{DROP}; ALTER TABLE gadgets ADD CONSTRAINT few CHECK (pieces < {TOO_MANY}) NOT VALID"}
ROUTES = Routes((LIVE, GONE), [shape.name for shape in SHAPES])
STRICT = tuple(replace(shape, is_strict=True) for shape in SHAPES)


@dataclass
class World:
    """One PostgreSQL and one loop, for all histories."""

    runner: asyncio.Runner
    sql: asyncpg.Connection[asyncpg.Record]
    sink: AuroraSink
    ordered: AuroraSink

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self.runner.run(work)

    def execute(self, text: str) -> None:
        self.run(self.sql.execute(text))


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
    await sql.execute("CREATE SCHEMA copy")
    for table in TABLES:
        await sql.execute(f"CREATE TABLE {_copy(table)} (LIKE {table})")
    database = await stack.enter_async_context(connect(postgres.dsn, DatabaseSettings(), "test"))
    sinks = [AuroraSink(database, "stream", shapes, dead_letter.file, ROUTES) for shapes in (SHAPES, STRICT)]
    return World(runner, sql, *sinks)


def _batch(first: int, puts: list[Put]) -> Batch:
    return batch(*(put.data for put in puts), first=first)


def _copy(table: str) -> str:
    return f"copy.{table.rpartition('.')[2]}"


keys = st.sampled_from(KEYS)
# Few, so that much of what changes shows what was there before.
pieces = st.integers(1, 3)
causes = st.sampled_from([Cause.LIVE, Cause.LIVE, Cause.BACKFILL, Cause.SWEEP])
# Half of them are none for another release.
faults = st.sampled_from([*Fault, Fault.CHECK, Fault.CHECK, Fault.CHECK])
late = st.sampled_from([False, False, False, True])


class Projection(RuleBasedStateMachine):
    """`stream` is what was put, in order; `late` what is still on its way."""

    world: ClassVar[World]
    is_ordered: ClassVar[bool] = False

    @property
    def sink(self) -> AuroraSink:
        return self.world.ordered if self.is_ordered else self.world.sink

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(ROUTES, is_ordered=self.is_ordered)
        self.saved: Model | None = None
        self.poller = Poller()
        self.offices = {key: Office(key) for key in KEYS}
        self.stream: list[Put] = []
        self.late: list[Put] = []
        self.read = 0
        self.versions: dict[str, Version] = {}

    @initialize()
    def begin(self) -> None:
        self.world.execute("; ".join(f"DELETE FROM {table}" for table in TABLES))
        self.world.execute(CHECK[True])
        self.world.run(self.sink.register([SHARD], [], []))
        self.take_the_lease()

    def put(self, put: Put, is_late: bool = False) -> None:
        (self.late if is_late else self.stream).append(put)

    # The back office, and its poller.

    @rule(key=keys, pieces=pieces, cause=causes, is_late=late)
    def upsert(self, key: str, pieces: int, cause: Cause, is_late: bool) -> None:
        office = self.offices[key]
        office.revision += 1
        office.pieces = pieces
        self.put(self.poller.change(office, cause=cause), is_late)

    @rule(key=keys, cause=st.sampled_from([Cause.LIVE, Cause.SWEEP]), is_late=late)
    def delete(self, key: str, cause: Cause, is_late: bool) -> None:
        office = self.offices[key]
        office.pieces = None
        self.put(self.poller.change(office, cause=cause), is_late)

    @rule(key=keys, pieces=pieces, revision=st.integers(0, 5))
    def create_again_with_a_lower_revision(self, key: str, pieces: int, revision: int) -> None:
        """Of a deleted row, or of one whose clock was set back: the poller sees that the order broke."""
        office = self.offices[key]
        office.generation += 1
        office.revision = revision
        office.pieces = pieces
        self.put(self.poller.change(office))

    @rule(key=keys, pieces=pieces, is_late=late)
    def change_within_the_same_second(self, key: str, pieces: int, is_late: bool) -> None:
        """The same source version with another content: only the observation tells which is newer."""
        office = self.offices[key]
        office.pieces = pieces
        self.put(self.poller.change(office), is_late)

    @rule(key=keys, cause=causes)
    def show_it_once_more(self, key: str, cause: Cause) -> None:
        self.put(self.poller.change(self.offices[key], cause=cause))

    @precondition(lambda self: self.poller.epoch > 1)
    @rule(key=keys)
    def a_belated_poller_speaks(self, key: str) -> None:
        self.put(self.poller.change(self.offices[key], epoch=self.poller.epoch - 1))

    @rule()
    def a_new_poller_takes_over(self) -> None:
        self.poller.epoch += 1

    @rule(shown=st.dictionaries(keys, pieces, min_size=1))
    def translate_again(self, shown: dict[str, int]) -> None:
        self.poller.translation += 1
        for key, pieces in shown.items():
            if put := self.poller.translate_again(self.offices[key], pieces):
                self.put(put)

    @rule(key=keys, fault=faults, is_late=late)
    def poison(self, key: str, fault: Fault, is_late: bool) -> None:
        self.put(self.poller.poison(self.offices[key], fault), is_late)

    # The stream.

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def what_was_late_arrives(self, data: st.DataObject) -> None:
        self.stream.append(self.late.pop(data.draw(st.integers(0, len(self.late) - 1))))

    @precondition(lambda self: self.stream)
    @rule(data=st.data())
    def put_some_once_more(self, data: st.DataObject) -> None:
        places = data.draw(st.lists(st.integers(0, len(self.stream) - 1), min_size=1, max_size=4))
        self.stream += [self.stream[place] for place in places]

    # The worker.

    @rule()
    def take_the_lease(self) -> None:
        self.model.counter += 1
        self.model.is_replay = True
        state = self.world.run(self.sink.open(SHARD, self.model.counter))
        assert state is not None
        assert state.lease_counter == self.model.counter
        assert (state.position.sequence if state.position else 0) == self.model.position

    @precondition(lambda self: self.read < len(self.stream))
    @rule(most=st.integers(1, 12))
    def go_on(self, most: int) -> None:
        self.write(self.read, min(len(self.stream), self.read + most))

    @precondition(lambda self: self.stream)
    @rule(data=st.data())
    def read_again(self, data: st.DataObject) -> None:
        """From an older checkpoint; it may come further than anybody did."""
        start = data.draw(st.integers(0, len(self.stream) - 1))
        self.write(start, data.draw(st.integers(start + 1, min(len(self.stream), start + 12))))

    def write(self, start: int, end: int) -> None:
        puts = self.stream[start:end]
        whole = _batch(start + 1, puts)
        expected = self.model.write(start + 1, puts)
        note(f"records {start + 1} to {end}: {expected}")
        result: WriteResult = self.world.run(self.sink.write(whole, self.model.counter))
        assert sum(result) == whole.delivered == len(puts)
        assert result == expected
        self.read = max(self.read, end)
        self.compare()

    @precondition(lambda self: self.stream and self.model.counter > 1)
    @rule(start=st.integers(0, 20), behind=st.integers(1, 3))
    def a_zombie_writes(self, start: int, behind: int) -> None:
        start = min(start, len(self.stream) - 1)
        whole = _batch(start + 1, self.stream[start:])
        with pytest.raises(Superseded):
            self.world.run(self.sink.write(whole, max(0, self.model.counter - behind)))
        # It is the same sink, and was not told that what it has is there.
        self.model.is_replay &= not self.model.looks(self.stream[start:])
        self.compare()

    # The database.

    @rule(start=st.integers(0, 30))
    def migrate(self, start: int) -> None:
        """Another release takes, or refuses, what this one does not, and reads some of it again."""
        self.model.is_strict = not self.model.is_strict
        self.world.execute(CHECK[self.model.is_strict])
        if puts := self.stream[start : start + 12]:
            self.write(start, start + len(puts))

    @rule()
    def back_up(self) -> None:
        self.saved = copy.deepcopy(self.model)
        for table in TABLES:
            self.world.execute(f"DELETE FROM {_copy(table)}; INSERT INTO {_copy(table)} SELECT * FROM {table}")

    @precondition(lambda self: self.saved is not None)
    @rule()
    def restore(self) -> None:
        """The database is as it was, and the stream goes on from its position; the lease's counter never falls."""
        assert self.saved is not None
        counter = self.model.counter
        self.model = copy.deepcopy(self.saved)
        self.world.execute(DROP)
        for table in TABLES:
            restored = f"INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT * FROM {_copy(table)}"
            self.world.execute(f"DELETE FROM {table}; {restored}")
        self.world.execute(CHECK[self.model.is_strict])
        self.versions = {}
        self.read = self.model.position
        self.compare()
        self.model.counter = counter
        self.take_the_lease()

    def compare(self) -> None:
        self.world.run(self._compare())

    async def _compare(self) -> None:
        sql, model = self.world.sql, self.model
        table = {
            key: Row(Version(*version), pieces)
            for key, pieces, *version in await rows(
                sql,
                "SELECT number, CASE WHEN NOT _deleted THEN pieces END, "
                "_generation, _source_version, _epoch, _read, _translation FROM gadgets",
            )
        }
        assert table == model.rows
        fallen = [key for key, version in self.versions.items() if table[key].version < version]
        assert not fallen, "a stored version fell"
        self.versions = {key: row.version for key, row in table.items()}
        assert await _letters(sql) == model.letters
        told = defaultdict(list)
        for name, key, event_id in await rows(
            sql, "SELECT destination, key, event_id FROM tidegate.outbox ORDER BY id"
        ):
            told[name, key].append(event_id)
        assert told == {where: ids for where, ids in model.told.items() if ids}
        [(position, counter)] = await rows(
            sql, "SELECT coalesce(sequence_number, 0), lease_counter FROM tidegate.shard"
        )
        assert (position, counter) == (model.position, model.counter)


async def _letters(sql: asyncpg.Connection[asyncpg.Record]) -> dict[str, Letter]:
    filed = await rows(
        sql,
        "SELECT coalesce(event_id, 'at ' || sequence_number), key, version, attempts, resolution, parked_at IS NOT NULL, "
        "resolved_at IS NULL FROM tidegate.dead_letter",
    )
    letters = {}
    for name, key, version, attempts, resolution, is_parked, is_open in filed:
        assert is_open == (resolution is None)
        assert name not in letters, "one letter for each record"
        letters[name] = Letter(key, Version(*version) if version else None, attempts, resolution, is_parked)
    return letters


class OrderedProjection(Projection):
    """The same histories of an entity that asks for strict order, and what a person and the drain do about it."""

    is_ordered = True

    @rule(key=keys, good=st.lists(st.booleans(), min_size=2, max_size=8))
    def many_changes_of_a_row(self, key: str, good: list[bool]) -> None:
        for is_good in good:
            if is_good:
                self.upsert(key, len(self.stream) % 3, Cause.LIVE, is_late=False)
            else:
                self.poison(key, Fault.CHECK, is_late=False)

    @precondition(lambda self: any(letter.is_open for letter in self.model.letters.values()))
    @rule(data=st.data())
    def a_person_drops_a_letter(self, data: st.DataObject) -> None:
        """One that failed, or one that waits."""
        name = data.draw(st.sampled_from(sorted(name for name, each in self.model.letters.items() if each.is_open)))
        self.model.letters[name].resolution = "dropped"
        dropped = "SET resolved_at = now(), resolution = 'dropped' WHERE coalesce(event_id, 'at ' || sequence_number)"
        self.world.execute(f"UPDATE tidegate.dead_letter {dropped} = '{name}'")

    @precondition(lambda self: self.stream)
    @rule(data=st.data())
    def a_failure_is_replayed(self, data: st.DataObject) -> None:
        """Whatever it failed of is mended."""
        if self.model.is_strict:
            self.migrate(data.draw(st.integers(0, len(self.stream) - 1)))
        failed = [place for place, put in enumerate(self.stream) if put.fault is not None]
        if failed:
            self.stream.append(self.stream[data.draw(st.sampled_from(failed))])

    @rule()
    def drain(self) -> None:
        self.model.drain()
        self.world.run(Drain(self.sink, DECODER.decode_all, DrainSettings()).round(asyncio.Event()))
        self.compare()


# Should one fail, finding a short one that fails too takes Hypothesis up to five minutes.
@pytest.mark.timeout(EXAMPLES + 600)
@pytest.mark.parametrize("machine", [Projection, OrderedProjection])
def test_any_history_leaves_what_the_model_says(world: World, machine: type[Projection]) -> None:
    Projection.world = world
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
