"""PutRecords: nothing lost, nothing of one key overtaken, watermarks to every open shard.

`publish` returns when Kinesis acknowledged every record. A call carries at most one record of a key (see
`changes`) and one caller has one call under way, so the resent part of a partial failure overtakes nothing.

A watermark says "everything before it was published before me", and every shard needs its own. Kinesis answers
with the shard that each record went to: when that is not the shard it was meant for, the stream was resharded
since, the list is read again and the watermark is sent again, so that children never wait for one.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from poller.changes import Record
from poller.schedule import back_off_s
from poller.settings import PublishSettings
from tidegate import codec, telemetry
from tidegate.aws import PutEntry, aws_errors, is_transient_code, put_records
from tidegate.errors import Fatal, Transient
from tidegate.event import Watermark
from tidegate.settings import StreamSettings

_MOST_RECORDS = 500
_RESHARDS = 3


class Publisher(Protocol):
    async def publish(self, records: Sequence[Record]) -> None:
        """Returns when all are acknowledged. Raises Transient when the tries are used up; Fatal."""
        ...

    async def watermark(self, source: str, as_of: datetime) -> None:
        """One to every open shard, acknowledged. Raises as publish does."""
        ...


class _Shard(NamedTuple):
    shard_id: str
    starting_hash_key: str


class KinesisPublisher:
    """`client` is an aiobotocore Kinesis client, `stream` a name or an ARN; `clock` is monotonic, in seconds."""

    def __init__(
        self,
        client: Any,
        stream: str,
        settings: PublishSettings,
        *,
        clock: Callable[[], float] | None = None,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        named = StreamSettings(id=stream)
        self._stream, self._target = named.name, named.target
        self._settings = settings
        self._clock = clock or asyncio.get_running_loop().time
        self._dice = dice
        self._shards: list[_Shard] = []
        self._listed_at = float("-inf")
        self._log = telemetry.get_logger("poller.publisher")

    async def publish(self, records: Sequence[Record]) -> None:
        entries = [PutEntry(record.partition_key, record.data) for record in records]
        for call in _calls(entries, self._settings.call_bytes):
            shards = await self._put(call)
            if self._shards and not set(shards) <= {shard.shard_id for shard in self._shards}:
                self._listed_at = float("-inf")

    async def watermark(self, source: str, as_of: datetime) -> None:
        identity = hashlib.blake2b(f"{source}\n{as_of.isoformat()}".encode(), digest_size=16).hexdigest()
        data = codec.encode(Watermark(event_id=identity, source=source, as_of=as_of))
        for _ in range(_RESHARDS):
            shards = await self._open_shards()
            entries = [PutEntry(f"watermark:{source}", data, shard.starting_hash_key) for shard in shards]
            arrived: list[str] = []
            for call in _calls(entries, self._settings.call_bytes):
                arrived += await self._put(call)
            if arrived == [shard.shard_id for shard in shards]:
                return
            self._listed_at = float("-inf")
        raise Transient(f"stream {self._stream}: resharded faster than its shards could be listed")

    async def _put(self, entries: Sequence[PutEntry]) -> list[str]:
        """Sends until every entry is acknowledged; answers the shard of each."""
        shards: list[str] = [""] * len(entries)
        waiting = list(range(len(entries)))
        for attempt in range(1, self._settings.attempts + 1):
            waiting, reason = await self._try([(at, entries[at]) for at in waiting], shards)
            if not waiting:
                return shards
            telemetry.POLLER_PUBLISH_RETRIES.inc(len(waiting))
            wait_s = back_off_s(attempt, None, self._settings.retry_s, self._settings.retry_most_s, self._dice())
            await asyncio.sleep(wait_s)
        raise Transient(f"stream {self._stream}: {len(waiting)} records not taken: {reason}")

    async def _try(self, entries: Sequence[tuple[int, PutEntry]], shards: list[str]) -> tuple[list[int], str]:
        try:
            outcomes = await put_records(self._client, self._target, [entry for _, entry in entries])
        except Transient as error:
            return [at for at, _ in entries], str(error)
        failed: list[int] = []
        reason = ""
        for (at, _), outcome in zip(entries, outcomes, strict=True):
            code = outcome.get("ErrorCode")
            if not code:
                shards[at] = outcome.get("ShardId") or ""
            elif is_transient_code(code):
                failed.append(at)
                reason = f"{code}: {outcome.get('ErrorMessage') or ''}"
            else:
                raise Fatal(f"put records to {self._stream}: {code}: {outcome.get('ErrorMessage') or ''}")
        return failed, reason

    async def _open_shards(self) -> list[_Shard]:
        if self._clock() - self._listed_at < self._settings.shards_refresh_s:
            return self._shards
        listed_at = self._clock()
        found: list[_Shard] = []
        question: dict[str, Any] = dict(self._target)
        while True:
            with aws_errors(f"list the shards of {self._stream}"):
                reply = await self._client.list_shards(**question)
            found += [
                _Shard(shard["ShardId"], shard["HashKeyRange"]["StartingHashKey"])
                for shard in reply["Shards"]
                if "EndingSequenceNumber" not in shard["SequenceNumberRange"]
            ]
            if not reply.get("NextToken"):
                break
            question = {"NextToken": reply["NextToken"]}
        if self._shards and found != self._shards:
            self._log.info(telemetry.POLLER_SHARDS_CHANGED, open=len(found))
        self._shards, self._listed_at = found, listed_at
        return found


def _calls(entries: Sequence[PutEntry], most_bytes: int) -> Iterator[list[PutEntry]]:
    """Entries in their order, cut where a call would have too many records or bytes."""
    call: list[PutEntry] = []
    size = 0
    for entry in entries:
        weight = len(entry.data) + len(entry.partition_key.encode())
        if call and (len(call) == _MOST_RECORDS or size + weight > most_bytes):
            yield call
            call, size = [], 0
        call.append(entry)
        size += weight
    if call:
        yield call
