"""One row explained: what the back office showed, what was published, what became of it, and who may see it.  (pure)

`tidegate explain` collects the facts (`tidegate.cli.explain_run`, `poller.look`); here they become a verdict and lines.
Two versions tell most of it: that of the last observation in the poller's index, and that of the row in the table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

from msgspec import Struct

from tidegate.bubble import Viewer
from tidegate.codec import encode_version
from tidegate.entity import EVERYONE, EntityShape
from tidegate.event import EntityKey, Version
from tidegate.status import span


class Observed(Struct, frozen=True, kw_only=True):
    """The last observation of the key in its poller's index.

    state   `live`, `gone` or `quarantined` (its raw row could not be translated)
    unsure  whether its event reached the stream is not certain; the poller will publish it once more
    behind  it was published by an older translation than the source has now
    """

    source: str
    version: Version
    state: str
    unsure: bool = False
    behind: bool = False


class SourceRow(Struct, frozen=True, kw_only=True):
    """What the back office answers now. `same`: exactly the row that was published last; `fault`: why it is refused."""

    source: str
    found: bool
    same: bool = False
    fault: str = ""
    row: Mapping[str, Any] | None = None


class Stored(Struct, frozen=True, kw_only=True):
    """The row in the front office's table. `viewers` are the values of the fields by which readers are told.

    erased  a person had it erased, so that no version can bring it back
    """

    version: Version
    deleted: bool
    event_id: str
    occurred_at: datetime
    projected_at: datetime
    erased: bool = False
    viewers: Mapping[str, str | None] = {}
    row: Mapping[str, Any] | None = None


class Filed(Struct, frozen=True, kw_only=True):
    """A dead letter of the key. `state` is that of `letters.Letter`; `version` None: a raw row, or not readable."""

    id: int
    open: bool
    state: str
    version: Version | None
    stage: str
    reason: str
    message: str


class Told(Struct, frozen=True, kw_only=True):
    """One change of the key in the outbox."""

    destination: str
    event_id: str
    state: str
    attempts: int
    queued_at: datetime
    reason: str | None


class Place(Struct, frozen=True, kw_only=True):
    """The shard in which the key's next event will stand, and how far its worker is."""

    shard: str
    holder: str | None
    checkpoint: str | None
    lag_ms: int | None


class Facts(Struct, frozen=True, kw_only=True):
    """Everything that was found. `unknown`: what could not be asked, by what it is, with the reason."""

    key: EntityKey
    observed: Sequence[Observed] = ()
    at_source: Sequence[SourceRow] = ()
    place: Place | None = None
    stored: Stored | None = None
    letters: Sequence[Filed] = ()
    outbox: Sequence[Told] = ()
    unknown: Mapping[str, str] = {}


class Verdict(StrEnum):
    APPLIED = "applied"
    DELETED = "deleted"
    ERASED = "erased"
    DEAD = "dead"
    PARKED = "parked"
    REPLAYED = "replayed"
    QUARANTINED = "quarantined"
    UNDER_WAY = "under way"
    STALE = "stale"
    UNKNOWN = "unknown"
    NOT_TOLD = "not told"


MEANINGS: Mapping[Verdict, str] = {
    Verdict.APPLIED: "the row shows what its poller published last",
    Verdict.DELETED: "the back office has no such row any more, and neither shows the front office",
    Verdict.ERASED: "a person had it erased; nothing of it is let in (tidegate erase --undo)",
    Verdict.DEAD: "its newest version is a dead letter; the front office shows an older one, or none",
    Verdict.PARKED: "its newest version waits behind an older dead letter of the same row: deal with that one first",
    Verdict.REPLAYED: "its newest version was replayed and no worker has met it since",
    Verdict.QUARANTINED: "its poller cannot translate the raw row: mend the translator, raise `translation`, deploy",
    Verdict.UNDER_WAY: "published, and not applied yet: look at the shard's lag",
    Verdict.STALE: "the row is newer than what its poller knows: the poller's index is behind, or somebody else publishes",
    Verdict.UNKNOWN: "neither its poller nor the database has ever seen this key",
    Verdict.NOT_TOLD: "who would know could not be asked, see below",
}


def verdict(facts: Facts) -> Verdict:
    """What became of the key's newest version. Nothing is concluded from the silence of who could not be asked."""
    stored = facts.stored
    if stored is not None and stored.erased:
        return Verdict.ERASED
    if letter := _blocking(facts.letters, stored):
        return {"replayed": Verdict.REPLAYED, "parked": Verdict.PARKED}.get(letter.state, Verdict.DEAD)
    newest = max(facts.observed, key=lambda each: each.version, default=None)
    if newest is not None and newest.state == "quarantined":
        return Verdict.QUARANTINED
    if "database" in facts.unknown or (newest is None and "poller" in facts.unknown):
        return Verdict.NOT_TOLD
    if newest is None:
        return Verdict.UNKNOWN if stored is None else _shown(stored)
    if stored is None or newest.version > stored.version:
        return Verdict.UNDER_WAY
    return Verdict.STALE if newest.version < stored.version else _shown(stored)


def _shown(stored: Stored) -> Verdict:
    return Verdict.DELETED if stored.deleted else Verdict.APPLIED


def _blocking(letters: Iterable[Filed], stored: Stored | None) -> Filed | None:
    """The newest open letter that holds something newer than the row; a raw row has no version and always may."""
    newer = [
        each
        for each in letters
        if each.open and (each.version is None or stored is None or each.version > stored.version)
    ]
    return max(newer, key=lambda each: each.id, default=None)


# ---------------------------------------------------------------- who may see it


def viewers(shape: EntityShape, kinds: Sequence[Viewer], stored: Stored | None) -> list[str]:
    """Who may read the row, each with what their token says; nobody where there is no row to be shown."""
    if stored is None or stored.deleted:
        return []
    found: dict[str, None] = {}
    for reader in shape.readers:
        if not reader.fields:
            found["everybody who is signed in" if reader.kind == EVERYONE else f"every {reader.kind}"] = None
        for name in reader.fields:
            value = stored.viewers.get(name)
            if value is not None:
                found[f"{reader.kind} {value}, by {name}{_token(reader.kind, kinds, value)}"] = None
    return list(found)


def _token(kind: str, kinds: Iterable[Viewer], value: str) -> str:
    ways = [
        f"{viewer.claim} {'holds' if viewer.many else '='} {viewer.prefix}{value}"
        for viewer in kinds
        if viewer.kind == kind
    ]
    return f" (token: {' or '.join(ways)})" if ways else ""


def partition(key: EntityKey) -> int:
    """Where Kinesis puts the key's records: the MD5 of the partition key, as a number of 128 bits."""
    return int.from_bytes(hashlib.md5(str(key).encode(), usedforsecurity=False).digest())


# ---------------------------------------------------------------- for a person


def lines(facts: Facts, seen_by: Sequence[str], now: datetime) -> Iterator[str]:
    found = verdict(facts)
    yield f"{facts.key.entity} {facts.key.key}: {found.upper()}: {MEANINGS[found]}"
    yield ""
    for label, text in _lines(facts, seen_by, now):
        yield f"{label:<13} {text}"


def _lines(facts: Facts, seen_by: Sequence[str], now: datetime) -> Iterator[tuple[str, str]]:
    yield from (("back office", _at_source(each)) for each in facts.at_source)
    yield from (("poller", _observed(each)) for each in facts.observed)
    if not facts.observed and "poller" not in facts.unknown:
        yield "poller", "its index does not have the key"
    if facts.place is not None:
        yield "stream", _place(facts.place)
    if facts.stored is not None:
        yield from _stored(facts.stored, now)
    elif "database" not in facts.unknown:
        yield "row", "there is none"
    yield from (("dead letter", _filed(each)) for each in facts.letters)
    yield from (("outbox", _told(each, now)) for each in facts.outbox)
    if "database" not in facts.unknown:
        yield from (("seen by", who) for who in seen_by or ["nobody"])
    yield from (("not known", f"{what}: {why}") for what, why in facts.unknown.items())
    contents = [("row", facts.stored.row if facts.stored else None)]
    contents += [(f"row at {each.source}", each.row) for each in facts.at_source]
    for label, row in contents:
        yield from ((label, f"{name} = {value!r}") for name, value in (row or {}).items())


def _at_source(each: SourceRow) -> str:
    if not each.found:
        return f"{each.source} has no such row"
    if each.fault:
        return f"{each.source} has it, and it cannot be translated: {each.fault}"
    return (
        f"{each.source} has it, {'exactly as published last' if each.same else 'CHANGED since it was published last'}"
    )


def _observed(each: Observed) -> str:
    text = f"{each.source} saw it last as {encode_version(each.version)}, {each.state}"
    if each.unsure:
        text += "; whether that reached the stream is not certain, it will be published once more"
    return text + ("; by an older translation than now" if each.behind else "")


def _place(place: Place) -> str:
    holder = f"{place.holder} reads it" if place.holder else "nobody reads it"
    at = f", checkpoint {place.checkpoint}" if place.checkpoint else ""
    lag = "" if place.lag_ms is None else f", {span(place.lag_ms / 1000)} behind the tip"
    return f"{place.shard}: {holder}{at}{lag}"


def _stored(stored: Stored, now: datetime) -> Iterator[tuple[str, str]]:
    what = "a tombstone" if stored.deleted else "shown"
    applied = span((now - stored.projected_at).total_seconds())
    yield "row", f"{what}, version {encode_version(stored.version)}, applied {applied} ago"
    yield "last event", f"{stored.event_id}, changed in the back office at {stored.occurred_at:%Y-%m-%d %H:%M:%SZ}"


def _filed(each: Filed) -> str:
    version = "" if each.version is None else f", version {encode_version(each.version)}"
    return f"{each.id} {each.state}{version}, {each.stage}: {each.reason}: {each.message}"


def _told(each: Told, now: datetime) -> str:
    why = f": {each.reason}" if each.reason else ""
    queued = span((now - each.queued_at).total_seconds())
    return f"{each.destination} {each.state}{why}, event {each.event_id}, queued {queued} ago, {each.attempts} tries"
