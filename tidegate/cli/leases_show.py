"""Leases for people and for programs: a table, one item in full, JSON, and JSON lines of whole items.  (pure)"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from tidegate.cli.leases_plan import Age, key_in, normal, shown
from tidegate.errors import Fatal
from tidegate.leases.items import Item, is_lease, lease_of
from tidegate.leases.lease import Lease

_KINDS = frozenset({"S", "N", "B", "BOOL", "NULL", "SS", "NS", "BS", "L", "M"})


class Row(Struct, frozen=True, kw_only=True):
    """One lease as `list` shows it; also its JSON. `live` None: nobody holds it, or we did not watch.

    `age_s` counts since the counter moved; when `age_is_least` it did not move while we watched.
    """

    key: str
    owner: str | None
    wanted_by: str | None
    checkpoint: str
    sub_sequence: int
    counter: int
    epoch: int
    owner_switches: int
    age_s: float | None
    age_is_least: bool
    live: bool | None
    throughput_kbps: float | None
    lag_ms: int | None
    parents: tuple[str, ...]
    children: tuple[str, ...]
    waits_for: tuple[str, ...]
    ended: bool


def rows(items: Sequence[Item], ages: Mapping[str, Age], live: frozenset[str], lags: Mapping[str, int]) -> list[Row]:
    """The leases, by key. `ages` has no entry for a lease that was not watched."""
    leases = {key_in(item): (item, lease_of(item)) for item in items if is_lease(item)}
    unfinished = {key for key, (_, lease) in leases.items() if not lease.is_ended}
    found = []
    for key, (item, lease) in sorted(leases.items()):
        age = ages.get(key)
        found.append(
            Row(
                key=key,
                owner=lease.holder,
                wanted_by=lease.owner if lease.checkpoint_owner else None,
                checkpoint=lease.checkpoint.position,
                sub_sequence=lease.checkpoint.sub_sequence,
                counter=lease.counter,
                epoch=lease.epoch,
                owner_switches=lease.owner_switches,
                age_s=None if age is None else round(age.seconds, 1),
                age_is_least=age is not None and age.is_least,
                live=key in live if age is not None and lease.holder else None,
                throughput_kbps=float(item["throughputKBps"]["N"]) if "throughputKBps" in item else None,
                lag_ms=lags.get(key),
                parents=tuple(sorted(lease.parent_keys)),
                children=tuple(sorted(lease.child_keys)),
                waits_for=() if lease.is_ended else tuple(sorted(lease.parent_keys & unfinished)),
                ended=lease.is_ended,
            )
        )
    return found


def others(items: Sequence[Item]) -> dict[str, str]:
    """The items that are no leases: key → what KCL calls their kind."""
    return {
        key_in(item): shown(item["entityType"]) if "entityType" in item else "unknown"
        for item in items
        if not is_lease(item)
    }


def table(found: Sequence[Row], rest: Mapping[str, str]) -> Iterator[str]:
    """Lines for people, as wide as they must be: a position is of use in full only."""
    head = ("LEASE", "OWNER", "CHECKPOINT", "COUNTER", "MOVED", "KB/S", "LAG", "")
    body = [_cells(row) for row in found]
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
    for line in (head, *body):
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    free = sum(row.owner is None and not row.ended for row in found)
    dead = sum(row.live is False for row in found)
    yield ""
    yield f"{len(found)} leases: {sum(row.ended for row in found)} finished, {free} free, {dead} without a sign of life"
    if rest:
        kinds = ", ".join(f"{key} ({kind})" for key, kind in sorted(rest.items()))
        yield f"{len(rest)} items that are no leases: {kinds}"


def _cells(row: Row) -> tuple[str, ...]:
    place = f"{row.checkpoint}.{row.sub_sequence}" if row.sub_sequence else row.checkpoint
    age = "-" if row.age_s is None or row.owner is None else f"{'>' if row.age_is_least else ''}{row.age_s:.1f} s ago"
    rate = "-" if row.throughput_kbps is None else f"{row.throughput_kbps:.1f}"
    lag = "-" if row.lag_ms is None else f"{row.lag_ms / 1000:.1f} s"
    note = f"wanted by {row.wanted_by}" if row.wanted_by else ""
    if row.waits_for:
        note = f"waits for {', '.join(row.waits_for)}"
    return row.key, row.owner or "-", place, str(row.counter), age, rate, lag, note


def whole(item: Item) -> Iterator[str]:
    """One item, every attribute, the known and the unknown."""
    yield key_in(item)
    width = max(len(name) for name in item)
    for name in sorted(item.keys() - {"leaseKey"}):
        yield f"  {name.ljust(width)}  {shown(item[name])}"
    if is_lease(item):
        yield from _remarks(lease_of(item))


def _remarks(lease: Lease) -> Iterator[str]:
    if lease.checkpoint_owner:
        yield f"  {lease.owner or 'nobody'} is to have it; {lease.checkpoint_owner} works on it until it hands over"
    if lease.is_ended:
        yield "  finished: its shard is read to the end"
    if lease.checkpoint.sub_sequence > 0:
        yield f"  in the middle of an aggregate: its user records 0 to {lease.checkpoint.sub_sequence} are done"


# ---------------------------------------------------------------- whole items, in and out


def line_of(item: Item) -> str:
    """DynamoDB's own JSON on one line, bytes in base64, names and sets in order."""
    return msgspec.json.encode(normal(item), order="sorted").decode()


def items_of(text: str) -> list[Item]:
    """The items of an export. Raises Fatal that names the line and what is wrong with it."""
    found: dict[str, Item] = {}
    # Not splitlines: a text may hold other line ends than ours.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            item = normal(_item(msgspec.json.decode(line)))
            key = key_in(item)
            if is_lease(item):
                lease_of(item)
        except (msgspec.DecodeError, KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
            raise Fatal(f"line {number} is no item of a lease table: {type(error).__name__}: {error}") from error
        if key in found:
            raise Fatal(f"line {number}: {key!r} is in the file twice")
        found[key] = item
    return list(found.values())


def _item(raw: Any) -> Item:
    if not isinstance(raw, dict) or "S" not in raw.get("leaseKey", {}):
        raise ValueError("an item is an object with a text attribute leaseKey")
    return {name: _attribute(value) for name, value in raw.items()}


def _attribute(raw: Any) -> Mapping[str, Any]:
    [(kind, content)] = raw.items()
    if kind not in _KINDS:
        raise ValueError(f"{kind!r} is no type of DynamoDB")
    match kind:
        case "B":
            content = base64.b64decode(content, validate=True)
        case "BS":
            content = [base64.b64decode(each, validate=True) for each in content]
        case "L":
            content = [_attribute(each) for each in content]
        case "M":
            content = {name: _attribute(each) for name, each in content.items()}
    return {kind: content}
