"""What Kinesis holds: a record, and its place in a shard.  (pure)"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from msgspec import Struct, field


class Position(NamedTuple):
    """A place in a shard: the record's sequence number, and the number of a user record inside an aggregate."""

    sequence: int
    sub: int


class Record(Struct, frozen=True, gc=False, rename="pascal"):
    """One record as Kinesis sends it, or one user record out of an aggregate, which then has a `sub`.

    The sequence number stays the text that it came as: few records are ever asked for their position, and 56 digits
    take time. The partition key is left out: events say themselves what they are of. `arrival` is when Kinesis accepted
    it, in epoch seconds. The garbage collector does not track records (`gc=False`): they hold no containers, and pages
    have thousands of them.
    """

    sequence_number: str
    data: bytes
    # Kinesis itself knows no such thing.
    sub: int = 0
    arrival: float = field(name="ApproximateArrivalTimestamp", default=0.0)

    @property
    def position(self) -> Position:
        return Position(int(self.sequence_number), self.sub)


class Records(Iterable[Record]):
    """What one answer brought, in its order. `first` and `last` are None, and it is false, when that is nothing.

    There may be thousands, which need not all be objects at once: whoever handles them all takes `parts`.
    """

    first: Record | None = None
    last: Record | None = None

    def __init__(self, records: Sequence[Record] = ()) -> None:
        self._known = records
        if records:
            self.first, self.last = records[0], records[-1]

    def parts(self) -> Iterator[Sequence[Record]]:
        """All of them, some at a time, no part empty. Raises Transient when what comes next turns out to be unreadable."""
        if self._known:
            yield self._known

    @property
    def size_bytes(self) -> int:
        """The payload of all of them, or near to it."""
        return sum([len(record.data) for record in self._known])

    def __bool__(self) -> bool:
        return self.first is not None

    def __iter__(self) -> Iterator[Record]:
        for part in self.parts():
            yield from part
