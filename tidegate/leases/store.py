"""Where leases live: the contract, and DynamoDB behind it, in KCL's own table format.

Every write is compare-and-set on the lease counter, checkpoints included, so that a process that comes back from
the dead moves nothing. A reply can get lost after the write was done; the retry then fails its own condition.
Such a write is recognised in a consistent read: every take raises the epoch and between two takes only the holder
writes, so "still my name, still my epoch, a higher counter" means that the writes were mine, however many.

Losing is not a failure: it is a value (`None`, `False`) where losing is ordinary, and `Superseded` where the caller
believed to hold the lease. Failures are `Transient` or `Fatal` and leave the outcome unknown.

A Kinesis Client Library application may share the table: items of its other kinds are skipped, attributes we do
not know are kept (we only ever update existing items), and ours is called `tidegateEpoch`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from msgspec.structs import replace

from tidegate import aws
from tidegate.errors import Fatal, Superseded, Transient
from tidegate.leases.items import Attribute, checkpoint_values, is_lease, item_of, key_of, lease_of, table_definition
from tidegate.leases.lease import SHARD_END, Checkpoint, Lease

_CONDITION_FAILED = "ConditionalCheckFailedException"
_TABLE_READY_ATTEMPTS = 120
_TABLE_READY_WAIT_S = 0.5


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

    async def renew(self, lease: Lease) -> Lease:
        """Counter + 1. Superseded when `lease.owner` does not hold it any more."""

    async def checkpoint(self, lease: Lease, checkpoint: Checkpoint) -> Lease:
        """Write the checkpoint, counter + 1, owner switches 0. Superseded when the lease is lost."""

    async def end(self, lease: Lease, child_keys: Sequence[str]) -> Lease:
        """Write SHARD_END and the children's keys in one step, counter + 1. Superseded when the lease is lost."""

    async def release(self, lease: Lease) -> bool:
        """Remove the owner, counter + 1, so that another may take it at once. False when it was lost already."""

    async def delete(self, lease: Lease) -> bool:
        """Remove the item if its counter is still as given."""


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
        try:
            with aws.aws_errors(f"create lease table {self._table}"):
                await self._client.create_table(**table_definition(self._table))
        except Transient as error:
            # Also while another process creates it at this moment.
            if aws.error_code(error) != "ResourceInUseException":
                raise
        for _ in range(_TABLE_READY_ATTEMPTS):
            with aws.aws_errors(f"describe lease table {self._table}"):
                reply = await self._client.describe_table(TableName=self._table)
            if reply["Table"]["TableStatus"] in ("ACTIVE", "UPDATING"):
                return
            await asyncio.sleep(_TABLE_READY_WAIT_S)
        raise Fatal(f"lease table {self._table} did not become active within a minute")

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
        values = _took(lease, owner)
        # KCL checks the owner too: a 3.x hand-over changes it and leaves the counter alone.
        guard = "leaseOwner = :was" if lease.owner else "attribute_not_exists(leaseOwner)"
        update = (
            "SET leaseOwner = :me, leaseCounter = :next, ownerSwitchesSinceCheckpoint = :switches,"
            " tidegateEpoch = :epoch REMOVE checkpointOwner"
        )
        attributes = {
            ":me": {"S": owner},
            ":switches": {"N": str(values.owner_switches)},
            ":epoch": {"N": str(values.epoch)},
        } | ({":was": {"S": lease.owner}} if lease.owner else {})
        try:
            await self._update(lease, update, guard, attributes)
        except Superseded:
            current = await self.get(lease.key)
            return values if current == values else None
        return values

    async def renew(self, lease: Lease) -> Lease:
        return await self._write_as_owner(lease, "SET leaseCounter = :next", {}, lambda now: now)

    async def checkpoint(self, lease: Lease, checkpoint: Checkpoint) -> Lease:
        update = (
            "SET leaseCounter = :next, checkpoint = :position, checkpointSubSequenceNumber = :sub,"
            " ownerSwitchesSinceCheckpoint = :zero"
            " REMOVE pendingCheckpoint, pendingCheckpointSubSequenceNumber, pendingCheckpointState"
        )
        attributes = checkpoint_values(checkpoint)
        return await self._write_as_owner(
            lease, update, attributes, lambda now: replace(now, checkpoint=checkpoint, owner_switches=0)
        )

    async def end(self, lease: Lease, child_keys: Sequence[str]) -> Lease:
        update = (
            "SET leaseCounter = :next, checkpoint = :position, checkpointSubSequenceNumber = :sub,"
            " ownerSwitchesSinceCheckpoint = :zero"
        )
        attributes = checkpoint_values(SHARD_END)
        if child_keys:
            update += ", childShardIds = :children"
            attributes[":children"] = {"SS": sorted(child_keys)}
        update += " REMOVE pendingCheckpoint, pendingCheckpointSubSequenceNumber, pendingCheckpointState"
        children = frozenset(child_keys) or lease.child_keys
        return await self._write_as_owner(
            lease,
            update,
            attributes,
            lambda now: replace(now, checkpoint=SHARD_END, child_keys=children, owner_switches=0),
        )

    async def release(self, lease: Lease) -> bool:
        try:
            await self._write_as_owner(
                lease, "SET leaseCounter = :next REMOVE leaseOwner", {}, lambda now: replace(now, owner=None)
            )
        except Superseded:
            current = await self.get(lease.key)
            # A release whose reply was lost: nobody but the holder takes the owner away without putting another.
            return current is not None and current.owner is None and current.counter == lease.counter + 1
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

    async def _write_as_owner(
        self, lease: Lease, update: str, attributes: dict[str, Attribute], change: Callable[[Lease], Lease]
    ) -> Lease:
        """One write by the holder; Superseded when it is not the holder any more.

        When the condition fails because of our own earlier write, whose reply never came, that write counts if it
        left what this one wants, and otherwise this one is done once more on top of it.
        """
        guard = "leaseOwner = :holder AND attribute_not_exists(checkpointOwner)"
        attributes = attributes | {":holder": {"S": lease.owner or ""}}
        try:
            await self._update(lease, update, guard, attributes)
            return _next(change(lease))
        except Superseded:
            current = await self.get(lease.key)
        if current is None or not _is_own_later(lease, current):
            raise Superseded(f"lease {lease.key} is not {lease.owner}'s any more")
        if change(current) == current:
            return current
        await self._update(current, update, guard, attributes)
        return _next(change(current))

    async def _update(self, lease: Lease, update: str, guard: str, attributes: Mapping[str, Attribute]) -> None:
        """UpdateItem if the counter is still the lease's and `guard` holds, else Superseded."""
        with aws.aws_errors(f"write lease {lease.key}", superseded={_CONDITION_FAILED}):
            await self._client.update_item(
                TableName=self._table,
                Key=key_of(lease.key),
                UpdateExpression=update,
                ConditionExpression=f"leaseCounter = :counter AND {guard}",
                ExpressionAttributeValues={
                    ":counter": {"N": str(lease.counter)},
                    ":next": {"N": str(lease.counter + 1)},
                    **attributes,
                },
            )


def _next(lease: Lease) -> Lease:
    return replace(lease, counter=lease.counter + 1)


def _took(lease: Lease, owner: str) -> Lease:
    """The lease as a take leaves it. A first owner is no switch: KCL counts changes from one owner to another."""
    switches = lease.owner_switches + (1 if lease.owner and lease.owner != owner else 0)
    return replace(
        lease,
        owner=owner,
        counter=lease.counter + 1,
        owner_switches=switches,
        epoch=lease.epoch + 1,
        checkpoint_owner=None,
    )


def _is_own_later(lease: Lease, current: Lease) -> bool:
    same_hold = (current.owner, current.epoch) == (lease.owner, lease.epoch)
    return same_hold and current.counter > lease.counter and current.checkpoint_owner is None
