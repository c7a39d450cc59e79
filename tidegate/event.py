"""What changed: the event that travels from a poller to a worker, and the version that orders it.  (pure)

The poller makes events, `tidegate.codec` turns them into bytes and back, the worker projects them.
Nothing but the version orders two events of one key: the position in the stream does not, so replays,
zombies and reordered puts are harmless (docs/decisions/0002-version.md).
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, NamedTuple, Protocol

import msgspec

VersionNumber = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""What a bigint column holds."""


class EntityKey(NamedTuple):
    """One row of the front office: the entity's name and its key, both text.

    The text is also the Kinesis partition key, so all events of a row are in one shard.
    """

    entity: str
    key: str

    def __str__(self) -> str:
        return f"{self.entity}:{self.key}"


class Version(NamedTuple):
    """Compared whole, as a tuple; the newest wins, wherever it stands in the stream.

    generation      rises when a keyed re-read shows that the source's own order broke (a deleted key is
                    back, a version fell)
    source_version  the back office's revision, else its modification time in microseconds since 1970, else 0
    epoch           the poller's term: rises at every take of the source's lease, never reset
    read            number of the request within the epoch, fixed when the request is sent
    translation     the translator's revision, so a fixed translator over the same row wins
    """

    generation: VersionNumber
    source_version: VersionNumber
    epoch: VersionNumber
    read: VersionNumber
    translation: VersionNumber

    def after(self, epoch: int, read: int) -> Version:
        """The same source state seen by a later observation; what a tombstone carries."""
        return self._replace(epoch=epoch, read=read)


class Operation(StrEnum):
    UPSERT = "upsert"
    DELETE = "delete"


class Cause(StrEnum):
    """Why an event was published. Effects on the outside world follow LIVE events only."""

    LIVE = "live"
    BACKFILL = "backfill"
    SWEEP = "sweep"
    RETRANSLATE = "retranslate"


class ChangeEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One row changed, or is gone.

    `payload` holds the entity's fields as plain JSON values (None for a deletion); `occurred_at` is the back
    office's own time of the change, aware; `observed_at` the server time of the answer that showed it.
    """

    event_id: str
    key: EntityKey
    version: Version
    operation: Operation
    cause: Cause
    source: str
    occurred_at: datetime
    observed_at: datetime
    payload: dict[str, Any] | None = None


class AnyChange(Protocol):
    """What every change says of itself: a ChangeEvent, or a codec.TypedChange, whose payload is the entity."""

    @property
    def event_id(self) -> str: ...
    @property
    def key(self) -> EntityKey: ...
    @property
    def version(self) -> Version: ...
    @property
    def operation(self) -> Operation: ...
    @property
    def cause(self) -> Cause: ...
    @property
    def source(self) -> str: ...
    @property
    def occurred_at(self) -> datetime: ...
    @property
    def observed_at(self) -> datetime: ...


class Watermark(msgspec.Struct, frozen=True, kw_only=True):
    """ "Everything of this source partition that changed before `as_of` was published before me."

    `as_of` is in the back office's time, aware. One is sent to every shard, after everything earlier was
    acknowledged by Kinesis.
    """

    event_id: str
    source: str
    as_of: datetime


class QuarantineRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A raw row that the poller could not turn into an entity: filed whole by the worker, never dropped."""

    event_id: str
    source: str
    entity: str
    stage: str
    reason: str
    message: str
    raw: bytes
    observed_at: datetime
    key: str | None = None


StreamEvent = ChangeEvent | Watermark | QuarantineRecord
