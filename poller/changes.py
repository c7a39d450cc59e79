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

from poller.index import Index
from poller.snapshot import NAMELESS, Entry, Seen, State, fingerprint, gone, is_known, judge
from poller.source import FileRow
from poller.translate import Reading, Translated, raw_key, translate
from tidegate import codec
from tidegate.bubble import RawRow
from tidegate.errors import Rejected
from tidegate.event import Cause, ChangeEvent, EntityKey, Operation, QuarantineRecord

QUARANTINE = "quarantine"
MOST_RECORD_BYTES = 1_000_000
"""Kinesis takes 1 MiB with the partition key; a row that makes more is filed, unless its publisher takes larger ones."""
_MOST_RAW_BYTES = 600_000
"""base64 makes 800,000 of it."""


class Record(NamedTuple):
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


class _Row(NamedTuple):
    """A raw row with its key (None: unreadable), its name in the index, and what is known under that name."""

    raw: RawRow
    key: str | None
    name: str
    stamp: bytes
    before: Entry | None


def distinct(rows: Sequence[RawRow], reading: Reading) -> tuple[RawRow, ...]:
    """One row a key: of several in one answer the one with the highest version, of equal ones the last.

    A row that cannot be translated counts as older than one that can. Rows without a usable key all stay.
    """
    chosen: dict[str, int] = {}
    left_out: set[int] = set()
    for at, row in enumerate(rows):
        key = raw_key(row, reading.key_path)
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

    `raws` are the rows behind the records, for the archive.
    """

    def __init__(self, index: Index, reading: Reading, most_record_bytes: int = MOST_RECORD_BYTES) -> None:
        self.records: dict[str, Record] = {}
        self.entries: dict[str, Entry] = {}
        self.doubted: set[str] = set()
        self.raws: dict[str, RawRow] = {}
        self.seen: set[str] = set()
        self.counts: Counter[str] = Counter()
        self._index = index
        self._reading = reading
        self._most_record_bytes = most_record_bytes

    def see(self, rows: Sequence[RawRow], sight: Sight) -> None:
        """Judge the rows of one answer."""
        index, entries, seen, key_path = self._index, self.entries, self.seen, self._reading.key_path
        translation, unchanged = self._reading.source.translation, 0
        for raw in rows:
            stamp = fingerprint(raw)
            key = raw_key(raw, key_path)
            name = NAMELESS + stamp.hex() if key is None else key
            seen.add(name)
            before = entries.get(name)
            number = index.row(name) if before is None else None
            if index.has(number, stamp, translation) if before is None else is_known(before, stamp, translation):
                unchanged += 1
                continue
            if number is not None:
                before = index.entry(number)
            self._change(_Row(raw, key, name, stamp, before), sight)
        self.counts["rows"] += len(rows)
        self.counts["unchanged"] += unchanged

    def bury(self, key: str, sight: Sight) -> None:
        """The key is gone: its tombstone, unless something newer is known."""
        before = self._index.get(key)
        entry = None if before is None else gone(before, sight.epoch, sight.read)
        if entry is None:
            return
        self.entries[key] = entry
        self.counts[Operation.DELETE] += 1
        event = self._event(key, entry, sight, None)
        self._publish(event, codec.encode(event))

    def labels(self) -> Counter[str]:
        """How many records there are of each label."""
        return Counter(record.label for record in self.records.values())

    def _change(self, row: _Row, sight: Sight) -> None:
        fault: Rejected | None = None
        translated: Translated | None = None
        try:
            translated = translate(row.raw, row.key, self._reading)
        except Rejected as error:
            fault = error
        version = None if translated is None else translated.source_version
        if translated is not None and sight.stated is not None and self._reading.shape.version is None:
            version = sight.stated
        translation = self._reading.source.translation
        entry = judge(row.before, Seen(row.stamp, version, sight.epoch, sight.read, translation, sight.keyed))
        if entry is None:
            self.doubted.add(row.name)
            return
        self.doubted.discard(row.name)
        if translated is not None and row.key is not None:
            event = self._event(row.key, entry, _recaused(sight, row.before, entry), translated)
            data = codec.encode(event)
            if len(data) <= self._most_record_bytes:
                self.entries[row.name] = entry
                self.raws[row.name] = row.raw
                self._publish(event, data)
                return
            fault = Rejected("too_large", f"its event is larger than {self._most_record_bytes} bytes")
            entry = msgspec.structs.replace(entry, state=State.QUARANTINED)
        if fault is not None:
            self.entries[row.name] = entry
            self.raws[row.name] = row.raw
            self._quarantine(row, fault, sight)

    def _publish(self, event: ChangeEvent, data: bytes) -> None:
        partition_key = str(event.key)
        self.records[partition_key] = Record(partition_key, data, event.cause)

    def _quarantine(self, row: _Row, fault: Rejected, sight: Sight) -> None:
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
        partition_key = str(EntityKey(entity, row.key or row.stamp.hex()))
        self.records[partition_key] = Record(partition_key, codec.encode(record), QUARANTINE)

    def _event(self, key: str, entry: Entry, sight: Sight, row: Translated | None) -> ChangeEvent:
        """An upsert of that row, or a tombstone."""
        name = EntityKey(self._reading.shape.name, key)
        operation = Operation.DELETE if row is None else Operation.UPSERT
        changed_at = None if row is None else row.changed_at
        return ChangeEvent(
            event_id=codec.event_id(name, entry.version, operation),
            key=name,
            version=entry.version,
            operation=operation,
            cause=sight.cause,
            source=self._reading.source.name,
            occurred_at=changed_at or sight.observed_at,
            observed_at=sight.observed_at,
            payload=None if row is None else row.payload,
        )


def _recaused(sight: Sight, before: Entry | None, entry: Entry) -> Sight:
    """The same raw row under a newer translation is not something that happened in the back office."""
    is_retranslated = (
        before is not None
        and before.state is State.LIVE
        and before.fingerprint == entry.fingerprint
        and before.translation < entry.translation
    )
    return sight._replace(cause=Cause.RETRANSLATE) if is_retranslated else sight
