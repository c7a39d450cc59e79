"""What the lease tools would write: items in, writes out.  (pure)

An item is what DynamoDB returns, whole: attributes that we do not know travel along. Every write names the item as
it was read, so that it can be made conditional on it (`request`). A write that takes a lease away from its holder also
removes the holder: it would else take the change for one of its own, whose reply was lost, and go on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from tidegate.errors import Fatal
from tidegate.leases.items import Attribute, Item, is_lease, item_of, key_of, lease_of
from tidegate.leases.lease import LATEST, TRIM_HORIZON, Checkpoint, Lease

# What a lease's write is conditional on, as in the store: who works, and how often was written.
_GUARDED = ("leaseCounter", "leaseOwner", "checkpointOwner")
_PENDING = ("pendingCheckpoint", "pendingCheckpointSubSequenceNumber", "pendingCheckpointState")
# Of an imported item these say nothing about the work itself, and the table's own stand.
_OF_THE_TABLE = frozenset({*_GUARDED, "ownerSwitchesSinceCheckpoint", "tidegateEpoch", "throughputKBps"})
# The kinds of item that tidegate keeps beside the leases.
_OUR_KINDS = "TIDEGATE_"
_SETS = frozenset({"SS", "NS", "BS"})


class Write(Struct, frozen=True, kw_only=True):
    """One write. `before` None: there is no such item; `after` None: remove it. `what` says it to a person."""

    key: str
    before: Item | None
    after: Item | None
    what: str

    @property
    def holder(self) -> str | None:
        """Who may be working on it."""
        return lease_of(self.before).holder if self.before is not None and is_lease(self.before) else None


class Plan(Struct, frozen=True):
    """`left`: by key, why an item stays as it is."""

    writes: tuple[Write, ...] = ()
    left: tuple[tuple[str, str], ...] = ()


def normal(item: Mapping[str, Any]) -> dict[str, Attribute]:
    """The item with its sets in order, so that equal items are equal."""
    return {name: _sorted(value) for name, value in item.items()}


def _sorted(value: Mapping[str, Any]) -> Attribute:
    return {kind: sorted(content) if kind in _SETS else content for kind, content in value.items()}


def key_in(item: Item) -> str:
    return str(item["leaseKey"]["S"])


def leases_in(items: Iterable[Item]) -> dict[str, Lease]:
    """The leases, by key; raises Fatal for one with a malformed checkpoint."""
    return {key_in(item): lease_of(item) for item in items if is_lease(item)}


def chosen(leases: Mapping[str, Lease], keys: Sequence[str], owner: str | None) -> list[str]:
    """The keys that are meant: those named, those of an owner, or all. Raises Fatal for a name that is not there."""
    if unknown := [key for key in keys if key not in leases]:
        raise Fatal(f"there is no lease {', '.join(map(repr, unknown))} in the table; `tidegate leases list` shows all")
    if owner is None:
        return list(dict.fromkeys(keys)) or sorted(leases)
    found = sorted(key for key, lease in leases.items() if owner in (lease.owner, lease.checkpoint_owner))
    if not found:
        raise Fatal(f"no lease is in the hands of {owner!r}; `tidegate leases list` shows the owners")
    return found


# ---------------------------------------------------------------- the verbs


def release(items: Sequence[Item], keys: Collection[str]) -> Plan:
    """Give the leases up: no owner, no request, counter + 1. Anybody may take them at once."""
    return _planned(items, keys, _release)


def _release(item: Item, lease: Lease) -> Write | str:
    if lease.holder is None and lease.owner is None:
        return "nobody holds it"
    return Write(key=lease.key, before=item, after=_freed(item, lease), what=f"given up by {lease.holder}")


def hand_back(items: Sequence[Item], keys: Collection[str]) -> Plan:
    """Leave the table as a Kinesis Client Library application expects it: leases free, and no item of ours.

    Before 3.5 that library takes every item for a lease, and stops at one that is not. Our attribute of a lease stays:
    attributes that it does not know it ignores, and keeps.
    """
    ours = [
        Write(key=key_in(item), before=item, after=None, what="removed, it is tidegate's own")
        for item in items
        if item.get("entityType", {}).get("S", "").startswith(_OUR_KINDS)
    ]
    freed = release(items, keys)
    return Plan((*freed.writes, *ours), freed.left)


def reset(items: Sequence[Item], keys: Collection[str]) -> Plan:
    """Remove the leases, so that discovery makes them anew. The other kinds of item stay.

    Raises Fatal where that would lose records: a shard without a lease counts as read once a child has one.
    """
    remaining = [lease for key, lease in leases_in(items).items() if key not in keys]

    def remove(item: Item, lease: Lease) -> Write | str:
        children = [other.key for other in remaining if lease.key in other.parent_keys]
        if children and not lease.is_ended:
            raise Fatal(
                f"{lease.key} is not read to its end, and its children {', '.join(children)} have leases: without its own "
                "it would count as read. Name the children too, or rewind it instead"
            )
        return Write(key=lease.key, before=item, after=None, what=f"removed, was at {lease.checkpoint}")

    return _planned(items, keys, remove)


class Targets(Struct, frozen=True, kw_only=True):
    """Where leases shall go. `of` maps a key to its place, or to None: no record of that shard is so young.

    `listed` are the stream's shards; None: not asked, as nothing depends on them (no finished lease is chosen).
    `forward` permits to go ahead, which leaves records unread.
    """

    of: Mapping[str, Checkpoint | None]
    listed: Collection[str] | None = None
    forward: bool = False


def rewind(items: Sequence[Item], targets: Targets) -> Plan:
    """Set checkpoints back, and free the leases.

    A finished lease is read again from its first record, and only together with its children: they wait for it.
    """
    leases = leases_in(items)

    def move(item: Item, lease: Lease) -> Write | str:
        target = targets.of[lease.key]
        if targets.listed is not None and lease.key not in targets.listed:
            return "the stream does not have its shard any more"
        if target is None:
            return "its shard has no record that is so young"
        if lease.is_ended:
            if target == LATEST:
                return "is finished"
            _with_children(lease, leases, targets.of)
            # The database forgot how far a finished shard came, so a worker begins at its first record anyhow.
            target = TRIM_HORIZON
        elif target == lease.checkpoint:
            return f"is at {target} already"
        elif _is_ahead(target, lease.checkpoint) and not targets.forward:
            return (
                f"is at {lease.checkpoint}; {target} is ahead of that, and --forward is needed to leave records unread"
            )
        after = _freed(item, replace(lease, owner_switches=0, checkpoint=target))
        return Write(key=lease.key, before=item, after=after, what=f"{lease.checkpoint} → {target}")

    return _planned(items, targets.of, move)


def forgotten(items: Sequence[Item], keys: Collection[str]) -> list[str]:
    """What the database must forget, so that finished shards among the keys are read again: their descendants.

    It knows by them that a shard has ended.
    """
    leases = leases_in(items)
    found = {key for key in keys if leases[key].is_ended}
    again = len(found)
    while more := {key for key, lease in leases.items() if not found.isdisjoint(lease.parent_keys)} - found:
        found |= more
    return sorted(found) if again else []


def _is_ahead(target: Checkpoint, now: Checkpoint) -> bool:
    """LATEST is a place at the time when it is read: ahead of whatever was written down before."""
    if target == TRIM_HORIZON or now == LATEST:
        return False
    return target == LATEST or target > now


def _with_children(lease: Lease, leases: Mapping[str, Lease], named: Collection[str]) -> None:
    begun = [key for key, other in leases.items() if lease.key in other.parent_keys and key not in named]
    if begun:
        raise Fatal(
            f"{lease.key} is finished and its children {', '.join(sorted(begun))} go on from it: read again alone, its "
            "records would come after theirs. Name the children too (or pass --all)"
        )


def restore(items: Sequence[Item], wanted: Sequence[Item], *, force: bool) -> Plan:
    """Bring exported items back. What is not there is written exactly as it was exported.

    An item that is there takes over every attribute of the file and keeps those that the file does not have. It
    keeps its fence, too: counter and epoch never fall, and nobody owns it afterwards. An item that is no lease cannot
    be seen to be in use, so one that differs is overwritten with `force` only.
    """
    current = {key_in(item): item for item in items}
    return _plan((key_in(item), _restore(current.get(key_in(item)), item, force=force)) for item in wanted)


def _restore(before: Item | None, item: Item, *, force: bool) -> Write | str:
    key = key_in(item)
    if before is None:
        return Write(key=key, before=None, after=item, what="new")
    if is_lease(before) != is_lease(item):
        raise Fatal(f"{key!r} is a lease in one and something else in the other, the table and the file")
    differences = "; ".join(_differences(before, item))
    if not differences:
        return "is the same"
    if is_lease(before):
        return Write(key=key, before=before, after=_restored(before, item), what=differences)
    if force:
        return Write(key=key, before=before, after={**before, **item}, what=differences)
    return f"is no lease and differs; pass --force to overwrite it: {differences}"


def _restored(before: Item, item: Item) -> Item:
    merged = {**before, **item}
    was, wants = lease_of(before), lease_of(item)
    if was.checkpoint != wants.checkpoint:
        merged = {name: value for name, value in merged.items() if name in item or name not in _PENDING}
    fence = replace(lease_of(merged), counter=max(was.counter, wants.counter), epoch=max(was.epoch, wants.epoch))
    return _freed(merged, fence)


def _differences(before: Item, item: Item) -> list[str]:
    compared = item.keys() - _OF_THE_TABLE if is_lease(before) else item.keys()
    return [
        f"{name}: {shown(before[name]) if name in before else 'nothing'} → {shown(item[name])}"
        for name in sorted(compared)
        if before.get(name) != item[name]
    ]


def shown(value: Attribute) -> str:
    """An attribute for people: its content, bytes as their length."""
    [content] = value.values()
    if isinstance(content, bytes):
        return f"{len(content)} bytes"
    return ", ".join(map(str, content)) if isinstance(content, list) else str(content)


def _planned(items: Sequence[Item], keys: Collection[str], decide: Callable[[Item, Lease], Write | str]) -> Plan:
    meant = sorted((item for item in items if is_lease(item) and key_in(item) in keys), key=key_in)
    return _plan((key_in(item), decide(item, lease_of(item))) for item in meant)


def _plan(decisions: Iterable[tuple[str, Write | str]]) -> Plan:
    """What is decided for each key: a write, or why there is none."""
    made = list(decisions)
    writes = tuple(decision for _, decision in made if isinstance(decision, Write))
    return Plan(writes, tuple((key, decision) for key, decision in made if isinstance(decision, str)))


def _freed(item: Item, lease: Lease) -> Item:
    """The item of `lease`, without an owner, counter + 1. Attributes that are no part of a lease stay as they are."""
    before = lease_of(item)
    freed = replace(lease, owner=None, checkpoint_owner=None, counter=lease.counter + 1)
    after = _overlaid(item, before, freed)
    if freed.checkpoint == before.checkpoint:
        return after
    return {name: value for name, value in after.items() if name not in _PENDING}


def _overlaid(item: Item, old: Lease, new: Lease) -> dict[str, Attribute]:
    """`item` with what differs between the two leases, and nothing else."""
    was, becomes = item_of(old), item_of(new)
    changed = {name: value for name, value in becomes.items() if was.get(name) != value}
    kept = {name: value for name, value in item.items() if name in becomes or name not in was}
    return kept | changed


# ---------------------------------------------------------------- the request


def request(write: Write) -> tuple[str, dict[str, Any]]:
    """The operation's name and its parts: conditional on the item still being as it was read.

    A lease is compared by counter and owners, which every writer moves; other items by every attribute involved.
    """
    if write.before is None:
        return "put_item", {"Item": dict(write.after or {}), "ConditionExpression": "attribute_not_exists(leaseKey)"}
    names = _Names()
    after = write.after or {}
    involved = _GUARDED if is_lease(write.before) else sorted({*write.before, *after} - {"leaseKey"})
    guards = ["attribute_exists(leaseKey)"]
    for name in involved:
        known = write.before.get(name)
        guards.append(
            f"attribute_not_exists({names(name)})" if known is None else f"{names(name)} = {names(name, known)}"
        )
    parts: dict[str, Any] = {"Key": key_of(write.key), "ConditionExpression": " AND ".join(guards)}
    if write.after is not None:
        sets = [
            f"{names(name)} = {names(name, value)}" for name, value in after.items() if write.before.get(name) != value
        ]
        gone = [names(name) for name in write.before if name not in after]
        clauses = [("SET", sets), ("REMOVE", gone)]
        parts["UpdateExpression"] = " ".join(f"{verb} {', '.join(each)}" for verb, each in clauses if each)
    if names.names:
        parts["ExpressionAttributeNames"] = names.names
    if names.values:
        parts["ExpressionAttributeValues"] = names.values
    return "delete_item" if write.after is None else "update_item", parts


class _Names:
    """Placeholders, since any word may be an attribute's name and many words are DynamoDB's own."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.values: dict[str, Attribute] = {}

    def __call__(self, name: str, value: Attribute | None = None) -> str:
        if value is None:
            known = {real: short for short, real in self.names.items()}
            return known.get(name) or self._keep(self.names, f"#n{len(self.names)}", name)
        return self._keep(self.values, f":v{len(self.values)}", value)

    @staticmethod
    def _keep(kept: dict[str, Any], short: str, content: object) -> str:
        kept[short] = content
        return short


# ---------------------------------------------------------------- who lives


class Age(Struct, frozen=True):
    """How long a counter has stood still; `is_least`: it did not move while we watched, so at least so long."""

    seconds: float
    is_least: bool


class Watch:
    """What repeated looks at the table tell: which counters move, and when they last did."""

    def __init__(self) -> None:
        # By key: holder and counter as last seen, since when, and whether that was a move or the first look.
        self._sights: dict[str, tuple[str | None, int, float, bool]] = {}

    def look(self, leases: Mapping[str, Lease], now_s: float) -> None:
        """Note one look; `now_s` is our own monotonic time after the table was read."""
        for key, lease in leases.items():
            before = self._sights.get(key)
            if before is None or before[:2] != (lease.holder, lease.counter):
                self._sights[key] = (lease.holder, lease.counter, now_s, before is not None)

    def live(self) -> frozenset[str]:
        """Leases that somebody worked on while we watched."""
        return frozenset(key for key, (holder, _, _, moved) in self._sights.items() if moved and holder is not None)

    def age(self, key: str, now_s: float) -> Age:
        """Raises KeyError for a lease that was never seen."""
        _, _, since_s, moved = self._sights[key]
        return Age(now_s - since_s, is_least=not moved)
