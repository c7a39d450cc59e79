"""What the worker's integration tests share: an entity with every kind of column, events of it, and batches."""

from __future__ import annotations

import enum
import itertools
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from tidegate import access, codec, tables, tracking
from tidegate.entity import EVERYONE, Entity, Meta, Reader, describe
from tidegate.event import (
    Cause,
    ChangeEvent,
    EntityKey,
    Operation,
    QuarantineRecord,
    StreamEvent,
    Version,
    Watermark,
)
from worker.batch import Batch, BatchBuilder, BatchLimits, DecodeAll, Record
from worker.decode import Decoder

# Long ago on any machine: no watermark is later than the clock of the database.
NOW = datetime(2024, 11, 21, 6, 0, tzinfo=UTC)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Gadget(Entity):
    """Every kind of column once, and one of them nullable."""

    meta = Meta(collection="gadgets", key="number", version="revision", readers=(Reader(EVERYONE),))
    number: str
    name: str
    colour: Colour
    pieces: int
    ratio: float
    price: Decimal
    active: bool
    made_on: date
    changed_at: datetime
    serial: UUID
    note: str | None
    revision: int


class Counter(Entity):
    """A number as key."""

    meta = Meta(collection="counters", key="number", readers=(Reader(EVERYONE),))
    number: int
    total: int


ENTITIES: tuple[type[Entity], ...] = (Gadget, Counter)
SHAPES = tuple(describe(entity) for entity in ENTITIES)
DECODER = Decoder(ENTITIES)


def gadget(number: str, **changed: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "number": number, "name": f"gadget {number}", "colour": "red", "pieces": 3, "ratio": 0.5, "price": "12.50",
        "active": True, "made_on": "2026-11-20", "changed_at": "2026-11-21T05:55:03Z",
        "serial": "7f1c3f0e-9d3b-4a52-8f7e-0a4d3c1b2a10", "note": None, "revision": 1,
    }  # fmt: skip
    return {**fields, **changed}


def change(
    key: str,
    version: int,
    payload: dict[str, Any] | None,
    *,
    entity: str = "gadget",
    read: int = 1,
    cause: Cause = Cause.LIVE,
) -> ChangeEvent:
    """An upsert, or a deletion when there is no payload."""
    whole = Version(0, version, 1, read, 1)
    operation = Operation.DELETE if payload is None else Operation.UPSERT
    name = EntityKey(entity, key)
    return ChangeEvent(
        event_id=codec.event_id(name, whole, operation), key=name, version=whole, operation=operation, cause=cause,
        source="gadgets", occurred_at=NOW, observed_at=NOW, payload=payload,
    )  # fmt: skip


def watermark(as_of: datetime, source: str = "gadgets") -> Watermark:
    return Watermark(event_id=f"{source}-{as_of.timestamp()}", source=source, as_of=as_of)


def quarantined(key: str | None, *, observed_at: datetime = NOW, source: str = "gadgets") -> QuarantineRecord:
    """A row of the back office that the poller could not translate."""
    return QuarantineRecord(
        event_id="q", source=source, entity="gadget", stage="translate", reason="invalid", message="why", raw=b"row",
        observed_at=observed_at, key=key,
    )  # fmt: skip


def batch(
    *events: StreamEvent | bytes, shard_id: str = "shard-0", first: int = 1, decode: DecodeAll = DECODER.decode_all
) -> Batch:
    """The events as the consumer would batch them; bytes are records as they are."""
    builder = BatchBuilder(shard_id, BatchLimits(max_records=10_000, max_bytes=10**9, max_age_s=1))
    for number, event in zip(itertools.count(first), events, strict=False):
        data = event if isinstance(event, bytes) else codec.encode(event)
        builder.fill([Record(str(number), data)], 0, decode, 0.0)
    return builder.close()


async def create_tables(dsn: str) -> None:
    """The tables as the code declares them, without migrations."""
    engine = create_async_engine(dsn.replace("postgresql://", "postgresql+asyncpg://", 1))
    async with engine.begin() as connection:
        await connection.execute(sa.text(f"CREATE SCHEMA {tables.SCHEMA}"))
        await connection.run_sync(tables.operational.create_all)
        await connection.run_sync(tables.entity_metadata(SHAPES).create_all)
        for shape in SHAPES:
            await connection.exec_driver_sql(tracking.column(shape))
        for statement in (each for shape in SHAPES for each in tables.completeness(shape)):
            await connection.execute(sa.text(statement))
        await connection.execute(sa.text(access.DATA_AS_OF))
    await engine.dispose()


async def rows(connection: asyncpg.Connection[asyncpg.Record], query: str, *arguments: object) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await connection.fetch(query, *arguments)]
