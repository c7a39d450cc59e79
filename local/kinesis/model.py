"""★ Shards, hash ranges, sequence numbers and filters, as values.

A sequence number is the 186-bit integer of the real service's second format, written in decimal (56 digits):

    2 | shard created, s (36) | shard & 15 (4) | position (64) | 0 (8) | arrival, s (36) | shard index (32) | 2 (4)

Within a shard it rises with the position. A child's creation second is above its parents', so every record
of a child sorts above every record of its parents, compared as integers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import md5
from itertools import pairwise
from typing import NamedTuple

HASH_KEYS = 1 << 128
POSITION_BITS = (1 << 64) - 1
_SECOND_BITS = (1 << 36) - 1
_INDEX_BITS = (1 << 32) - 1


class Sequence56(NamedTuple):
    """A sequence number taken apart. `position` counts the records of one shard from 1; 0 is its start."""

    created_s: int
    shard_index: int
    position: int
    arrival_s: int


def sequence_base(created_s: int, shard_index: int) -> int:
    """The bits that all sequence numbers of one shard share."""
    return (2 << 184) | (created_s << 148) | ((shard_index & 15) << 144) | (shard_index << 4) | 2


def sequence_number(base: int, position: int, arrival_s: int) -> int:
    return base | (position << 80) | (arrival_s << 36)


def parse_sequence(text: str) -> Sequence56:
    """Take a sequence number apart. Raises ValueError for anything this format cannot be."""
    if not text.isascii() or not text.isdigit() or len(text) > 60:
        raise ValueError(f"not a sequence number: {text[:80]!r}")
    number = int(text)
    if number >> 184 != 2 or number & 15 != 2:
        raise ValueError(f"not a sequence number of this format: {text}")
    return Sequence56(
        created_s=(number >> 148) & _SECOND_BITS,
        shard_index=(number >> 4) & _INDEX_BITS,
        position=(number >> 80) & POSITION_BITS,
        arrival_s=(number >> 36) & _SECOND_BITS,
    )


def hash_key(partition_key: str) -> int:
    """Where a partition key lands: the MD5 of its UTF-8 bytes as a 128-bit unsigned integer."""
    return int.from_bytes(md5(partition_key.encode(), usedforsecurity=False).digest())


@dataclass(frozen=True, slots=True)
class HashRange:
    """Both ends belong to the range."""

    start: int
    end: int

    def __contains__(self, key: object) -> bool:
        return isinstance(key, int) and self.start <= key <= self.end


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard. `end_position` is the position after its last record, None while it is open."""

    index: int
    hash_range: HashRange
    created_s: int
    opened_ms: int
    parent_index: int | None = None
    adjacent_parent_index: int | None = None
    closed_ms: int | None = None
    end_position: int | None = None

    @property
    def id(self) -> str:
        return shard_id(self.index)

    @property
    def is_open(self) -> bool:
        return self.closed_ms is None

    @property
    def parent_ids(self) -> tuple[str, ...]:
        parents = (self.parent_index, self.adjacent_parent_index)
        return tuple(shard_id(index) for index in parents if index is not None)

    @property
    def base(self) -> int:
        return sequence_base(self.created_s, self.index)

    @property
    def starting_sequence_number(self) -> str:
        return str(sequence_number(self.base, 0, self.created_s))

    @property
    def ending_sequence_number(self) -> str | None:
        """At or above the last record; None while open. The field of the arrival is full, so nothing passes it."""
        if self.end_position is None:
            return None
        return str(sequence_number(self.base, self.end_position - 1, _SECOND_BITS))


def shard_id(index: int) -> str:
    return f"shardId-{index:012d}"


def boundaries(count: int) -> list[int]:
    """The first hash key of each of `count` even ranges."""
    return [HASH_KEYS * number // count for number in range(count)]


def initial_shards(count: int, now_ms: int) -> list[Shard]:
    starts = boundaries(count)
    ends = [start - 1 for start in starts[1:]] + [HASH_KEYS - 1]
    return [
        Shard(index=index, hash_range=HashRange(start, end), created_s=now_ms // 1000, opened_ms=now_ms)
        for index, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


def closed(shard: Shard, end_position: int, now_ms: int) -> Shard:
    return replace(shard, closed_ms=now_ms, end_position=end_position)


def split(parent: Shard, at: int, next_index: int, now_ms: int) -> tuple[Shard, Shard]:
    """The two children of `parent`; the second begins at hash key `at`. Raises ValueError when nothing is cut off."""
    whole = parent.hash_range
    if not whole.start < at <= whole.end:
        raise ValueError(f"{at} does not lie inside {parent.id}")
    created_s = max(now_ms // 1000, parent.created_s + 1)
    low = Shard(next_index, HashRange(whole.start, at - 1), created_s, now_ms, parent.index)
    high = Shard(next_index + 1, HashRange(at, whole.end), created_s, now_ms, parent.index)
    return low, high


def merge(one: Shard, other: Shard, next_index: int, now_ms: int) -> Shard:
    """The child of two neighbours, in either order. Raises ValueError when they do not touch."""
    low, high = sorted((one, other), key=lambda shard: shard.hash_range.start)
    if low.hash_range.end + 1 != high.hash_range.start:
        raise ValueError(f"{one.id} and {other.id} are not adjacent")
    created_s = max(now_ms // 1000, one.created_s + 1, other.created_s + 1)
    whole = HashRange(low.hash_range.start, high.hash_range.end)
    return Shard(next_index, whole, created_s, now_ms, one.index, other.index)


@dataclass(frozen=True, slots=True)
class Split:
    shard: Shard
    at: int


@dataclass(frozen=True, slots=True)
class Merge:
    one: Shard
    other: Shard


def rescale_step(open_shards: Iterable[Shard], target: int) -> Split | Merge | None:
    """The next step towards `target` even shards, or None when there: first all the splits, then the merges."""
    in_order = sorted(open_shards, key=lambda shard: shard.hash_range.start)
    wanted = boundaries(target)
    for shard in in_order:
        first = bisect_right(wanted, shard.hash_range.start)
        last = bisect_right(wanted, shard.hash_range.end)
        if first < last:
            return Split(shard, wanted[(first + last) // 2])
    known = set(wanted)
    for one, other in pairwise(in_order):
        if other.hash_range.start not in known:
            return Merge(one, other)
    return None


class Router:
    """Finds the open shard of a hash key."""

    def __init__(self, open_shards: Iterable[Shard]) -> None:
        in_order = sorted(open_shards, key=lambda shard: shard.hash_range.start)
        self._starts = [shard.hash_range.start for shard in in_order]
        self._ids = [shard.id for shard in in_order]

    def shard_id_of(self, key: int) -> str:
        return self._ids[bisect_right(self._starts, key) - 1]


@dataclass(frozen=True, slots=True)
class ShardFilter:
    """`ShardFilter` of ListShards; `timestamp_ms` and `shard_id` are there when the type asks for them."""

    type: str
    shard_id: str | None = None
    timestamp_ms: int | None = None


FILTER_TYPES = frozenset(
    {"AFTER_SHARD_ID", "AT_TRIM_HORIZON", "FROM_TRIM_HORIZON", "AT_LATEST", "AT_TIMESTAMP", "FROM_TIMESTAMP"}
)


def _open_at(shard: Shard, moment_ms: int) -> bool:
    return shard.opened_ms <= moment_ms and (shard.closed_ms is None or shard.closed_ms > moment_ms)


def select(shards: Sequence[Shard], chosen: ShardFilter, horizon_ms: int) -> list[Shard]:
    """The shards that a filter keeps, in the order of their ids.

    `horizon_ms` is the trim horizon: now less the retention, or the creation of the stream if that is later.
    Raises ValueError for an unknown type.
    """
    timestamp_ms = max(horizon_ms, chosen.timestamp_ms or 0)
    match chosen.type:
        case "AT_LATEST":
            kept = [shard for shard in shards if shard.is_open]
        case "AT_TRIM_HORIZON":
            kept = [shard for shard in shards if _open_at(shard, horizon_ms)]
        case "FROM_TRIM_HORIZON":
            kept = list(shards)
        case "AT_TIMESTAMP":
            kept = [shard for shard in shards if _open_at(shard, timestamp_ms)]
        case "FROM_TIMESTAMP":
            kept = [shard for shard in shards if shard.closed_ms is None or shard.closed_ms >= timestamp_ms]
        case "AFTER_SHARD_ID":
            kept = [shard for shard in shards if shard.id > (chosen.shard_id or "")]
        case _:
            raise ValueError(f"unknown shard filter type {chosen.type}")
    return sorted(kept, key=lambda shard: shard.id)
