"""The stream as a whole: what it is called, when it was made, and which shards it has."""

from __future__ import annotations

import time
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from msgspec import Struct

from tidegate.aws import aws_errors
from tidegate.aws.streams import retention_hours
from tidegate.errors import Fatal
from tidegate.settings import StreamSettings
from worker.shards import HashRange, Shard, from_listing

_CLOCK_SKEW_S = 60.0


class Description(Struct, frozen=True):
    """`created_ms` tells a stream from a former one of the same name. `seen_s`: now, by Kinesis' own clock."""

    arn: str
    created_ms: int
    seen_s: float


class KinesisStream:
    """Calls about one stream. `client` comes from `aws.client("kinesis")`; `target` names the stream in a call."""

    def __init__(self, client: Any, settings: StreamSettings) -> None:
        self._client = client
        self.name = settings.name
        self.arn = settings.arn
        self.target = settings.target
        self._shards: dict[str, Shard] = {}

    async def describe(self) -> Description:
        """Raises Fatal when there is no such stream."""
        with aws_errors(f"describe the stream {self.name}"):
            answer = await self._client.describe_stream_summary(**self.target)
        summary = answer["StreamDescriptionSummary"]
        created: datetime = summary["StreamCreationTimestamp"]
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
        return Description(summary["StreamARN"], round(created.timestamp() * 1000), _seen_s(headers.get("date")))

    async def retention_hours(self) -> int:
        """How long the stream keeps records, now. Raises Fatal, Transient."""
        return await retention_hours(self._client, self.name, arn=self.arn)

    async def list_shards(self) -> list[Shard]:
        """Every shard that the stream still has, open or closed."""
        shards: list[Shard] = []
        asked: dict[str, str] = dict(self.target)
        while asked:
            with aws_errors(f"list the shards of {self.name}"):
                answer = await self._client.list_shards(**asked)
            shards += [from_listing(item) for item in answer["Shards"]]
            token = answer.get("NextToken")
            # A page token stands for the stream; Kinesis refuses its name beside it.
            asked = {"NextToken": token} | ({"StreamARN": self.arn} if self.arn else {}) if token else {}
        self._shards = {shard.id: shard for shard in shards}
        return shards

    async def has_shard(self, shard_id: str) -> bool:
        """False when the stream is there and the shard is not; a missing stream raises Fatal."""
        return any(shard.id == shard_id for shard in await self.list_shards())

    def hash_range(self, shard_id: str) -> HashRange | None:
        """The range of a shard that was listed before."""
        shard = self._shards.get(shard_id)
        return None if shard is None else shard.hash_range

    def is_foreign(self, shard_id: str, sequence: int) -> bool:
        """Whether a position cannot be of this shard: it is from before the shard was made, as the last listing has it."""
        shard = self._shards.get(shard_id)
        return shard is not None and sequence < shard.first_sequence

    def created_anew(self, why: str) -> Fatal:
        """The error that says so, to be raised."""
        return Fatal(
            f"{why}. The stream {self.name} was created anew under its name: the positions in the lease table are of its "
            "former life. Stop the workers, run `tidegate leases reset --all`, and start them again; they begin "
            "where TIDEGATE_START_POSITION says"
        )


def _seen_s(date: str | None) -> float:
    """The time of an answer. Our own clock may be ahead, and Kinesis refuses to read from the future."""
    return parsedate_to_datetime(date).timestamp() if date else time.time() - _CLOCK_SKEW_S
