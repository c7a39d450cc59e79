"""What `tidegate outbox carry-over` does: the outcomes of one outbox become those of another.

A worker queues a change unless (destination, event id) is there already. So a change whose row says `sent` in the
restored database is not sent when its event is applied once more; and one that waited at the time of the backup is not
sent when the database that was left knows how it ended.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from tidegate.cli.console import database
from tidegate.cli.dead_letters_show import answer
from tidegate.database import Database, DatabaseSettings, connect
from tidegate.errors import Fatal

_LEFT = "TIDEGATE_LEFT_DATABASE_URL"
_ROWS = 1_000

_ANSWERED = """
SELECT id, destination, event_id, lane, entity, key, payload, state, attempts, queued_at, tried_since, answered_at, reason,
       message
FROM tidegate.outbox WHERE state <> 'waiting' AND id > $1 ORDER BY id LIMIT $2
"""
_WAITING = "SELECT count(*) FROM tidegate.outbox WHERE state = 'waiting'"
_CARRY = """
INSERT INTO tidegate.outbox AS mine (destination, event_id, lane, entity, key, payload, state, attempts, queued_at,
                                     tried_since, answered_at, reason, message)
SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::bytea[], $7::text[], $8::bigint[],
                     $9::timestamptz[], $10::timestamptz[], $11::timestamptz[], $12::text[], $13::text[])
ON CONFLICT (destination, event_id) DO UPDATE
SET state = excluded.state, attempts = excluded.attempts, tried_since = excluded.tried_since,
    answered_at = excluded.answered_at, reason = excluded.reason, message = excluded.message
WHERE mine.state = 'waiting'
RETURNING (xmax = 0) AS is_new
"""
_KNOWN = """
SELECT count(*) FILTER (WHERE mine.id IS NULL) AS added, count(*) FILTER (WHERE mine.state = 'waiting') AS settled
FROM unnest($1::text[], $2::text[]) AS given (destination, event_id)
LEFT JOIN tidegate.outbox AS mine USING (destination, event_id)
"""


class Carried(Struct, kw_only=True):
    """What was carried over. `added`: not in the restored outbox; `settled`: it waited there and will not be sent.

    `still_waiting` were unanswered in the database that was left: when their events are applied again they are sent.
    """

    added: int = 0
    settled: int = 0
    still_waiting: int = 0
    dry_run: bool = False


def run_carry_over(arguments: argparse.Namespace) -> int:
    url = os.environ.get(_LEFT)
    if not url:
        raise Fatal(f"{_LEFT} is not set; give the address of the database that was left, as tidegate_operator")
    if url == os.environ.get("TIDEGATE_DATABASE_URL"):
        raise Fatal(f"{_LEFT} and TIDEGATE_DATABASE_URL are the same database")
    done = asyncio.run(_carry_over(url, dry_run=arguments.dry_run))
    if arguments.json:
        print(answer(done))
        return 0
    would = "would be " if done.dry_run else ""
    print(f"{done.added} changes {would}added as answered, {done.settled} that waited {would}settled")
    print(
        f"{done.still_waiting} were not answered when the database was left; they are sent when they are applied again"
    )
    return 0


async def _carry_over(url: str, *, dry_run: bool) -> Carried:
    done = Carried(dry_run=dry_run)
    async with connect(url, DatabaseSettings(connections=1), "cli") as left, database() as restored:
        async with left.transaction("count what waits") as connection:
            done.still_waiting = await connection.fetchval(_WAITING)
        after = 0
        while rows := await _answered(left, after):
            after = rows[-1]["id"]
            await _carry(restored, rows, done)
    return done


async def _answered(left: Database, after: int) -> list[Any]:
    async with left.transaction("read the outbox that was left") as connection:
        return list(await connection.fetch(_ANSWERED, after, _ROWS))


async def _carry(restored: Database, rows: Sequence[Any], done: Carried) -> None:
    columns = [list(column) for column in zip(*(tuple(row)[1:] for row in rows), strict=True)]
    async with restored.transaction("carry the outbox over") as connection:
        if done.dry_run:
            [found] = await connection.fetch(_KNOWN, *columns[:2])
            done.added += found["added"]
            done.settled += found["settled"]
            return
        written = await connection.fetch(_CARRY, *columns)
    added = sum(row["is_new"] for row in written)
    done.added += added
    done.settled += len(written) - added
