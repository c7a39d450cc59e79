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


def key_of(key: str) -> Item:
    """The primary key of one lease."""
    return {"leaseKey": {"S": key}}


def checkpoint_values(checkpoint: Checkpoint) -> dict[str, Attribute]:
    """The values of an update expression that moves the checkpoint: :position, :sub and :zero."""
    return {
        ":position": {"S": checkpoint.position},
        ":sub": {"N": str(checkpoint.sub_sequence)},
        ":zero": {"N": "0"},
    }


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
    )


def item_of(lease: Lease) -> dict[str, Attribute]:
    """The item for a new lease."""
    item: dict[str, Attribute] = {
        "leaseKey": {"S": lease.key},
        "leaseCounter": {"N": str(lease.counter)},
        "checkpoint": {"S": lease.checkpoint.position},
        "checkpointSubSequenceNumber": {"N": str(lease.checkpoint.sub_sequence)},
        "ownerSwitchesSinceCheckpoint": {"N": str(lease.owner_switches)},
    }
    for name, value in (
        ("leaseOwner", lease.owner),
        ("startingHashKey", lease.starting_hash_key),
        ("endingHashKey", lease.ending_hash_key),
    ):
        if value is not None:
            item[name] = {"S": value}
    for name, keys in (("parentShardId", lease.parent_keys), ("childShardIds", lease.child_keys)):
        if keys:
            item[name] = {"SS": sorted(keys)}
    if lease.epoch:
        item["tidegateEpoch"] = {"N": str(lease.epoch)}
    return item


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
