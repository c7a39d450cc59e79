"""The sink on Aurora PostgreSQL: one transaction for each batch, guarded by versions and by the lease counter.

The order inside the transaction: the fence (which locks the shard's row, so that two writers of one shard queue
up), the rows of each entity sorted by key, the watermarks, the dead letters, and those letters that the rows make
good; last, for each applied change that a destination wants, its place in the outbox. Where an entity asks for strict
order, what must wait for a dead letter is filed instead of written (`worker.parking`). First everything is tried at
once. Only when the database rejects a value is the batch written again, this time with a savepoint: as many rows in
a step as the steps before let hope for, until those at fault have stood alone and are filed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence, Set
from typing import Any

from tidegate import columns
from tidegate.codec import TypedChange
from tidegate.database import MIGRATE_HINT, Connection, Database, database_errors
from tidegate.entity import EntityShape
from tidegate.errors import Fatal, Rejected, Transient
from tidegate.event import EntityKey
from worker import parking, statements
from worker.batch import Batch, Change, DeadLetter, Position, coalesce, newest_marks
from worker.counting import Counting
from worker.decode import rejected
from worker.fence import Done, Fence, Passed
from worker.ports import Decode, DrainStep, ShardState, WriteResult
from worker.replays import Replays
from worker.routes import NO_ROUTES, Routes
from worker.settled import Settled, failed
from worker.statements import EntityStatements

File = Callable[[Connection, str, str, Sequence[DeadLetter]], Awaitable[None]]
"""How dead letters are written: connection, stream, shard, letters."""

Queued = Callable[[Mapping[str, int]], None]
"""Told after a commit how many changes were queued for each destination. Must not raise."""

_Written = tuple[Any, str]
"""A row that was written: its key, and the event whose content it shows now."""


# Of those tried, these come near to halves of halves for few bad rows, and to one by one for many.
_SHRINK, _GROW = 8, 3


class AuroraSink:
    """Projects one stream into the tables of a bubble, and queues what its destinations want."""

    def __init__(
        self,
        database: Database,
        stream: str,
        shapes: Iterable[EntityShape],
        file: File,
        routes: Routes = NO_ROUTES,
        queued: Queued = lambda counts: None,
    ) -> None:
        self._database = database
        self._stream = stream
        self._shapes = tuple(shapes)
        self._statements = {shape.name: EntityStatements(shape) for shape in self._shapes}
        self._settled = [Settled(shape) for shape in self._shapes]
        self._strict = frozenset(shape.name for shape in self._shapes if shape.is_strict)
        self._file = file
        self._routes = routes
        self._queued = queued
        self._fence = Fence(stream)
        self._replays = Replays(database, stream, self._statements)
        # Whether there were open dead letters when it was looked last.
        self._had_open = False

    async def check(self) -> None:
        """Raises Fatal when a table is missing or has other columns than this bubble, Transient when nobody answers."""
        async with self._database.transaction("look at the tables") as connection:
            tables = [shape.table for shape in self._shapes]
            found = [columns.Column(*row) for row in await connection.fetch(columns.LOOK, tables)]
            if faults := list(columns.faults(self._shapes, found)):
                raise Fatal(f"the database is not of this release's shape: {'; '.join(faults)}; {MIGRATE_HINT}")
            for prepared in self._statements.values():
                for text in (prepared.upsert, prepared.count, prepared.held):
                    await connection.prepare(text)
            for text in (statements.FENCE, statements.MARKS, statements.FILE, statements.RESOLVE, statements.QUEUE):
                await connection.prepare(text)

    async def register(
        self, shard_ids: Collection[str], lineage: Collection[tuple[str, str]], finished: Collection[str]
    ) -> list[str]:
        parents, children = [parent for parent, _ in lineage], [child for _, child in lineage]
        async with self._database.transaction("register shards") as connection:
            await connection.execute(statements.LOCK_FAMILY, self._stream)
            await connection.execute(statements.REGISTER, self._stream, sorted(shard_ids), parents, children)
            await connection.execute(statements.RETIRE, self._stream, sorted(finished))
            rows = await connection.fetch(statements.UNFINISHED, self._stream, sorted(finished))
        return [row["shard_id"] for row in rows]

    async def open(self, shard_id: str, counter: int, replaces: int | None = None) -> ShardState | None:
        async with self._database.transaction(f"open shard {shard_id}") as connection:
            await connection.execute(statements.OPEN, self._stream, shard_id, counter, replaces)
            row = await connection.fetchrow(statements.STATE, self._stream, shard_id)
        if row is None:
            return None
        self._fence.forget(shard_id)
        self._replays.begin(shard_id)
        sequence, sub, stored_counter = row
        return ShardState(None if sequence is None else Position(int(sequence), sub), stored_counter)

    async def write(self, batch: Batch, counter: int) -> WriteResult:
        try:
            return await self._replays.passed(batch, counter) or await self._write(batch, counter, careful=False)
        except Rejected:
            pass
        try:
            return await self._write(batch, counter, careful=True)
        except Rejected as error:
            # No single row is at fault, so going on would lose the batch.
            raise Fatal(f"the database rejects the bookkeeping of a batch of {batch.shard_id}: {error}") from error

    async def note(self, shard_id: str, counter: int, letter: DeadLetter) -> None:
        async with self._database.transaction(f"file a note on {shard_id}") as connection:
            await self._fence.lock(connection, shard_id, counter)
            await self._file(connection, self._stream, shard_id, [letter])

    async def ready(self, most: int) -> list[EntityKey]:
        async with self._database.transaction("look for parked changes") as connection:
            rows = await connection.fetch(parking.READY, sorted(self._strict), most)
        return [EntityKey(*row) for row in rows]

    async def drain(self, key: EntityKey, decode: Decode, most: DrainStep) -> WriteResult | None:
        try:
            return await self._drain(key, decode, most, careful=False)
        except Rejected:
            pass
        try:
            return await self._drain(key, decode, most, careful=True)
        except Rejected as error:
            raise Fatal(f"the database rejects the bookkeeping of what waits of {key.entity}: {error}") from error

    async def settle(self) -> None:
        async with self._database.transaction("look for dead letters that miss nothing") as connection:
            rows = await connection.fetch(parking.STUCK, sorted(self._strict))
            await self._settle(connection, self._stream, [EntityKey(*row) for row in rows])

    async def look(self) -> dict[str, tuple[int, float]]:
        async with self._database.transaction("count parked changes") as connection:
            rows = await connection.fetch(parking.LOOK, sorted(self._strict))
        return dict.fromkeys(sorted(self._strict), (0, 0.0)) | {name: (count, age_s) for name, count, age_s in rows}

    async def end(self, shard_id: str, counter: int, child_ids: Sequence[str]) -> None:
        async with self._database.transaction(f"end shard {shard_id}") as connection:
            await connection.execute(statements.LOCK_FAMILY, self._stream)
            if not await self._fence.lock(connection, shard_id, counter):
                return
            await connection.execute(statements.ADD, self._stream, sorted(child_ids))
            await connection.execute(statements.INHERIT, self._stream, shard_id, sorted(child_ids))
            await connection.execute(statements.REMOVE_SHARD, self._stream, shard_id)
        self._replays.end(shard_id)

    async def _write(self, batch: Batch, counter: int, *, careful: bool) -> WriteResult:
        counting = None if careful else self._counting(batch)
        async with self._database.transaction(f"write a batch of {batch.shard_id}") as connection:
            done = await self._fence.done(connection, batch, counter)
            if done is None:
                passed = await self._fence.enter(connection, batch, counter)
                self._had_open = passed.has_open
                done = await self._project(connection, batch, passed, counting, careful=careful)
                self._fence.expect(batch, passed, done)
        self._fence.forget(batch.shard_id)
        if done.queued:
            self._queued(done.queued)
        return done.result

    def _counting(self, batch: Batch) -> Counting | None:
        """What writes the rows if nobody asks which became what; None when somebody does, or probably will."""
        if self._had_open or batch.dead:
            return None
        events = batch.events
        if _wanted(events, self._routes) or parking.repeated(events, self._strict):
            return None
        counting = Counting(self._statements, events)
        batch.let_go()
        return counting

    async def _project(
        self, connection: Connection, batch: Batch, passed: Passed, counting: Counting | None, *, careful: bool
    ) -> Done:
        """All that the transaction does behind the fence."""
        has_open = passed.has_open or bool(batch.dead)
        holding, others = parking.sifted(batch.dead, self._strict)
        # What they hold up the table tells: an old one, or one that a person closed, holds up nothing.
        await self._bury(connection, self._stream, batch.shard_id, holding)
        projection = _Projection(connection, self._statements, self._routes, careful=careful)
        waiting: Sequence[Change] = ()
        if counting is None or has_open:
            changes, waiting = await self._in_order(connection, batch.changes, has_open=has_open)
            result = await projection.write(changes, parking.repeated(_events(changes), self._strict))
        else:
            result = await counting.write(connection)
        if marks := newest_marks(batch.marks):
            as_of = [mark.as_of for mark in marks.values()]
            await connection.execute(statements.MARKS, self._stream, batch.shard_id, list(marks), as_of)
        parked = [parking.letter(change) for change in (*waiting, *projection.waiting)]
        letters = [*others, *projection.refused, *parked]
        await self._bury(connection, self._stream, batch.shard_id, letters)
        if has_open or letters:
            await self._resolve(connection, projection)
        counted = result._replace(rejected=len(batch.dead) + len(projection.refused), parked=len(parked))
        return Done(counted, await self._queue(connection, projection.applied))

    async def _in_order(self, connection: Connection, changes: Sequence[Change], *, has_open: bool) -> parking.Split:
        """What strict order lets pass, and what must wait for a dead letter."""
        if not (has_open and self._strict):
            return parking.Split(changes, ())
        keys = parking.strict_keys(changes, self._strict)
        held = await connection.fetch(parking.HOLDS, self._stream, *parking.asking(keys))
        return parking.split(changes, keys, held)

    async def _bury(self, connection: Connection, stream: str, shard_id: str, letters: Sequence[DeadLetter]) -> None:
        """File the letters. Those that the table is past already, late ones for example, are closed at once."""
        if not letters:
            return
        if stripes := parking.stripes(letters, self._strict):
            await connection.execute(parking.LOCK, stripes)
        await self._file(connection, stream, shard_id, letters)
        await self._settle(connection, stream, failed(letters))

    async def _settle(self, connection: Connection, stream: str, names: Sequence[EntityKey]) -> None:
        """Close the letters of these rows that the table is past already."""
        for settled in self._settled:
            if names and (keys := settled.keys_of(names)):
                given = settled.resolving(await connection.fetch(settled.stored, keys))
                await connection.execute(statements.RESOLVE, stream, *given)

    async def _resolve(self, connection: Connection, projection: _Projection) -> None:
        """Close the letters that the rows make good."""
        if projection.written:
            given = statements.resolving(projection.written, projection.stale)
            await connection.execute(statements.RESOLVE, self._stream, *given)

    async def _drain(self, key: EntityKey, decode: Decode, most: DrainStep, *, careful: bool) -> WriteResult | None:
        async with self._database.transaction(f"write what waited of {key.entity}") as connection:
            if not await connection.fetchval(parking.TRY_LOCK, parking.stripe(key)):
                return None
            rows = await connection.fetch(parking.NEXT, key.entity, key.key, most.letters, most.size_bytes)
            waited = parking.Waited.read(rows, decode)
            projection = _Projection(connection, self._statements, self._routes, careful=careful)
            # None is left out for a newer one: each has waited for its turn.
            result = await projection.write(waited.changes, {change.event.key for change in waited.changes})
            if await connection.fetchval(parking.UNTOUCHED, *waited.tried) < len(waited.tried[0]):
                raise Transient("a person closed or edited a parked letter meanwhile")
            refused = [*projection.refused, *waited.dead]
            for each in refused:
                await self._bury(connection, *waited.places[each.position], [each])
            await self._resolve(connection, projection)
            counts = await self._queue(connection, projection.applied)
        if counts:
            self._queued(counts)
        return result._replace(rejected=len(refused))

    async def _queue(self, connection: Connection, applied: Sequence[Change]) -> Counter[str]:
        if not applied:
            return Counter()
        rows = await connection.fetch(statements.QUEUE, *statements.queueing(applied, self._routes))
        return Counter(row["destination"] for row in rows)


class _Projection:
    """The entity tables' part of one transaction.

    `written` are the changes that the tables took or had already, `stale` the keys of those that are older than what
    the tables hold, `refused` what the database rejects, when `careful`; `applied` are those that changed what a row
    shows and that a destination wants, of each row in the order of versions. `waiting` are changes of rows with strict
    order that come after a refused one and were not tried.
    """

    def __init__(
        self, connection: Connection, prepared: dict[str, EntityStatements], routes: Routes, *, careful: bool
    ) -> None:
        self._connection = connection
        self._statements = prepared
        self._routes = routes
        self._careful = careful
        self._result = WriteResult()
        self.written: list[Change] = []
        self.stale: set[EntityKey] = set()
        self.refused: list[DeadLetter] = []
        self.waiting: list[Change] = []
        self.applied: list[Change] = []

    async def write(self, changes: Sequence[Change], whole: Set[EntityKey] = frozenset()) -> WriteResult:
        """Write the newest version of each key; where it is refused, the next older one that came with it.

        Of the keys in `whole`, as of those with a change that a destination wants, every version is written.
        """
        waiting = list(changes)
        while waiting:
            before = len(self.refused), len(self.waiting)
            events = _events(waiting)
            newest = coalesce(events, whole | _wanted(events, self._routes))
            for entity, layers in newest.kept.items():
                changes_of = [[waiting[place] for place in layer] for layer in layers]
                await self._write_layers(self._statements[entity], changes_of)
            failed = {EntityKey(letter.entity or "", letter.key or "") for letter in self.refused[before[0] :]}
            late = {change.event.key for change in self.waiting[before[1] :]}
            waiting = self._next_best([waiting[place] for place in newest.dropped], failed | late)
            self._count(coalesced=len(newest.dropped) - len(waiting))
        return self._result

    def _next_best(self, dropped: Sequence[Change], keys: Set[EntityKey]) -> list[Change]:
        """Of the keys that had changes refused just now: the others that are newer than all that was taken of the key."""
        if not keys:
            return []
        taken = {change.event.key: change.event.version for change in self.written}
        older = [change for change in dropped if change.event.key in keys]
        return [each for each in older if each.event.key not in taken or taken[each.event.key] < each.event.version]

    async def _write_layers(self, prepared: EntityStatements, layers: Sequence[Sequence[Change]]) -> None:
        """Write layer after layer, and count what became of each change once all of them are written."""
        if not self._careful:
            return await self._judge(prepared, layers, await self._fetch(prepared, layers))
        sifted = [await self._sift(prepared, self._in_turn(prepared, changes)) for changes in layers]
        taken = [changes for changes, _ in sifted if changes]
        return await self._judge(prepared, taken, [pair for _, written in sifted for pair in written])

    def _in_turn(self, prepared: EntityStatements, changes: Sequence[Change]) -> Sequence[Change]:
        """The changes whose turn it is: with strict order nothing newer follows a refused one."""
        if not (prepared.is_strict and self.refused):
            return changes
        now, later = parking.in_turn(changes, self.refused)
        self.waiting += later
        return now

    async def _sift(self, prepared: EntityStatements, changes: Sequence[Change]) -> tuple[list[Change], list[_Written]]:
        """Write those that the database takes and refuse the others, each for a reason of its own.

        A step that is rejected is tried again with few of its rows, and one that works is followed by a larger one. So
        a lone bad row among thousands costs some twenty steps, and where all are bad each costs one.
        """
        taken: list[Change] = []
        written: list[_Written] = []
        start, size = 0, len(changes)
        await self._connection.execute(statements.SAVEPOINT)
        while some := changes[start : start + size]:
            try:
                # Translated here, so that only the savepoint is rolled back.
                with database_errors("write rows"):
                    written += _pairs(await self._connection.fetch(prepared.upsert, *prepared.rows(_events(some))))
            except Rejected as error:
                await self._connection.execute(statements.BACK_TO_SAVEPOINT)
                if len(some) == 1:
                    self._refuse(some[0], error)
                    start += 1
                size = max(1, len(some) // _SHRINK)
            else:
                await self._connection.execute(statements.NEXT_SAVEPOINT)
                taken += some
                start, size = start + len(some), size * _GROW
        await self._connection.execute(statements.NO_SAVEPOINT)
        return taken, written

    def _refuse(self, change: Change, error: Rejected) -> None:
        self.refused.append(rejected(change.position, change.event, change.data, stage="write", error=error))

    async def _judge(
        self, prepared: EntityStatements, layers: Sequence[Sequence[Change]], written: Sequence[_Written]
    ) -> None:
        """`written` are the rows that were, layer after layer, each with the event whose content it now shows.

        An event that changed nothing leaves the one before it there. So what was applied is named, and was written.
        """
        changes = [change for layer in layers for change in layer]
        keys = [change.key for change in changes]
        newest = dict(zip(keys, changes, strict=True))
        sent = {(key, change.event.event_id): change for key, change in zip(keys, changes, strict=True)}
        stale, coalesced, same = 0, 0, set()
        if self.stale:
            # A change that came instead of a refused one is judged after an older one of its key.
            self.stale -= {change.event.key for change in newest.values()}
        if len(written) < len(changes):
            rest = _not_written(changes, Counter(key for key, _ in written))
            for change in rest:
                sent.pop((change.key, change.event.event_id), None)
            judged = [change for change in rest if newest[change.key] is change]
            same = await self._same(prepared, judged)
            self.stale |= {change.event.key for change in judged if change.key not in same}
            stale, coalesced = len(judged) - len(same), len(rest) - len(judged)
        applied = [sent[pair] for pair in dict.fromkeys(written) if pair in sent]
        unchanged = len(written) - len(applied) + len(same)
        self.written += newest.values()
        if self._routes:
            self.applied += [change for change in applied if self._routes.of(change.event)]
        self._count(applied=len(applied), unchanged=unchanged, stale=stale, coalesced=coalesced)

    async def _same(self, prepared: EntityStatements, changes: Sequence[Change]) -> set[Any]:
        if not changes:
            return set()
        return {key for (key,) in await self._connection.fetch(prepared.same, *prepared.versions(_events(changes)))}

    async def _fetch(self, prepared: EntityStatements, layers: Sequence[Sequence[Change]]) -> list[_Written]:
        if len(layers) == 1:
            rows = await self._connection.fetch(prepared.upsert, *prepared.rows(_events(layers[0])))
        else:
            # Sent in one go, done one after the other.
            rows = await self._connection.fetchmany(
                prepared.upsert, [prepared.rows(_events(layer)) for layer in layers]
            )
        return _pairs(rows)

    def _count(self, *, applied: int = 0, unchanged: int = 0, stale: int = 0, coalesced: int = 0) -> None:
        more = WriteResult(applied, unchanged, stale, coalesced)
        self._result = WriteResult(*(one + other for one, other in zip(self._result, more, strict=True)))


def _events(changes: Iterable[Change]) -> list[TypedChange]:
    return [change.event for change in changes]


def _wanted(events: Iterable[TypedChange], routes: Routes) -> Set[EntityKey]:
    """The rows with a change that a destination wants."""
    if not routes:
        return frozenset()
    return {event.key for event in events if routes.of(event)}


def _pairs(rows: Iterable[Sequence[Any]]) -> list[_Written]:
    return [(key, event_id) for key, event_id in rows]


def _not_written(changes: Sequence[Change], written: Counter[Any]) -> list[Change]:
    """What the guard held back: of each key its oldest, because once one was written, so were all that are newer."""
    rest = []
    for change in reversed(changes):
        if written[change.key]:
            written[change.key] -= 1
        else:
            rest.append(change)
    return rest
