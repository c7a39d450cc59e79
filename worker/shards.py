"""Shards and their lineage: which leases should exist, who may start, what a finished shard leaves behind.  (pure)

A reshard closes one shard (split) or two (merge) and opens others, which hold the later changes of the same keys.
A child therefore waits until every parent is read to its end. Leases are named parents first, so at no moment does
a child have a lease while its parent's is still to be made.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from tidegate.leases.lease import LATEST, TRIM_HORIZON, Checkpoint, Lease, at
from worker.batch import Position


class HashRange(Struct, frozen=True):
    """Both ends belong to it; 128-bit unsigned integers."""

    start: int
    end: int

    def __contains__(self, key: int) -> bool:
        return self.start <= key <= self.end


class Shard(Struct, frozen=True):
    """One shard as ListShards tells it. `parent_ids` may name shards that the stream has forgotten.

    `first_sequence`: every record's sequence number is at least this.
    """

    id: str
    parent_ids: tuple[str, ...]
    hash_range: HashRange
    is_closed: bool
    first_sequence: int = 0


def from_listing(item: Mapping[str, Any]) -> Shard:
    """One entry of a ListShards answer."""
    parents = (item.get("ParentShardId"), item.get("AdjacentParentShardId"))
    hashes, sequences = item["HashKeyRange"], item["SequenceNumberRange"]
    return Shard(
        id=item["ShardId"],
        parent_ids=tuple(parent for parent in parents if parent),
        hash_range=HashRange(int(hashes["StartingHashKey"]), int(hashes["EndingHashKey"])),
        is_closed=sequences.get("EndingSequenceNumber") is not None,
        first_sequence=int(sequences["StartingSequenceNumber"]),
    )


def parents_first(shards: Iterable[Shard]) -> list[Shard]:
    """The same shards, no child before one of its parents; otherwise ordered by id."""
    by_id = {shard.id: shard for shard in shards}
    done: dict[str, Shard] = {}

    def visit(shard: Shard) -> None:
        for parent in shard.parent_ids:
            if parent in by_id and parent not in done:
                visit(by_id[parent])
        done.setdefault(shard.id, shard)

    for shard_id in sorted(by_id):
        visit(by_id[shard_id])
    return list(done.values())


def lease_of(shard: Shard, checkpoint: Checkpoint = TRIM_HORIZON) -> Lease:
    return Lease(
        key=shard.id,
        checkpoint=checkpoint,
        parent_keys=frozenset(shard.parent_ids),
        starting_hash_key=str(shard.hash_range.start),
        ending_hash_key=str(shard.hash_range.end),
    )


def wanted_leases(shards: Sequence[Shard], leases: Iterable[Lease], initial: Checkpoint) -> list[Lease]:
    """The leases that are missing and should be made, parents first.

    A shard whose descendant has a lease is finished and cleaned up: naming it again would read it twice. With
    `initial` LATEST or AT_TIMESTAMP only shards without a leased ancestor start there. Closed ones of those need no
    lease for LATEST; for AT_TIMESTAMP they do, for the time may lie within them.
    """
    held = {lease.key for lease in leases}
    past = _ancestors(held, shards)
    missing = [shard for shard in parents_first(shards) if shard.id not in held and shard.id not in past]
    wanted = []
    for shard in missing:
        if _ancestors({shard.id}, shards) & held:
            wanted.append(lease_of(shard))
        elif initial != LATEST or not shard.is_closed:
            wanted.append(lease_of(shard, initial))
    return wanted


def finished(shards: Sequence[Shard], leases: Iterable[Lease]) -> frozenset[str]:
    """Shards that were read to their end: the lease says so, or it is cleaned up and a descendant has one."""
    leases = list(leases)
    held = {lease.key for lease in leases}
    ended = {lease.key for lease in leases if lease.is_ended}
    return frozenset(ended | (_ancestors(held, shards) - held))


def foreign_leases(shards: Iterable[Shard], leases: Iterable[Lease]) -> list[str]:
    """Leases that cannot be of these shards, because their position is from before the shard was made.

    They were made for another stream, such as one of the same name that was deleted since.
    """
    reached = {lease.key: int(lease.checkpoint.position) for lease in leases if lease.checkpoint.is_number}
    return [shard.id for shard in shards if reached.get(shard.id, shard.first_sequence) < shard.first_sequence]


def other_streams(leases: Iterable[Lease]) -> list[str]:
    """Leases that KCL keeps for several streams in one table: account:stream:epoch:shardId. A shard's id has no colon."""
    return [lease.key for lease in leases if ":" in lease.key]


def _ancestors(of: Iterable[str], shards: Iterable[Shard]) -> set[str]:
    """Every shard that one of `of` descends from; also those that the stream does not list any more."""
    parents = {shard.id: shard.parent_ids for shard in shards}
    found: set[str] = set()
    waiting = [parent for shard_id in of for parent in parents.get(shard_id, ())]
    while waiting:
        shard_id = waiting.pop()
        if shard_id not in found:
            found.add(shard_id)
            waiting.extend(parents.get(shard_id, ()))
    return found


def children_of(parent_id: str, shards: Iterable[Shard]) -> list[Shard]:
    return [shard for shard in shards if parent_id in shard.parent_ids]


def unleased_parents(children: Iterable[Shard], leased: Collection[str]) -> frozenset[str]:
    """Other parents of shards that are to get their leases now, which have none themselves.

    A merged shard must not get its lease before them: a parent without lease counts as read, so the child would
    overtake it. Those that the stream has forgotten do not count. A child that has its lease already waits by it.
    """
    waiting = [child for child in children if child.id not in leased]
    return frozenset(parent for child in waiting for parent in child.parent_ids if parent not in leased)


def gap_at_start(checkpoint: Checkpoint, stored: Position | None) -> str | None:
    """What to say when the lease has come somewhere and the database holds nothing of it.

    The database is new, or was restored to a time before the shard. What the stream still has is read again; what it
    has trimmed nobody will deliver, and how much that is cannot be told from the stream.
    """
    if checkpoint.is_number and stored is None:
        return f"the lease is at {checkpoint} and the database knows no position: what the stream trimmed is not in it"
    return None


def start_position(checkpoint: Checkpoint, stored: Position | None) -> Checkpoint:
    """Where to read from: the older of the lease's checkpoint and the position that the database holds.

    The database is older after it was restored, and has none when it is new; then everything that the stream
    still has is read again. The lease is older after a crash between commit and checkpoint.
    """
    if not checkpoint.is_number:
        return at(str(stored.sequence), stored.sub) if checkpoint == LATEST and stored else checkpoint
    if stored is None:
        return TRIM_HORIZON
    return min(checkpoint, at(str(stored.sequence), stored.sub))
