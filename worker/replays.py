"""Batches that the tables have already, as after a crash or when a stream is read once more: passed by in one statement.

To be held off by its version costs a row as much as to be written, and its batch four round trips and a commit. A look
at the versions costs a third of that, and where all of them are there or newer, the same statement moves the shard's
position, behind the same fence. In all other cases it changes nothing, and the batch is written. What is older than its
row is stale, whether the table would take it or not.

A replay begins when a shard is opened, and ends with the first batch that is not there. So a batch that was written is never
looked for, also when its commit was not answered and it comes again: then `worker.fence` knows what became of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from tidegate.database import Database
from worker import statements
from worker.batch import Batch, coalesce
from worker.ports import WriteResult
from worker.statements import EntityStatements

_PARAMETER = re.compile(r"\$(\d+)")


class Replays:
    """Remembers which shards may be replaying."""

    def __init__(self, database: Database, stream: str, prepared: Mapping[str, EntityStatements]) -> None:
        self._database = database
        self._stream = stream
        self._statements = prepared
        self._shards: set[str] = set()

    def begin(self, shard_id: str) -> None:
        """The shard was opened."""
        self._shards.add(shard_id)

    def end(self, shard_id: str) -> None:
        """Nothing more comes of it."""
        self._shards.discard(shard_id)

    async def passed(self, batch: Batch, counter: int) -> WriteResult | None:
        """The counts, and the position is moved, if the shard replays and the tables have all of the batch; else None.

        Also None when there are open dead letters, which a row that stands there already may close, and when a newer
        holder has the shard. Raises Transient, Rejected, Fatal.
        """
        if batch.shard_id not in self._shards or batch.dead or batch.marks or not batch.events:
            return None
        look = _Look(self._statements, batch)
        batch.let_go()
        async with self._database.statement(f"look whether a batch of {batch.shard_id} is there") as connection:
            found = await connection.fetchrow(
                look.text, self._stream, *look.place, counter, look.count, *look.arguments
            )
        if found is None:
            self._shards.discard(batch.shard_id)
            return None
        return WriteResult(unchanged=found["same"], stale=found["held"] - found["same"], coalesced=look.coalesced)


class _Look:
    """The statement for one batch, its arguments, and how many rows it asks for."""

    def __init__(self, prepared: Mapping[str, EntityStatements], batch: Batch) -> None:
        # Of a key the newest version tells for all.
        events = batch.events
        newest = coalesce(events)
        rows = {prepared[entity]: [events[place] for place in layers[0]] for entity, layers in newest.kept.items()}
        self.text = _statement([each.held for each in rows])
        self.place = batch.shard_id, batch.last.sequence, batch.last.sub
        self.arguments = [each for statement, alike in rows.items() for each in statement.versions(alike)]
        self.count = sum(map(len, rows.values()))
        self.coalesced = len(newest.dropped)


def _statement(looks: Sequence[str]) -> str:
    """$1 to $5 are those of the fence, $6 is the number of rows; what the looks at each entity need follows."""
    parts, given = [], 6
    for look in looks:
        parts.append(_shifted(look, given))
        given += max(int(number) for number in _PARAMETER.findall(look))
    return (
        f"WITH found AS MATERIALIZED (SELECT sum(held)::bigint AS held, sum(same)::bigint AS same\n"
        f"FROM ({' UNION ALL '.join(parts)}) AS each),\n"
        f"passed AS ({statements.FENCE_IF.format('(SELECT held FROM found) = $6::bigint')})\n"
        "SELECT held, same FROM found, passed"
    )


def _shifted(text: str, by: int) -> str:
    """The same with parameters of higher numbers."""
    return _PARAMETER.sub(lambda found: f"${int(found[1]) + by}", text)
