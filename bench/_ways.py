"""Ways to bring rows from a program's memory into a table, all under the worker's guard. `upsert` compares them.

unnest       arrays in, as asyncpg writes them
unnest-text  arrays in, as the text of literals (what the worker does)
copy         asyncpg's own COPY into a temporary table, then one INSERT from there
copy-text    the same with CSV that msgspec writes

The temporary ones pin their session behind RDS Proxy and need the right to make temporary tables.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from operator import itemgetter
from typing import TypeAlias

import asyncpg
import msgspec

from bench._project_stream import COLUMNS, SHAPE, Row
from tidegate import tracking
from tidegate.tables import VERSION_COLUMNS
from worker.literals import array

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Way = Callable[[Connection, Sequence[Row]], Awaitable[object]]

_TYPES = (
    "text", "text", "text", "text", "numeric", "boolean", "bigint", "bigint", "bigint", "bigint", "bigint", "bigint",
    "boolean", "text", "timestamptz",
)  # fmt: skip
_CONTENT = [*(field.name for field in SHAPE.fields[1:]), "_deleted"]
_key = itemgetter(0)
_encoder = msgspec.json.Encoder()


def _row(table: str, names: Sequence[str]) -> str:
    return f"ROW({', '.join(f'{table}.{name}' for name in names)})"


def upsert(source: str) -> str:
    """Newer versions only, and what shows the same keeps its event and its times: the worker's rules."""
    same = f"{_row('stored', _CONTENT)} IS NOT DISTINCT FROM {_row('excluded', _CONTENT)}"
    kept = {"_event_id": "excluded._event_id", "_occurred_at": "excluded._occurred_at", "_projected_at": "now()"}
    kept[tracking.CHANGED] = f"(SELECT {tracking.THIS})"
    changes = [f"{name} = excluded.{name}" for name in (*_CONTENT, *VERSION_COLUMNS)]
    changes += [f"{name} = CASE WHEN {same} THEN stored.{name} ELSE {new} END" for name, new in kept.items()]
    return (
        f"INSERT INTO shipments AS stored ({', '.join(COLUMNS)}) {source} ON CONFLICT (number) DO UPDATE "
        f"SET {', '.join(changes)} WHERE {_row('stored', VERSION_COLUMNS)} < {_row('excluded', VERSION_COLUMNS)}"
    )


def _unnest(cast: str) -> str:
    arrays = (f"unnest(${number}{cast}::{kind}[])" for number, kind in enumerate(_TYPES, 1))
    return upsert(f"SELECT {', '.join(arrays)}")


_UNNEST, _UNNEST_TEXT, _MERGE = _unnest(""), _unnest("::text"), upsert("SELECT * FROM arrived")
_ARRIVED = f"CREATE TEMPORARY TABLE arrived ON COMMIT DELETE ROWS AS SELECT {', '.join(COLUMNS)} FROM shipments LIMIT 0"


async def unnest(connection: Connection, rows: Sequence[Row]) -> None:
    await connection.execute(_UNNEST, *map(list, zip(*rows, strict=True)))


async def unnest_text(connection: Connection, rows: Sequence[Row]) -> None:
    await connection.execute(_UNNEST_TEXT, *map(array, zip(*rows, strict=True)))


async def copy(connection: Connection, rows: Sequence[Row]) -> None:
    async with connection.transaction():
        await connection.copy_records_to_table("arrived", records=rows, columns=COLUMNS)
        await connection.execute(_MERGE)


async def copy_text(connection: Connection, rows: Sequence[Row]) -> None:
    """CSV is JSON's way to write texts and numbers, as long as nothing but quotes and backslashes is escaped."""
    lines = _encoder.encode(rows)[2:-2].replace(b"],[", b"\n")

    async def source() -> AsyncIterator[bytes]:
        yield lines

    async with connection.transaction():
        await connection.copy_to_table("arrived", source=source(), format="csv", null="null", escape="\\")
        await connection.execute(_MERGE)


WAYS: dict[str, Way] = {"unnest": unnest, "unnest-text": unnest_text, "copy": copy, "copy-text": copy_text}

_HELD = """
SELECT count(*) FROM unnest({arrays}) AS given ({names}) CROSS JOIN LATERAL (
    SELECT FROM shipments AS stored WHERE stored.number = given.number AND {stored} >= {given} OFFSET 0) AS found
""".format(
    arrays=", ".join(f"${number}::text::{kind}[]" for number, kind in enumerate(["text"] + ["bigint"] * 5, 1)),
    names=", ".join(["number", *VERSION_COLUMNS]),
    stored=_row("stored", VERSION_COLUMNS),
    given=_row("given", VERSION_COLUMNS),
)


async def look(connection: Connection, rows: Sequence[Row]) -> None:
    """For rows that are known to be there: finds out that they are, and writes nothing."""
    columns = list(zip(*rows, strict=True))
    assert await connection.fetchval(_HELD, *map(array, (columns[0], *columns[7:12]))) == len(rows)


@asynccontextmanager
async def connections(dsn: str, count: int) -> AsyncIterator[list[Connection]]:
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            connection = await asyncpg.connect(dsn, server_settings={"jit": "off"})
            stack.push_async_callback(connection.close)
            await connection.execute(_ARRIVED)
            made.append(connection)
        yield made


async def seconds(way: Way, opened: Sequence[Connection], shards: Sequence[Sequence[Row]], batch: int) -> float:
    """How long all connections together take, `batch` rows in a transaction, each connection one shard after the other.

    As a worker does: the rows of a shard lie near each other in the table, and where a page's rows change in transactions
    one after the other, the later ones find room in it (HOT updates), which is twice as quick.
    """
    waiting = iter(shards)

    async def work(connection: Connection) -> None:
        for rows in waiting:
            for begin in range(0, len(rows), batch):
                # In the order of the key's index: the table is quicker then.
                await way(connection, sorted(rows[begin : begin + batch], key=_key))

    started_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for connection in opened:
            group.create_task(work(connection))
    return time.perf_counter() - started_s
