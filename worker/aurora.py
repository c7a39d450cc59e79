"""The sink on Aurora PostgreSQL: one transaction for each batch, guarded by versions and by the lease counter.

The order inside the transaction: the fence (which locks the shard's row, so that two writers of one shard queue
up), the rows of each entity sorted by key, the watermarks, the dead letters, and those letters that the rows make
good; last, for each applied change that a destination wants, its place in the outbox. First everything is tried at
once. Only when the database rejects a value is the batch written again, this time with a savepoint: as many rows in
a step as the steps before let hope for, until those at fault have stood alone and are filed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence, Set
from typing import Any

from tidegate import columns
from tidegate.database import MIGRATE_HINT, Connection, Database, database_errors
from tidegate.entity import EntityShape
from tidegate.errors import Fatal, Rejected, Superseded
from tidegate.event import EntityKey
from worker import statements
from worker.batch import Batch, Change, DeadLetter, Position, coalesce, newest_marks
from worker.decode import rejected
from worker.ports import ShardState, WriteResult
from worker.routes import NO_ROUTES, Routes
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
        self._file = file
        self._routes = routes
        self._queued = queued

    async def check(self) -> None:
        """Raises Fatal when a table is missing or has other columns than this bubble, Transient when nobody answers."""
        async with self._database.transaction("look at the tables") as connection:
            tables = [shape.table for shape in self._shapes]
            found = [columns.Column(*row) for row in await connection.fetch(columns.LOOK, tables)]
            if faults := list(columns.faults(self._shapes, found)):
                raise Fatal(f"the database is not of this release's shape: {'; '.join(faults)}; {MIGRATE_HINT}")
            for prepared in self._statements.values():
                await connection.prepare(prepared.upsert)
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
        sequence, sub, stored_counter = row
        return ShardState(None if sequence is None else Position(int(sequence), sub), stored_counter)

    async def write(self, batch: Batch, counter: int) -> WriteResult:
        try:
            return await self._write(batch, counter, careful=False)
        except Rejected:
            pass
        try:
            return await self._write(batch, counter, careful=True)
        except Rejected as error:
            # No single row is at fault, so going on would lose the batch.
            raise Fatal(f"the database rejects the bookkeeping of a batch of {batch.shard_id}: {error}") from error

    async def note(self, shard_id: str, counter: int, letter: DeadLetter) -> None:
        async with self._database.transaction(f"file a note on {shard_id}") as connection:
            await self._lock(connection, shard_id, counter)
            await self._file(connection, self._stream, shard_id, [letter])

    async def end(self, shard_id: str, counter: int, child_ids: Sequence[str]) -> None:
        async with self._database.transaction(f"end shard {shard_id}") as connection:
            await connection.execute(statements.LOCK_FAMILY, self._stream)
            if not await self._lock(connection, shard_id, counter):
                return
            await connection.execute(statements.ADD, self._stream, sorted(child_ids))
            await connection.execute(statements.INHERIT, self._stream, shard_id, sorted(child_ids))
            await connection.execute(statements.REMOVE_SHARD, self._stream, shard_id)

    async def _write(self, batch: Batch, counter: int, *, careful: bool) -> WriteResult:
        async with self._database.transaction(f"write a batch of {batch.shard_id}") as connection:
            has_open = await self._fence(connection, batch, counter)
            projection = _Projection(connection, self._statements, self._routes, careful=careful)
            result = await projection.write(batch.changes)
            if marks := newest_marks(batch.marks):
                as_of = [mark.as_of for mark in marks.values()]
                await connection.execute(statements.MARKS, self._stream, batch.shard_id, list(marks), as_of)
            letters = [*batch.dead, *projection.refused]
            await self._file(connection, self._stream, batch.shard_id, letters)
            if projection.written and (has_open or letters):
                given = statements.resolving(projection.written, projection.stale)
                await connection.execute(statements.RESOLVE, self._stream, *given)
            counts = await self._queue(connection, projection.applied)
        if counts:
            self._queued(counts)
        return result._replace(rejected=len(batch.dead) + len(projection.refused))

    async def _queue(self, connection: Connection, applied: Sequence[Change]) -> Counter[str]:
        if not applied:
            return Counter()
        rows = await connection.fetch(statements.QUEUE, *statements.queueing(applied, self._routes))
        return Counter(row["destination"] for row in rows)

    async def _fence(self, connection: Connection, batch: Batch, counter: int) -> bool:
        """Whether there are open dead letters that a change could resolve."""
        has_open: bool | None = await connection.fetchval(
            statements.FENCE, self._stream, batch.shard_id, batch.last.sequence, batch.last.sub, counter
        )
        if has_open is None:
            raise Superseded(
                f"shard {batch.shard_id} is fenced: a newer holder than counter {counter} wrote or ended it"
            )
        return has_open

    async def _lock(self, connection: Connection, shard_id: str, counter: int) -> bool:
        """False when the shard is ended already; Superseded when a newer holder wrote to it."""
        stored = await connection.fetchval(statements.LOCK_SHARD, self._stream, shard_id)
        if stored is not None and stored > counter:
            raise Superseded(f"shard {shard_id} belongs to a newer holder: counter {stored}, mine is {counter}")
        return stored is not None


class _Projection:
    """The entity tables' part of one transaction.

    `written` are the changes that the tables took or had already, `stale` the keys of those that are older than what
    the tables hold, `refused` what the database rejects, when `careful`; `applied` are those that changed what a row
    shows and that a destination wants, of each row in the order of versions.
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
        self.applied: list[Change] = []

    async def write(self, changes: Sequence[Change]) -> WriteResult:
        """Write the newest version of each key; where it is refused, the next older one that came with it."""
        waiting = list(changes)
        while waiting:
            before = len(self.refused)
            newest = coalesce(waiting, self._wanted(waiting))
            for entity, layers in newest.kept.items():
                await self._write_layers(self._statements[entity], layers)
            waiting = self._next_best(newest.dropped, self.refused[before:])
            self._count(coalesced=len(newest.dropped) - len(waiting))
        return self._result

    def _next_best(self, dropped: Sequence[Change], refused: Sequence[DeadLetter]) -> list[Change]:
        """Of the keys that had changes refused just now: the others that are newer than all that was taken of the key."""
        if not refused:
            return []
        keys = {EntityKey(letter.entity or "", letter.key or "") for letter in refused}
        taken = {change.event.key: change.event.version for change in self.written}
        older = [change for change in dropped if change.event.key in keys]
        return [each for each in older if each.event.key not in taken or taken[each.event.key] < each.event.version]

    def _wanted(self, changes: Sequence[Change]) -> Set[EntityKey]:
        if not self._routes:
            return frozenset()
        return {change.event.key for change in changes if self._routes.of(change.event)}

    async def _write_layers(self, prepared: EntityStatements, layers: Sequence[Sequence[Change]]) -> None:
        """Write layer after layer, and count what became of each change once all of them are written."""
        if not self._careful:
            return await self._judge(prepared, layers, await self._fetch(prepared, layers))
        sifted = [await self._sift(prepared, changes) for changes in layers]
        taken = [changes for changes, _ in sifted if changes]
        return await self._judge(prepared, taken, [pair for _, written in sifted for pair in written])

    async def _sift(self, prepared: EntityStatements, changes: Sequence[Change]) -> tuple[list[Change], list[_Written]]:
        """Write those that the database takes and refuse the others, each for a reason of its own.

        A step that is rejected is tried again with few of its rows, and one that works is followed by a larger one. So
        a lone bad row among thousands costs some twenty steps, and where all are bad each costs one.
        """
        taken: list[Change] = []
        written: list[_Written] = []
        start, size = 0, len(changes)
        columns = prepared.rows(changes)
        await self._connection.execute(statements.SAVEPOINT)
        while some := changes[start : start + size]:
            arguments = [column[start : start + size] for column in columns]
            try:
                # Translated here, so that only the savepoint is rolled back.
                with database_errors("write rows"):
                    written += _pairs(await self._connection.fetch(prepared.upsert, *arguments))
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
        return {key for (key,) in await self._connection.fetch(prepared.same, *prepared.versions(changes))}

    async def _fetch(self, prepared: EntityStatements, layers: Sequence[Sequence[Change]]) -> list[_Written]:
        if len(layers) == 1:
            rows = await self._connection.fetch(prepared.upsert, *prepared.rows(layers[0]))
        else:
            # Sent in one go, done one after the other.
            rows = await self._connection.fetchmany(prepared.upsert, [prepared.rows(layer) for layer in layers])
        return _pairs(rows)

    def _count(self, *, applied: int = 0, unchanged: int = 0, stale: int = 0, coalesced: int = 0) -> None:
        more = WriteResult(applied, unchanged, stale, coalesced)
        self._result = WriteResult(*(one + other for one, other in zip(self._result, more, strict=True)))


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
