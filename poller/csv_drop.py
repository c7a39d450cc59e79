"""Files that business units drop in S3 as a source: the newest one, whole, is the truth.

One file is a consistent whole, so a row missing from it is gone: there is nobody to ask again, and the limit on
mass deletions is what stands between a truncated file and the front office.

A file that was replaced or deleted between listing and reading is an ordinary race: the next poll lists again. A
bucket that cannot be read is this source's failure alone.
"""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from poller.source import FullWalk, Page, Position, Refused
from tidegate.aws import aws_errors
from tidegate.bubble import CsvDrop, RawRow, Source
from tidegate.errors import Fatal, Rejected, Superseded, Transient

_MOST_FILE_BYTES = 512 * 1024 * 1024
_RACES = frozenset({"PreconditionFailed", "412", "NoSuchKey", "NoSuchVersion", "404"})


class CsvDropSource:
    """`client` is an aiobotocore S3 client. Raises Fatal when the bucket's variable is missing."""

    def __init__(self, declared: Source, feed: CsvDrop, client: Any, environ: Mapping[str, str]) -> None:
        bucket = environ.get(feed.bucket.name) or feed.bucket.default
        if not bucket:
            raise Fatal(f"source {declared.name!r}: the environment variable {feed.bucket.name} is missing")
        self._declared = declared
        self._feed = feed
        self._client = client
        self._bucket = bucket

    @property
    def start(self) -> None:
        return None

    @property
    def reread_size(self) -> int:
        return 0

    @property
    def absence_decides(self) -> bool:
        return True

    async def fetch(self, position: Position, mark: str = "") -> Page:
        newest = await self._newest()
        found = "" if newest is None else f"{newest['Key']} {newest['ETag']}"
        if newest is None or found == mark:
            # No file yet, or nothing new: neither says anything about the rows.
            now = datetime.now(UTC)
            return Page(rows=(), following=FullWalk(), has_more=False, served_at=now, mark=mark, unchanged=True)
        written_at: datetime = newest["LastModified"]
        # A large file takes seconds to parse; leases must be renewed meanwhile.
        rows = await asyncio.to_thread(self._rows, await self._read(newest), newest["Key"])
        return Page(
            rows=rows,
            following=FullWalk(),
            has_more=False,
            served_at=written_at,
            as_of=written_at - timedelta(seconds=self._declared.safety_s),
            mark=found,
        )

    async def reread(self, keys: Sequence[str]) -> Page:
        raise ValueError(f"{self._declared.name}: files cannot be asked by key")

    async def _newest(self) -> dict[str, Any] | None:
        newest: dict[str, Any] | None = None
        with _drop_errors(f"list s3://{self._bucket}/{self._feed.prefix}"):
            async for page in self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._feed.prefix
            ):
                for item in page.get("Contents", ()):
                    if not item["Key"].endswith("/") and (newest is None or item["Key"] > newest["Key"]):
                        newest = item
        return newest

    async def _read(self, item: dict[str, Any]) -> bytes:
        if item["Size"] > _MOST_FILE_BYTES:
            raise Transient(f"{self._declared.name}: {item['Key']} is larger than {_MOST_FILE_BYTES} bytes")
        with _drop_errors(f"read s3://{self._bucket}/{item['Key']}"):
            # A file replaced between listing and reading is not the one that the mark names.
            reply = await self._client.get_object(Bucket=self._bucket, Key=item["Key"], IfMatch=item["ETag"])
            body: bytes = await reply["Body"].read()
        return body

    def _rows(self, body: bytes, key: str) -> tuple[RawRow, ...]:
        feed = self._feed
        try:
            text = body.decode(feed.encoding).removeprefix("\ufeff")
            reader = csv.DictReader(
                io.StringIO(text, newline=""), delimiter=feed.delimiter, quotechar=feed.quote, restkey="", strict=True
            )
            return tuple(dict(row) for row in reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise Transient(
                f"{self._declared.name}: {key} cannot be read ({error}); waiting for a newer file"
            ) from error


@contextmanager
def _drop_errors(doing: str) -> Iterator[None]:
    """As `aws_errors`, but nothing that one bucket answers is more than this source's failure."""
    try:
        with aws_errors(doing, superseded=_RACES):
            yield
    except Superseded as error:
        raise Transient(f"{error}; it was replaced or deleted meanwhile") from error
    except (Fatal, Rejected) as error:
        raise Refused(str(error)) from error
