"""DynamoDB tables that a program makes for itself where it may, and uses as they are where it may not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any, Protocol

from tidegate.aws.failures import aws_errors
from tidegate.errors import Fatal, Superseded, Transient

_READY_TRIES = 120
_READY_WAIT_S = 0.5


class TableClient(Protocol):
    """The calls of aiobotocore's DynamoDB client that are used here."""

    def create_table(self, **request: Any) -> Awaitable[dict[str, Any]]: ...
    def describe_table(self, **request: Any) -> Awaitable[dict[str, Any]]: ...
    def update_table(self, **request: Any) -> Awaitable[dict[str, Any]]: ...


async def ensure_table(client: TableClient, definition: Mapping[str, Any]) -> None:
    """Wait until the table may be used; create it first if it is missing. `definition` is CreateTable's request.

    A table that exists is only described, so no permission to create is needed for it. An index that it lacks is added:
    KCL 2.x makes lease tables without one. Several programs may do this at the same time. Raises Fatal when it may not be
    described, created or changed, or is not active within a minute; Transient, also while an index takes longer.
    """
    table = str(definition["TableName"])
    if await _described(client, table) is None:
        try:
            with aws_errors(f"create the table {table}", superseded={"ResourceInUseException"}):
                await client.create_table(**definition)
        except Superseded:
            # Another process creates it at this moment.
            pass
    is_active = False
    for _ in range(_READY_TRIES):
        described = await _described(client, table)
        is_active = described is not None and described["TableStatus"] in ("ACTIVE", "UPDATING")
        if described is not None and is_active and await _has_indexes(client, definition, described):
            return
        await asyncio.sleep(_READY_WAIT_S)
    if is_active:
        raise Transient(f"an index of the table {table} is still being made")
    raise Fatal(f"the table {table} did not become active within a minute")


async def _described(client: TableClient, table: str) -> dict[str, Any] | None:
    """None when there is no such table (yet)."""
    try:
        with aws_errors(f"describe the table {table}", superseded={"ResourceNotFoundException"}):
            reply = await client.describe_table(TableName=table)
    except Superseded:
        return None
    described: dict[str, Any] = reply["Table"]
    return described


async def _has_indexes(client: TableClient, definition: Mapping[str, Any], described: Mapping[str, Any]) -> bool:
    """Whether all indexes of the definition may be used; the first that is missing is asked for."""
    statuses = {index["IndexName"]: index["IndexStatus"] for index in described.get("GlobalSecondaryIndexes") or ()}
    wanted = definition.get("GlobalSecondaryIndexes", ())
    missing = next((index for index in wanted if index["IndexName"] not in statuses), None)
    if missing is None:
        return all(statuses[index["IndexName"]] == "ACTIVE" for index in wanted)
    name, table = missing["IndexName"], definition["TableName"]
    create = dict(missing)
    if described.get("BillingModeSummary", {}).get("BillingMode") != "PAY_PER_REQUEST":
        # With capacity of its own, the index needs as much as the table has.
        capacity = described["ProvisionedThroughput"]
        units = ("ReadCapacityUnits", "WriteCapacityUnits")
        create["ProvisionedThroughput"] = {unit: capacity[unit] for unit in units}
    try:
        with aws_errors(f"add the index {name} to the table {table}", superseded={"ResourceInUseException"}):
            await client.update_table(
                TableName=table,
                AttributeDefinitions=definition["AttributeDefinitions"],
                GlobalSecondaryIndexUpdates=[{"Create": create}],
            )
    except Superseded:
        # Another process adds it at this moment.
        pass
    return False
