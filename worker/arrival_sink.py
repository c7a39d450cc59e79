"""The sink of the stream of arrivals: each event once into `tidegate.inbound`, in the transaction that moves the position.

Shards, fence and position are kept as those of every stream, by the same code. An event that is there already changes
nothing, so that a batch read twice, or a sender who sends twice, is once. First all are tried at once; only when the
database rejects a value, one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from tidegate.database import Connection, Database, database_errors
from tidegate.errors import Fatal, Rejected
from worker import arrivals, dead_letter, statements
from worker.aurora import AuroraSink
from worker.batch import Arrived, Batch, DeadLetter
from worker.fence import Done, Fence
from worker.ports import ShardState, WriteResult


class ArrivalSink:
    """Files one stream's events. See `worker.ports.Sink`."""

    def __init__(self, database: Database, stream: str) -> None:
        self._database = database
        self._stream = stream
        self._shards = AuroraSink(database, stream, (), dead_letter.file)
        self._fence = Fence(stream)

    async def check(self) -> None:
        """Raises Fatal when the tables are missing, Transient when nobody answers.

        It also says what stream this is, before any shard of it is known: the rows' freshness does not wait for it.
        """
        async with self._database.transaction("look at the tables") as connection:
            await connection.execute(arrivals.NAME_STREAM, self._stream)
            for text in (statements.FENCE, statements.FILE, arrivals.FILE_ARRIVALS, arrivals.CONFLICTS):
                await connection.prepare(text)

    async def register(
        self, shard_ids: Collection[str], lineage: Collection[tuple[str, str]], finished: Collection[str]
    ) -> list[str]:
        return await self._shards.register(shard_ids, lineage, finished)

    async def open(self, shard_id: str, counter: int, replaces: int | None = None) -> ShardState | None:
        state = await self._shards.open(shard_id, counter, replaces)
        self._fence.forget(shard_id)
        return state

    async def note(self, shard_id: str, counter: int, letter: DeadLetter) -> None:
        await self._shards.note(shard_id, counter, letter)

    async def end(self, shard_id: str, counter: int, child_ids: Sequence[str]) -> None:
        await self._shards.end(shard_id, counter, child_ids)

    async def write(self, batch: Batch, counter: int) -> WriteResult:
        try:
            return await self._write(batch, counter, careful=False)
        except Rejected:
            pass
        try:
            return await self._write(batch, counter, careful=True)
        except Rejected as error:
            # No single event is at fault, so going on would lose the batch.
            raise Fatal(f"the database rejects the bookkeeping of a batch of {batch.shard_id}: {error}") from error

    async def _write(self, batch: Batch, counter: int, *, careful: bool) -> WriteResult:
        async with self._database.transaction(f"file arrivals of {batch.shard_id}") as connection:
            done = await self._fence.done(connection, batch, counter)
            if done is None:
                passed = await self._fence.enter(connection, batch, counter)
                done = Done(await self._file_all(connection, batch, careful=careful), Counter())
                self._fence.expect(batch, passed, done)
        self._fence.forget(batch.shard_id)
        return done.result

    async def _file_all(self, connection: Connection, batch: Batch, *, careful: bool) -> WriteResult:
        """All that the transaction does behind the fence."""
        file = self._file_each if careful else self._file
        new, letters = await file(connection, batch.arrivals)
        await dead_letter.file(connection, self._stream, batch.shard_id, [*batch.dead, *letters])
        unchanged = len(batch.arrivals) - new - len(letters)
        return WriteResult(applied=new, unchanged=unchanged, rejected=len(batch.dead) + len(letters))

    async def _file(self, connection: Connection, arrived: Sequence[Arrived]) -> tuple[int, list[DeadLetter]]:
        """How many were new, and the letters of those whose id stands for something else."""
        if not arrived:
            return 0, []
        # As they came: an event is always of one shard, whose fence this transaction holds, so nobody else inserts it.
        found = await connection.fetch(arrivals.FILE_ARRIVALS, *arrivals.rows(arrived))
        if len(found) == len(arrived):
            return len(found), []
        disputed = await connection.fetch(arrivals.CONFLICTS, *arrivals.contents(arrived))
        named = {row["identity"] for row in disputed}
        conflicts = [
            each for each in arrived if each.event.identity in named and not await self._same(connection, each)
        ]
        return len(found), [arrivals.conflicting(each) for each in conflicts]

    async def _same(self, connection: Connection, each: Arrived) -> bool:
        """Whether this one says what is stored; of two with one id in a batch, the first is."""
        return not await connection.fetch(arrivals.CONFLICTS, *arrivals.contents([each]))

    async def _file_each(self, connection: Connection, arrived: Sequence[Arrived]) -> tuple[int, list[DeadLetter]]:
        """The same one by one, each within a savepoint: what the database rejects is a letter."""
        new, letters = 0, []
        await connection.execute(statements.SAVEPOINT)
        for each in arrived:
            try:
                # Translated here, so that only the savepoint is rolled back.
                with database_errors("file an arrival"):
                    count, conflicts = await self._file(connection, [each])
            except Rejected as error:
                await connection.execute(statements.BACK_TO_SAVEPOINT)
                letters.append(arrivals.refused(each, error))
            else:
                await connection.execute(statements.NEXT_SAVEPOINT)
                new, letters = new + count, letters + conflicts
        await connection.execute(statements.NO_SAVEPOINT)
        return new, letters
