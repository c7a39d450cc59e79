"""Lease tables as the Kinesis Client Library writes them, and a reader as strict as its own.

The facts are those of amazon-kinesis-client 2.x to 3.5: `DynamoDBLeaseSerializer` (names, types, what may be absent),
`ExtendedSequenceNumber` and `SentinelCheckpoint` (what a position may be), `HashKeyRangeForLease`, `EntityType`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Item = dict[str, dict[str, Any]]

SENTINELS = ("TRIM_HORIZON", "LATEST", "AT_TIMESTAMP", "SHARD_END")
_HASH_KEY = re.compile(r"0|[1-9][0-9]*")
_LONG = range(-(2**63), 2**63)

# What 3.5 keeps beside the leases: the leader's lock, migrations, streams, and one item for each worker's load.
SIDE_ITEMS: dict[str, Item] = {
    "Leader": {
        "leaseKey": {"S": "Leader"}, "entityType": {"S": "LEADER"}, "ownerName": {"S": "kcl-1"},
        "leaseDuration": {"S": "30000"}, "recordVersionNumber": {"S": "0a-1b"}, "isReleased": {"S": "1"},
    },
    "Migration3.0": {
        "leaseKey": {"S": "Migration3.0"}, "entityType": {"S": "CLIENT_VERSION_MIGRATION"},
        "cv": {"S": "CLIENT_VERSION_3X"}, "mb": {"S": "kcl-1"}, "mts": {"N": "1700000000"}, "h": {"L": [{"M": {}}]},
    },
    "TableMigration": {
        "leaseKey": {"S": "TableMigration"}, "entityType": {"S": "TABLE_MIGRATION"}, "st": {"S": "COMPLETE"},
    },
    "stream-1": {"leaseKey": {"S": "stream-1"}, "entityType": {"S": "STREAM"}, "streamId": {"S": "abc"}},
    "kcl-1": {
        "leaseKey": {"S": "kcl-1"}, "entityType": {"S": "WORKER_METRIC_STATS"}, "lut": {"N": "1700000000"},
        "sts": {"M": {"CPU": {"L": [{"N": "12.5"}, {"N": "-1"}]}}}, "opr": {"M": {"CPU": {"L": [{"N": "80"}]}}},
    },
}  # fmt: skip


def kcl_lease(key: str, checkpoint: str, sub: int = 0, **more: Any) -> Item:
    """A lease as KCL creates it; `more` are attributes in DynamoDB's own JSON, None takes one away."""
    item: Item = {
        "leaseKey": {"S": key},
        "leaseCounter": {"N": "7"},
        "ownerSwitchesSinceCheckpoint": {"N": "0"},
        "checkpoint": {"S": checkpoint},
        "checkpointSubSequenceNumber": {"N": str(sub)},
        "startingHashKey": {"S": "0"},
        "endingHashKey": {"S": "340282366920938463463374607431768211455"},
    }
    return {name: value for name, value in (item | more).items() if value is not None}


@dataclass(frozen=True)
class KclLease:
    """A lease as KCL reads it."""

    key: str
    owner: str | None
    checkpoint_owner: str | None
    counter: int
    switches: int
    checkpoint: tuple[str, int]
    pending: tuple[str, int] | None
    pending_state: bytes | None
    parents: frozenset[str]
    children: frozenset[str]
    hash_range: tuple[int, int] | None


def read_lease(item: Mapping[str, Mapping[str, Any]]) -> KclLease:
    """Raises ValueError where KCL would stop or read something else than was written."""
    reader = _Reader(item)
    if reader.text("entityType") not in (None, "LEASE"):
        raise ValueError(f"{item['leaseKey']} is no lease, and KCL before 3.5 would read it as one")
    counter, switches = reader.long("leaseCounter"), reader.long("ownerSwitchesSinceCheckpoint")
    key, position = reader.text("leaseKey"), reader.text("checkpoint")
    if key is None or counter is None or switches is None or position is None:
        raise ValueError("a lease has a key, a counter, owner switches and a checkpoint")
    pending = reader.text("pendingCheckpoint")
    reader.double("throughputKBps")
    return KclLease(
        key=key,
        owner=reader.text("leaseOwner"),
        checkpoint_owner=reader.text("checkpointOwner"),
        counter=counter,
        switches=switches,
        checkpoint=(_position(position), reader.long("checkpointSubSequenceNumber") or 0),
        pending=None
        if pending is None
        else (_position(pending), reader.long("pendingCheckpointSubSequenceNumber") or 0),
        pending_state=reader.binary("pendingCheckpointState"),
        parents=reader.texts("parentShardId"),
        children=reader.texts("childShardIds"),
        hash_range=_hash_range(reader.text("startingHashKey"), reader.text("endingHashKey")),
    )


def _position(text: str) -> str:
    if text not in SENTINELS and not (text.isascii() and text.isdigit()):
        raise ValueError(f"{text!r} is no position")
    return text


def _hash_range(start: str | None, end: str | None) -> tuple[int, int] | None:
    if start is None or end is None:
        return None
    if not (_HASH_KEY.fullmatch(start) and _HASH_KEY.fullmatch(end)) or int(start) > int(end):
        raise ValueError(f"{start} to {end} is no hash range")
    return int(start), int(end)


class _Reader:
    """Attributes of exactly one type each; an absent one is None, an empty text or set is refused as KCL's writer does."""

    def __init__(self, item: Mapping[str, Mapping[str, Any]]) -> None:
        self._item = item

    def _one(self, name: str, kind: str) -> Any:
        if name not in self._item:
            return None
        [(found, content)] = self._item[name].items()
        if found != kind:
            raise ValueError(f"{name} is of type {found}, KCL reads {kind}")
        if content in ("", [], b""):
            raise ValueError(f"{name} is empty")
        return content

    def text(self, name: str) -> str | None:
        content: str | None = self._one(name, "S")
        return content

    def long(self, name: str) -> int | None:
        content: str | None = self._one(name, "N")
        if content is None:
            return None
        if not re.fullmatch(r"-?[0-9]+", content) or int(content) not in _LONG:
            raise ValueError(f"{name}: Long.parseLong refuses {content}")
        return int(content)

    def double(self, name: str) -> float | None:
        content: str | None = self._one(name, "N")
        return None if content is None else float(content)

    def binary(self, name: str) -> bytes | None:
        content: bytes | None = self._one(name, "B")
        return content

    def texts(self, name: str) -> frozenset[str]:
        return frozenset(self._one(name, "SS") or ())
