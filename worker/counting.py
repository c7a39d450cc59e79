"""Writes rows of which nobody asks what became of which: the database counts, and no row comes back.

That is the rule: no destination wants to be told of a change, and no dead letter is open. And it is twice as quick as to
have each row named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tidegate.database import Connection
from worker.batch import Change, coalesce
from worker.ports import WriteResult
from worker.statements import EntityStatements


class Counting:
    """The entity tables' part of one transaction."""

    def __init__(self, connection: Connection, prepared: Mapping[str, EntityStatements]) -> None:
        self._connection = connection
        self._statements = prepared

    async def write(self, changes: Sequence[Change]) -> WriteResult:
        """Write the newest version of each key."""
        total = WriteResult()
        newest = coalesce(changes)
        for entity, layers in newest.kept.items():
            for rows in layers:
                part = await self._write(self._statements[entity], rows)
                total = WriteResult(*map(sum, zip(total, part, strict=True)))
        return total._replace(coalesced=len(newest.dropped))

    async def _write(self, prepared: EntityStatements, rows: Sequence[Change]) -> WriteResult:
        written, applied = await self._fetch(prepared.count, prepared.rows(rows))
        unchanged = written - applied
        if written == len(rows):
            return WriteResult(applied=applied, unchanged=unchanged)
        # The others stand in the table as they are here, or are newer there. What was written stands so, too.
        held, same = await self._fetch(prepared.held, prepared.versions(rows))
        return WriteResult(applied=applied, unchanged=same - applied, stale=held - same)

    async def _fetch(self, statement: str, arguments: Sequence[str]) -> tuple[int, int]:
        one, other = await self._connection.fetchrow(statement, *arguments) or (0, 0)
        return one, other
