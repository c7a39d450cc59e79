"""What a lease is: one item of KCL's lease table, as a value.

A lease says who works on one shard (worker) or one source partition (poller), and how far that work
has come. `counter` is the fencing token: every write is conditional on it and raises it by one, so of
two writers who read the same state exactly one wins.

Pure: no clock, no network. `LeaseView` adds the only thing an observer knows beyond the item itself,
namely when *it* last saw the counter move.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

# Positions that are words, in their order. Everything else is a sequence number and lies between LATEST and SHARD_END.
_WORD_RANK = {"AT_TIMESTAMP": 0, "TRIM_HORIZON": 1, "LATEST": 2, "SHARD_END": 4}
_NUMBER_RANK = 3


class Checkpoint(Struct, frozen=True, gc=False):
    """A place in one feed: everything up to and including it is done.

    `position` is what KCL's `checkpoint` attribute holds: TRIM_HORIZON, LATEST, AT_TIMESTAMP, SHARD_END or a
    decimal sequence number. `sub_sequence` counts the user records inside one aggregated record, from 0.
    Checkpoints are totally ordered: AT_TIMESTAMP < TRIM_HORIZON < LATEST < every number < SHARD_END. Numbers
    compare as integers, never as text ("9" < "10").

    Raises ValueError when `position` is neither a known word nor a decimal number.
    """

    position: str
    sub_sequence: int = 0

    def __post_init__(self) -> None:
        if self.position not in _WORD_RANK and not (self.position.isascii() and self.position.isdigit()):
            raise ValueError(f"not a checkpoint: {self.position!r}")

    @property
    def is_number(self) -> bool:
        """True for a sequence number, false for one of the four words."""
        return self.position not in _WORD_RANK

    @property
    def is_end(self) -> bool:
        """True for SHARD_END: nothing is left to do, for ever."""
        return self.position == "SHARD_END"

    def _rank(self) -> tuple[int, int, int]:
        word = _WORD_RANK.get(self.position)
        return (_NUMBER_RANK, int(self.position), self.sub_sequence) if word is None else (word, 0, 0)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Checkpoint) and self._rank() == other._rank()

    def __hash__(self) -> int:
        return hash(self._rank())

    def __lt__(self, other: Checkpoint) -> bool:
        return self._rank() < other._rank()

    def __le__(self, other: Checkpoint) -> bool:
        return self._rank() <= other._rank()

    def __gt__(self, other: Checkpoint) -> bool:
        return self._rank() > other._rank()

    def __ge__(self, other: Checkpoint) -> bool:
        return self._rank() >= other._rank()

    def __str__(self) -> str:
        return f"{self.position}.{self.sub_sequence}" if self.sub_sequence else self.position


AT_TIMESTAMP = Checkpoint("AT_TIMESTAMP")
TRIM_HORIZON = Checkpoint("TRIM_HORIZON")
LATEST = Checkpoint("LATEST")
SHARD_END = Checkpoint("SHARD_END")


def at(sequence_number: str, sub_sequence: int = 0) -> Checkpoint:
    """The checkpoint that says: this record, and everything before it, is done."""
    return Checkpoint(sequence_number, sub_sequence)


class Lease(Struct, frozen=True, kw_only=True, gc=False):
    """One item of the lease table, as last read or written.

    `owner` None means unassigned. `owner_switches` counts takes since the last checkpoint. `parent_keys` and
    `child_keys` are the lineage of a resharded shard; the hash keys are 128-bit decimals. `epoch` is ours, not
    KCL's: it rises by one at every take and, unlike the counter, stays put while a lease is held.
    `checkpoint_owner` is set while a hand-over is asked for: it is the one that works, and `owner` is the next.
    `throughput_kbps` is what was read under it lately, KiB/s as a moving average; None while nobody measured.
    """

    key: str
    owner: str | None = None
    counter: int = 0
    checkpoint: Checkpoint = TRIM_HORIZON
    owner_switches: int = 0
    parent_keys: frozenset[str] = frozenset()
    child_keys: frozenset[str] = frozenset()
    starting_hash_key: str | None = None
    ending_hash_key: str | None = None
    epoch: int = 0
    checkpoint_owner: str | None = None
    throughput_kbps: float | None = None

    @property
    def holder(self) -> str | None:
        """Who may be working: the owner, or during a hand-over the one that is asked to let go."""
        return self.checkpoint_owner or self.owner

    @property
    def is_ended(self) -> bool:
        """Nothing is left to do under this lease; it waits for its clean-up."""
        return self.checkpoint.position == "SHARD_END"


class LeaseView(Struct, frozen=True, gc=False):
    """A lease, and the observer's own monotonic time (seconds) at which it last saw the counter move.

    `moved_s` of minus infinity means: known to be free, whatever the owner attribute says.
    """

    lease: Lease
    moved_s: float

    def is_live(self, now_s: float, expiry_s: float) -> bool:
        """True while somebody must be assumed to hold it: there is a holder, and the counter moved recently."""
        return self.lease.holder is not None and now_s - self.moved_s < expiry_s


class Part(Struct, frozen=True):
    """One of `total` parts of the table, of about the same size; `index` counts from 0."""

    index: int
    total: int


def plain_leases(keys: Iterable[str], epoch: int = 0) -> list[Lease]:
    """Leases for plain keys, such as the partitions of a source: no lineage, at TRIM_HORIZON.

    Give a first `epoch` that is larger than any earlier one (wall-clock seconds do, since takes are rarer than
    one a second), and epochs keep rising even when the whole table was dropped in between.
    """
    return [Lease(key=key, epoch=epoch) for key in keys]
