"""Some rows of a source, translated and shown, for whoever writes its translator: `tidegate sources try`.

It asks as a poller does, reads only, needs no lease, and knows nothing of what was published: each row is taken as new.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import aiohttp
import msgspec

from poller.changes import QUARANTINE, Changes, Sight
from poller.drop_bucket import DropBucket
from poller.files import Found
from poller.index import Index
from poller.rest import RestSource
from poller.source import FileRow, FullWalk, Position
from poller.translate import Reading, raw_key
from poller.unpacked import Unpacked, page_of
from tidegate import aws, codec
from tidegate.bubble import CsvDrop, Rest, Source
from tidegate.errors import Fatal, Rejected
from tidegate.event import Cause, QuarantineRecord
from tidegate.feeds import RawRow


async def run(declared: Source, limit: int, keys: Sequence[str], environ: Mapping[str, str]) -> list[dict[str, Any]]:
    """Each row as {origin, raw, entity, event, error}. Raises Transient, Rejected, Fatal."""
    feed = declared.feed
    if isinstance(feed, CsvDrop):
        rows = await _dropped(feed, limit, keys, environ)
    else:
        rows = await _asked(declared, feed, limit, keys, environ)
    reading = Reading.of(declared)
    return [_tried(row, reading) for row in rows]


def _tried(row: RawRow, reading: Reading) -> dict[str, Any]:
    changes = Changes(Index(), reading)
    changes.see([row], Sight(epoch=1, read=1, cause=Cause.LIVE, observed_at=datetime.now(UTC), keyed=True))
    [record] = changes.records.values()
    origin = row.origin if isinstance(row, FileRow) else ""
    shown: dict[str, Any] = {"origin": origin, "raw": row, "entity": None, "event": None, "error": ""}
    if record.label == QUARANTINE:
        filed = codec.decode(record.data)
        assert isinstance(filed, QuarantineRecord)
        return shown | {"error": f"{filed.reason}: {filed.message}"}
    event = msgspec.json.decode(record.data)
    return shown | {"entity": event["data"], "event": event}


async def _asked(
    declared: Source, feed: Rest, limit: int, keys: Sequence[str], environ: Mapping[str, str]
) -> list[RawRow]:
    async with aiohttp.ClientSession() as session:
        source = RestSource(declared, feed, session, environ)
        if keys:
            if source.reread_size == 0:
                raise Fatal(f"source {declared.name!r} cannot be asked by key; its declaration has no reread")
            pages = [
                await source.reread(keys[at : at + source.reread_size])
                for at in range(0, len(keys), source.reread_size)
            ]
            return [row for page in pages for row in page.rows]
        rows: list[RawRow] = []
        position: Position = FullWalk()
        while len(rows) < limit:
            page = await source.fetch(position)
            rows += page.rows
            position = page.following
            if not page.has_more:
                break
        return rows[:limit]


async def _dropped(feed: CsvDrop, limit: int, keys: Sequence[str], environ: Mapping[str, str]) -> list[RawRow]:
    bucket = environ.get(feed.bucket.name) or feed.bucket.default
    if not bucket:
        raise Fatal(f"the environment variable {feed.bucket.name} is missing")
    async with aws.client("s3") as s3:
        place = DropBucket(feed, bucket, s3, "", None, asyncio.get_running_loop().time)
        found = [await place.dated(each) for each in await place.look()]
        if not found:
            raise Fatal(f"there is no file under s3://{bucket}/{feed.prefix}")
        newest = max(found, key=lambda each: each.order)
        with NamedTemporaryFile(prefix="tidegate-") as file:
            await place.fetch(newest, file)
            return await asyncio.to_thread(_first, Path(file.name), newest, feed, limit, keys)


def _first(path: Path, found: Found, feed: CsvDrop, limit: int, keys: Sequence[str]) -> list[RawRow]:
    unpacked = Unpacked(path, found.name, feed)
    rows = unpacked.rows()
    try:
        if keys:
            return list(islice((row for row in rows if raw_key(row, (feed.key,)) in set(keys)), len(keys)))
        return list(page_of(unpacked, rows, limit))
    except Rejected as error:
        raise Fatal(f"{found.name} would be refused: {error}") from error
