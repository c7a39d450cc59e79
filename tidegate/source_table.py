"""What is remembered and asked of each source, beside its cursor: one DynamoDB table that pollers and tools share.

    source (S, hash key) · item (S, range key) · revision (N) · body (S, JSON)

    state                where the poller stands, for people            tidegate.signals.State
    ask#control          whether the source is paused                   tidegate.signals.Control
    ask#signal#<id>      what a person asked for, and what became of it tidegate.signals.Signal
    file#<name>          what became of a dropped file                  poller.files.FileEntry
    shape                the fields that its rows have                  poller.drift.Shape

Every write is compare-and-set on the revision, or says that the last one wins.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import msgspec

from tidegate.aws import aws_errors, ensure_table, error_code
from tidegate.errors import Fatal

T = TypeVar("T")

_CONDITION_FAILED = "ConditionalCheckFailedException"
_encoder = msgspec.json.Encoder()


class Item(NamedTuple):
    """One item as it was read. `revision` is 0 for one that is not there."""

    source: str
    name: str
    revision: int
    body: bytes

    def read(self, kind: type[T]) -> T:
        """Raises Fatal when the body is something else."""
        try:
            return msgspec.json.decode(self.body, type=kind)
        except msgspec.MsgspecError as error:
            raise Fatal(f"item {self.name!r} of source {self.source!r} cannot be read: {error}; delete it") from error


class SourceTable:
    """`client` is an aiobotocore DynamoDB client. All methods raise Transient and Fatal."""

    def __init__(self, client: Any, name: str) -> None:
        self._client = client
        self.name = name

    async def ensure(self) -> None:
        """Create the table unless it is there; wait until it may be used."""
        await ensure_table(
            self._client,
            {
                "TableName": self.name,
                "KeySchema": [
                    {"AttributeName": "source", "KeyType": "HASH"},
                    {"AttributeName": "item", "KeyType": "RANGE"},
                ],
                "AttributeDefinitions": [
                    {"AttributeName": "source", "AttributeType": "S"},
                    {"AttributeName": "item", "AttributeType": "S"},
                ],
                "BillingMode": "PAY_PER_REQUEST",
            },
        )

    async def get(self, source: str, name: str) -> Item:
        """The item; one with revision 0 and the body `null` when it is not there."""
        with aws_errors(f"read {name} of {source}"):
            reply = await self._client.get_item(
                TableName=self.name, Key={"source": {"S": source}, "item": {"S": name}}, ConsistentRead=True
            )
        found = reply.get("Item")
        return Item(source, name, 0, b"null") if found is None else _item(found)

    async def items(self, source: str, prefix: str) -> list[Item]:
        """Every item of a source whose name begins so, by name."""
        found: list[Item] = []
        with aws_errors(f"read {prefix}… of {source}"):
            pages = self._client.get_paginator("query").paginate(
                TableName=self.name,
                ConsistentRead=True,
                KeyConditionExpression="#s = :s AND begins_with(#i, :p)",
                ExpressionAttributeNames={"#s": "source", "#i": "item"},
                ExpressionAttributeValues={":s": {"S": source}, ":p": {"S": prefix}},
            )
            async for page in pages:
                found += map(_item, page["Items"])
        return found

    async def put(self, source: str, name: str, body: msgspec.Struct, revision: int | None = None) -> bool:
        """Write an item over the revision that was read (0: none); None: over whatever is there. False: somebody else wrote."""
        condition: dict[str, Any] = {}
        if revision == 0:
            condition = {"ConditionExpression": "attribute_not_exists(#i)", "ExpressionAttributeNames": {"#i": "item"}}
        elif revision is not None:
            condition = {
                "ConditionExpression": "#r = :r",
                "ExpressionAttributeNames": {"#r": "revision"},
                "ExpressionAttributeValues": {":r": {"N": str(revision)}},
            }
        text = _encoder.encode(body).decode()
        item = {
            "source": {"S": source}, "item": {"S": name}, "revision": {"N": str((revision or 0) + 1)}, "body": {"S": text},
        }  # fmt: skip
        try:
            with aws_errors(f"write {name} of {source}"):
                await self._client.put_item(TableName=self.name, Item=item, **condition)
        except Fatal as error:
            if error_code(error) == _CONDITION_FAILED:
                return False
            raise
        return True

    async def delete(self, source: str, name: str) -> None:
        with aws_errors(f"delete {name} of {source}"):
            await self._client.delete_item(TableName=self.name, Key={"source": {"S": source}, "item": {"S": name}})


def _item(found: dict[str, dict[str, str]]) -> Item:
    return Item(found["source"]["S"], found["item"]["S"], int(found["revision"]["N"]), found["body"]["S"].encode())
