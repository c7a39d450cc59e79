"""Records that are too large for the stream, put into S3; what goes to the stream is `tidegate.claim`'s reference.

The object is there before the reference is, and whoever replays the stream reads it again: it must be kept for as long
as the stream and its dead letters are (a lifecycle rule on `claims/`).
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from poller.changes import Record
from tidegate import claim, telemetry
from tidegate.aws import aws_errors


class ClaimCheck:
    """`client` is an aiobotocore S3 client. Records of more than `most_bytes` are not for it."""

    def __init__(self, client: Any, bucket: str, most_bytes: int) -> None:
        self._client = client
        self._bucket = bucket
        self.most_bytes = most_bytes

    async def carry(self, record: Record) -> Record:
        """Keep the record, and answer the one to publish in its place. Raises Transient, Fatal."""
        name = claim.name_of(record.data)
        with aws_errors(f"write s3://{self._bucket}/{name}"):
            await self._client.put_object(Bucket=self._bucket, Key=name, Body=record.data)
        telemetry.POLLER_CLAIMS.inc()
        return replace(record, data=claim.encode(record.partition_key, record.data))
