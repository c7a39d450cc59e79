"""What one page means: the records to publish, the entries to remember, the keys in doubt.  (pure)

One record a key at most, the newest: that is also what keeps a call to Kinesis free of two records of one key.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from poller.index import Index
from poller.snapshot import NAMELESS, Entry, Seen, State, fingerprints, gone, is_known, judge
from poller.source import FileRow
from poller.translate import Reading, Translated, raw_keys, translate, translate_all
from tidegate import codec
from tidegate.bubble import RawRow
from tidegate.errors import Rejected
from tidegate.event import Cause, ChangeEvent, EntityKey, Operation, QuarantineRecord

QUARANTINE = "quarantine"
MOST_RECORD_BYTES = 1_000_000
"""Kinesis takes 1 MiB with the partition key; a row that makes more is filed, unless its publisher takes larger ones."""
_MOST_RAW_BYTES = 600_000
"""base64 makes 800,000 of it."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """One record for the stream. `label` is its cause, or "quarantine"; for counting."""

    partition_key: str
    data: bytes
    label: str


class Sight(NamedTuple):
    """The request that showed the rows. `keyed` as in `snapshot.Seen`.

    `stated` is the time that the rows are of, in microseconds since 1970: the version of rows that have none of their own.
    """

    epoch: int
    read: int
    cause: Cause
    observed_at: datetime
    keyed: bool
    stated: int | None = None


class _Row(msgspec.Struct, frozen=True, gc=False):
    """A raw row with its key (None: unreadable), its name in the index, and what is known under that name."""

    raw: RawRow
    key: str | None
    name: str
    stamp: bytes
    before: Entry | None


class _Upsert(msgspec.Struct, frozen=True, gc=False):
    """A row to be published, and why."""

    row: _Row
    entry: Entry
    cause: Cause
    found: Translated


def distinct(rows: Sequence[RawRow], reading: Reading) -> tuple[RawRow, ...]:
    """One row a key: of several in one answer the one with the highest version, of equal ones the last.

    A row that cannot be translated counts as older than one that can. Rows without a usable key all stay.
    """
    keys = raw_keys(rows, reading.key_path)
    if len(set(keys)) == len(keys):
        return tuple(rows)
    chosen: dict[str, int] = {}
    left_out: set[int] = set()
    for at, (row, key) in enumerate(zip(rows, keys, strict=True)):
        if key is None:
            continue
        before = chosen.setdefault(key, at)
        if before != at:
            is_older = _version(row, key, reading) < _version(rows[before], key, reading)
            left_out.add(at if is_older else before)
            chosen[key] = before if is_older else at
    return tuple(row for at, row in enumerate(rows) if at not in left_out)


def _version(row: RawRow, key: str, reading: Reading) -> int:
    try:
        return translate(row, key, reading).source_version
    except Rejected:
        return -1


class Changes:
    """Collects over the requests of one step. `entries` are index entries to journal, `records` to publish.

    `raws` are the rows behind the records, for the archive; `seen` the rows' names, with their numbers in the index if it
    knew them.
    """

    def __init__(self, index: Index, reading: Reading, most_record_bytes: int = MOST_RECORD_BYTES) -> None:
        self.records: dict[str, Record] = {}
        self.entries: dict[str, Entry] = {}
        self.doubted: set[str] = set()
        self.raws: dict[str, RawRow] = {}
        self.seen: dict[str, int] = {}
        self.counts: Counter[str] = Counter()
        self._index = index
        self._reading = reading
        self._most_record_bytes = most_record_bytes

    def see(self, rows: Sequence[RawRow], sight: Sight) -> None:
        """Judge the rows of one answer."""
        keys, stamps = raw_keys(rows, self._reading.key_path), fingerprints(rows)
        names = [NAMELESS + stamp.hex() if key is None else key for key, stamp in zip(keys, stamps, strict=True)]
        if len(set(names)) < len(names):
            # The second row of a key must meet what the first one made of it.
            for row in rows:
                self.see([row], sight)
            return
        numbers = self._index.numbers(names)
        known = self._known(names, numbers, stamps)
        new = [
            _Row(rows[at], keys[at], name, stamps[at], self._before(name, numbers[at]))
            for at, name in enumerate(names)
            if not known[at]
        ]
        self.seen.update(zip(names, numbers, strict=True))
        self.counts["rows"] += len(rows)
        self.counts["unchanged"] += len(rows) - len(new)
        if new:
            self._change(new, sight)

    def bury(self, key: str, sight: Sight) -> None:
        """The key is gone: its tombstone, unless something newer is known."""
        before = self._index.get(key)
        entry = None if before is None else gone(before, sight.epoch, sight.read)
        if entry is None:
            return
        self.entries[key] = entry
        self.counts[Operation.DELETE] += 1
        name = EntityKey(self._reading.shape.name, key)
        event = ChangeEvent(
            event_id=codec.event_id(name, entry.version, Operation.DELETE),
            key=name,
            version=entry.version,
            operation=Operation.DELETE,
            cause=sight.cause,
            source=self._reading.source.name,
            occurred_at=sight.observed_at,
            observed_at=sight.observed_at,
        )
        self.records[str(name)] = Record(str(name), codec.encode(event), sight.cause)

    def apply(self) -> None:
        """Everything was published: the index is to know it."""
        numbers = self._index.apply(self.entries)
        self.seen |= {key: row for key, row in zip(self.entries, numbers, strict=True) if key in self.seen}

    def labels(self) -> Counter[str]:
        """How many records there are of each label."""
        return Counter(record.label for record in self.records.values())

    def _known(self, names: Sequence[str], numbers: Sequence[int], stamps: Sequence[bytes]) -> list[bool]:
        """Which of the rows need not be published, by the index and by what this step has made of them."""
        translation, entries = self._reading.source.translation, self.entries
        known = self._index.known(numbers, stamps, translation)
        if entries:
            for at, name in enumerate(names):
                if name in entries:
                    known[at] = is_known(entries[name], stamps[at], translation)
        return known

    def _before(self, name: str, number: int) -> Entry | None:
        known = self.entries.get(name)
        return known if known is not None or number < 0 else self._index.entry(number)

    def _change(self, rows: Sequence[_Row], sight: Sight) -> None:
        reading, upserts = self._reading, list[_Upsert]()
        stated = None if reading.shape.version is not None else sight.stated
        translated = translate_all([row.raw for row in rows], [row.key for row in rows], reading)
        for row, found in zip(rows, translated, strict=True):
            version = None if isinstance(found, Rejected) else found.source_version if stated is None else stated
            seen = Seen(row.stamp, version, sight.epoch, sight.read, reading.source.translation, sight.keyed)
            entry = judge(row.before, seen)
            if entry is None:
                self.doubted.add(row.name)
                continue
            self.doubted.discard(row.name)
            if isinstance(found, Rejected):
                self._quarantine(row, entry, found, sight)
            else:
                cause = sight.cause if row.before is None else _cause(sight, row.before, entry)
                upserts.append(_Upsert(row, entry, cause, found))
        if upserts:
            self._publish(upserts, sight)

    def _publish(self, upserts: Sequence[_Upsert], sight: Sight) -> None:
        entity = self._reading.shape.name
        events = [
            codec.Upsert(
                each.row.name, each.entry.version, each.cause, each.found.changed_at or sight.observed_at,
                each.found.payload,
            )
            for each in upserts
        ]  # fmt: skip
        encoded = codec.encode_upserts(entity, self._reading.source.name, sight.observed_at, events)
        for upsert, data in zip(upserts, encoded, strict=True):
            row = upsert.row
            if len(data) > self._most_record_bytes:
                fault = Rejected("too_large", f"its event is larger than {self._most_record_bytes} bytes")
                self._quarantine(row, replace(upsert.entry, state=State.QUARANTINED), fault, sight)
                continue
            partition_key = f"{entity}:{row.name}"
            self.entries[row.name] = upsert.entry
            self.raws[row.name] = row.raw
            self.records[partition_key] = Record(partition_key, data, upsert.cause)

    def _quarantine(self, row: _Row, entry: Entry, fault: Rejected, sight: Sight) -> None:
        source, entity = self._reading.source, self._reading.shape.name
        raw, text = msgspec.json.encode(row.raw), str(fault)[:2_000]
        if isinstance(row.raw, FileRow):
            text = f"{row.raw.origin}: {text}"
        if len(raw) > _MOST_RAW_BYTES:
            raw, text = raw[:_MOST_RAW_BYTES], f"{text} (raw row cut at {_MOST_RAW_BYTES} of {len(raw)} bytes)"
        identity = f"{source.name}\n{row.name}\n{row.stamp.hex()}\n{source.translation}"
        record = QuarantineRecord(
            event_id=hashlib.blake2b(identity.encode(), digest_size=16).hexdigest(),
            source=source.name,
            entity=entity,
            stage="translate",
            reason=fault.reason,
            message=text,
            raw=raw,
            observed_at=sight.observed_at,
            key=row.key,
        )
        self.entries[row.name] = entry
        self.raws[row.name] = row.raw
        partition_key = str(EntityKey(entity, row.key or row.stamp.hex()))
        self.records[partition_key] = Record(partition_key, codec.encode(record), QUARANTINE)


def _cause(sight: Sight, before: Entry, entry: Entry) -> Cause:
    """The same raw row under a newer translation is not something that happened in the back office."""
    is_retranslated = (
        before.state is State.LIVE
        and before.fingerprint == entry.fingerprint
        and before.translation < entry.translation
    )
    return Cause.RETRANSLATE if is_retranslated else sight.cause
