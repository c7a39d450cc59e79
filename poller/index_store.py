"""The durable form of a source's key index: one snapshot and the journals after it, in S3.

    <source>/snapshot/<journal>-<epoch>           the names of the index's segments, msgpack, in their order
    <source>/segment/<journal>-<epoch>-<number>   a segment: key → entry; written anew when something in it changed
    <source>/journal/<number>-<epoch>             the entries of one page, the same way
    <source>/sweep                                how far a sweep has come, over one snapshot

Names carry the epoch, so that a poller that lost its lease never writes over its successor's objects; and its
objects are seen for what they are: a journal counts as published when the cursor has come to its number *and* it
is the one of the highest epoch under that number. Every other entry is unsure (`snapshot.doubtful`).

What a crash leaves behind, step by step:

1. before the journal: nothing. The page is fetched again.
2. after the journal, before or amid publishing: entries newer than the cursor. They are unsure: whatever is seen
   of those keys next is published, under the same version if it is the same row.
3. after publishing, before the cursor: the same as 2; published twice, applied once.
4. after segments or the snapshot, before the cursor names it: objects that nobody refers to; the next clean-up takes
   them. A segment that is written once more under its name has the same entries or surer ones.
5. after the cursor names the snapshot, before the clean-up: journals at or below its number. They are unsure, since
   they cannot be told from those of 7; their rows are published once more under the same versions.
6. the cursor's table is lost: the newest snapshot and every journal, all of them unsure; polling starts over.
7. a poller that lost its lease and does not know it yet: it may write one journal and publish it before the cursor
   refuses it. Whoever holds the lease finds the journal before its next snapshot (`strangers`) and takes it as unsure.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, NamedTuple, Protocol

import msgspec

from poller.index import Index
from poller.snapshot import Entry, doubtful
from poller.source import Cursor
from tidegate.aws import aws_errors
from tidegate.errors import Fatal, Superseded

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(dict[str, Entry])
# Until segments came, a snapshot was the whole index.
_snapshot_decoder = msgspec.msgpack.Decoder(list[str] | dict[str, Entry])


class Opened(msgspec.Struct, frozen=True):
    """`journal`: number after which new journals go on. `is_orphaned`: objects without a cursor that knows them.

    `journals` are the names of those that are in `index`.
    """

    index: Index
    journal: int
    is_orphaned: bool
    journals: frozenset[str]


class IndexStore(Protocol):
    async def load(self, cursor: Cursor) -> Opened:
        """The index as the cursor vouches for it, with the rest unsure. Raises Transient, Fatal."""
        ...

    async def append(self, source: str, number: int, epoch: int, entries: Mapping[str, Entry]) -> None:
        """Write one journal, durable when this returns. Raises Transient, Fatal."""
        ...

    async def write_snapshot(self, source: str, number: int, epoch: int, index: Index) -> str:
        """Write what changed of the index, as of journal `number`; answers the snapshot's name.

        Raises Transient, Fatal; called again it goes on where it was.
        """
        ...

    async def strangers(self, cursor: Cursor, known: Set[str]) -> dict[str, dict[str, Entry]]:
        """Journals of earlier terms, by name, that were not there at `load`. Raises Transient, Fatal."""
        ...

    async def clean_up(self, cursor: Cursor, known: Set[str], index: Index) -> None:
        """Delete what the cursor's snapshot makes superfluous: own journals, and those of others that it contains.

        `index` is as it was written.

        Raises Transient, Fatal.
        """
        ...

    async def save_sweep(self, source: str, state: bytes) -> None:
        """Remember how far a sweep has come, over whatever was there. Raises Transient, Fatal."""
        ...

    async def load_sweep(self, source: str) -> bytes:
        """What was remembered last; b"" for nothing. Raises Transient, Fatal."""
        ...


class _Name(NamedTuple):
    number: int
    epoch: int
    key: str


class S3IndexStore:
    """`client` is an aiobotocore S3 client."""

    def __init__(self, client: Any, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    async def load(self, cursor: Cursor) -> Opened:
        journals = sorted(await self._names(f"{cursor.source}/journal/"))
        snapshots = sorted(await self._names(f"{cursor.source}/snapshot/"))
        is_orphaned = cursor.snapshot == "" and cursor.journal == 0 and bool(journals or snapshots)
        name = cursor.snapshot or (snapshots[-1].key if is_orphaned and snapshots else "")
        index = await self._snapshot(name) if name else Index()
        if is_orphaned:
            index.doubt()
        start = number_of(name) if name else -1
        for each in journals:
            entries = await self._read(each.key)
            is_sure = start < each.number <= cursor.journal and not is_orphaned and _is_last(each, journals)
            index.apply(
                entries if is_sure else {key: doubtful(index.get(key), entry) for key, entry in entries.items()}
            )
        last = max((each.number for each in (*journals, *snapshots)), default=0)
        return Opened(
            index=index,
            journal=last if is_orphaned else cursor.journal,
            is_orphaned=is_orphaned,
            journals=frozenset(each.key for each in journals),
        )

    async def append(self, source: str, number: int, epoch: int, entries: Mapping[str, Entry]) -> None:
        await self._write(f"{source}/journal/{number:012d}-{epoch}", entries)

    async def write_snapshot(self, source: str, number: int, epoch: int, index: Index) -> str:
        for segment in index.dirty():
            part = f"{source}/segment/{number:012d}-{epoch}-{segment}"
            await self._write(part, index.segment(segment))
            index.clean(segment, part)
        name = f"{source}/snapshot/{number:012d}-{epoch}"
        await self._write(name, [index.names[segment] for segment in range(index.segments()) if segment in index.names])
        return name

    async def strangers(self, cursor: Cursor, known: Set[str]) -> dict[str, dict[str, Entry]]:
        names = [each for each in await self._names(f"{cursor.source}/journal/") if _is_strange(each, cursor, known)]
        return {each.key: await self._read(each.key) for each in names}

    async def save_sweep(self, source: str, state: bytes) -> None:
        with aws_errors(f"write how far the sweep of {source} has come"):
            await self._client.put_object(Bucket=self._bucket, Key=f"{source}/sweep", Body=state)

    async def load_sweep(self, source: str) -> bytes:
        try:
            with aws_errors(f"read how far the sweep of {source} has come", superseded={"NoSuchKey"}):
                reply = await self._client.get_object(Bucket=self._bucket, Key=f"{source}/sweep")
                body: bytes = await reply["Body"].read()
        except Superseded:
            return b""
        return body

    async def clean_up(self, cursor: Cursor, known: Set[str], index: Index) -> None:
        if not cursor.snapshot:
            return
        number = number_of(cursor.snapshot)
        old = [
            each.key
            for each in await self._names(f"{cursor.source}/journal/")
            if each.number <= number and not _is_strange(each, cursor, known)
        ]
        old += [
            each.key
            for each in await self._names(f"{cursor.source}/snapshot/")
            if each.key != cursor.snapshot and each.epoch <= cursor.epoch
        ]
        used = set(index.names.values())
        old += [
            each.key
            for each in await self._names(f"{cursor.source}/segment/")
            if each.key not in used and each.epoch <= cursor.epoch
        ]
        for at in range(0, len(old), 1000):
            with aws_errors("delete old journals"):
                await self._client.delete_objects(
                    Bucket=self._bucket,
                    Delete={"Objects": [{"Key": key} for key in old[at : at + 1000]], "Quiet": True},
                )

    async def _names(self, prefix: str) -> list[_Name]:
        found: list[_Name] = []
        with aws_errors(f"list {prefix}"):
            async for page in self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=prefix
            ):
                found.extend(_parse(item["Key"]) for item in page.get("Contents", ()))
        return found

    async def _read(self, key: str) -> dict[str, Entry]:
        with aws_errors(f"read {key}"):
            reply = await self._client.get_object(Bucket=self._bucket, Key=key)
            body = await reply["Body"].read()
        try:
            return _decoder.decode(body)
        except msgspec.MsgspecError as error:
            raise Fatal(f"s3://{self._bucket}/{key} cannot be read: {error}; delete the source's objects") from error

    async def _snapshot(self, name: str) -> Index:
        with aws_errors(f"read {name}"):
            reply = await self._client.get_object(Bucket=self._bucket, Key=name)
            body = await reply["Body"].read()
        try:
            found = _snapshot_decoder.decode(body)
        except msgspec.MsgspecError as error:
            raise Fatal(f"s3://{self._bucket}/{name} cannot be read: {error}; delete the source's objects") from error
        if isinstance(found, dict):
            return Index(found)
        index = Index()
        for segment in found:
            index.add_segment(await self._read(segment), segment)
        return index

    async def _write(self, key: str, entries: Mapping[str, Entry] | list[str]) -> None:
        body = _encoder.encode(entries)
        with aws_errors(f"write {key}"):
            await self._client.put_object(Bucket=self._bucket, Key=key, Body=body)


def number_of(snapshot: str) -> int:
    """The number of the last journal that a snapshot contains; 0 for "", none."""
    return _parse(snapshot).number if snapshot else 0


def _is_strange(name: _Name, cursor: Cursor, known: Set[str]) -> bool:
    return name.epoch != cursor.epoch and name.key not in known


def _is_last(name: _Name, names: list[_Name]) -> bool:
    return all(other.epoch <= name.epoch for other in names if other.number == name.number)


def _parse(key: str) -> _Name:
    number, _, epoch = key.rpartition("/")[2].partition("-")
    epoch = epoch.partition("-")[0]
    try:
        return _Name(int(number), int(epoch), key)
    except ValueError:
        raise Fatal(f"the object {key} is not one of the poller's; keep other objects out of its bucket") from None
