"""A drop's bucket and queue: what is there, what its notices tell of, and a file's bytes onto the local disk.

Notices are a hint that saves listing: a message is deleted when its file was looked at, not when it was worked through,
because the listing finds whatever a message would have told. A file replaced or deleted between looking and reading is
an ordinary race. A bucket that cannot be read is this source's failure alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from msgspec.structs import replace

from poller.files import Found, is_file, names_in, stated_in_metadata, stated_in_name
from poller.source import Refused
from tidegate.aws import aws_errors
from tidegate.drops import CsvDrop
from tidegate.errors import Fatal, Rejected, Superseded, Transient

_RACES = frozenset({"PreconditionFailed", "412", "NoSuchKey", "NoSuchVersion", "404"})
_NOTICES = 10
_CALLS = 20
_PART = 1024 * 1024


class DropBucket:
    """`s3` and `sqs` are aiobotocore clients, `queue` a queue's address ("": there is none); `clock` is monotonic."""

    def __init__(self, feed: CsvDrop, bucket: str, s3: Any, queue: str, sqs: Any, clock: Callable[[], float]) -> None:
        self._feed = feed
        self._bucket = bucket
        self._s3 = s3
        self._queue = queue
        self._sqs = sqs
        self._clock = clock
        self._known: dict[str, Found] = {}
        self._listed_at = float("-inf")
        self._asked: set[str] = set()

    async def look(self) -> list[Found]:
        """The files that are there, as far as was looked. Raises Transient, of it Refused."""
        if not self._queue or self._clock() - self._listed_at >= self._feed.list_s:
            began = self._clock()
            self._known = await self._list()
            self._listed_at = began
        else:
            await self._heed()
        return list(self._known.values())

    async def dated(self, found: Found) -> Found:
        """The same with the time that its metadata states, where the declaration asks for that. Raises as look does."""
        if self._feed.stated is None or self._feed.stated.metadata is None or found.mark in self._asked:
            return found
        with self._errors(f"look at s3://{self._bucket}/{found.name}"):
            head = await self._s3.head_object(Bucket=self._bucket, Key=found.name, IfMatch=found.etag)
        known = replace(found, stated_at=stated_in_metadata(head.get("Metadata", {}), self._feed))
        self._known[found.name] = known
        self._asked = {each.mark for each in self._known.values()} & {*self._asked, known.mark}
        return known

    async def fetch(self, found: Found, file: IO[bytes]) -> None:
        """Write exactly this version of the file. Raises as look does."""
        with self._errors(f"read s3://{self._bucket}/{found.name}"):
            # A file replaced since is not the one that was looked at.
            reply = await self._s3.get_object(Bucket=self._bucket, Key=found.name, IfMatch=found.etag)
            async for part in reply["Body"].iter_chunks(_PART):
                await asyncio.to_thread(file.write, part)
        await asyncio.to_thread(file.flush)

    async def _list(self) -> dict[str, Found]:
        found: dict[str, Found] = {}
        with self._errors(f"list s3://{self._bucket}/{self._feed.prefix}"):
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._feed.prefix)
            async for page in pages:
                for item in page.get("Contents", ()):
                    if is_file(item["Key"]):
                        found[item["Key"]] = self._found(item["Key"], item["ETag"], item["Size"], item["LastModified"])
        return found

    def _found(self, name: str, etag: str, size_bytes: int, written_at: Any) -> Found:
        before = self._known.get(name)
        if before is not None and before.etag == etag:
            return before
        return Found(name, etag, size_bytes, written_at, stated_in_name(name, self._feed))

    async def _heed(self) -> None:
        """Look at the files that messages tell of, then delete the messages."""
        for _ in range(_CALLS):
            with self._errors(f"read the queue {self._queue}"):
                reply = await self._sqs.receive_message(
                    QueueUrl=self._queue, MaxNumberOfMessages=_NOTICES, WaitTimeSeconds=0
                )
            notices = reply.get("Messages", ())
            for name in {name for notice in notices for name in names_in(notice["Body"])}:
                if name.startswith(self._feed.prefix) and is_file(name):
                    await self._look_at(name)
            if not notices:
                return
            entries = [{"Id": str(at), "ReceiptHandle": each["ReceiptHandle"]} for at, each in enumerate(notices)]
            with self._errors(f"delete from the queue {self._queue}"):
                await self._sqs.delete_message_batch(QueueUrl=self._queue, Entries=entries)

    async def _look_at(self, name: str) -> None:
        try:
            with aws_errors(f"look at s3://{self._bucket}/{name}", superseded=_RACES):
                head = await self._s3.head_object(Bucket=self._bucket, Key=name)
        except Superseded:
            self._known.pop(name, None)
            return
        self._known[name] = self._found(name, head["ETag"], head["ContentLength"], head["LastModified"])

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """As `aws_errors`, but nothing that one bucket or queue answers is more than this source's failure."""
        try:
            with aws_errors(doing, superseded=_RACES):
                yield
        except Superseded as error:
            # Whoever looks next must not be shown the same again.
            self._listed_at = float("-inf")
            raise Transient(f"{error}; it was replaced or deleted meanwhile") from error
        except (Fatal, Rejected) as error:
            raise Refused(str(error)) from error
