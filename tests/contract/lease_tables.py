"""What the tests of the lease table share: two owners, and short ways to a lease."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tidegate.leases import Lease, LeaseStore, at

ME, OTHER = "worker-a", "worker-b"


async def taken(store: LeaseStore, key: str = "shard", owner: str = ME) -> Lease:
    """A new lease, taken by `owner`."""
    await store.create(Lease(key=key))
    lease = await store.get(key)
    assert lease is not None
    won = await store.take(lease, owner)
    assert won is not None
    return won


async def now(store: LeaseStore, key: str = "shard") -> Lease:
    lease = await store.get(key)
    assert lease is not None
    return lease


async def item(dynamodb: Any, table: str, key: str = "shard") -> dict[str, Any]:
    reply = await dynamodb.get_item(TableName=table, Key={"leaseKey": {"S": key}}, ConsistentRead=True)
    found: dict[str, Any] = reply["Item"]
    return found


Write = Callable[[LeaseStore, Lease], Any]
WRITES: dict[str, Write] = {
    "renew": lambda store, lease: store.renew(lease),
    "checkpoint": lambda store, lease: store.renew(lease, at("5")),
    "end": lambda store, lease: store.end(lease, ["child"]),
}
