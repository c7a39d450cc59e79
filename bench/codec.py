"""Events per second from a record's bytes to a typed event, on one core, against the standard library's parser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bench import Result, seconds
from bench._stream import event
from tidegate import codec

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
    records = [codec.encode(event(number)) for number in range(EVENTS)]
    ours = min(seconds(lambda: [codec.decode(record) for record in records]) for _ in range(ROUNDS))
    plain = min(seconds(lambda: [_by_hand(record) for record in records]) for _ in range(ROUNDS))
    yield Result.of("codec", "events/s", EVENTS / ours, "json", EVENTS / plain)


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
