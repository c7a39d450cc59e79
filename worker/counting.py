"""Writes rows of which nobody asks what became of which: the database counts, and no row comes back.

That is the rule: no destination wants to be told of a change, and no dead letter is open. And it is twice as quick as to
have each row named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tidegate.codec import TypedChange
from tidegate.database import Connection
from worker.batch import coalesce
from worker.ports import WriteResult
from worker.statements import EntityStatements


class _Rows(NamedTuple):
    """How many one statement writes, and its arguments."""

    prepared: EntityStatements
    size: int
    arguments: Sequence[str]


class Counting:
    """The entity tables' part of one transaction: the newest version of each key.

    Made before the transaction begins. The events have been decoded just now and are still in the processor's caches; to
    look at them after some round trips, with other shards' work in between, costs more than twice as much. Nothing of them
    is kept.
    """

    def __init__(self, prepared: Mapping[str, EntityStatements], events: Sequence[TypedChange]) -> None:
        newest = coalesce(events)
        self._coalesced = len(newest.dropped)
        self._parts = [
            _Rows(prepared[entity], len(places), prepared[entity].rows([events[place] for place in places]))
            for entity, layers in newest.kept.items()
            for places in layers
        ]

    async def write(self, connection: Connection) -> WriteResult:
        total = WriteResult(coalesced=self._coalesced)
        for each in self._parts:
            part = await _write(connection, each)
            total = WriteResult(*map(sum, zip(total, part, strict=True)))
        return total


async def _write(connection: Connection, rows: _Rows) -> WriteResult:
    prepared, size, arguments = rows
    written, applied = await _fetch(connection, prepared.count, arguments)
    unchanged = written - applied
    if written == size:
        return WriteResult(applied=applied, unchanged=unchanged)
    # The others stand in the table as they are here, or are newer there. What was written stands so, too.
    held, same = await _fetch(connection, prepared.held, prepared.versions_of(arguments))
    return WriteResult(applied=applied, unchanged=same - applied, stale=held - same)


async def _fetch(connection: Connection, statement: str, arguments: Sequence[str]) -> tuple[int, int]:
    one, other = await connection.fetchrow(statement, *arguments) or (0, 0)
    return one, other
