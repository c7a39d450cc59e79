"""What each write makes of a lease: values in, values out, for DynamoDB and for the table in memory alike.

Every write but `asked` raises the counter, so that of two writers who read the same state exactly one wins. A take
raises the epoch as well, and nothing else does.
"""

from __future__ import annotations

from collections.abc import Collection

from msgspec.structs import replace

from tidegate.leases.lease import SHARD_END, Checkpoint, Lease


def taken(lease: Lease, owner: str) -> Lease:
    """After `owner` took it from whoever had it."""
    return replace(
        lease,
        owner=owner,
        counter=lease.counter + 1,
        epoch=lease.epoch + 1,
        checkpoint_owner=None,
        owner_switches=lease.owner_switches + (lease.holder not in (None, owner)),
    )


def asked(lease: Lease, owner: str) -> Lease:
    """After `owner` asked its owner for it. The counter stays: it says that the holder lives, and it did not write."""
    return replace(lease, owner=owner, checkpoint_owner=lease.owner)


def renewed(lease: Lease, checkpoint: Checkpoint | None = None, throughput_kbps: float | None = None) -> Lease:
    """After its holder renewed it, and wrote what is given."""
    counter = lease.counter + 1
    kbps = lease.throughput_kbps if throughput_kbps is None else throughput_kbps
    if checkpoint is None:
        return replace(lease, counter=counter, throughput_kbps=kbps)
    return replace(lease, counter=counter, throughput_kbps=kbps, checkpoint=checkpoint, owner_switches=0)


def ended(lease: Lease, child_keys: Collection[str]) -> Lease:
    """After its holder finished it."""
    children = frozenset(child_keys) or lease.child_keys
    return replace(lease, counter=lease.counter + 1, checkpoint=SHARD_END, child_keys=children, owner_switches=0)


def given_up(lease: Lease, checkpoint: Checkpoint | None = None, to: str | None = None) -> Lease:
    """After its holder let go: for the one that asked, else for `to`, else for anybody."""
    next_owner = to if lease.checkpoint_owner is None else lease.owner
    switches = lease.owner_switches if checkpoint is None else 0
    return replace(
        lease,
        owner=next_owner,
        counter=lease.counter + 1,
        checkpoint_owner=None,
        checkpoint=lease.checkpoint if checkpoint is None else checkpoint,
        owner_switches=switches + (next_owner is not None),
    )


def is_unchanged(before: Lease, current: Lease) -> bool:
    """The condition of every write: nobody wrote, and nobody asked, since `before` was read."""
    return (current.counter, current.owner, current.checkpoint_owner) == (
        before.counter,
        before.owner,
        before.checkpoint_owner,
    )


def is_same_hold(before: Lease, current: Lease) -> bool:
    """Whether the holder of `before` holds the lease still: every take by one of us raises the epoch."""
    same = (current.holder, current.epoch) == (before.holder, before.epoch)
    return same and current.counter >= before.counter
