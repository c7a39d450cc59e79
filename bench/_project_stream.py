"""What `project` projects: shipments, as a stream in two editions served over HTTP, and the same rows as plain tuples.

The first edition creates every row, the second changes every row. Keys are scattered over the shards and within them, as
hashing does. `few-1` is the start of each shard of the first edition, for a side that would need minutes for all.

    python -m bench._project_stream      prints its port, serves until its input ends
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

from bench._kinesis import Answers, serve
from bench._stream import last_page, page_of
from tidegate.entity import Entity, Meta, Reader, describe
from tidegate.event import Cause, ChangeEvent, EntityKey, Operation, Version
from tidegate.tables import VERSION_COLUMNS

SHARDS = 10
PAGE_RECORDS = 5_000
"""As many as the worker asks for by default."""
PAGES = 4
"""In each shard."""
_HELD = PAGES * PAGE_RECORDS
RECORDS = SHARDS * _HELD
FEW = 1_000
"""Records of a shard in the short streams."""

_AT = datetime(2026, 1, 1, tzinfo=UTC)
_CUSTOMERS = 50_000
# Prime to what they are multiplied within.
_SCATTER, _STIR = 48_271, 7_919
_PAGES = {"all": [PAGE_RECORDS] * PAGES, "few": [FEW]}
EDITIONS = (1, 2)

Row = tuple[Any, ...]
"""A row's values in the order of `COLUMNS`."""


class Shipment(Entity):
    """What a customer sees as its sender or its recipient. So the table has two indexes besides the key's."""

    meta = Meta(collection="shipments", key="number", readers=(Reader("customer", ("sender", "recipient")),))
    number: str
    sender: str
    recipient: str
    status: Literal["booked", "in_transit", "delivered"]
    shipping_cost: Decimal
    express: bool
    pieces: int


SHAPE = describe(Shipment)
COLUMNS = (
    *(field.name for field in SHAPE.fields), *VERSION_COLUMNS, "_deleted", "_event_id", "_occurred_at",
)  # fmt: skip


def stream_of(edition: int, *, whole: bool = True) -> str:
    return f"{'all' if whole else 'few'}-{edition}"


def changed(place: int, edition: int, at: datetime = _AT) -> ChangeEvent:
    """The event in one place of the stream, counted through all shards."""
    number = _number(place, edition)
    key = f"P{number:07d}"
    payload = {
        "number": key,
        "sender": f"C{number * 7 % _CUSTOMERS:06d}",
        "recipient": f"C{number * 13 % _CUSTOMERS:06d}",
        "status": "in_transit" if edition == 1 else "delivered",
        "shipping_cost": f"{number % 100}.50",
        "express": number % 2 == 0,
        "pieces": number % 7 + edition,
    }
    return ChangeEvent(
        event_id=f"{edition * 10**9 + number:032x}",
        key=EntityKey("shipment", key),
        version=Version(0, 1_795_240_503_000_000 + number + edition, 17, number, 1),
        operation=Operation.UPSERT,
        cause=Cause.LIVE,
        source="shipments",
        occurred_at=at,
        observed_at=at,
        payload=payload,
    )


def _number(place: int, edition: int) -> int:
    """Whose change stands there. Changes come in another order than the rows did, those of the short stream among themselves."""
    shard, offset = divmod(place, _HELD)
    if edition > 1:
        offset = offset * _STIR % FEW if offset < FEW else FEW + (offset - FEW) * _STIR % (_HELD - FEW)
    return (shard * _HELD + offset) * _SCATTER % RECORDS


def row(sent: ChangeEvent) -> Row:
    assert sent.payload is not None
    payload = {**sent.payload, "shipping_cost": Decimal(sent.payload["shipping_cost"])}
    return (*payload.values(), *sent.version, False, sent.event_id, sent.occurred_at)


def shard_rows(shard: int, edition: int) -> list[Row]:
    """The rows of one shard in the stream's order."""
    return [row(changed(place, edition)) for place in range(shard * _HELD, (shard + 1) * _HELD)]


@contextmanager
def serving() -> Iterator[str]:
    """The address of a Kinesis that holds the streams, while the block runs."""
    command = [sys.executable, "-m", "bench._project_stream"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"


class _Streams(Answers):
    """All pages in one row: shard after shard, stream after stream, and at the end the tip of all of them."""

    def __init__(self) -> None:
        self._firsts: dict[tuple[str, str], int] = {}
        sizes = {f"{name}-{edition}": sizes for name, sizes in _PAGES.items() for edition in EDITIONS}
        tip = sum(len(each) * SHARDS for each in sizes.values())
        pages: list[bytes] = []
        for stream, held in sizes.items():
            for shard in range(SHARDS):
                self._firsts[stream, f"shardId-{shard:012}"] = len(pages)
                pages += _pages(shard, int(stream[-1]), held, len(pages), tip)
        super().__init__(SHARDS, [*pages, last_page(tip)])

    def iterator(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"ShardIterator": f"{self._firsts[asked['StreamName'], asked['ShardId']]:056}"}


def _pages(shard: int, edition: int, sizes: list[int], first_number: int, tip: int) -> Iterator[bytes]:
    place = shard * _HELD
    for number, size in enumerate(sizes, 1):
        sent = [(each, changed(each, edition)) for each in range(place, place + size)]
        yield page_of(sent, tip if number == len(sizes) else first_number + number)
        place += size


if __name__ == "__main__":
    asyncio.run(serve(_Streams()))
