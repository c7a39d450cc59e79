"""The index of one source: what was published last of every key, in about 45 bytes and the key's own length.  (pure)

Ten million rows with keys of twelve characters take some 500 MiB. Rows have numbers, in the order of their coming; what
is known of row n stands at place n of a few flat arrays, the keys one behind the other in a single heap. Small hash
tables of numbers, each of which grows by itself, find a key; none of them takes long to grow.

A row's number never changes, so rows that came together lie together: a *segment* of them is what the durable form
writes at once, and only segments in which something changed are written again.

Pages have many rows, so the questions that each row asks are answered for many at once: `numbers`, `known`, `apply`.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from operator import attrgetter
from sys import byteorder
from typing import NamedTuple, cast

from msgspec.structs import replace

from poller.snapshot import Entry, State

SEGMENT_ROWS = 16_384
_TABLES = 256
_FIRST_PLACES = 16
_SMALL_PLACES = 1_024
"""Places up to which a table grows by eight: together they are a megabyte, and are filled anew less often."""
_DEAD = -1
_SURROGATES = "surrogatepass"


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
        # The key of row n lies from bound n to bound n + 1.
        self._bounds = array("Q", [0])
        self._fingerprints = array("Q")
        self._versions = array("q")
        self._reads = array("I")
        self._kind_of = array("I")
        self._kinds: list[_Kind] = []
        self._counts: list[int] = []
        self._numbers: dict[tuple[int, int, int, int, bool], int] = {}
        self._tables = [array("I", bytes(4 * _FIRST_PLACES)) for _ in range(_TABLES)]
        self._filled = [0] * _TABLES
        self._starts: list[int] = [0]
        self._dirty: set[int] = set()
        self.names: dict[int, str] = {}
        self.apply(entries or {})

    # ---------------------------------------------------------------- by key

    def __len__(self) -> int:
        return sum(count for kind, count in self._kinds_now() if kind.state != _DEAD)

    def get(self, key: str) -> Entry | None:
        [row] = self.numbers([key])
        return None if row < 0 else self.entry(row)

    def numbers(self, keys: Iterable[str]) -> list[int]:
        """Each key's number, for as long as this index lives; -1 for one that is not known."""
        rows = self._find(_encoded(keys))
        if self.has_dropped:
            kinds, kind_of = self._kinds, self._kind_of
            rows = [row if row >= 0 and kinds[kind_of[row]].state != _DEAD else -1 for row in rows]
        return rows

    def known(self, numbers: Iterable[int], fingerprints: Iterable[bytes], translation: int) -> list[bool]:
        """As `snapshot.is_known` for the keys with these numbers, without making entries."""
        sure = [
            kind.state not in (State.GONE, _DEAD) and not kind.unsure and kind.translation >= translation
            for kind in self._kinds
        ]
        kind_of, known = self._kind_of, self._fingerprints
        shown = array("Q", b"".join(fingerprints))
        return [
            row >= 0 and known[row] == stamp and sure[kind_of[row]] for row, stamp in zip(numbers, shown, strict=True)
        ]

    def is_living(self, key: str) -> bool:
        """Whether the key is known and not gone."""
        [row] = self.numbers([key])
        return row >= 0 and self._kinds[self._kind_of[row]].state != State.GONE

    def apply(self, changes: Mapping[str, Entry], known: Mapping[str, int] | None = None) -> list[int]:
        """Answers the keys' numbers, in their order. `known` are what `numbers` says now of any keys."""
        names = _encoded(changes)
        numbers, coming = self._numbers_of(changes, names, known or {}), self.rows
        if numbers.count(-1) == len(numbers):
            self._append(names, list(changes.values()))
            return list(range(coming, self.rows))
        new: list[bytes] = []
        entries: list[Entry] = []
        for at, entry in enumerate(changes.values()):
            if numbers[at] < 0:
                numbers[at] = coming + len(new)
                new.append(names[at])
                entries.append(entry)
            else:
                self._set(numbers[at], entry)
        if new:
            self._append(new, entries)
        return numbers

    def _numbers_of(self, keys: Iterable[str], names: Iterable[bytes], known: Mapping[str, int]) -> list[int]:
        """As `_find`, where the number is not known already. A dropped row has one, which is not told."""
        numbers = list(map(known.get, keys)) if known and not self.has_dropped else []
        return cast("list[int]", numbers) if numbers and None not in numbers else self._find(names)

    def drop(self, keys: Iterable[str]) -> None:
        dead = self._kind_number(_Kind(0, 0, 0, _DEAD, False))
        for row in self._find(_encoded(keys)):
            if row >= 0:
                self._rekind(row, dead)

    # ---------------------------------------------------------------- all of them

    @property
    def rows(self) -> int:
        """How many numbers were given out."""
        return len(self._kind_of)

    @property
    def has_dropped(self) -> bool:
        return any(kind.state == _DEAD and count for kind, count in self._kinds_now())

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
        start = self._starts[number]
        end = self._starts[number + 1] if number + 1 < len(self._starts) else self.rows
        living = zip(self._keys(start, end), self._entries(start, end), strict=True)
        return {key: entry for key, entry in living if entry is not None}

    def add_segment(self, entries: Mapping[str, Entry], name: str) -> None:
        """The next segment of a durable index, as it is under that name."""
        if self.rows > self._starts[-1]:
            self._starts.append(self.rows)
        number = len(self._starts) - 1
        self.apply(entries)
        self.clean(number, name)

    # ---------------------------------------------------------------- by number

    def key(self, row: int) -> str:
        return next(self._keys(row, row + 1))

    def entry(self, row: int) -> Entry:
        """Raises LookupError for one that was dropped."""
        [entry] = self._entries(row, row + 1)
        if entry is None:
            raise LookupError(row)
        return entry

    def is_expected(self, row: int) -> bool:
        """Whether a full walk should show this row: it lives, or is gone and nobody is sure that it was said so."""
        kind = self._kinds[self._kind_of[row]]
        return kind.state != _DEAD and (kind.state != State.GONE or kind.unsure)

    def _keys(self, start: int, end: int) -> Iterator[str]:
        bounds = self._bounds[start : end + 1]
        first = bounds[0]
        heap = self._heap[first : bounds[-1]]
        if heap.isascii():
            # A byte is a character, and a part of a text is quicker to have.
            text = heap.decode()
            return iter([text[begin - first : end - first] for begin, end in pairwise(bounds)])
        return (heap[begin - first : end - first].decode("utf-8", _SURROGATES) for begin, end in pairwise(bounds))

    def _entries(self, start: int, end: int) -> list[Entry | None]:
        """None for what was dropped."""
        kinds = [self._kinds[number] for number in self._kind_of[start:end]]
        if not kinds:
            return []
        stamps = self._fingerprints[start:end].tobytes()
        eights = [stamps[at : at + 8] for at in range(0, len(stamps), 8)]
        generations, epochs, translations, states, unsure = zip(*kinds, strict=True)
        versions, reads = self._versions[start:end], self._reads[start:end]
        found = map(Entry, generations, versions, epochs, reads, translations, eights, states, unsure)
        if {_DEAD, State.GONE}.isdisjoint(states):
            return list(found)
        return [
            None if entry.state == _DEAD else replace(entry, fingerprint=b"") if entry.state == State.GONE else entry
            for entry in found
        ]

    # ---------------------------------------------------------------- within

    def _kinds_now(self) -> Iterator[tuple[_Kind, int]]:
        return zip(self._kinds, self._counts, strict=True)

    def _find(self, names: Iterable[bytes]) -> list[int]:
        """The number of each, -1 for one that has none; dropped rows have theirs."""
        tables, heap, bounds = self._tables, self._heap, self._bounds
        found = []
        for name in names:
            number = hash(name)
            table = tables[number % _TABLES]
            mask = len(table) - 1
            place = (number // _TABLES) & mask
            # A place holds one more than a row's number, 0 when it is free.
            while (after := table[place]) and heap[bounds[after - 1] : bounds[after]] != name:
                place = (place + 1) & mask
            found.append(after - 1)
        return found

    def _set(self, row: int, entry: Entry) -> None:
        self._rekind(row, self._kind_number(_kind(entry)))
        self._fingerprints[row] = int.from_bytes(entry.fingerprint.ljust(8, b"\0"), byteorder)
        self._versions[row] = entry.source_version
        self._reads[row] = entry.read
        self._dirty.add(bisect_right(self._starts, row) - 1)

    def _append(self, names: Sequence[bytes], entries: Sequence[Entry]) -> None:
        """Rows for keys that have none yet."""
        if not names:
            return
        first, starts = self.rows, self._starts
        self._heap += b"".join(names)
        self._bounds.extend(accumulate(map(len, names), initial=self._bounds.pop()))
        self._fingerprints.frombytes(b"".join([entry.fingerprint.ljust(8, b"\0") for entry in entries]))
        self._versions.extend([entry.source_version for entry in entries])
        self._reads.extend([entry.read for entry in entries])
        kinds = list(map(_kind, entries))
        numbers = {kind: self._kind_number(kind) for kind in set(kinds)}
        self._kind_of.extend([numbers[kind] for kind in kinds])
        for number, count in Counter(self._kind_of[first:]).items():
            self._counts[number] += count
        while self.rows - starts[-1] > SEGMENT_ROWS:
            starts.append(starts[-1] + SEGMENT_ROWS)
        self._dirty.update(range(bisect_right(starts, first) - 1, len(starts)))
        self._place(names, first)

    def _place(self, names: Sequence[bytes], first: int) -> None:
        tables, filled = self._tables, self._filled
        for after, name in enumerate(names, first + 1):
            number = hash(name)
            which = number % _TABLES
            filled[which] += 1
            if filled[which] * 4 > len(tables[which]) * 3:
                self._grow(which)
            table = tables[which]
            mask = len(table) - 1
            place = (number // _TABLES) & mask
            while table[place]:
                place = (place + 1) & mask
            table[place] = after

    def _grow(self, which: int) -> None:
        old, heap, bounds = self._tables[which], self._heap, self._bounds
        grown = array("I", bytes(4 * len(old) * (8 if len(old) < _SMALL_PLACES else 2)))
        mask = len(grown) - 1
        for after in old:
            if after:
                place = (hash(bytes(heap[bounds[after - 1] : bounds[after]])) // _TABLES) & mask
                while grown[place]:
                    place = (place + 1) & mask
                grown[place] = after
        self._tables[which] = grown

    def _rekind(self, row: int, after: int) -> None:
        before = self._kind_of[row]
        if before != after:
            self._counts[before] -= 1
            self._counts[after] += 1
            self._kind_of[row] = after
            self._dirty.add(bisect_right(self._starts, row) - 1)

    def _kind_number(self, kind: tuple[int, int, int, int, bool]) -> int:
        number = self._numbers.get(kind)
        if number is None:
            number = self._numbers[kind] = len(self._kinds)
            self._kinds.append(_Kind._make(kind))
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

    def call(self, seen: Mapping[str, int]) -> None:
        """These keys were shown; each comes with its number, -1 if it had none. Keys that are not known need not be."""
        called = self._called
        called += bytes(self._index.rows - len(called))
        unnumbered = [key for key, row in seen.items() if row < 0]
        for row in (*seen.values(), *self._index.numbers(unnumbered)):
            if row >= 0:
                called[row] = 1

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


def _encoded(keys: Iterable[str]) -> list[bytes]:
    texts = list(keys)
    try:
        return list(map(str.encode, texts))
    except UnicodeEncodeError:
        return [text.encode("utf-8", _SURROGATES) for text in texts]


_kind: Callable[[Entry], tuple[int, int, int, int, bool]] = attrgetter(
    "generation", "epoch", "translation", "state", "unsure"
)
