"""The production lease store in front of the simulated table.

Each request to DynamoDB is replaced by one step of the table; what the store makes of a condition that failed, and of a
reply that never came, is the code that runs in front of DynamoDB. The contract suite runs over this class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from local.fleet.table import PAGE_ITEMS, Table
from tidegate.leases.lease import Lease, Part
from tidegate.leases.store import DynamoLeaseStore, Look, Names


class TableStore(DynamoLeaseStore):
    """Every request is carried out at once. `network.Link` sends it on a journey instead."""

    def __init__(self, table: Table) -> None:
        self.table = table

    async def _request(self, step: Callable[..., Any], *args: Any, pages: int = 0) -> Any:
        """One request: `step` is what the table does with it, `pages` how much more than one item is sent back."""
        return step(*args)

    async def scan(self) -> list[Lease]:
        leases: list[Lease] = await self._request(self.table.scan, pages=self._pages_of(1))
        return leases

    async def look(self, part: Part | None = None) -> Look:
        pages = self._pages_of(1 if part is None else part.total)
        look: Look = await self._request(self.table.look, part, pages=pages)
        return look

    async def named(self, owner: str) -> Names:
        names: Names = await self._request(self.table.named, owner)
        return names

    def _pages_of(self, share: int) -> int:
        """How much is sent back of so large a part of the table."""
        return len(self.table.leases) // (share * PAGE_ITEMS)

    async def get(self, key: str) -> Lease | None:
        lease: Lease | None = await self._request(self.table.get, key)
        return lease

    async def create(self, lease: Lease) -> bool:
        is_new: bool = await self._request(self.table.create, lease)
        return is_new

    async def delete(self, lease: Lease) -> bool:
        is_gone: bool = await self._request(self.table.delete, lease)
        return is_gone

    async def _swap(self, before: Lease, after: Lease) -> Lease:
        await self._request(self.table.swap, before, after)
        return after
