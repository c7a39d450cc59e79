"""The sink on Aurora PostgreSQL: one transaction for each batch, guarded by versions and by the lease counter.

The order inside the transaction: the fence (which locks the shard's row, so that two writers of one shard queue
up), the rows of each entity sorted by key, the watermarks, the dead letters, and those letters that the rows make
good. First everything is tried at once. Only when the database rejects a value is the batch written again, this time
with savepoints: halves of halves, until the rows at fault stand alone and are filed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

from tidegate.database import Connection, Database, database_errors
from tidegate.entity import EntityShape
from tidegate.errors import Fatal, Rejected, Superseded
from tidegate.event import EntityKey
from worker import statements
from worker.batch import Batch, Change, DeadLetter, Position, coalesce, newest_marks
from worker.decode import rejected
from worker.ports import ShardState, WriteResult
from worker.statements import EntityStatements

File = Callable[[Connection, str, str, Sequence[DeadLetter]], Awaitable[None]]
"""How dead letters are written: connection, stream, shard, letters."""


class AuroraSink:
    """Projects one stream into the tables of a bubble."""

    def __init__(self, database: Database, stream: str, shapes: Iterable[EntityShape], file: File) -> None:
        self._database = database
        self._stream = stream
        self._statements = {shape.name: EntityStatements(shape) for shape in shapes}
        self._file = file

    async def check(self) -> None:
        """Raises Fatal when a table is missing or has other columns than this bubble, Transient when nobody answers."""
        async with self._database.transaction("look at the tables") as connection:
            for prepared in self._statements.values():
                await connection.prepare(prepared.upsert)
            for text in (statements.FENCE, statements.MARKS, statements.FILE, statements.RESOLVE):
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

    async def open(self, shard_id: str, counter: int, replaces: int | None = None) -> ShardState:
        async with self._database.transaction(f"open shard {shard_id}") as connection:
            await connection.execute(statements.ADD, self._stream, [shard_id])
            await connection.execute(statements.OPEN, self._stream, shard_id, counter, replaces)
            row = await connection.fetchrow(statements.STATE, self._stream, shard_id)
        if row is None:
            raise Superseded(f"shard {shard_id} was ended by another worker just now")
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
            projection = _Projection(connection, self._statements, careful=careful)
            result = await projection.write(batch.changes)
            if marks := newest_marks(batch.marks):
                as_of = [mark.as_of for mark in marks.values()]
                await connection.execute(statements.MARKS, self._stream, batch.shard_id, list(marks), as_of)
            letters = [*batch.dead, *projection.refused]
            await self._file(connection, self._stream, batch.shard_id, letters)
            if projection.written and (has_open or letters):
                given = statements.resolving(projection.written)
                await connection.execute(statements.RESOLVE, self._stream, *given)
        return result._replace(rejected=len(batch.dead) + len(projection.refused))

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

    `written` are the changes that the tables took or had already, `refused` what the database rejects, when `careful`.
    """

    def __init__(self, connection: Connection, prepared: dict[str, EntityStatements], *, careful: bool) -> None:
        self._connection = connection
        self._statements = prepared
        self._careful = careful
        self._result = WriteResult()
        self.written: list[Change] = []
        self.refused: list[DeadLetter] = []

    async def write(self, changes: Sequence[Change]) -> WriteResult:
        """Write the newest version of each key; where it is refused, the next older one that came with it."""
        waiting = list(changes)
        while waiting:
            before = len(self.refused)
            newest = coalesce(waiting)
            for entity, rows in newest.kept.items():
                await self._write_rows(self._statements[entity], rows)
            refused = {EntityKey(letter.entity or "", letter.key or "") for letter in self.refused[before:]}
            waiting = [change for change in newest.dropped if change.event.key in refused]
            self._count(coalesced=len(newest.dropped) - len(waiting))
        return self._result

    async def _write_rows(self, prepared: EntityStatements, changes: Sequence[Change]) -> None:
        if not self._careful:
            return await self._upsert(prepared, changes)
        try:
            # Translated inside the savepoint's block, so that only the savepoint is rolled back.
            with database_errors("write rows"):
                async with self._connection.transaction():
                    await self._upsert(prepared, changes)
        except Rejected as error:
            if len(changes) == 1:
                self._refuse(changes[0], error)
                return None
            middle = len(changes) // 2
            await self._write_rows(prepared, changes[:middle])
            await self._write_rows(prepared, changes[middle:])

    def _refuse(self, change: Change, error: Rejected) -> None:
        self.refused.append(rejected(change.position, change.event, change.data, stage="write", error=error))

    async def _upsert(self, prepared: EntityStatements, changes: Sequence[Change]) -> None:
        written = await self._connection.fetch(prepared.upsert, *prepared.rows(changes))
        sent = {change.key: change.event.event_id for change in changes}
        applied = sum(sent[key] == event_id for key, event_id in written)
        unchanged, stale = len(written) - applied, 0
        if len(written) < len(changes):
            keys = {key for key, _ in written}
            rest = [change for change in changes if change.key not in keys]
            same = int(await self._connection.fetchval(prepared.same, *prepared.versions(rest)))
            unchanged, stale = unchanged + same, len(rest) - same
        self.written += changes
        self._count(applied=applied, unchanged=unchanged, stale=stale)

    def _count(self, *, applied: int = 0, unchanged: int = 0, stale: int = 0, coalesced: int = 0) -> None:
        more = WriteResult(applied, unchanged, stale, coalesced)
        self._result = WriteResult(*(one + other for one, other in zip(self._result, more, strict=True)))
