"""What Kinesis holds: a record, and its place in a shard.  (pure)"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, overload

from msgspec import Struct, field


class Position(NamedTuple):
    """A place in a shard: the record's sequence number, and the number of a user record inside an aggregate."""

    sequence: int
    sub: int


class Record(Struct, frozen=True, gc=False, rename="pascal"):
    """One record as Kinesis sends it, or one user record out of an aggregate, which then has a `sub`.

    The sequence number stays the text that it came as: few records are ever asked for their position, and 56 digits
    take time. The partition key is left out: events say themselves what they are of. The garbage collector does not track
    records (`gc=False`): they hold no containers, and pages have thousands of them.
    """

    sequence_number: str
    data: bytes
    # Kinesis itself knows no such thing.
    sub: int = 0

    @property
    def position(self) -> Position:
        return Position(int(self.sequence_number), self.sub)


class StampedRecord(Record, frozen=True, gc=False, rename="pascal"):
    """A record with the time at which Kinesis accepted it, in epoch seconds, for the few who ask."""

    arrival: float = field(name="ApproximateArrivalTimestamp", default=0.0)


class Part(Sequence[Record]):
    """Records that stand together. `again` makes the same ones once more from what they came from, if that is kept."""

    def __init__(self, records: Sequence[Record], again: Callable[[], Sequence[Record]] | None = None) -> None:
        self._records: Sequence[Record] | None = records
        self._again = again
        self._count = len(records)

    def let_go(self) -> None:
        """Free their memory, if they can be made again, until somebody looks at them."""
        if self._again is not None:
            self._records = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> Record: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Record]: ...
    def __getitem__(self, at: int | slice) -> Record | Sequence[Record]:
        if self._records is None:
            assert self._again is not None
            self._records = self._again()
        return self._records[at]


class Records(Iterable[Record]):
    """What one answer brought, in its order. `first` and `last` are None, and it is false, when that is nothing.

    `arrival` is when the first was accepted (epoch seconds), as far as it says so. There may be thousands of records,
    which need not all be objects at once: whoever handles them all takes `parts`.
    """

    first: Record | None = None
    last: Record | None = None
    arrival: float = 0.0

    def __init__(self, records: Sequence[Record] = ()) -> None:
        self._known = records
        if records:
            self.first, self.last = records[0], records[-1]
        if isinstance(self.first, StampedRecord):
            self.arrival = self.first.arrival

    def parts(self) -> Iterator[Part]:
        """All of them, some at a time, no part empty. Raises Transient when what comes next turns out to be unreadable."""
        if self._known:
            yield Part(self._known)

    def stamped(self) -> Iterator[StampedRecord]:
        """All that say when they were accepted. Raises as `parts` does."""
        yield from (record for record in self._known if isinstance(record, StampedRecord))

    @property
    def size_bytes(self) -> int:
        """The payload of all of them, or near to it."""
        return sum([len(record.data) for record in self._known])

    def __bool__(self) -> bool:
        return self.first is not None

    def __iter__(self) -> Iterator[Record]:
        for part in self.parts():
            yield from part
