"""A shard's row in the database: who may write to it, and whether a commit was done whose answer never came.

A connection can break between a commit and its answer, and then the consumer gives the same batch once more. To write it
again would leave the rows as they are, but call what was applied unchanged and count another attempt of each dead letter.
So what a transaction did is kept until its commit is answered. Its time is in the shard's row as well: if that stands
there when the batch comes again, the commit was done, and what was kept is the answer.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import NamedTuple

from tidegate.database import Connection
from tidegate.errors import Superseded
from worker import statements
from worker.batch import Batch, Position
from worker.ports import WriteResult


class Passed(NamedTuple):
    """The fence let a batch pass. `has_open`: there are open dead letters that a change could resolve."""

    has_open: bool
    committed_at: datetime


class Done(NamedTuple):
    """What a transaction did. `queued`: how many changes for each destination."""

    result: WriteResult
    queued: Counter[str]


class _Unanswered(NamedTuple):
    last: Position
    committed_at: datetime
    done: Done


class Fence:
    """The rows of one stream's shards. One for each sink, as it remembers what that wrote."""

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._unanswered: dict[str, _Unanswered] = {}

    async def enter(self, connection: Connection, batch: Batch, counter: int) -> Passed:
        """Lock the shard's row and move its position. Raises Superseded when a newer holder has it, or it ended."""
        row = await connection.fetchrow(
            statements.FENCE, self._stream, batch.shard_id, batch.last.sequence, batch.last.sub, counter
        )
        if row is None:
            raise Superseded(
                f"shard {batch.shard_id} is fenced: a newer holder than counter {counter} wrote or ended it"
            )
        return Passed(*row)

    async def lock(self, connection: Connection, shard_id: str, counter: int) -> bool:
        """False when the shard is ended already; Superseded when a newer holder wrote to it."""
        row = await connection.fetchrow(statements.LOCK_SHARD, self._stream, shard_id)
        if row is not None and row["lease_counter"] > counter:
            raise Superseded(
                f"shard {shard_id} belongs to a newer holder: counter {row['lease_counter']}, mine is {counter}"
            )
        return row is not None

    def expect(self, batch: Batch, passed: Passed, done: Done) -> None:
        """The batch is about to be committed."""
        self._unanswered[batch.shard_id] = _Unanswered(batch.last, passed.committed_at, done)

    def forget(self, shard_id: str) -> None:
        """The commit was answered, or the shard begins anew."""
        self._unanswered.pop(shard_id, None)

    async def done(self, connection: Connection, batch: Batch, counter: int) -> Done | None:
        """What an earlier transaction did with this batch, if its commit was done all the same."""
        kept = self._unanswered.get(batch.shard_id)
        if kept is None or kept.last != batch.last:
            return None
        # Waits for that transaction, should the server still be at it.
        row = await connection.fetchrow(statements.LOCK_SHARD, self._stream, batch.shard_id)
        if row is None or row["lease_counter"] > counter or row["committed_at"] != kept.committed_at:
            return None
        return kept.done
