"""What bad records cost in a batch of 5,000 that is written to PostgreSQL, against the same batch without any.

For each kind that the database refuses: records a second, and how many statements the batch took, savepoints included.
The breaker is off. `strict`: the entity asks for strict order per key. `strict-open`: no record is bad, but a dead letter
of another key is open, so each batch must ask what it holds up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import asyncpg
from msgspec.structs import replace

from bench import Result
from local.postgres import Postgres
from tests.integration.projection_model import TOO_MANY, Fault, Office, Poller
from tests.integration.worker_rows import SHAPES, batch, create_tables
from tidegate.database import Connection, Database, DatabaseSettings, connect
from tidegate.entity import EntityShape
from worker import dead_letter
from worker.aurora import AuroraSink
from worker.batch import Batch

RECORDS = 5_000
ROUNDS = 2
KINDS = (Fault.UNDECODABLE, Fault.NUL, Fault.CHECK)
STRICT = tuple(replace(shape, is_strict=True) for shape in SHAPES)
OPEN = "INSERT INTO tidegate.dead_letter (stream, shard_id, sequence_number, sub_sequence, stage, reason, message, entity, \
key, payload, kind, identity, fingerprint) VALUES ('stream', 's', 1, 0, '', '', '', 'gadget', 'other', '', 'event', '', '')"


class Counting(Database):
    """Counts the statements that reach the server, or fail on their way."""

    statements = 0

    @asynccontextmanager
    async def transaction(self, doing: str) -> AsyncIterator[Connection]:
        async with super().transaction(doing) as connection:
            connection.add_query_logger(self._count)
            yield connection
            connection.remove_query_logger(self._count)

    def _count(self, query: object) -> None:
        self.statements += 1


def run() -> Iterator[Result]:
    with asyncio.Runner() as runner:
        measured = runner.run(_measure())
    clean_s, clean_statements = measured.pop(("no-poison", 0))
    for (kind, poison), (seconds, statements) in measured.items():
        name = f"poison-{poison}-{kind}"
        yield Result.of(name, "records/s", RECORDS / seconds, "no-poison", RECORDS / clean_s)
        yield Result(
            bench=name, value=statements, unit="statements", baseline="no-poison", baseline_value=clean_statements,
            ratio=round(clean_statements / statements, 4),
        )  # fmt: skip


async def _measure() -> dict[tuple[str, int], tuple[float, int]]:
    measured = {}
    async with Postgres() as postgres:
        await create_tables(postgres.dsn)
        sql = await asyncpg.connect(postgres.dsn)
        await sql.execute(f"ALTER TABLE gadgets ADD CONSTRAINT few CHECK (pieces < {TOO_MANY})")
        async with connect(postgres.dsn, DatabaseSettings(), "bench") as made:
            counting = Counting(made._pool, DatabaseSettings())
            measured["no-poison", 0] = await _best(sql, counting, _batch(Fault.NUL, 0))
            for kind in KINDS:
                for poison in (1, 10, RECORDS):
                    measured[kind.name.lower(), poison] = await _best(sql, counting, _batch(kind, poison))
            for poison in (0, 1, 10, RECORDS):
                measured["strict", poison] = await _best(sql, counting, _batch(Fault.CHECK, poison), STRICT)
            measured["strict-open", 0] = await _best(sql, counting, _batch(Fault.NUL, 0), STRICT, OPEN)
        await sql.close()
    return measured


def _batch(kind: Fault, poison: int) -> Batch:
    poller, payloads = Poller(), []
    for number in range(RECORDS):
        office = Office(f"G{number:04}", pieces=3)
        is_bad = number * poison // RECORDS != (number - 1) * poison // RECORDS
        payloads.append((poller.poison(office, kind) if is_bad else poller.change(office)).data)
    return batch(*payloads)


async def _best(
    sql: asyncpg.Connection[asyncpg.Record],
    database: Counting,
    whole: Batch,
    shapes: Sequence[EntityShape] = SHAPES,
    prepare: str = "SELECT",
) -> tuple[float, int]:
    """The fewest seconds, and the statements of one."""
    best_s = float("inf")
    for _ in range(ROUNDS):
        await sql.execute("TRUNCATE gadgets, tidegate.shard, tidegate.dead_letter CASCADE")
        await sql.execute(prepare)
        sink = AuroraSink(database, "stream", shapes, dead_letter.file)
        await sink.register([whole.shard_id], [], [])
        await sink.open(whole.shard_id, 1)
        database.statements, started_s = 0, time.perf_counter()
        await sink.write(whole, 1)
        best_s = min(best_s, time.perf_counter() - started_s)
    return best_s, database.statements
