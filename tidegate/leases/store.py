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
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from tidegate import aws
from tidegate.errors import Superseded, Transient
from tidegate.leases import writes
from tidegate.leases.items import OWNER_INDEX, is_lease, item_of, key_of, lease_of, size_of, swap, table_definition
from tidegate.leases.lease import Checkpoint, Lease, Part

T = TypeVar("T")

_CONDITION_FAILED = "ConditionalCheckFailedException"
_WRITE_ATTEMPTS = 3
# Decoding a page keeps the event loop, and so the renewals: better several short pages than one of 1 MiB.
_PAGE_ITEMS = 1000
_UNIT_BYTES = 4096


class Look(NamedTuple):
    """What a look at the table showed, and the read units that it cost."""

    leases: list[Lease]
    read_units: float


class Names(NamedTuple):
    """The keys in one owner's name, and the read units that it cost to ask."""

    keys: list[str]
    read_units: float


class LeaseStore(Protocol):
    """What the rest of the house needs of a lease table. Each call: one bounded try, `Transient` when it is unknown."""

    async def scan(self) -> list[Lease]:
        """Every lease, read consistently; items of other kinds are left out."""

    async def look(self, part: Part | None = None) -> Look:
        """Every lease, or those of one part of the table, at half the price of `scan`: the newest writes may be missing.

        Each lease lies in exactly one of the parts of one division.
        """

    async def named(self, owner: str) -> Names:
        """The keys of all leases in this owner's name, for next to nothing; the newest writes may be missing.

        Items of other kinds cannot be told from leases here: `get` answers None for them.
        """

    async def get(self, key: str) -> Lease | None:
        """One lease, read consistently."""

    async def create(self, lease: Lease) -> bool:
        """Write a new lease; False when one with this key exists, which then stays as it is."""

    async def take(self, lease: Lease, owner: str) -> Lease | None:
        """Make `owner` the owner if the lease is still as given: counter + 1, epoch + 1. None: another was faster."""

    async def ask(self, lease: Lease, owner: str) -> Lease | None:
        """Ask the lease's owner to hand it over to `owner`, if the lease is still as given. None: it is not."""

    async def renew(
        self, lease: Lease, checkpoint: Checkpoint | None = None, throughput_kbps: float | None = None
    ) -> Lease:
        """Counter + 1, and in the same write the checkpoint (owner switches 0) and the throughput, if given.

        Superseded when `lease.holder` does not hold it any more. The answer of every write by the holder tells
        whether the lease is asked for meanwhile (`checkpoint_owner`).
        """

    async def end(self, lease: Lease, child_keys: Sequence[str]) -> Lease:
        """Write SHARD_END and the children's keys in one step, counter + 1. Superseded when the lease is lost."""

    async def release(self, lease: Lease, checkpoint: Checkpoint | None = None, to: str | None = None) -> Lease | None:
        """Give it up, counter + 1: to the one that asked for it, else `to` somebody, else to nobody.

        The checkpoint, if given, is written in the same step. The lease as it was left; None when it was lost already.
        """

    async def withdraw(self, lease: Lease) -> bool:
        """Give to nobody what is in an owner's name who has not taken it, if it is still as given: counter + 1."""

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
    def update_table(self, **request: Any) -> Awaitable[dict[str, Any]]: ...
    def scan(self, **request: Any) -> Awaitable[dict[str, Any]]: ...
    def query(self, **request: Any) -> Awaitable[dict[str, Any]]: ...
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
        return (await self._scan({"ConsistentRead": True}))[0]

    async def look(self, part: Part | None = None) -> Look:
        which = {} if part is None else {"Segment": part.index, "TotalSegments": part.total}
        return Look(*await self._scan(which))

    async def _scan(self, options: Mapping[str, Any]) -> tuple[list[Lease], float]:
        leases: list[Lease] = []
        read_units = 0.0
        request = {"TableName": self._table, "Limit": _PAGE_ITEMS, "ReturnConsumedCapacity": "TOTAL", **options}
        async for page in self._pages(self._client.scan, request, f"read lease table {self._table}"):
            items = page.get("Items", ())
            leases.extend(lease_of(item) for item in items if is_lease(item))
            read_units += _read_units(page, sum(map(size_of, items)))
        return leases, read_units

    async def named(self, owner: str) -> Names:
        request = {
            "TableName": self._table,
            "IndexName": OWNER_INDEX,
            "KeyConditionExpression": "leaseOwner = :owner",
            "ExpressionAttributeValues": {":owner": {"S": owner}},
            "ReturnConsumedCapacity": "TOTAL",
        }
        keys: list[str] = []
        read_units = 0.0
        async for page in self._pages(self._client.query, request, f"read what {owner} owns"):
            items = page.get("Items", ())
            keys.extend(item["leaseKey"]["S"] for item in items)
            read_units += _read_units(page, sum(map(size_of, items)))
        return Names(keys, read_units)

    async def _pages(
        self, call: Callable[..., Awaitable[dict[str, Any]]], request: Mapping[str, Any], doing: str
    ) -> AsyncIterator[dict[str, Any]]:
        start: dict[str, Any] = {}
        while True:
            with aws.aws_errors(doing):
                page = await call(**request, **start)
            yield page
            if not page.get("LastEvaluatedKey"):
                return
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
        return await self._swap_once(lease, writes.taken(lease, owner))

    async def ask(self, lease: Lease, owner: str) -> Lease | None:
        return await self._swap_once(lease, writes.asked(lease, owner))

    async def renew(
        self, lease: Lease, checkpoint: Checkpoint | None = None, throughput_kbps: float | None = None
    ) -> Lease:
        return await self._write_as_holder(
            lease,
            lambda now: writes.renewed(now, checkpoint, throughput_kbps),
            lambda now: checkpoint is None or now.checkpoint == checkpoint,
        )

    async def end(self, lease: Lease, child_keys: Sequence[str]) -> Lease:
        return await self._write_as_holder(lease, lambda now: writes.ended(now, child_keys), lambda now: now.is_ended)

    async def release(self, lease: Lease, checkpoint: Checkpoint | None = None, to: str | None = None) -> Lease | None:
        try:
            return await self._write_as_holder(
                lease, lambda now: writes.given_up(now, checkpoint, to), lambda now: False
            )
        except Superseded:
            # A release whose reply was lost: others raise the epoch when they take the lease away from its holder.
            current = await self.get(lease.key)
            left = (lease.epoch, lease.counter + 1, None)
            is_left = current is not None and (current.epoch, current.counter, current.checkpoint_owner) == left
            return current if is_left else None

    async def withdraw(self, lease: Lease) -> bool:
        return await self._swap_once(lease, writes.given_up(lease)) is not None

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

    async def _write_as_holder(
        self, lease: Lease, change: Callable[[Lease], Lease], is_done: Callable[[Lease], bool]
    ) -> Lease:
        """One write by the holder; Superseded when it is not the holder any more.

        The condition may fail although it is: because of our own earlier write, whose reply never came, or because
        somebody asked for the lease. An earlier write counts if it left what this one wants (`is_done`); otherwise
        this one is done on top of what is there.
        """
        before = lease
        for _ in range(_WRITE_ATTEMPTS):
            try:
                return await self._swap(before, change(before))
            except Superseded:
                current = await self.get(lease.key)
            if current is None or not writes.is_same_hold(lease, current):
                raise Superseded(f"lease {lease.key} is not {lease.holder}'s any more")
            if current.counter > before.counter and is_done(current):
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


def _read_units(page: Mapping[str, Any], size_bytes: int) -> float:
    """What DynamoDB says it cost, else what it would cost: half a unit for each 4 KiB begun."""
    told = (page.get("ConsumedCapacity") or {}).get("CapacityUnits")
    return float(told) if told is not None else max(1, -(-size_bytes // _UNIT_BYTES)) / 2
