"""What we know of a key: its entry in the index (`poller.index`), and what a row makes of it.  (pure)

One entry a key. It says what was published last (its version), of which raw row (its fingerprint), and whether the
publishing is certain. The rules of `judge`, by which a row is new, known, doubtful or gone:

    no entry                                        publish, generation 0
    the same raw row, translated as now             known: nothing to publish
    another row, by a request of this term that
    was sent before the one that the entry is of    it decides nothing: a keyed re-read is sent
    the same raw row, an older translation          publish; a version that falls is the translator's doing
    a higher or equal source version                publish, same generation
    a lower source version, or a key that was gone  the source's own order broke: a keyed re-read sent after the
                                                    key's last observation decides, and raises the generation

An entry is *unsure* when its journal was written but the cursor did not come to say so, or when a person says that
records were lost: its event may or may not be in the stream. The same row is then published again under the same
version, and the same event id; so is the same tombstone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from hashlib import blake2b
from operator import attrgetter

import msgspec
from msgspec.structs import replace

from tidegate.event import Version

NAMELESS = "\x00"
"""Index keys of rows whose own key cannot be read start with it; a fingerprint follows."""


class State(IntEnum):
    LIVE = 0
    GONE = 1
    QUARANTINED = 2


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What was published last for a key. `fingerprint` is of the raw row, empty when gone."""

    generation: int
    source_version: int
    epoch: int
    read: int
    translation: int
    fingerprint: bytes
    state: State = State.LIVE
    unsure: bool = False

    @property
    def version(self) -> Version:
        return Version(self.generation, self.source_version, self.epoch, self.read, self.translation)


def versions(entries: Iterable[Entry]) -> list[tuple[int, int, int, int, int]]:
    """The numbers of each one's version."""
    return list(map(_VERSION, entries))


_VERSION = attrgetter(*Version._fields)


class Seen(msgspec.Struct, frozen=True, gc=False):
    """A row as one request showed it. `source_version` is None when the row could not be translated.

    keyed: the request asked for this key by name, or nothing better exists.
    """

    fingerprint: bytes
    source_version: int | None
    epoch: int
    read: int
    translation: int
    keyed: bool


_encoder = msgspec.json.Encoder(order="deterministic")
_NO_BYTES = blake2b(digest_size=8)


def fingerprint(row: Mapping[str, object]) -> bytes:
    """Eight bytes that stand for the whole raw row, whatever the order of its columns."""
    [found] = fingerprints([row])
    return found


def fingerprints(rows: Iterable[Mapping[str, object]]) -> list[bytes]:
    """The fingerprint of each row."""
    # JSON has no line feed inside of a text.
    lines = _encoder.encode_lines(rows).split(b"\n")
    found = []
    for line in lines[:-1]:
        # A copy is quicker to have than a new one.
        digest = _NO_BYTES.copy()
        digest.update(line)
        found.append(digest.digest())
    return found


def is_known(entry: Entry | None, row: bytes, translation: int) -> bool:
    """Whether exactly this raw row was published already, by this translation or a newer one."""
    return (
        entry is not None
        and entry.state is not State.GONE
        and not entry.unsure
        and entry.fingerprint == row
        and entry.translation >= translation
    )


def judge(entry: Entry | None, seen: Seen) -> Entry | None:
    """The entry to publish and keep; None when only a keyed re-read can tell. For rows that are not `is_known`."""
    if entry is None:
        return _published(0, seen, seen.source_version or 0)
    if seen.epoch == entry.epoch and seen.read < entry.read and seen.fingerprint != entry.fingerprint:
        return None
    if seen.source_version is None:
        return _published(entry.generation, seen, entry.source_version)
    if entry.state is not State.GONE and entry.fingerprint == seen.fingerprint:
        if entry.unsure and entry.state is State.LIVE and entry.translation >= seen.translation:
            return replace(entry, unsure=False)
        fell = seen.source_version < entry.source_version
        return _published(entry.generation + fell, seen, seen.source_version)
    return _judge_changed(entry, seen, seen.source_version)


def first_entries(
    stamps: Sequence[bytes], versions: Sequence[int | None], epoch: int, read: int, translation: int
) -> list[Entry]:
    """What `judge` says of rows of one request whose keys have no entry yet; None for one that could not be translated."""
    return [
        Entry(0, version or 0, epoch, read, translation, stamp, State.QUARANTINED if version is None else State.LIVE)
        for stamp, version in zip(stamps, versions, strict=True)
    ]


def _judge_changed(entry: Entry, seen: Seen, source_version: int) -> Entry | None:
    is_in_order = entry.state is not State.GONE and source_version >= entry.source_version
    if is_in_order:
        return _published(entry.generation, seen, source_version)
    if seen.keyed and (seen.epoch, seen.read) > (entry.epoch, entry.read):
        return _published(entry.generation + 1, seen, source_version)
    return None


def gone(entry: Entry, epoch: int, read: int) -> Entry | None:
    """The tombstone of a key that a request showed to be gone; None when something newer is known already.

    An unsure tombstone is published again as it was: its version never falls behind what the stream holds.
    """
    if (epoch, read) <= (entry.epoch, entry.read):
        return None
    if entry.state is State.GONE:
        return replace(entry, unsure=False) if entry.unsure else None
    return replace(entry, epoch=epoch, read=read, fingerprint=b"", state=State.GONE, unsure=False)


def doubtful(known: Entry | None, journaled: Entry) -> Entry:
    """An entry of a journal that the cursor does not vouch for, over what is known: never a lower generation."""
    if known is not None and known.version > journaled.version:
        return replace(known, unsure=True)
    return replace(journaled, unsure=True)


def deletion_limit(live: int, rows: int, percent: int) -> int:
    """How many rows one sweep may delete without a person's word."""
    return max(rows, live * percent // 100)


def _published(generation: int, seen: Seen, version: int) -> Entry:
    state = State.QUARANTINED if seen.source_version is None else State.LIVE
    return Entry(generation, version, seen.epoch, seen.read, seen.translation, seen.fingerprint, state)
