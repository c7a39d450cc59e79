"""Events in: `api.ingest_handler.handler` is what Lambda calls. It knows Kinesis, and no database."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import msgspec

from api.cors import Cors
from api.entry import Function, Served
from api.ingest import Ingest, Post
from api.settings import IngestSettings
from api.tokens import verifier
from tidegate import aws
from tidegate.bubble import load
from tidegate.settings import AwsSettings, StreamSettings, read

# The caller waits, and the attempts are ours.
_AWS = AwsSettings(connect_timeout_s=1.0, read_timeout_s=4.0, max_attempts=1)


class KinesisArrivals:
    """The stream of arrivals on Kinesis. `client` comes from `aws.client("kinesis")`."""

    def __init__(self, client: Any, stream: StreamSettings) -> None:
        self._client = client
        self._target = stream.target

    async def put(self, posts: Sequence[Post]) -> list[bool]:
        entries = [aws.PutEntry(post.partition_key, post.data) for post in posts]
        outcomes = await aws.put_records(self._client, self._target, entries)
        return [outcome.get("ErrorCode") is None for outcome in outcomes]


async def serve(connections: int = 4) -> Served:
    """What the environment names; `connections` to AWS at once. Raises Fatal."""
    settings = read(IngestSettings, os.environ)
    bubble = load(settings.bubble)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            aws.client("kinesis", msgspec.structs.replace(_AWS, pool_size=connections))
        )
        arrivals = KinesisArrivals(client, StreamSettings(id=settings.stream))
        kept = stack.pop_all()
    return Served(
        Ingest(bubble, arrivals, settings, lambda: datetime.now(UTC)),
        verifier(settings.tokens),
        kept.aclose,
        Cors(settings.cors_origins),
        settings.origin_key,
    )


handler = Function(serve)
