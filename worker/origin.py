"""Which life of the stream the leases belong to: a stream that was deleted and created anew has the same name and shards.

Positions of the former life mean nothing in the new one, and a lease that says "read to its end" would skip a whole
shard of it. So an item beside the leases keeps the stream's creation time, written before the first lease is made
and compared whenever shards are looked for. Its `entityType` is none of KCL's, which passes such items over. The item
also keeps when the stream was first looked at: that is what LATEST stands for, also for a worker that starts later.
"""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Any, Protocol

from msgspec import Struct

from tidegate.aws import aws_errors
from tidegate.errors import Superseded
from tidegate.leases import Lease, LeaseStore
from worker.stream import KinesisStream

KEY = "tidegate#stream"
ENTITY_TYPE = "TIDEGATE_STREAM"
_CONDITION_FAILED = "ConditionalCheckFailedException"


class Origin(Struct, frozen=True):
    """The stream's creation, and when its leases were first made, by Kinesis' clock."""

    created_ms: int
    seen_ms: int


class OriginClient(Protocol):
    """The calls of aiobotocore's DynamoDB client that are used here."""

    def get_item(self, **request: Any) -> Awaitable[dict[str, Any]]: ...
    def put_item(self, **request: Any) -> Awaitable[dict[str, Any]]: ...


class OriginKeeper:
    """Compares the stream with what the lease table remembers of it."""

    def __init__(self, client: OriginClient, table: str, stream: KinesisStream, leases: LeaseStore) -> None:
        self._client = client
        self._table = table
        self._stream = stream
        self._leases = leases

    async def check(self) -> tuple[Origin, list[Lease]]:
        """What the leases belong to, and the leases. Raises Transient, or Fatal when they are another stream's.

        The stream is looked at before the table: while that holds no lease, none was made before the time noted.
        """
        described = await self._stream.describe()
        leases = await self._leases.scan()
        while True:
            known = await self._get()
            if leases and known is not None:
                if known.created_ms != described.created_ms:
                    made = datetime.fromtimestamp(known.created_ms / 1000, UTC).isoformat(timespec="milliseconds")
                    raise self._stream.created_anew(f"the leases belong to a stream that was created at {made}")
                return known, leases
            found = Origin(described.created_ms, round(described.seen_s * 1000))
            if known == found or await self._put(found, known):
                return found, leases

    async def _get(self) -> Origin | None:
        with aws_errors(f"read what {self._table} knows of the stream"):
            reply = await self._client.get_item(
                TableName=self._table, Key={"leaseKey": {"S": KEY}}, ConsistentRead=True
            )
        item = reply.get("Item")
        return item and Origin(int(item["streamCreatedMs"]["N"]), int(item["streamSeenMs"]["N"]))

    async def _put(self, origin: Origin, known: Origin | None) -> bool:
        """Write it if the item is as it was read; False when another worker was faster."""
        if known is None:
            guard: dict[str, Any] = {"ConditionExpression": "attribute_not_exists(leaseKey)"}
        else:
            guard = {
                "ConditionExpression": "streamCreatedMs = :created AND streamSeenMs = :seen",
                "ExpressionAttributeValues": {
                    ":created": {"N": str(known.created_ms)},
                    ":seen": {"N": str(known.seen_ms)},
                },
            }
        item = {
            "leaseKey": {"S": KEY},
            "entityType": {"S": ENTITY_TYPE},
            "streamCreatedMs": {"N": str(origin.created_ms)},
            "streamSeenMs": {"N": str(origin.seen_ms)},
        }
        try:
            with aws_errors(f"note the stream in {self._table}", superseded={_CONDITION_FAILED}):
                await self._client.put_item(TableName=self._table, Item=item, **guard)
        except Superseded:
            return False
        return True
