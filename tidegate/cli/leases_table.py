"""The lease table and the stream, as the lease tools use them: whole items, conditional writes, and a few reads.

The store (`tidegate.leases.store`) knows leases only. Here items travel whole, so that nothing is lost of what KCL
or a later release keeps beside the attributes that we know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from tidegate import aws
from tidegate.cli.leases_plan import Watch, Write, leases_in, normal, request
from tidegate.errors import Fatal, Superseded, Transient
from tidegate.leases.items import Item
from tidegate.leases.lease import LATEST, Checkpoint, at
from tidegate.leases.store import DynamoClient
from tidegate.settings import StreamSettings

Say = Callable[[str], None]

_LOOK_S = 0.5
# Kinesis allows five reads a second of a shard, and the fleet needs most of them.
_READ_S = 0.25
_SEARCH_S = 60.0
_SEARCH_RECORDS = 100


class LeaseTable:
    """One table, item by item. `client` comes from `aws.client("dynamodb")`."""

    def __init__(self, client: DynamoClient, name: str) -> None:
        self.name = name
        self._client = client

    async def items(self) -> list[Item]:
        """Every item, read consistently. Raises Fatal when there is no such table, Transient."""
        found: list[Item] = []
        start: dict[str, Any] = {}
        while True:
            try:
                with aws.aws_errors(f"read the lease table {self.name}", superseded={"ResourceNotFoundException"}):
                    page = await self._client.scan(TableName=self.name, ConsistentRead=True, **start)
            except Superseded:
                raise Fatal(
                    f"there is no table {self.name!r} in this account and region; --table, --poller and --region choose one"
                ) from None
            found += [normal(item) for item in page.get("Items", ())]
            if not page.get("LastEvaluatedKey"):
                break
            start = {"ExclusiveStartKey": page["LastEvaluatedKey"]}
        if any("leaseKey" not in item for item in found):
            raise Fatal(f"the table {self.name!r} is no lease table: its items have no leaseKey")
        return found

    async def write(self, write: Write) -> bool:
        """False when the item is not any more as it was read. Raises Transient, Fatal."""
        operation, parts = request(write)
        call = {
            "put_item": self._client.put_item,
            "update_item": self._client.update_item,
            "delete_item": self._client.delete_item,
        }[operation]
        try:
            with aws.aws_errors(f"write {write.key}", superseded={"ConditionalCheckFailedException"}):
                await call(TableName=self.name, **parts)
        except Superseded:
            return False
        return True

    async def watch(self, keys: Collection[str] | None, watch_s: float, say: Say) -> Watch:
        """Look again and again for `watch_s`, or until every held lease among `keys` (None: of all) has moved.

        Who holds a lease moves its counter at every renewal; no other sign of life is in the table.
        """
        watch = Watch()
        until_s: float | None = None
        while True:
            leases = leases_in(await self.items())
            now_s = _now_s()
            # The first look and the last are so far apart, however long they take.
            until_s = now_s + watch_s if until_s is None else until_s
            watch.look(leases, now_s)
            held = {key for key, lease in leases.items() if lease.holder and (keys is None or key in keys)}
            waiting, left_s = held - watch.live(), until_s - now_s
            if not waiting or left_s <= 0:
                return watch
            say(f"watching {len(waiting)} leases for signs of life, {left_s:.0f} s left")
            await asyncio.sleep(min(_LOOK_S, left_s))


class Stream:
    """What the stream knows of a lease's place. `client` comes from `aws.client("kinesis")`."""

    def __init__(self, client: Any, settings: StreamSettings) -> None:
        self.name = settings.name
        self._target = settings.target
        self._client = client

    async def shard_ids(self) -> frozenset[str]:
        """Every shard that the stream has, open or closed. Raises Fatal when there is no such stream, Transient."""
        return frozenset(shard["ShardId"] for shard in await self.listed())

    async def listed(self) -> list[Mapping[str, Any]]:
        """Every shard as ListShards tells it. Raises Fatal when there is no such stream, Transient."""
        found: list[Mapping[str, Any]] = []
        asked = self._target
        while asked:
            try:
                with aws.aws_errors(f"list the shards of {self.name}", superseded={"ResourceNotFoundException"}):
                    answer = await self._client.list_shards(**asked)
            except Superseded:
                raise Fatal(
                    f"there is no stream {self.name!r} in this account and region; name one by --stream"
                ) from None
            found += answer["Shards"]
            token = answer.get("NextToken")
            asked = {"NextToken": token} if token else {}
        return found

    async def place_of(self, shard_id: str, time: datetime) -> Checkpoint | None:
        """The place right before the first record that arrived at `time` or later; None when there is none.

        Raises Transient when it was not found within a minute: empty pages follow each other in a sparse shard.
        """
        iterator: str | None = await self._iterator(shard_id, ShardIteratorType="AT_TIMESTAMP", Timestamp=time)
        try:
            async with asyncio.timeout(_SEARCH_S):
                while iterator is not None:
                    page = await aws.get_records(self._client, iterator, _SEARCH_RECORDS)
                    for record in page.records.stamped():
                        if record.arrival >= time.timestamp():
                            # Sub-sequence numbers count from 0: this is before the record's first one.
                            return at(record.sequence_number, -1)
                    iterator = page.next_iterator if page.millis_behind_latest else None
                    await asyncio.sleep(_READ_S if iterator else 0)
        except TimeoutError:
            raise Transient(f"no record of {shard_id} since {time} was found within {_SEARCH_S:.0f} s") from None
        return None

    async def lags_ms(self, places: Mapping[str, Checkpoint]) -> dict[str, int]:
        """How far the shards' places are from the tip, in milliseconds; shards that cannot be read are left out."""
        lags: dict[str, int] = {}
        for shard_id, place in places.items():
            where = {"ShardIteratorType": "LATEST" if place == LATEST else "TRIM_HORIZON"}
            if place.is_number:
                where = {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "StartingSequenceNumber": place.position}
            # A place that the stream has trimmed, or of a stream's former life, has no distance.
            with suppress(Fatal):
                page = await aws.get_records(self._client, await self._iterator(shard_id, **where), 1)
                lags[shard_id] = page.millis_behind_latest
        return lags

    async def _iterator(self, shard_id: str, **where: Any) -> str:
        with aws.aws_errors(f"get an iterator of {shard_id}"):
            answer = await self._client.get_shard_iterator(**self._target, ShardId=shard_id, **where)
        return str(answer["ShardIterator"])


def _now_s() -> float:
    return asyncio.get_running_loop().time()
