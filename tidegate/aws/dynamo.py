"""DynamoDB tables that a program makes for itself where it may, and uses as they are where it may not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any, Protocol

from tidegate.aws.failures import aws_errors
from tidegate.errors import Fatal, Superseded

_READY_TRIES = 120
_READY_WAIT_S = 0.5


class TableClient(Protocol):
    """The calls of aiobotocore's DynamoDB client that are used here."""

    def create_table(self, **request: Any) -> Awaitable[dict[str, Any]]: ...
    def describe_table(self, **request: Any) -> Awaitable[dict[str, Any]]: ...


async def ensure_table(client: TableClient, definition: Mapping[str, Any]) -> None:
    """Wait until the table may be used; create it first if it is missing. `definition` is CreateTable's request.

    A table that exists is only described, so no permission to create is needed for it. Several programs may do
    this at the same time. Raises Fatal when it may not be described or created, or is not active within a minute;
    Transient.
    """
    table = str(definition["TableName"])
    if await _status(client, table) is None:
        try:
            with aws_errors(f"create the table {table}", superseded={"ResourceInUseException"}):
                await client.create_table(**definition)
        except Superseded:
            # Another process creates it at this moment.
            pass
    for _ in range(_READY_TRIES):
        if await _status(client, table) in ("ACTIVE", "UPDATING"):
            return
        await asyncio.sleep(_READY_WAIT_S)
    raise Fatal(f"the table {table} did not become active within a minute")


async def _status(client: TableClient, table: str) -> str | None:
    """None when there is no such table (yet)."""
    try:
        with aws_errors(f"describe the table {table}", superseded={"ResourceNotFoundException"}):
            reply = await client.describe_table(TableName=table)
    except Superseded:
        return None
    return str(reply["Table"]["TableStatus"])
