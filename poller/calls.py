"""Which records go together in one PutRecords, and to which shard each belongs.  (pure)

A call has at most 500 records, a number of bytes, and of no shard more than it takes in a second: what is above that
would only come back. With aggregation the user records of one shard are packed together first, in their order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from msgspec import Struct

from poller.aggregate import Aggregate, hash_of, hashes_of, most_added
from poller.changes import Record
from poller.settings import PublishSettings
from tidegate.aws.puts import PutEntry

MOST_RECORDS = 500
_HASH_BYTES = 16


class OpenShard(NamedTuple):
    """A shard that can be written to. Its hash range goes up to where the next one starts."""

    shard_id: str
    starting_hash_key: str


class ShardMap:
    """The open shards, which share out all hash keys. `shards` may be in any order, but not empty."""

    def __init__(self, shards: Sequence[OpenShard]) -> None:
        self.shards = sorted(shards, key=lambda shard: int(shard.starting_hash_key))
        self.ids = frozenset(shard.shard_id for shard in shards)
        self._ids = [shard.shard_id for shard in self.shards]
        # Big-endian bytes compare as the numbers do, and an MD5 comes as such.
        starts = [int(shard.starting_hash_key).to_bytes(_HASH_BYTES, "big") for shard in self.shards]
        self._starts = starts[1:]

    def home(self, hash_key: bytes) -> str:
        """The shard that a hash key belongs to."""
        [found] = self.homes([hash_key])
        return found

    def homes(self, hash_keys: Iterable[bytes]) -> list[str]:
        """The shard that each belongs to."""
        ids, starts = self._ids, self._starts
        return [ids[bisect_right(starts, hash_key)] for hash_key in hash_keys]


class Put(Struct, frozen=True, gc=False):
    """One entry with the shard it is meant for. `contents` are an aggregate's user records; empty for a plain record."""

    entry: PutEntry
    home: str
    size_bytes: int
    contents: Sequence[Record] = ()


class Load(NamedTuple):
    """What a call takes of one shard's budget."""

    records: int
    size_bytes: int


def put_to(shard: OpenShard, partition_key: str, data: bytes) -> Put:
    """A record for one shard, whatever its key."""
    size_bytes = len(partition_key.encode()) + len(data)
    return Put(PutEntry(partition_key, data, shard.starting_hash_key), shard.shard_id, size_bytes)


def puts(records: Iterable[Record], shards: ShardMap, settings: PublishSettings) -> Iterable[Put]:
    """The entries for the records: one each, or aggregates."""
    if settings.aggregate:
        return _aggregated(records, shards, settings.aggregate_bytes)
    plain = list(records)
    keys = [record.partition_key.encode() for record in plain]
    return [
        Put(PutEntry(record.partition_key, record.data), home, len(key) + len(record.data))
        for record, key, home in zip(plain, keys, shards.homes(hashes_of(keys)), strict=True)
    ]


class _Open:
    """An aggregate that is being filled: `hash_key` is its first user record's, and brings it to the shard."""

    __slots__ = ("aggregate", "contents", "hash_key")

    def __init__(self, hash_key: bytes) -> None:
        self.aggregate = Aggregate()
        self.contents: list[Record] = []
        self.hash_key = hash_key

    def put(self, home: str) -> Put:
        first = self.contents[0]
        if len(self.contents) == 1:
            return Put(
                PutEntry(first.partition_key, first.data), home, len(first.partition_key.encode()) + len(first.data)
            )
        explicit = str(int.from_bytes(self.hash_key, "big"))
        entry = PutEntry(first.partition_key, self.aggregate.encode(), explicit)
        return Put(entry, home, len(entry.data) + len(first.partition_key.encode()), self.contents)


def _aggregated(records: Iterable[Record], shards: ShardMap, most_bytes: int) -> Iterator[Put]:
    open_: dict[str, _Open] = {}
    for record in records:
        key = record.partition_key.encode()
        hash_key = hash_of(key)
        home = shards.home(hash_key)
        filling = open_.get(home)
        if filling and filling.aggregate.size_bytes + most_added(key, record.data) > most_bytes:
            yield open_.pop(home).put(home)
            filling = None
        if filling is None:
            filling = open_[home] = _Open(hash_key)
        filling.aggregate.add(key, record.data)
        filling.contents.append(record)
    for home, filling in open_.items():
        yield filling.put(home)


def calls(entries: Iterable[Put], settings: PublishSettings) -> Iterator[list[Put]]:
    """Entries in their order, cut where a call would have too many records or bytes, or too much for one shard."""
    following = iter(entries)
    while call := list(islice(following, MOST_RECORDS)):
        total = sum([put.size_bytes for put in call])
        if total <= settings.call_bytes and total <= settings.shard_bytes_per_s:
            yield call
        else:
            yield from _cut(call, settings)


def _cut(entries: Iterable[Put], settings: PublishSettings) -> Iterator[list[Put]]:
    call: list[Put] = []
    size_bytes = 0
    shares: dict[str, int] = {}
    for put in entries:
        share = shares.get(put.home, 0) + put.size_bytes
        is_full = size_bytes + put.size_bytes > settings.call_bytes or share > settings.shard_bytes_per_s
        if call and is_full:
            yield call
            call, size_bytes, shares = [], 0, {}
            share = put.size_bytes
        call.append(put)
        size_bytes += put.size_bytes
        shares[put.home] = share
    if call:
        yield call


def loads(call: Iterable[Put]) -> dict[str, Load]:
    """What a call takes of each shard's budget."""
    counted: dict[str, list[int]] = {}
    for put in call:
        load = counted.get(put.home)
        if load is None:
            counted[put.home] = [1, put.size_bytes]
        else:
            load[0] += 1
            load[1] += put.size_bytes
    return {home: Load(*load) for home, load in counted.items()}


def rounds(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    """The records in as few rounds as hold no key twice: each round must be acknowledged before the next."""
    keys = {record.partition_key for record in records}
    if len(keys) == len(records):
        yield records
        return
    later: list[dict[str, Record]] = []
    turns: dict[str, int] = {}
    for record in records:
        turn = turns[record.partition_key] = turns.get(record.partition_key, -1) + 1
        if turn == len(later):
            later.append({})
        later[turn][record.partition_key] = record
    for each in later:
        yield list(each.values())


class ShardBudgets:
    """What each shard may still be sent. Times are seconds of one monotonic clock, passed in.

    A budget fills at its rate, up to one second's worth, and may be overdrawn: who overdraws it waits until it is paid.
    """

    def __init__(self, records_per_s: float, bytes_per_s: float) -> None:
        self._rates = (records_per_s, bytes_per_s)
        self._levels: dict[str, tuple[float, float, float]] = {}

    def reserve(self, wanted: dict[str, Load], now_s: float) -> float:
        """Take what a call needs; answers how many seconds to wait before it is sent."""
        wait_s = 0.0
        for shard_id, load in wanted.items():
            at_s, records, size_bytes = self._levels.get(shard_id, (now_s, *self._rates))
            passed_s = max(0.0, now_s - at_s)
            records = min(self._rates[0], records + passed_s * self._rates[0]) - load.records
            size_bytes = min(self._rates[1], size_bytes + passed_s * self._rates[1]) - load.size_bytes
            self._levels[shard_id] = (now_s, records, size_bytes)
            wait_s = max(wait_s, -records / self._rates[0], -size_bytes / self._rates[1])
        return wait_s

    def keep(self, shard_ids: frozenset[str]) -> None:
        """Forget shards that are open no more."""
        self._levels = {shard_id: level for shard_id, level in self._levels.items() if shard_id in shard_ids}
