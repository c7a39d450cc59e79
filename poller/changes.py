"""What one page means: the records to publish, the entries to remember, the keys in doubt.  (pure)

One record a key at most, the newest: that is also what keeps a call to Kinesis free of two records of one key.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from itertools import compress
from operator import attrgetter
from typing import NamedTuple, cast

import msgspec
from msgspec.structs import replace

from poller.index import Index
from poller.snapshot import NAMELESS, Entry, Seen, State, fingerprints, first_entries, gone, is_known, judge, versions
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
_LABEL = attrgetter("label")


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


class _Rows(NamedTuple):
    """Rows of one answer in columns: raw, their keys (None: unreadable), names in the index, and what is known under those."""

    raws: Sequence[RawRow]
    keys: Sequence[str | None]
    names: Sequence[str]
    stamps: Sequence[bytes]
    befores: Sequence[Entry | None]

    def chosen(self, wanted: Sequence[bool]) -> _Rows:
        return self if all(wanted) else _Rows._make(list(compress(column, wanted)) for column in self)


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
        self._rows_before = index.rows

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
        is_new = [not known for known in self._known(names, numbers, stamps)]
        self.seen.update(zip(names, numbers, strict=True))
        new = sum(is_new)
        self.counts["rows"] += len(rows)
        self.counts["unchanged"] += len(rows) - new
        if new:
            befores = self._befores(list(compress(names, is_new)), list(compress(numbers, is_new)))
            shown = [list(compress(column, is_new)) for column in (rows, keys, names, stamps)]
            self._change(_Rows._make([*shown, befores]), sight)

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
        # Numbers stay; that a key has none is true for as long as no row came to the index.
        known = self.seen if self._index.rows == self._rows_before else {}
        numbers = self._index.apply(self.entries, known)
        numbered = zip(self.entries, numbers, strict=True)
        # What was buried was not seen.
        buried = self.counts[Operation.DELETE]
        self.seen.update(((key, row) for key, row in numbered if key in self.seen) if buried else numbered)

    def labels(self) -> Counter[str]:
        """How many records there are of each label."""
        return Counter(map(_LABEL, self.records.values()))

    def _known(self, names: Sequence[str], numbers: Sequence[int], stamps: Sequence[bytes]) -> list[bool]:
        """Which of the rows need not be published, by the index and by what this step has made of them."""
        translation, entries = self._reading.source.translation, self.entries
        known = self._index.known(numbers, stamps, translation)
        if entries:
            for at, name in enumerate(names):
                if name in entries:
                    known[at] = is_known(entries[name], stamps[at], translation)
        return known

    def _befores(self, names: Sequence[str], numbers: Sequence[int]) -> list[Entry | None]:
        """What is known under these names, by what this step has made of them and by the index."""
        if not self.entries and max(numbers) < 0:
            return [None] * len(names)
        mine, index = self.entries, self._index
        return [
            mine.get(name) or (index.entry(number) if number >= 0 else None)
            for name, number in zip(names, numbers, strict=True)
        ]

    def _change(self, rows: _Rows, sight: Sight) -> None:
        translated = translate_all(rows.raws, rows.keys, self._reading)
        entries = self._judged(rows, translated, sight)
        self.doubted.difference_update(rows.names)
        if all(entries) and set(map(type, translated)) == {Translated}:
            self._publish(rows, cast("Sequence[Entry]", entries), cast("Sequence[Translated]", translated), sight)
            return
        for at, (entry, found) in enumerate(zip(entries, translated, strict=True)):
            if entry is None:
                self.doubted.add(rows.names[at])
            elif isinstance(found, Rejected):
                self._quarantine(rows, at, entry, found, sight)
        good = [
            entry is not None and type(found) is Translated for entry, found in zip(entries, translated, strict=True)
        ]
        upserts = cast("list[Entry]", list(compress(entries, good)))
        if upserts:
            self._publish(rows.chosen(good), upserts, cast("list[Translated]", list(compress(translated, good))), sight)

    def _judged(self, rows: _Rows, translated: Sequence[Translated | Rejected], sight: Sight) -> Sequence[Entry | None]:
        """What `judge` says of each."""
        source, shape = self._reading.source, self._reading.shape
        stated = None if shape.version is not None else sight.stated
        versions = [
            None if isinstance(found, Rejected) else found.source_version if stated is None else stated
            for found in translated
        ]
        if not any(rows.befores):
            return first_entries(rows.stamps, versions, sight.epoch, sight.read, source.translation)
        return [
            judge(before, Seen(stamp, version, sight.epoch, sight.read, source.translation, sight.keyed))
            for before, stamp, version in zip(rows.befores, rows.stamps, versions, strict=True)
        ]

    def _publish(self, rows: _Rows, entries: Sequence[Entry], found: Sequence[Translated], sight: Sight) -> None:
        entity = self._reading.shape.name
        causes = [sight.cause] * len(entries)
        if any(rows.befores):
            causes = [_cause(sight, before, entry) for before, entry in zip(rows.befores, entries, strict=True)]
        upserts = codec.Upserts(
            rows.names,
            versions(entries),
            causes,
            [each.changed_at or sight.observed_at for each in found],
            [each.payload for each in found],
        )
        encoded = codec.encode_upserts(entity, self._reading.source.name, sight.observed_at, upserts)
        fits = [len(data) <= self._most_record_bytes for data in encoded]
        for at in range(len(fits)) if False in fits else ():
            if not fits[at]:
                fault = Rejected("too_large", f"its event is larger than {self._most_record_bytes} bytes")
                self._quarantine(rows, at, replace(entries[at], state=State.QUARANTINED), fault, sight)
        partition_keys = [f"{entity}:{name}" for name in rows.names]
        records = map(Record, partition_keys, encoded, causes)
        self.entries.update(compress(zip(rows.names, entries, strict=True), fits))
        self.raws.update(compress(zip(rows.names, rows.raws, strict=True), fits))
        self.records.update(compress(zip(partition_keys, records, strict=True), fits))

    def _quarantine(self, rows: _Rows, at: int, entry: Entry, fault: Rejected, sight: Sight) -> None:
        row, key, name, stamp = rows.raws[at], rows.keys[at], rows.names[at], rows.stamps[at].hex()
        source, entity = self._reading.source, self._reading.shape.name
        raw, text = msgspec.json.encode(row), str(fault)[:2_000]
        if isinstance(row, FileRow):
            text = f"{row.origin}: {text}"
        if len(raw) > _MOST_RAW_BYTES:
            raw, text = raw[:_MOST_RAW_BYTES], f"{text} (raw row cut at {_MOST_RAW_BYTES} of {len(raw)} bytes)"
        identity = f"{source.name}\n{name}\n{stamp}\n{source.translation}"
        record = QuarantineRecord(
            event_id=hashlib.blake2b(identity.encode(), digest_size=16).hexdigest(),
            source=source.name,
            entity=entity,
            stage="translate",
            reason=fault.reason,
            message=text,
            raw=raw,
            observed_at=sight.observed_at,
            key=key,
        )
        self.entries[name] = entry
        self.raws[name] = row
        partition_key = str(EntityKey(entity, key or stamp))
        self.records[partition_key] = Record(partition_key, codec.encode(record), QUARANTINE)


def _cause(sight: Sight, before: Entry | None, entry: Entry) -> Cause:
    """The same raw row under a newer translation is not something that happened in the back office."""
    is_retranslated = (
        before is not None
        and before.state is State.LIVE
        and before.fingerprint == entry.fingerprint
        and before.translation < entry.translation
    )
    return Cause.RETRANSLATE if is_retranslated else sight.cause
