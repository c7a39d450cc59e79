"""The outbox in PostgreSQL, seen from those who empty it: short transactions only, none while a receiver is asked.

A claim is a time in the row, not a lock: `due_at` moves to the end of the claim, so a worker that dies with changes
in hand holds neither a connection nor the vacuum, and its changes come back by themselves. All times are the
database's. What fills the outbox is `worker.aurora`, in the transaction that applies the change.
"""

from __future__ import annotations

from tidegate.database import Database
from tidegate.errors import Rejected, Transient
from worker import statements
from worker.ports import Effect

_MESSAGE_CHARACTERS = 2_000


class PostgresOutbox:
    """Adapter of `worker.ports.Outbox`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, destination: str, most: int, for_s: float) -> list[Effect]:
        async with self._database.transaction(f"claim changes for {destination}") as connection:
            rows = await connection.fetch(statements.CLAIM, destination, most, for_s)
        effects = [
            Effect(id=row["id"], event_id=row["event_id"], attempt=row["attempts"], payload=row["payload"])
            for row in rows
        ]
        return sorted(effects, key=lambda effect: effect.id)

    async def sent(self, effect: Effect) -> bool:
        async with self._database.transaction("note what was sent") as connection:
            state = await connection.fetchval(statements.SENT, effect.id, effect.attempt)
        return state is not None

    async def failed(self, effect: Effect, error: Transient | Rejected, *, wait_s: float, retry_for_s: float) -> bool:
        is_refused = isinstance(error, Rejected)
        reason = error.reason if isinstance(error, Rejected) else "not_accepted"
        message = _storable(str(error))
        async with self._database.transaction("note what failed") as connection:
            state = await connection.fetchval(
                statements.FAILED, effect.id, effect.attempt, reason, message, wait_s, is_refused, retry_for_s
            )
        return bool(state == "dead")

    async def look(self, destination: str) -> tuple[float, int]:
        async with self._database.transaction(f"look at what waits for {destination}") as connection:
            row = await connection.fetchrow(statements.LOOK, destination)
        return (0.0, 0) if row is None else (row["age_s"], row["dead"])

    async def sweep(self, keep_s: float, most: int) -> int:
        async with self._database.transaction("delete what was sent long ago") as connection:
            done = await connection.execute(statements.SWEEP, keep_s, most)
        return int(done.rpartition(" ")[2])


def _storable(message: str) -> str:
    """It quotes the receiver; PostgreSQL's text refuses NUL and halves of characters."""
    text = message[:_MESSAGE_CHARACTERS].replace("\0", "\N{REPLACEMENT CHARACTER}")
    return text.encode(errors="replace").decode()
