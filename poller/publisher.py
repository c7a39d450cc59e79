"""PutRecords: nothing lost, nothing of one key overtaken, watermarks to every open shard.

`publish` returns when Kinesis acknowledged every record. At most one record of a key is unacknowledged: a caller has
one `publish` under way and brings each key once (see `changes`; if it does not, the second one waits for the first), so
neither calls side by side nor the resent part of a partial failure overtake anything.

Nothing piles up here. A number of calls, for all sources together, is in the making or under way, each of a bounded
size, and each waits for its shards' budgets; whoever wants to publish more waits.

Kinesis answers with the shard that each record went to: when that is not the shard it was meant for, the stream was
resharded since, and the list is read again. A plain record is right wherever it lands, since its own key brought it
there. Of an aggregate those user records are sent once more that belong to another shard, and only then acknowledged;
the copy on the wrong shard has the same version and changes nothing. A watermark says "everything before it was
published before me", every shard needs its own, and it is sent again, so that children never wait for one.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Protocol

from poller.aggregate import hash_of
from poller.calls import OpenShard, Put, ShardBudgets, ShardMap, calls, loads, put_to, puts, rounds
from poller.changes import MOST_RECORD_BYTES, Record
from poller.claim_check import ClaimCheck
from poller.schedule import back_off_s
from poller.settings import PublishSettings
from tidegate import codec, telemetry
from tidegate.aws import aws_errors, is_transient_code, put_records
from tidegate.errors import Fatal, Transient
from tidegate.event import Watermark
from tidegate.settings import StreamSettings

_RESHARDS = 4


class Publisher(Protocol):
    @property
    def most_record_bytes(self) -> int:
        """The largest record that it takes; what is above must be quarantined."""
        ...

    async def publish(self, records: Sequence[Record]) -> None:
        """Returns when all are acknowledged. Raises Transient when the tries are used up; Fatal."""
        ...

    async def watermark(self, source: str, as_of: datetime) -> None:
        """One to every open shard, acknowledged. Raises as publish does."""
        ...


class KinesisPublisher:
    """`client` is an aiobotocore Kinesis client, `stream` a name or an ARN; `clock` is monotonic, in seconds.

    `claims` carries records that are too large for the stream; None: there are to be none.
    """

    def __init__(
        self,
        client: Any,
        stream: str,
        settings: PublishSettings,
        *,
        claims: ClaimCheck | None = None,
        clock: Callable[[], float] | None = None,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        named = StreamSettings(id=stream)
        self._stream, self._target = named.name, named.target
        self._settings = settings
        self._claims = claims
        self._clock = clock or asyncio.get_running_loop().time
        self._dice = dice
        self._slots = asyncio.Semaphore(settings.parallel_calls)
        self._budgets = ShardBudgets(settings.shard_records_per_s, settings.shard_bytes_per_s)
        self._shards: ShardMap | None = None
        self._listed_at = float("-inf")
        self._log = telemetry.get_logger("poller.publisher")

    @property
    def most_record_bytes(self) -> int:
        return MOST_RECORD_BYTES if self._claims is None else self._claims.most_bytes

    async def publish(self, records: Sequence[Record]) -> None:
        for each in rounds(records):
            await self._publish(await self._carried(each))

    async def watermark(self, source: str, as_of: datetime) -> None:
        identity = hashlib.blake2b(f"{source}\n{as_of.isoformat()}".encode(), digest_size=16).hexdigest()
        data = codec.encode(Watermark(event_id=identity, source=source, as_of=as_of))
        for _ in range(_RESHARDS):
            shards = await self._open_shards()
            marks = [put_to(shard, f"watermark:{source}", data) for shard in shards.shards]
            if not await self._deliver(marks):
                return
            self._listed_at = float("-inf")
        raise self._resharded()

    async def _carried(self, records: Sequence[Record]) -> Sequence[Record]:
        """The same records, those that are too large for the stream by reference."""
        claims = self._claims
        if claims is None or all(len(record.data) <= MOST_RECORD_BYTES for record in records):
            return records
        return [await claims.carry(each) if len(each.data) > MOST_RECORD_BYTES else each for each in records]

    async def _publish(self, records: Sequence[Record]) -> None:
        waiting = records
        for attempt in range(1, _RESHARDS + 1):
            shards = await self._open_shards()
            strayed = await self._deliver(puts(waiting, shards, self._settings))
            if not strayed:
                return
            self._listed_at = float("-inf")
            waiting = await self._misplaced(strayed)
            if not waiting:
                return
            telemetry.POLLER_MISPLACED.inc(len(waiting))
            await self._wait(attempt)
        raise self._resharded()

    async def _misplaced(self, strayed: Sequence[tuple[Put, str]]) -> list[Record]:
        """Of aggregates that landed elsewhere: the user records that belong to another shard than that."""
        aggregates = [(put.contents, landed) for put, landed in strayed if put.contents]
        if not aggregates:
            return []
        shards = await self._open_shards()
        return [
            record
            for contents, landed in aggregates
            for record in contents
            if shards.home(hash_of(record.partition_key.encode())) != landed
        ]

    async def _deliver(self, entries: Iterable[Put]) -> list[tuple[Put, str]]:
        """Send all; answers those that landed on another shard than they were meant for, with that shard's id."""
        strayed: list[tuple[Put, str]] = []
        faults: list[Transient | Fatal] = []
        async with asyncio.TaskGroup() as group:
            for call in calls(entries, self._settings):
                await self._slots.acquire()
                if faults:
                    self._slots.release()
                    break
                group.create_task(self._send(call, strayed, faults))
        if faults:
            raise faults[0]
        return strayed

    async def _send(self, call: list[Put], strayed: list[tuple[Put, str]], faults: list[Transient | Fatal]) -> None:
        """One call to its end. What others have under way is let finish: each that is acknowledged is not sent twice."""
        try:
            landed = await self._put(call)
            strayed += [(put, shard) for put, shard in zip(call, landed, strict=True) if put.home != shard]
        except (Transient, Fatal) as error:
            faults.append(error)
        finally:
            self._slots.release()

    async def _put(self, call: list[Put]) -> list[str]:
        """Sends until every entry is acknowledged; answers the shard of each."""
        landed: list[str] = [""] * len(call)
        waiting = list(range(len(call)))
        reason = ""
        for attempt in range(1, self._settings.attempts + 1):
            wait_s = self._budgets.reserve(loads([call[at] for at in waiting]), self._clock())
            if wait_s > 0:
                telemetry.POLLER_BUDGET_WAITED.inc(wait_s)
                await asyncio.sleep(wait_s)
            waiting, reason = await self._try(call, waiting, landed)
            if not waiting:
                return landed
            telemetry.POLLER_PUBLISH_RETRIES.inc(len(waiting))
            await self._wait(attempt)
        raise Transient(f"stream {self._stream}: {len(waiting)} records not taken: {reason}")

    async def _try(self, call: list[Put], waiting: list[int], landed: list[str]) -> tuple[list[int], str]:
        try:
            outcomes = await put_records(self._client, self._target, [call[at].entry for at in waiting])
        except Transient as error:
            return waiting, str(error)
        failed: list[int] = []
        reason = ""
        for at, outcome in zip(waiting, outcomes, strict=True):
            code = outcome.get("ErrorCode")
            if not code:
                landed[at] = outcome.get("ShardId") or ""
            elif is_transient_code(code):
                failed.append(at)
                reason = f"{code}: {outcome.get('ErrorMessage') or ''}"
            else:
                raise Fatal(f"put records to {self._stream}: {code}: {outcome.get('ErrorMessage') or ''}")
        return failed, reason

    async def _wait(self, attempt: int) -> None:
        settings = self._settings
        await asyncio.sleep(back_off_s(attempt, None, settings.retry_s, settings.retry_most_s, self._dice()))

    def _resharded(self) -> Transient:
        return Transient(f"stream {self._stream}: resharded faster than its shards could be listed")

    async def _open_shards(self) -> ShardMap:
        if self._shards is not None and self._clock() - self._listed_at < self._settings.shards_refresh_s:
            return self._shards
        listed_at = self._clock()
        found: list[OpenShard] = []
        question: dict[str, Any] = dict(self._target)
        while True:
            with aws_errors(f"list the shards of {self._stream}"):
                reply = await self._client.list_shards(**question)
            found += [
                OpenShard(shard["ShardId"], shard["HashKeyRange"]["StartingHashKey"])
                for shard in reply["Shards"]
                if "EndingSequenceNumber" not in shard["SequenceNumberRange"]
            ]
            if not reply.get("NextToken"):
                break
            question = {"NextToken": reply["NextToken"]}
        if not found:
            raise Transient(f"stream {self._stream}: it lists no open shard")
        shards = ShardMap(found)
        if self._shards is not None and self._shards.shards != shards.shards:
            self._log.info(telemetry.POLLER_SHARDS_CHANGED, open=len(found))
        self._budgets.keep(shards.ids)
        self._shards, self._listed_at = shards, listed_at
        return shards
