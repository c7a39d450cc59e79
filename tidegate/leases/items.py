"""KCL's lease table: attribute names, types and keys, read and written.

Hash key `leaseKey`; an index on the owner, keys only. `tidegateEpoch` is our only addition. Absent values stay
absent attributes: an unassigned lease has no `leaseOwner`, and a set may not be empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidegate.errors import Fatal
from tidegate.leases.lease import Checkpoint, Lease

OWNER_INDEX = "LeaseOwnerToLeaseKeyIndex"

# DynamoDB's own JSON: {"S": "text"}, {"N": "12"}, {"SS": ["a", "b"]}.
Attribute = Mapping[str, Any]
Item = Mapping[str, Attribute]

# Together they say who works and how often was written: what every write is conditional on.
_GUARDED = ("leaseCounter", "leaseOwner", "checkpointOwner")
# KCL's two-phase checkpoints; a later plain checkpoint makes them void.
_PENDING = ("pendingCheckpoint", "pendingCheckpointSubSequenceNumber", "pendingCheckpointState")


def key_of(key: str) -> Item:
    """The primary key of one lease."""
    return {"leaseKey": {"S": key}}


def is_lease(item: Item) -> bool:
    """False for the other kinds of item that KCL 3.5 keeps in the same table, and for strangers."""
    return (
        item.get("entityType", {"S": "LEASE"}).get("S") == "LEASE" and "leaseCounter" in item and "checkpoint" in item
    )


def lease_of(item: Item) -> Lease:
    """Read one DynamoDB item. Raises Fatal for a malformed checkpoint: then the table is not a lease table."""

    def text(name: str) -> str | None:
        return item[name]["S"] if name in item else None

    def number(name: str) -> int:
        return int(item[name]["N"]) if name in item else 0

    def texts(name: str) -> frozenset[str]:
        return frozenset(item[name]["SS"]) if name in item else frozenset()

    key = text("leaseKey") or ""
    try:
        checkpoint = Checkpoint(text("checkpoint") or "", number("checkpointSubSequenceNumber"))
    except ValueError as error:
        raise Fatal(f"lease {key}: {error}") from error
    return Lease(
        key=key,
        owner=text("leaseOwner"),
        counter=number("leaseCounter"),
        checkpoint=checkpoint,
        owner_switches=number("ownerSwitchesSinceCheckpoint"),
        parent_keys=texts("parentShardId"),
        child_keys=texts("childShardIds"),
        starting_hash_key=text("startingHashKey"),
        ending_hash_key=text("endingHashKey"),
        epoch=number("tidegateEpoch"),
        checkpoint_owner=text("checkpointOwner"),
        throughput_kbps=float(item["throughputKBps"]["N"]) if "throughputKBps" in item else None,
    )


def item_of(lease: Lease) -> dict[str, Attribute]:
    """The attributes we know of a lease; the item of a new one."""
    item: dict[str, Attribute] = {
        "leaseKey": {"S": lease.key},
        "leaseCounter": {"N": str(lease.counter)},
        "checkpoint": {"S": lease.checkpoint.position},
        "checkpointSubSequenceNumber": {"N": str(lease.checkpoint.sub_sequence)},
        "ownerSwitchesSinceCheckpoint": {"N": str(lease.owner_switches)},
    }
    for name, value in (
        ("leaseOwner", lease.owner),
        ("checkpointOwner", lease.checkpoint_owner),
        ("startingHashKey", lease.starting_hash_key),
        ("endingHashKey", lease.ending_hash_key),
    ):
        if value is not None:
            item[name] = {"S": value}
    for name, keys in (("parentShardId", lease.parent_keys), ("childShardIds", lease.child_keys)):
        if keys:
            item[name] = {"SS": sorted(keys)}
    if lease.throughput_kbps is not None:
        item["throughputKBps"] = {"N": str(lease.throughput_kbps)}
    if lease.epoch:
        item["tidegateEpoch"] = {"N": str(lease.epoch)}
    return item


def size_of(item: Item) -> int:
    """About how many bytes DynamoDB counts for the item: names and values, 1 for a short number."""
    return sum(len(name) + sum(map(_size, value.values())) for name, value in item.items())


def _size(content: object) -> int:
    """Items may hold attributes of every type: not all are ours."""
    if isinstance(content, Mapping):
        return sum(len(name) + _size(value) for name, value in content.items())
    if isinstance(content, list):
        return sum(map(_size, content))
    return len(content) if isinstance(content, str | bytes) else 1


def swap(before: Lease, after: Lease) -> dict[str, Any]:
    """The parts of an UpdateItem request that turn `before` into `after`, if nobody wrote in between.

    Only what differs is written, so that attributes we do not know stay as they are.
    """
    old, new = item_of(before), item_of(after)
    values = {f":was_{name}": old[name] for name in _GUARDED if name in old}
    guards = [f"{name} = :was_{name}" if name in old else f"attribute_not_exists({name})" for name in _GUARDED]
    changed = {name: value for name, value in new.items() if old.get(name) != value}
    gone = [name for name in old if name not in new]
    if after.checkpoint != before.checkpoint:
        gone.extend(_PENDING)
    update = "SET " + ", ".join(f"{name} = :{name}" for name in changed)
    if gone:
        update += " REMOVE " + ", ".join(gone)
    return {
        "Key": key_of(before.key),
        "UpdateExpression": update,
        "ConditionExpression": " AND ".join(guards),
        "ExpressionAttributeValues": values | {f":{name}": value for name, value in changed.items()},
    }


def table_definition(table: str) -> dict[str, Any]:
    """The request that creates the table as KCL would, on demand."""
    return {
        "TableName": table,
        "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": [
            {"AttributeName": "leaseKey", "AttributeType": "S"},
            {"AttributeName": "leaseOwner", "AttributeType": "S"},
        ],
        "KeySchema": [{"AttributeName": "leaseKey", "KeyType": "HASH"}],
        "GlobalSecondaryIndexes": [
            {
                "IndexName": OWNER_INDEX,
                "KeySchema": [
                    {"AttributeName": "leaseOwner", "KeyType": "HASH"},
                    {"AttributeName": "leaseKey", "KeyType": "RANGE"},
                ],
                "Projection": {"ProjectionType": "KEYS_ONLY"},
            }
        ],
    }
