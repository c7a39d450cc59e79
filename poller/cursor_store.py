"""Cursors in DynamoDB: every write is compare-and-set on the revision, so an older poller cannot move one.

Item: source (S, key), position (S, JSON of Progress), revision, epoch, journal (N), snapshot (S).
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from poller.source import Cursor, Progress
from tidegate.aws import aws_errors, ensure_table, error_code
from tidegate.errors import Fatal, Superseded, Transient

_CONDITION_FAILED = "ConditionalCheckFailedException"
_OPENINGS = 5
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Progress)


class CursorStore(Protocol):
    async def open(self, source: str, least_epoch: int) -> Cursor:
        """Begin a new term: epoch := max(epoch + 1, least_epoch). From here on older terms cannot write.

        A source without an item gets one, with an empty `Progress`. Raises Transient, Fatal.
        """
        ...

    async def advance(self, cursor: Cursor) -> Cursor:
        """Write `cursor` over the revision it was read at; answers it with the next revision.

        Raises Superseded when somebody else wrote; Transient.
        """
        ...


class DynamoCursorStore:
    """`client` is an aiobotocore DynamoDB client."""

    def __init__(self, client: Any, table: str) -> None:
        self._client = client
        self._table = table

    async def ensure_table(self) -> None:
        """Create the table unless it is there; wait until it may be used. Raises Fatal, Transient."""
        definition = {
            "TableName": self._table,
            "KeySchema": [{"AttributeName": "source", "KeyType": "HASH"}],
            "AttributeDefinitions": [{"AttributeName": "source", "AttributeType": "S"}],
            "BillingMode": "PAY_PER_REQUEST",
        }
        await ensure_table(self._client, definition)

    async def open(self, source: str, least_epoch: int) -> Cursor:
        for _ in range(_OPENINGS):
            found = await self._get(source)
            before = found or Cursor(source=source, progress=Progress(), revision=0, epoch=0)
            epoch = max(before.epoch + 1, least_epoch)
            cursor = replace(before, revision=before.revision + 1, epoch=epoch)
            if await self._put(cursor, None if found is None else before.revision):
                return cursor
        raise Transient(f"cursor of {source}: {_OPENINGS} openings lost to others at the same time")

    async def advance(self, cursor: Cursor) -> Cursor:
        following = replace(cursor, revision=cursor.revision + 1)
        if await self._put(following, cursor.revision):
            return following
        # The first try of a retried request may have been the one that won.
        if await self._get(cursor.source) == following:
            return following
        raise Superseded(f"cursor of {cursor.source}: somebody wrote after revision {cursor.revision}")

    async def look(self, source: str) -> Cursor | None:
        """The cursor as it stands, without beginning a term; None when there is none. Raises Transient, Fatal."""
        return await self._get(source)

    async def _get(self, source: str) -> Cursor | None:
        with aws_errors(f"read the cursor of {source}"):
            reply = await self._client.get_item(
                TableName=self._table, Key={"source": {"S": source}}, ConsistentRead=True
            )
        item = reply.get("Item")
        return None if item is None else _from_item(item)

    async def _put(self, cursor: Cursor, expected: int | None) -> bool:
        condition: dict[str, Any] = {"ConditionExpression": "attribute_not_exists(#s)"}
        names = {"#s": "source"}
        if expected is not None:
            names = {"#s": "revision"}
            condition = {
                "ConditionExpression": "#s = :expected",
                "ExpressionAttributeValues": {":expected": {"N": str(expected)}},
            }
        try:
            with aws_errors(f"write the cursor of {cursor.source}"):
                await self._client.put_item(
                    TableName=self._table, Item=_item(cursor), ExpressionAttributeNames=names, **condition
                )
        except Fatal as error:
            if error_code(error) == _CONDITION_FAILED:
                return False
            raise
        return True


def _item(cursor: Cursor) -> dict[str, dict[str, str]]:
    return {
        "source": {"S": cursor.source},
        "position": {"S": _encoder.encode(cursor.progress).decode()},
        "revision": {"N": str(cursor.revision)},
        "epoch": {"N": str(cursor.epoch)},
        "journal": {"N": str(cursor.journal)},
        "snapshot": {"S": cursor.snapshot or "-"},
    }


def _from_item(item: dict[str, dict[str, str]]) -> Cursor:
    try:
        snapshot = item["snapshot"]["S"]
        return Cursor(
            source=item["source"]["S"],
            progress=_decoder.decode(item["position"]["S"]),
            revision=int(item["revision"]["N"]),
            epoch=int(item["epoch"]["N"]),
            journal=int(item["journal"]["N"]),
            snapshot="" if snapshot == "-" else snapshot,
        )
    except (KeyError, ValueError, msgspec.MsgspecError) as error:
        raise Fatal(f"cursor item {item.get('source')} cannot be read: {error!r}; repair or delete it") from error
