"""What a shard's consumer needs of the world: a reader and a sink, as protocols.  (pure)

`worker.reader` and `worker.aurora` are the adapters; tests bring their own. A reader never moves past a record
that was not asked for, and a sink is idempotent: the same batch twice is once, older after newer is newer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from typing import NamedTuple, Protocol

from msgspec import Struct

from tidegate.leases.lease import Checkpoint
from worker.batch import Batch, DeadLetter, Position
from worker.shards import Shard


class Record(NamedTuple):
    """One user record, taken out of its aggregate."""

    position: Position
    data: bytes


class Delivery(Struct, frozen=True, kw_only=True):
    """What one read brought.

    millis_behind  distance from the tip after these records; 0 is the tip
    gap            a text when records may be lost before these: what was read last is trimmed from the stream
    is_end         the shard is closed and these were its last records; `child_ids` may be empty even so
    """

    records: tuple[Record, ...]
    millis_behind: int
    gap: str | None = None
    is_end: bool = False
    child_ids: tuple[str, ...] = ()


class RecordReader(Protocol):
    def read(self, shard_id: str, start: Checkpoint) -> AsyncGenerator[Delivery, None]:
        """Deliver all records after `start`, in order, for ever or to the end of the shard.

        Empty deliveries are a sign of life. Raises Transient when retries are used up, Fatal when a person must act.
        """
        ...

    async def list_shards(self) -> list[Shard]:
        """Every shard that the stream still has, open or closed."""
        ...


class WriteResult(NamedTuple):
    """What became of a batch's changes and rejected records; the sum is `batch.delivered`.

    applied    the row shows something new
    unchanged  the row showed it already: only its version moved, or this very version was there
    stale      the row holds a newer version
    coalesced  a newer version of the same key was in the batch
    rejected   filed as a dead letter
    """

    applied: int = 0
    unchanged: int = 0
    stale: int = 0
    coalesced: int = 0
    rejected: int = 0


class ShardState(NamedTuple):
    """What the database knows of a shard: the committed position (None: nothing yet) and the fence."""

    position: Position | None
    lease_counter: int


class Sink(Protocol):
    """Every method is one transaction. Raises Transient, Superseded (a newer holder wrote), Fatal."""

    async def register(
        self, shard_ids: Collection[str], lineage: Collection[tuple[str, str]], finished: Collection[str]
    ) -> list[str]:
        """Make shards known that will be read, so that an unread one shows as unknown freshness.

        `lineage` are pairs of parent and child: a parent whose child is known has ended just now and stays away.
        Answers which of the `finished` shards this database has not seen the end of: it is older than the leases.
        """
        ...

    async def open(self, shard_id: str, counter: int, replaces: int | None = None) -> ShardState:
        """Raise the fence to `counter` and say what is committed.

        When the answer's counter is higher than mine, somebody newer wrote and nothing was changed. `replaces` names
        such a counter after proof that the lease table itself began anew.
        """
        ...

    async def write(self, batch: Batch, counter: int) -> WriteResult:
        """Write all of the batch, or nothing. Rows that are newer than an open dead letter of their key close it."""
        ...

    async def note(self, shard_id: str, counter: int, letter: DeadLetter) -> None:
        """File something that stands for no record, such as a gap."""
        ...

    async def end(self, shard_id: str, counter: int, child_ids: Sequence[str]) -> None:
        """Replace a finished shard by its children, which inherit its watermarks. Twice is once."""
        ...
