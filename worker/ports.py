"""What the worker needs of the world: a reader, a sink, an outbox and destinations, as protocols.  (pure)

`worker.reader`, `worker.fanout` and `worker.aurora` are the adapters; tests bring their own. A reader never moves past a record
that was not asked for, and a sink is idempotent: the same batch twice is once, older after newer is newer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from typing import NamedTuple, Protocol

from msgspec import Struct

from tidegate.errors import Rejected, Transient
from tidegate.event import EntityKey
from tidegate.leases.lease import Checkpoint
from tidegate.record import Records
from worker.batch import Batch, DeadLetter, Item, Position, Record
from worker.shards import Shard


class Room(Protocol):
    """What a delivery takes of the process's read memory."""

    def release(self) -> None:
        """Its records are committed. Twice is once."""
        ...


class Delivery(Struct, frozen=True, kw_only=True):
    """What one read brought.

    millis_behind  distance from the tip after these records; 0 is the tip
    size_bytes     payload as Kinesis counted it or near to it, aggregates and what was delivered before included
    gap            a text when records may be lost before these: what was read last is trimmed from the stream
    is_end         the shard is closed and these were its last records
    children       with `is_end`: the shards that hold the keys from here on; empty when the reader was not told
    room           to be released by whoever has committed the records
    """

    records: Records
    millis_behind: int
    size_bytes: int = 0
    gap: str | None = None
    is_end: bool = False
    children: tuple[Shard, ...] = ()
    room: Room | None = None


class RecordReader(Protocol):
    def read(self, shard_id: str, start: Checkpoint) -> AsyncGenerator[Delivery, None]:
        """Deliver all records after `start`, in order, for ever or to the end of the shard.

        Empty deliveries are a sign of life. Raises Transient when retries are used up, Fatal when a person must act.
        """
        ...

    async def list_shards(self) -> list[Shard]:
        """Every shard that the stream still has, open or closed."""
        ...

    def is_foreign(self, shard_id: str, sequence: int) -> bool:
        """Whether this sequence number is from before the shard: of a former stream of the same name."""
        ...

    async def is_at_the_edge(self, arrival_s: float) -> bool:
        """Whether a record that arrived then (epoch seconds) is one that the stream trims within the hour.

        False while the stream was first looked at later than that: what is trimmed now nobody was to read. Raises Transient.
        """
        ...


class Claims(Protocol):
    """Where records are kept that were too large for the stream. `worker.claims` is the adapter."""

    async def fetch(self, reference: bytes) -> bytes:
        """The record that a reference stands for; the reference itself when there is none. Raises Transient, Fatal."""
        ...


class WriteResult(NamedTuple):
    """What became of a batch's changes and rejected records; the sum is `batch.delivered`.

    applied    the row shows something new
    unchanged  the row showed it already: only its version moved, or this very version was there
    stale      the row holds a newer version
    coalesced  a newer version of the same key was in the batch, and this one was not applied before it
    rejected   filed as a dead letter
    parked     filed to wait for an older dead letter of its key; of entities with strict order only
    """

    applied: int = 0
    unchanged: int = 0
    stale: int = 0
    coalesced: int = 0
    rejected: int = 0
    parked: int = 0


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

    async def open(self, shard_id: str, counter: int, replaces: int | None = None) -> ShardState | None:
        """Raise the fence to `counter` and say what is committed. None: the shard is not registered, or has ended.

        When the answer's counter is higher than mine, somebody newer wrote and nothing was changed. `replaces` names
        such a counter after proof that the lease table itself began anew.
        """
        ...

    async def write(self, batch: Batch, counter: int) -> WriteResult:
        """Write all of the batch, or nothing. Rows that are newer than an open dead letter of their key close it.

        After Transient it may be written all the same. Who gives the same batch again then hears what the first try
        did, once: nothing is counted twice.
        """
        ...

    async def note(self, shard_id: str, counter: int, letter: DeadLetter) -> None:
        """File something that stands for no record, such as a gap."""
        ...

    async def end(self, shard_id: str, counter: int, child_ids: Sequence[str]) -> None:
        """Replace a finished shard by its children, which inherit its watermarks. Twice is once."""
        ...


class RecordDecoder(Protocol):
    """Says what records are: `worker.decode` for changes, `worker.arrivals` for what came in at the edge."""

    def decode_all(self, records: Sequence[Record]) -> list[Item]:
        """One item for each record. Never raises for what a record may hold."""
        ...


Decode = Callable[[Sequence[Record]], Sequence[Item]]
"""What each record is; none is left out."""


class DrainStep(NamedTuple):
    """The most that one transaction takes of the changes that wait: so many, or the one more that goes beyond the bytes."""

    letters: int
    size_bytes: int


class Parking(Protocol):
    """Changes of entities with strict order that wait behind dead letters. Every method is one transaction.

    Raises Transient or Fatal.
    """

    async def ready(self, most: int) -> list[EntityKey]:
        """Keys of which nothing holds up what waits any more."""
        ...

    async def drain(self, key: EntityKey, decode: Decode, most: DrainStep) -> WriteResult | None:
        """Write what waits of a key, by rising version, up to what fails. None: somebody else is doing it."""
        ...

    async def settle(self) -> None:
        """Close failures that hold something up though their row is newer: filed before the entity asked for strict order."""
        ...

    async def look(self) -> dict[str, tuple[int, float]]:
        """By entity: how many changes wait, and for how many seconds the first has (0: none does)."""
        ...


class Effect(Struct, frozen=True, kw_only=True):
    """An applied change on its way to one destination.

    event_id  by which the receiver knows a repetition
    attempt   which claim of it this is, from 1; an outcome counts for the latest claim only
    payload   the CloudEvent, as it stood in the stream
    """

    id: int
    event_id: str
    attempt: int
    payload: bytes


class Destination(Protocol):
    """Where changes go. `worker.webhook` is the adapter."""

    @property
    def name(self) -> str: ...

    @property
    def timeout_s(self) -> float:
        """No `send` takes longer."""
        ...

    async def send(self, effect: Effect) -> None:
        """Hand one change over; returns when the receiver has accepted it.

        Raises Transient (not now: the same again later, after `retry_after_s` if the receiver said so) or Rejected
        (never this one).
        """
        ...


class Outbox(Protocol):
    """What waits for the destinations. Every method is one transaction and raises Transient or Fatal."""

    async def claim(self, destination: str, most: int, for_s: float) -> list[Effect]:
        """Take changes that are due, the oldest first and of each row only the oldest. A claim ends by itself."""
        ...

    async def sent(self, effect: Effect) -> bool:
        """The receiver has it. False when the claim had ended, so that somebody else sends it once more."""
        ...

    async def failed(self, effect: Effect, error: Transient | Rejected, *, wait_s: float, retry_for_s: float) -> bool:
        """It was not accepted: to be tried again after `wait_s`, or dead. True when it is dead.

        It is dead when the error is Rejected, or when it has been tried for `retry_for_s`.
        """
        ...

    async def look(self, destination: str) -> tuple[float, int]:
        """Age in seconds of what has waited longest (0: nothing waits), and how many are dead."""
        ...

    async def sweep(self, keep_s: float, most: int) -> int:
        """Delete what was sent longer ago, `most` rows at a time; answers how many."""
        ...
