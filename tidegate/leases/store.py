"""Where leases live: the contract, and DynamoDB behind it, in KCL's own table format.

Every write is compare-and-set on the lease counter and both owners, checkpoints included, so that a process that
comes back from the dead moves nothing. A reply can get lost after the write was done; the retry then fails its own
condition. Such a write is recognised in a consistent read: every take raises the epoch, and between two takes only
the holder moves the counter, so "still my hold, still my epoch, a higher counter" means that the writes were mine,
however many. Asking for a hand-over (`ask`) leaves counter and epoch alone; `handover` tells that protocol.

Losing is not a failure: it is a value (`None`, `False`) where losing is ordinary, and `Superseded` where the caller
believed to hold the lease. Failures are `Transient` or `Fatal` and leave the outcome unknown.

A Kinesis Client Library application may share the table: items of its other kinds are skipped, attributes we do
not know are kept (we only ever update existing items), and ours is called `tidegateEpoch`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from msgspec.structs import replace

from tidegate import aws
from tidegate.errors import Superseded, Transient
from tidegate.leases.items import is_lease, item_of, key_of, lease_of, swap, table_definition
from tidegate.leases.lease import SHARD_END, Checkpoint, Lease

T = TypeVar("T")

_CONDITION_FAILED = "ConditionalCheckFailedException"
_WRITE_ATTEMPTS = 3


class LeaseStore(Protocol):
    """What the rest of the house needs of a lease table. Each call: one bounded try, `Transient` when it is unknown."""

    async def scan(self) -> list[Lease]:
        """Every lease, read consistently; items of other kinds are left out."""

    async def get(self, key: str) -> Lease | None:
        """One lease, read consistently."""

    async def create(self, lease: Lease) -> bool:
        """Write a new lease; False when one with this key exists, which then stays as it is."""

    async def take(self, lease: Lease, owner: str) -> Lease | None:
        """Make `owner` the owner if the lease is still as given: counter + 1, epoch + 1. None: another was faster."""

    async def ask(self, lease: Lease, owner: str) -> Lease | None:
        """Ask the lease's owner to hand it over to `owner`, if the lease is still as given. None: it is not."""

    async def renew(self, lease: Lease) -> Lease:
        """Counter + 1. Superseded when `lease.holder` does not hold it any more.

        The answer of every write by the holder tells whether the lease is asked for meanwhile (`checkpoint_owner`).
        """

    async def checkpoint(self, lease: Lease, checkpoint: Checkpoint) -> Lease:
        """Write the checkpoint, counter + 1, owner switches 0. Superseded when the lease is lost."""

    async def end(self, lease: Lease, child_keys: Sequence[str]) -> Lease:
        """Write SHARD_END and the children's keys in one step, counter + 1. Superseded when the lease is lost."""

    async def release(self, lease: Lease) -> bool:
        """Give it up, counter + 1: to the one that asked for it, else to nobody. False when it was lost already."""

    async def delete(self, lease: Lease) -> bool:
        """Remove the item if its counter is still as given."""


async def in_time(call: Awaitable[T], limit_s: float) -> T:
    """A call to the store that may not hang: Transient after `limit_s`, and its outcome is then unknown."""
    try:
        async with asyncio.timeout(limit_s):
            return await call
    except TimeoutError:
        raise Transient("the lease table did not answer in time") from None


class DynamoClient(Protocol):
    """The calls of aiobotocore's DynamoDB client that leases use; replies are DynamoDB's own JSON."""

    def create_table(self, **request: Any) -> Awaitable[dict[str, Any]]: ...
    def describe_table(self, **request: Any) -> Awaitable[dict[str, Any]]: ...
    def scan(self, **request: Any) -> Awaitable[dict[str, Any]]: ...
    def get_item(self, **request: Any) -> Awaitable[dict[str, Any]]: ...
    def put_item(self, **request: Any) -> Awaitable[dict[str, Any]]: ...
    def update_item(self, **request: Any) -> Awaitable[dict[str, Any]]: ...
    def delete_item(self, **request: Any) -> Awaitable[dict[str, Any]]: ...


class DynamoLeaseStore:
    """Leases in one DynamoDB table. The client is borrowed: whoever opened it closes it."""

    def __init__(self, client: DynamoClient, table: str) -> None:
        self._client = client
        self._table = table

    async def ensure_table(self) -> None:
        """Create the table (on demand, with KCL's index on the owner) unless it exists; wait until it may be used.

        Raises Fatal when it does not become active within a minute.
        """
        await aws.ensure_table(self._client, table_definition(self._table))

    async def scan(self) -> list[Lease]:
        leases: list[Lease] = []
        start: dict[str, Any] = {}
        while True:
            with aws.aws_errors(f"scan lease table {self._table}"):
                page = await self._client.scan(TableName=self._table, ConsistentRead=True, **start)
            leases.extend(lease_of(item) for item in page.get("Items", ()) if is_lease(item))
            if not page.get("LastEvaluatedKey"):
                return leases
            start = {"ExclusiveStartKey": page["LastEvaluatedKey"]}

    async def get(self, key: str) -> Lease | None:
        with aws.aws_errors(f"read lease {key}"):
            reply = await self._client.get_item(TableName=self._table, Key=key_of(key), ConsistentRead=True)
        item = reply.get("Item")
        return lease_of(item) if item and is_lease(item) else None

    async def create(self, lease: Lease) -> bool:
        try:
            with aws.aws_errors(f"create lease {lease.key}", superseded={_CONDITION_FAILED}):
                await self._client.put_item(
                    TableName=self._table,
                    Item=item_of(lease),
                    ConditionExpression="attribute_not_exists(leaseKey)",
                )
        except Superseded:
            return False
        return True

    async def take(self, lease: Lease, owner: str) -> Lease | None:
        switches = lease.owner_switches + (lease.holder not in (None, owner))
        epoch = lease.epoch + 1
        taken = replace(lease, owner=owner, checkpoint_owner=None, owner_switches=switches, epoch=epoch)
        return await self._swap_once(lease, _next(taken))

    async def ask(self, lease: Lease, owner: str) -> Lease | None:
        return await self._swap_once(lease, replace(lease, owner=owner, checkpoint_owner=lease.owner))

    async def renew(self, lease: Lease) -> Lease:
        return await self._write_as_holder(lease, lambda now: now)

    async def checkpoint(self, lease: Lease, checkpoint: Checkpoint) -> Lease:
        return await self._write_as_holder(lease, lambda now: replace(now, checkpoint=checkpoint, owner_switches=0))

    async def end(self, lease: Lease, child_keys: Sequence[str]) -> Lease:
        children = frozenset(child_keys) or lease.child_keys
        return await self._write_as_holder(
            lease, lambda now: replace(now, checkpoint=SHARD_END, child_keys=children, owner_switches=0)
        )

    async def release(self, lease: Lease) -> bool:
        try:
            await self._write_as_holder(lease, _given_up)
        except Superseded:
            # A release whose reply was lost: others raise the epoch when they take the lease away from its holder.
            current = await self.get(lease.key)
            left = (lease.epoch, lease.counter + 1, None)
            return current is not None and (current.epoch, current.counter, current.checkpoint_owner) == left
        return True

    async def delete(self, lease: Lease) -> bool:
        try:
            with aws.aws_errors(f"delete lease {lease.key}", superseded={_CONDITION_FAILED}):
                await self._client.delete_item(
                    TableName=self._table,
                    Key=key_of(lease.key),
                    ConditionExpression="leaseCounter = :counter",
                    ExpressionAttributeValues={":counter": {"N": str(lease.counter)}},
                )
        except Superseded:
            return False
        return True

    async def _write_as_holder(self, lease: Lease, change: Callable[[Lease], Lease]) -> Lease:
        """One write by the holder, counter + 1; Superseded when it is not the holder any more.

        The condition may fail although it is: because of our own earlier write, whose reply never came, or because
        somebody asked for the lease. An earlier write counts if it left what this one wants; otherwise this one is
        done on top of what is there.
        """
        before = lease
        for _ in range(_WRITE_ATTEMPTS):
            try:
                return await self._swap(before, _next(change(before)))
            except Superseded:
                current = await self.get(lease.key)
            if current is None or not _is_same_hold(lease, current):
                raise Superseded(f"lease {lease.key} is not {lease.holder}'s any more")
            if current.counter > before.counter and change(current) == current:
                return current
            before = current
        raise Transient(f"lease {lease.key} changes too fast")

    async def _swap_once(self, before: Lease, after: Lease) -> Lease | None:
        """A write by one that does not hold the lease; None when another was faster."""
        try:
            return await self._swap(before, after)
        except Superseded:
            current = await self.get(before.key)
            return after if current == after else None

    async def _swap(self, before: Lease, after: Lease) -> Lease:
        """Write `after` if the counter and both owners are still as in `before`, else Superseded."""
        with aws.aws_errors(f"write lease {before.key}", superseded={_CONDITION_FAILED}):
            await self._client.update_item(TableName=self._table, **swap(before, after))
        return after


def _next(lease: Lease) -> Lease:
    return replace(lease, counter=lease.counter + 1)


def _given_up(lease: Lease) -> Lease:
    if lease.checkpoint_owner is None:
        return replace(lease, owner=None)
    return replace(lease, checkpoint_owner=None, owner_switches=lease.owner_switches + 1)


def _is_same_hold(lease: Lease, current: Lease) -> bool:
    same = (current.holder, current.epoch) == (lease.holder, lease.epoch)
    return same and current.counter >= lease.counter
