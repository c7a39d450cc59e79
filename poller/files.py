"""Dropped files: what they are called, of which time they are, in which order they come, and which is next.  (pure)"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from urllib.parse import unquote_plus

import msgspec

from tidegate.drops import CsvDrop

_OLDEST = datetime(1, 1, 1, tzinfo=UTC)
_KEPT = timedelta(days=90)


class Fate(StrEnum):
    DONE = "done"
    REFUSED = "refused"
    SUPERSEDED = "superseded"
    """A newer full extract was there before it was read."""


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`name` is the object's key. `stated_at` is the time that the file says it is of.

    `was_done`: the version before this one was worked through, so this is where the order stands, refused or not.
    """

    name: str
    etag: str
    fate: Fate
    at: datetime
    stated_at: datetime | None = None
    rows: int = 0
    faults: int = 0
    reason: str = ""
    was_done: bool = False

    @property
    def stands(self) -> bool:
        """Whether the order of files has come to here."""
        return self.fate is Fate.DONE or self.was_done


class Found(msgspec.Struct, frozen=True):
    """An object under the prefix. `stated_at` is the time that it says it is of; None: it does not, or not readably."""

    name: str
    etag: str
    size_bytes: int
    written_at: datetime
    stated_at: datetime | None = None

    @property
    def mark(self) -> str:
        return f"{self.name} {self.etag}"

    @property
    def order(self) -> tuple[datetime, str]:
        """Files come by their stated time; those of the same time, or of none, by name."""
        return (self.stated_at or _OLDEST, self.name)


def is_file(name: str) -> bool:
    """Whether an object is a file that somebody dropped, rather than a folder's marker."""
    return not name.endswith("/")


def stated_in_name(name: str, feed: CsvDrop) -> datetime | None:
    """The time in a file's name; None when there is none, or the declaration does not ask for it."""
    if feed.stated is None or feed.stated.pattern is None:
        return None
    found = re.search(feed.stated.pattern, name.rpartition("/")[2])
    return None if found is None else feed.stated.read(found[1])


def stated_in_metadata(metadata: Mapping[str, str], feed: CsvDrop) -> datetime | None:
    """The time in an object's metadata; None as in `stated_in_name`."""
    if feed.stated is None or feed.stated.metadata is None:
        return None
    text = metadata.get(feed.stated.metadata.lower())
    return None if text is None else feed.stated.read(text.strip())


def fresh(found: Iterable[Found], entries: Mapping[str, FileEntry]) -> list[Found]:
    """The files of which nothing became yet, in their order; a file that was overwritten is among them again."""
    known = {(entry.name, entry.etag) for entry in entries.values()}
    return sorted((each for each in found if (each.name, each.etag) not in known), key=lambda each: each.order)


def newest_done(found: Iterable[Found], entries: Mapping[str, FileEntry]) -> Found | None:
    """The file where the order stands, if it is there as it was worked through; what came before it is no truth any more."""
    done = {(entry.name, entry.etag) for entry in entries.values() if entry.fate is Fate.DONE}
    stand = newest_order(entries)
    return next((each for each in found if (each.name, each.etag) in done and each.order == stand), None)


def newest_order(entries: Mapping[str, FileEntry]) -> tuple[datetime, str]:
    """Where the order stands: an extract before this one is passed over, though nobody has read it."""
    orders = [(entry.stated_at or _OLDEST, entry.name) for entry in entries.values() if entry.stands]
    return max(orders, default=(_OLDEST, ""))


def forgettable(found: Iterable[Found], entries: Mapping[str, FileEntry], now: datetime) -> list[str]:
    """Entries of files that went away long ago. The newest one that was worked through stays: it says where the order stands."""
    there = {each.name for each in found}
    stand = newest_order(entries)
    return [
        entry.name
        for entry in entries.values()
        if entry.name not in there and now - entry.at > _KEPT and (entry.stated_at or _OLDEST, entry.name) != stand
    ]


class _Object(msgspec.Struct):
    key: str


class _Place(msgspec.Struct):
    object: _Object


class _Noticed(msgspec.Struct):
    s3: _Place


class _Notice(msgspec.Struct):
    """S3's own notification, the same inside of an SNS message, or EventBridge's."""

    records: Sequence[_Noticed] = msgspec.field(name="Records", default=())
    message: str | None = msgspec.field(name="Message", default=None)
    detail: _Place | None = None


def names_in(notice: str) -> list[str]:
    """The objects that a message of a queue tells of; none for what is no such message, S3's own test among them."""
    try:
        read = msgspec.json.decode(notice, type=_Notice)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []
    if read.message is not None:
        return names_in(read.message)
    if read.detail is not None:
        return [read.detail.object.key]
    # S3 writes names in its notifications as a form would; EventBridge does not.
    return [unquote_plus(record.s3.object.key) for record in read.records]
