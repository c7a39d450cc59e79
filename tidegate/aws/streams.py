"""What a stream says about itself."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Protocol

from tidegate.aws.failures import aws_errors


class StreamClient(Protocol):
    """The call of aiobotocore's Kinesis client that is used here."""

    def describe_stream_summary(self, **request: Any) -> Awaitable[dict[str, Any]]: ...


async def retention_hours(client: StreamClient, stream: str | None = None, *, arn: str | None = None) -> int:
    """How long the stream keeps its records. Raises Fatal when it is not there or may not be asked, Transient."""
    target = {"StreamARN": arn} if arn else {"StreamName": stream}
    with aws_errors(f"ask the stream {arn or stream} for its retention"):
        answer = await client.describe_stream_summary(**target)
    return int(answer["StreamDescriptionSummary"]["RetentionPeriodHours"])
