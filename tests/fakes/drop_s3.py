"""The few calls of S3 and SQS that dropped files need, in memory; proven by tests/integration/test_poller_drops.py."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from botocore.exceptions import ClientError

from poller.csv_drop import CsvDropSource
from poller.drop_bucket import DropBucket
from poller.files import FileEntry
from poller.settings import DropSettings
from tidegate.bubble import CsvDrop, Source

BEGIN = datetime(2026, 11, 21, 5, 0, tzinfo=UTC)


@dataclass
class _Object:
    body: bytes
    etag: str
    written_at: datetime
    metadata: Mapping[str, str]


@dataclass
class MemoryDrops:
    """Both clients at once. `codes` are answered first, one a call; `calls` tells what was asked."""

    objects: dict[str, _Object] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    writes: int = 0

    def drop(self, name: str, body: bytes | str, **metadata: str) -> None:
        self.writes += 1
        data = body.encode() if isinstance(body, str) else body
        etag = f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
        self.objects[name] = _Object(data, etag, BEGIN + timedelta(seconds=self.writes), metadata)

    def _asked(self, call: str, name: str = "", if_match: str | None = None) -> _Object | None:
        self.calls.append(call)
        code = self.codes.pop(0) if self.codes else ""
        found = self.objects.get(name)
        if name and found is None:
            code = code or ("404" if call == "head" else "NoSuchKey")
        elif found is not None and if_match not in (None, found.etag):
            code = code or "PreconditionFailed"
        if code:
            raise ClientError({"Error": {"Code": code, "Message": "because"}}, call)
        return found

    def get_paginator(self, _: str) -> MemoryDrops:
        return self

    async def paginate(self, *, Bucket: str, Prefix: str) -> AsyncIterator[dict[str, Any]]:  # noqa: N803
        self._asked("list")
        for name in sorted(self.objects):
            each = self.objects[name]
            if name.startswith(Prefix):
                item = {"Key": name, "ETag": each.etag, "Size": len(each.body), "LastModified": each.written_at}
                yield {"Contents": [item]}

    async def head_object(self, *, Bucket: str, Key: str, IfMatch: str | None = None) -> dict[str, Any]:  # noqa: N803
        found = self._asked("head", Key, IfMatch)
        assert found is not None
        return {
            "ETag": found.etag, "ContentLength": len(found.body), "LastModified": found.written_at,
            "Metadata": dict(found.metadata),
        }  # fmt: skip

    async def get_object(self, *, Bucket: str, Key: str, IfMatch: str | None = None) -> dict[str, Any]:  # noqa: N803
        found = self._asked("get", Key, IfMatch)
        assert found is not None
        return {"Body": _Body(found.body)}

    async def receive_message(self, *, QueueUrl: str, MaxNumberOfMessages: int, WaitTimeSeconds: int) -> dict[str, Any]:  # noqa: N803
        self._asked("receive")
        some = self.notices[:MaxNumberOfMessages]
        return {"Messages": [{"Body": body, "ReceiptHandle": body} for body in some]} if some else {}

    async def delete_message_batch(self, *, QueueUrl: str, Entries: list[dict[str, str]]) -> dict[str, Any]:  # noqa: N803
        self._asked("delete")
        for entry in Entries:
            self.notices.remove(entry["ReceiptHandle"])
        return {}


class _Body:
    def __init__(self, body: bytes) -> None:
        self._body = body

    async def iter_chunks(self, size: int) -> AsyncIterator[bytes]:
        for at in range(0, len(self._body), size):
            yield self._body[at : at + size]


@dataclass
class MemoryLedger:
    """As `poller.ledger.TableLedger`, in one dictionary."""

    files: dict[str, FileEntry] = field(default_factory=dict)

    async def entries(self, source: str) -> dict[str, FileEntry]:
        return dict(self.files)

    async def write(self, source: str, entry: FileEntry) -> None:
        self.files[entry.name] = entry

    async def forget(self, source: str, name: str) -> None:
        del self.files[name]

    def fates(self) -> dict[str, str]:
        return {name.rpartition("/")[2]: entry.fate.value for name, entry in self.files.items()}


class DropWorld:
    """A bucket, a ledger, and sources over them. `clock_s` is what they take for the time."""

    def __init__(self, declared: Source, *, page_rows: int = 3) -> None:
        self.declared = declared
        self.s3 = MemoryDrops()
        self.ledger = MemoryLedger()
        self.settings = DropSettings(page_rows=page_rows)
        self.clock_s = 0.0

    def source(self) -> CsvDropSource:
        """As a process makes it that takes the lease."""
        feed = self.declared.feed
        assert isinstance(feed, CsvDrop)
        queue = "" if feed.notices is None else "queue"
        bucket = DropBucket(feed, "drops", self.s3, queue, self.s3, lambda: self.clock_s)
        return CsvDropSource(self.declared, feed, bucket, self.ledger, self.settings)
