"""Users' own attributes in DynamoDB: one item for each subject, changed only by whoever saw its latest version.

    subject (S, hash key) · version (S) · attributes (S, JSON) · changed_at (S)

Every write is conditional on the version that its sender saw, so of two at the same time one wins and the other is told. A
version is random: a user who deletes all and begins anew does not come by an old one again. The JSON is a text, for
DynamoDB's own numbers are not JSON's.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from tidegate.aws import aws_errors
from tidegate.errors import Fatal, Superseded

_FAILED = {"ConditionalCheckFailedException"}


class Stored(msgspec.Struct, frozen=True):
    """A user's attributes as JSON, and which version of them."""

    version: str
    attributes: str


def table_definition(table: str) -> dict[str, Any]:
    """The request that makes the table."""
    return {
        "TableName": table,
        "KeySchema": [{"AttributeName": "subject", "KeyType": "HASH"}],
        "AttributeDefinitions": [{"AttributeName": "subject", "AttributeType": "S"}],
        "BillingMode": "PAY_PER_REQUEST",
    }


class UserStore:
    """One table. `client` comes from `aws.client("dynamodb")`. Every method raises Transient or Fatal."""

    def __init__(self, client: Any, table: str) -> None:
        self._client = client
        self._table = table

    async def get(self, subject: str) -> Stored | None:
        """The latest version, read consistently: a user who changed something sees it."""
        with aws_errors(f"read {self._table}"):
            reply = await self._client.get_item(TableName=self._table, Key=_key(subject), ConsistentRead=True)
        item = reply.get("Item")
        return None if item is None else _stored(item)

    async def create(self, subject: str, attributes: str) -> Stored:
        """Raises Superseded when there are attributes already."""
        return await self._put(subject, attributes, {"ConditionExpression": "attribute_not_exists(subject)"})

    async def replace(self, subject: str, attributes: str, version: str) -> Stored:
        """Raises Superseded unless this version is the latest."""
        return await self._put(subject, attributes, _only(version))

    async def delete(self, subject: str, version: str) -> None:
        """Raises Superseded unless this version is the latest."""
        with aws_errors(f"delete from {self._table}", superseded=_FAILED):
            await self._client.delete_item(TableName=self._table, Key=_key(subject), **_only(version))

    async def erase(self, subject: str) -> bool:
        """Delete whatever there is; whether there was anything."""
        with aws_errors(f"erase from {self._table}"):
            reply = await self._client.delete_item(TableName=self._table, Key=_key(subject), ReturnValues="ALL_OLD")
        return bool(reply.get("Attributes"))

    async def _put(self, subject: str, attributes: str, condition: Mapping[str, Any]) -> Stored:
        stored = Stored(uuid.uuid4().hex, attributes)
        item = {
            **_key(subject),
            "version": {"S": stored.version},
            "attributes": {"S": attributes},
            "changed_at": {"S": datetime.now(UTC).isoformat(timespec="seconds")},
        }
        try:
            with aws_errors(f"write to {self._table}", superseded=_FAILED):
                await self._client.put_item(TableName=self._table, Item=item, **condition)
        except Superseded:
            # A try whose reply was lost may have been our own.
            if (found := await self.get(subject)) is not None and found == stored:
                return found
            raise
        return stored


def _key(subject: str) -> dict[str, dict[str, str]]:
    return {"subject": {"S": subject}}


def _only(version: str) -> dict[str, Any]:
    return {
        "ConditionExpression": "#version = :version",
        "ExpressionAttributeNames": {"#version": "version"},
        "ExpressionAttributeValues": {":version": {"S": version}},
    }


def _stored(item: Mapping[str, Mapping[str, str]]) -> Stored:
    try:
        return Stored(item["version"]["S"], item["attributes"]["S"])
    except KeyError as error:
        raise Fatal(f"an item of the users' table has no {error}; is this tidegate's table?") from error
