"""The index of one source: what was published last of every key, in about 45 bytes and the key's own length.  (pure)

Ten million rows with keys of twelve characters take some 600 MiB. Rows have numbers, in the order of their coming; what
is known of row n stands at place n of a few flat arrays, the keys one behind the other in a single heap. Small hash
tables of numbers, each of which grows by itself, find a key; none of them takes long to grow.

A row's number never changes, so rows that came together lie together: a *segment* of them is what the durable form
writes at once, and only segments in which something changed are written again.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from poller.snapshot import Entry, State

SEGMENT_ROWS = 16_384
_TABLES = 256
_FIRST_PLACES = 16
_FINGERPRINT = 8
_DEAD = -1


class _Kind(NamedTuple):
    """What many rows have in common. `state` is _DEAD for a row that was dropped."""

    generation: int
    epoch: int
    translation: int
    state: int
    unsure: bool


class Index:
    """Changes come only from what was journaled and published. `names` are of its durable segments, by number."""

    def __init__(self, entries: Mapping[str, Entry] | None = None) -> None:
        self._heap = bytearray()
        self._ends = array("Q")
        self._fingerprints = bytearray()
        self._versions = array("q")
        self._reads = array("I")
        self._kind_of = array("I")
        self._kinds: list[_Kind] = []
        self._counts: list[int] = []
        self._numbers: dict[_Kind, int] = {}
        self._tables = [array("I", bytes(4 * _FIRST_PLACES)) for _ in range(_TABLES)]
        self._filled = [0] * _TABLES
        self._starts: list[int] = [0]
        self._dirty: set[int] = set()
        self.names: dict[int, str] = {}
        self.apply(entries or {})

    # ---------------------------------------------------------------- one key

    def __len__(self) -> int:
        return sum(count for kind, count in self._kinds_now() if kind.state != _DEAD)

    def get(self, key: str) -> Entry | None:
        row = self.row(key)
        return None if row is None else self.entry(row)

    def row(self, key: str) -> int | None:
        """The key's number, for as long as this index lives; None when it is not known."""
        row = self._find(_encoded(key))
        return None if row is None or self._kinds[self._kind_of[row]].state == _DEAD else row

    def has(self, row: int | None, fingerprint: bytes, translation: int) -> bool:
        """As `snapshot.is_known` for the key with this number, without making an entry."""
        if row is None:
            return False
        kind = self._kinds[self._kind_of[row]]
        at = row * _FINGERPRINT
        return (
            kind.state not in (State.GONE, _DEAD)
            and not kind.unsure
            and kind.translation >= translation
            and self._fingerprints[at : at + _FINGERPRINT] == fingerprint
        )

    def is_living(self, key: str) -> bool:
        """Whether the key is known and not gone."""
        row = self._find(_encoded(key))
        return row is not None and self._kinds[self._kind_of[row]].state not in (State.GONE, _DEAD)

    def apply(self, changes: Mapping[str, Entry]) -> None:
        for key, entry in changes.items():
            self._set(_encoded(key), entry)

    def drop(self, keys: Iterable[str]) -> None:
        for key in keys:
            row = self._find(_encoded(key))
            if row is not None:
                self._rekind(row, _Kind(0, 0, 0, _DEAD, False))

    # ---------------------------------------------------------------- all of them

    @property
    def rows(self) -> int:
        """How many numbers were given out."""
        return len(self._ends)

    @property
    def has_dropped(self) -> bool:
        return any(kind.state == _DEAD for kind, _ in self._kinds_now())

    def entries(self) -> Mapping[str, Entry]:
        """All of them, made when they are looked at."""
        return _View(self)

    def doubt(self) -> None:
        """Every entry is unsure from here on."""
        self._kinds = [kind._replace(unsure=kind.state != _DEAD) for kind in self._kinds]
        self._numbers = {kind: number for number, kind in enumerate(self._kinds)}
        self._dirty = set(range(len(self._starts)))

    def live_count(self) -> int:
        return sum(count for kind, count in self._kinds_now() if kind.state not in (State.GONE, _DEAD))

    def behind(self, translation: int) -> int:
        """How many rows were published by an older translation."""
        living = ((kind, count) for kind, count in self._kinds_now() if kind.state not in (State.GONE, _DEAD))
        return sum(count for kind, count in living if kind.translation < translation)

    def is_behind(self, translation: int) -> bool:
        """Whether any row was published by an older translation."""
        return self.behind(translation) > 0

    def unsure_count(self) -> int:
        return sum(count for kind, count in self._kinds_now() if kind.unsure)

    def unsure(self) -> list[str]:
        return [key for key, entry in self.entries().items() if entry.unsure] if self.unsure_count() else []

    # ---------------------------------------------------------------- segments

    def segments(self) -> int:
        return len(self._starts)

    def dirty(self) -> list[int]:
        """The segments in which something changed since `clean`."""
        return sorted(self._dirty)

    def clean(self, number: int, name: str) -> None:
        """This segment is durable, under that name."""
        self.names[number] = name
        self._dirty.discard(number)

    def segment(self, number: int) -> dict[str, Entry]:
        """The entries of one segment."""
        start, end = self._bounds(number)
        living = (row for row in range(start, end) if self._kinds[self._kind_of[row]].state != _DEAD)
        return {self.key(row): self.entry(row) for row in living}

    def add_segment(self, entries: Mapping[str, Entry], name: str) -> None:
        """The next segment of a durable index, as it is under that name."""
        if self.rows > self._starts[-1]:
            self._starts.append(self.rows)
        number = len(self._starts) - 1
        self.apply(entries)
        self.clean(number, name)

    # ---------------------------------------------------------------- within

    def key(self, row: int) -> str:
        return self._heap[self._start(row) : self._ends[row]].decode("utf-8", "surrogatepass")

    def is_expected(self, row: int) -> bool:
        """Whether a full walk should show this row: it lives, or is gone and nobody is sure that it was said so."""
        kind = self._kinds[self._kind_of[row]]
        return kind.state != _DEAD and (kind.state != State.GONE or kind.unsure)

    def _start(self, row: int) -> int:
        return self._ends[row - 1] if row else 0

    def _bounds(self, number: int) -> tuple[int, int]:
        end = self._starts[number + 1] if number + 1 < len(self._starts) else self.rows
        return self._starts[number], end

    def _kinds_now(self) -> Iterator[tuple[_Kind, int]]:
        return zip(self._kinds, self._counts, strict=True)

    def entry(self, row: int) -> Entry:
        kind, at = self._kinds[self._kind_of[row]], row * _FINGERPRINT
        is_gone = kind.state == State.GONE
        stamp = b"" if is_gone else bytes(self._fingerprints[at : at + _FINGERPRINT])
        return Entry(
            kind.generation, self._versions[row], kind.epoch, self._reads[row], kind.translation, stamp,
            State(kind.state), kind.unsure,
        )  # fmt: skip

    def _find(self, name: bytes) -> int | None:
        number = hash(name)
        table = self._tables[number % _TABLES]
        mask = len(table) - 1
        place = (number // _TABLES) & mask
        heap, ends = self._heap, self._ends
        while row := table[place]:
            row -= 1
            if heap[ends[row - 1] if row else 0 : ends[row]] == name:
                return row
            place = (place + 1) & mask
        return None

    def _set(self, name: bytes, entry: Entry) -> None:
        kind = _Kind(entry.generation, entry.epoch, entry.translation, int(entry.state), entry.unsure)
        row = self._find(name)
        if row is None:
            row = self._append(name, kind)
        else:
            self._rekind(row, kind)
        at = row * _FINGERPRINT
        self._fingerprints[at : at + _FINGERPRINT] = entry.fingerprint.ljust(_FINGERPRINT, b"\0")[:_FINGERPRINT]
        self._versions[row] = entry.source_version
        self._reads[row] = entry.read
        self._dirty.add(bisect_right(self._starts, row) - 1)

    def _append(self, name: bytes, kind: _Kind) -> int:
        row = self.rows
        if row - self._starts[-1] >= SEGMENT_ROWS:
            self._starts.append(row)
        self._heap += name
        self._ends.append(len(self._heap))
        self._fingerprints += bytes(_FINGERPRINT)
        self._versions.append(0)
        self._reads.append(0)
        number = self._kind_number(kind)
        self._kind_of.append(number)
        self._counts[number] += 1
        self._place(name, row)
        return row

    def _place(self, name: bytes, row: int) -> None:
        number = hash(name)
        which = number % _TABLES
        self._filled[which] += 1
        if self._filled[which] * 4 > len(self._tables[which]) * 3:
            self._grow(which)
        _put(self._tables[which], number, row)

    def _grow(self, which: int) -> None:
        old = self._tables[which]
        grown = array("I", bytes(8 * len(old)))
        for row in old:
            if row:
                _put(grown, hash(bytes(self._heap[self._start(row - 1) : self._ends[row - 1]])), row - 1)
        self._tables[which] = grown

    def _rekind(self, row: int, kind: _Kind) -> None:
        before = self._kind_of[row]
        after = self._kind_number(kind)
        if before != after:
            self._counts[before] -= 1
            self._counts[after] += 1
            self._kind_of[row] = after
            self._dirty.add(bisect_right(self._starts, row) - 1)

    def _kind_number(self, kind: _Kind) -> int:
        number = self._numbers.get(kind)
        if number is None:
            number = self._numbers[kind] = len(self._kinds)
            self._kinds.append(kind)
            self._counts.append(0)
        return number


class _View(Mapping[str, Entry]):
    def __init__(self, index: Index) -> None:
        self._index = index

    def __getitem__(self, key: str) -> Entry:
        entry = self._index.get(key)
        if entry is None:
            raise KeyError(key)
        return entry

    def __iter__(self) -> Iterator[str]:
        for number in range(self._index.segments()):
            yield from self._index.segment(number)

    def __len__(self) -> int:
        return len(self._index)


class Roll:
    """Who was called in a walk: a byte for each row of an index."""

    def __init__(self, index: Index, called: bytes = b"") -> None:
        self._index = index
        self._called = bytearray(called)

    def call(self, keys: Iterable[str]) -> None:
        """These were shown. Keys that the index does not know need not be."""
        rows = [row for row in map(self._index.row, keys) if row is not None]
        if rows and max(rows) >= len(self._called):
            self._called += bytes(self._index.rows - len(self._called))
        for row in rows:
            self._called[row] = 1

    def missing(self) -> Iterator[str]:
        """Keys that the walk should have shown and did not."""
        called, index = self._called, self._index
        called += bytes(index.rows - len(called))
        row = called.find(0)
        while row >= 0:
            if index.is_expected(row):
                yield index.key(row)
            row = called.find(0, row + 1)

    def first(self, rows: int) -> bytes:
        """What is known of the first rows."""
        return bytes(self._called[:rows]).ljust(rows, b"\0")


def _encoded(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")


def _put(table: array[int], number: int, row: int) -> None:
    mask = len(table) - 1
    place = (number // _TABLES) & mask
    while table[place]:
        place = (place + 1) & mask
    table[place] = row + 1
