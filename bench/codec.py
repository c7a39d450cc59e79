"""Events per second from a record's bytes to a typed event, on one core, against the standard library's parser."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bench import Result
from tidegate import codec
from tidegate.event import Cause, ChangeEvent, EntityKey, Operation, Version

EVENTS = 20_000
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class _Plain:
    """What a hand-written consumer would make of a record."""

    event_id: str
    entity: str
    key: str
    version: tuple[int, ...]
    occurred_at: datetime
    payload: dict[str, Any]


def run() -> Iterator[Result]:
    records = [codec.encode(_event(number)) for number in range(EVENTS)]
    ours = _per_second(lambda: [codec.decode(record) for record in records])
    plain = _per_second(lambda: [_by_hand(record) for record in records])
    yield Result(
        bench="codec",
        value=round(ours),
        unit="events/s",
        baseline="json",
        baseline_value=round(plain),
        ratio=round(ours / plain, 2),
    )


def _per_second(work: Callable[[], object]) -> float:
    best_s = min(_seconds(work) for _ in range(ROUNDS))
    return EVENTS / best_s


def _seconds(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def _event(number: int) -> ChangeEvent:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    payload = {
        "number": f"P{number:07d}",
        "status": "in_transit",
        "shipping_cost": "12.50",
        "express": True,
        "seats": 3,
    }
    return ChangeEvent(
        event_id=f"{number:032x}",
        key=EntityKey("parcel", f"P{number:07d}"),
        version=Version(0, 1_795_240_503_000_000 + number, 17, number, 1),
        operation=Operation.UPSERT,
        cause=Cause.LIVE,
        source="parcels",
        occurred_at=at,
        observed_at=at,
        payload=payload,
    )


def _by_hand(record: bytes) -> _Plain:
    envelope = json.loads(record)
    return _Plain(
        event_id=envelope["id"],
        entity=envelope["type"].split(".")[1],
        key=envelope["subject"],
        version=tuple(int(part) for part in envelope["tidegateversion"].split(".")),
        occurred_at=datetime.fromisoformat(envelope["time"]),
        payload=envelope["data"],
    )
