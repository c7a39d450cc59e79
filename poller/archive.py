"""Raw rows as the back office gave them, kept in S3, so that a mended translator can be run over the past.

    raw/<source>/<day>/<epoch>-<journal>.jsonl.gz      the rows behind one page's events, a JSON object a line

They are written before their events are published, so the archive may know rows that never were, and never lacks one
that was. Whoever reads it back compares fingerprints with the index: only what is still the newest is translated anew.
How long they are kept is the bucket's lifecycle rule.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any, Protocol

import msgspec

from tidegate import telemetry
from tidegate.aws import aws_errors
from tidegate.errors import Transient
from tidegate.feeds import RawRow

_LEVEL = 6
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(dict[str, Any])


class Archive(Protocol):
    async def write(self, source: str, epoch: int, journal: int, rows: Sequence[RawRow]) -> None:
        """Keep the rows of one page; twice is once. Raises Transient, Fatal."""
        ...

    async def names(self, source: str, since: date | None) -> list[str]:
        """What is kept of a source, the oldest first. Raises as write does."""
        ...

    async def read(self, name: str) -> Sequence[RawRow]:
        """The rows of one page. Raises as write does."""
        ...


class S3Archive:
    """`client` is an aiobotocore S3 client."""

    def __init__(self, client: Any, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    async def write(self, source: str, epoch: int, journal: int, rows: Sequence[RawRow]) -> None:
        name = f"raw/{source}/{datetime.now(UTC).date()}/{epoch:012d}-{journal:012d}.jsonl.gz"
        # Compressing takes longer than a lease's renewal may wait.
        body = await asyncio.to_thread(lambda: gzip.compress(_encoder.encode_lines(rows), _LEVEL))
        with aws_errors(f"write {name}"):
            await self._client.put_object(Bucket=self._bucket, Key=name, Body=body)
        telemetry.POLLER_ARCHIVED.labels(source).inc(len(rows))

    async def names(self, source: str, since: date | None) -> list[str]:
        prefix = f"raw/{source}/"
        found: list[str] = []
        with aws_errors(f"list {prefix}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
            async for page in pages:
                found += [item["Key"] for item in page.get("Contents", ())]
        first = f"{prefix}{since}" if since is not None else ""
        return sorted(name for name in found if name >= first)

    async def read(self, name: str) -> Sequence[RawRow]:
        with aws_errors(f"read {name}"):
            reply = await self._client.get_object(Bucket=self._bucket, Key=name)
            body = await reply["Body"].read()
        rows: Sequence[RawRow]
        try:
            rows = await asyncio.to_thread(lambda: _decoder.decode_lines(gzip.decompress(body)))
        except (OSError, EOFError, msgspec.MsgspecError) as error:
            raise Transient(
                f"s3://{self._bucket}/{name} cannot be read: {error}; delete it, or put it right"
            ) from error
        return rows
