"""What the benchmarks read: parcels as events, and GetRecords replies that carry them, of Kinesis' own shape."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Literal

import msgspec

from tidegate import codec
from tidegate.entity import EVERYONE, Entity, Meta, Reader
from tidegate.event import Cause, ChangeEvent, EntityKey, Operation, Version

PAGE_RECORDS = 10_000
"""As many as one GetRecords reply can have; a consumer that is behind gets such replies."""

_FIRST_SEQUENCE = 49_590_338_271_490_256_608_559_692_538_361_571_095_921_575_989_136_588_898
# Just now: what is so old that the stream is about to trim it, a consumer asks the stream about.
_ARRIVED_S = round(time.time(), 3)
_BEHIND_MS = 60_000


class Parcel(Entity):
    """A parcel on its way."""

    meta = Meta(collection="parcels", key="number", readers=(Reader(EVERYONE),))
    number: str
    status: Literal["booked", "in_transit", "delivered"]
    shipping_cost: Decimal
    express: bool
    pieces: int


def event(number: int) -> ChangeEvent:
    """One change. The events of a stream differ in key, id, version and content."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return ChangeEvent(
        event_id=f"{number:032x}",
        key=EntityKey("parcel", f"P{number:07d}"),
        version=Version(0, 1_795_240_503_000_000 + number, 17, number, 1),
        operation=Operation.UPSERT,
        cause=Cause.LIVE,
        source="parcels",
        occurred_at=at,
        observed_at=at,
        payload={
            "number": f"P{number:07d}",
            "status": "in_transit",
            "shipping_cost": f"{number % 100}.50",
            "express": number % 2 == 0,
            "pieces": number % 7,
        },
    )


def page(number: int) -> bytes:
    """One full GetRecords reply. `number` counts from 0; the next one's iterator is `number + 1`."""
    first = number * PAGE_RECORDS
    return page_of([(each, event(each)) for each in range(first, first + PAGE_RECORDS)], number + 1)


def page_of(sent: Iterable[tuple[int, ChangeEvent]], next_number: int) -> bytes:
    """A GetRecords reply with these events, each with its place in the shard."""
    return _reply([_record(place, each) for place, each in sent], next_number, _BEHIND_MS)


def last_page(number: int) -> bytes:
    """The reply at the tip of a shard: nothing, and nothing behind."""
    return _reply([], number, 0)


def _reply(records: list[dict[str, object]], next_number: int, behind_ms: int) -> bytes:
    return msgspec.json.encode(
        {"Records": records, "NextShardIterator": f"{next_number:056}", "MillisBehindLatest": behind_ms}
    )


def _record(place: int, sent: ChangeEvent) -> dict[str, object]:
    return {
        "SequenceNumber": str(_FIRST_SEQUENCE + place * 16),
        "ApproximateArrivalTimestamp": _ARRIVED_S,
        "Data": base64.b64encode(codec.encode(sent)).decode(),
        "PartitionKey": str(sent.key),
    }
