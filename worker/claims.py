"""Records that were too large for the stream, read from S3: `tidegate.claim` says what a reference is.

The bucket is a setting; a reference names an object in it and nothing else. What is not there any more, or is not what
was put there, stays a reference, and as such becomes a dead letter that can be replayed.
"""

from __future__ import annotations

from typing import Any

from tidegate import claim, telemetry
from tidegate.aws import aws_errors
from tidegate.errors import Rejected

log = telemetry.get_logger(__name__)


class S3Claims:
    """`client` is an aiobotocore S3 client."""

    def __init__(self, client: Any, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    async def fetch(self, reference: bytes) -> bytes:
        """The record that a reference stands for; the reference itself when there is none. Raises Transient, Fatal."""
        name = claim.name_in(reference)
        if name is None:
            return reference
        fault = "the object is not what was put there"
        try:
            with aws_errors(f"read s3://{self._bucket}/{name}"):
                reply = await self._client.get_object(Bucket=self._bucket, Key=name)
                data: bytes = await reply["Body"].read()
            if claim.name_of(data) == name:
                return data
        except Rejected as error:
            fault = str(error)
        log.error(telemetry.CLAIM_MISSING, name=name, error=fault)
        return reference
