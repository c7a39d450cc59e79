"""The append log of one shard on disk, with an index in memory.

A segment file holds one record a line, in the very JSON that GetRecords answers with, each followed by a comma
and a newline. A read is therefore one `pread` of a run of lines, without its last comma, and nothing is parsed.
The name of a segment carries its first position, so positions go on after the older segments are trimmed away.

An append is one `write` to the operating system before the call is answered: that survives the death of the
process, not the loss of power. A half-written last line was never acknowledged; it is cut off when the log opens.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec

from local.kinesis.errors import LogDamaged
from local.kinesis.model import parse_sequence

LINE_END = b",\n"


class StoredRecord(msgspec.Struct):
    """One line of a segment."""

    arrival: float = msgspec.field(name="ApproximateArrivalTimestamp")
    payload: str = msgspec.field(name="Data")
    partition_key: str = msgspec.field(name="PartitionKey")
    sequence: str = msgspec.field(name="SequenceNumber")

    def size_bytes(self) -> int:
        return payload_bytes(self.payload) + len(self.partition_key.encode())


_decoder = msgspec.json.Decoder(StoredRecord)


def payload_bytes(base64_text: str) -> int:
    """The length of what a padded base64 text stands for."""
    return len(base64_text) // 4 * 3 - base64_text[-2:].count("=")


@dataclass(frozen=True, slots=True)
class Line:
    """A record ready to be appended: its line with `LINE_END`, its arrival, and its size as the limits count it."""

    text: bytes
    arrival_ms: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive records: JSON objects separated by commas, and the position after the last of them."""

    records: bytes
    count: int
    size_bytes: int
    next_position: int


class Segment:
    """One file. The arrays hold, for each record, the end of its line, its arrival and the sizes so far."""

    def __init__(self, path: Path, first: int) -> None:
        self.path = path
        self.first = first
        self.ends = array("Q")
        self.arrivals = array("Q")
        self.totals = array("Q")
        self.damaged_bytes = 0

    @property
    def next_position(self) -> int:
        return self.first + len(self.ends)

    @property
    def length(self) -> int:
        return self.ends[-1] if self.ends else 0

    def note(self, length: int, arrival_ms: int, size_bytes: int) -> None:
        self.ends.append(self.length + length)
        self.arrivals.append(arrival_ms)
        self.totals.append((self.totals[-1] if self.totals else 0) + size_bytes)

    def load(self) -> None:
        """Read the file and cut off a torn end. Raises LogDamaged when readable records follow unreadable ones."""
        content = self.path.read_bytes()
        start = 0
        while (end := content.find(LINE_END, start)) >= 0:
            record = self._decode(content[start:end])
            if record is None:
                break
            self.note(end + len(LINE_END) - start, round(record.arrival * 1000), record.size_bytes())
            start = end + len(LINE_END)
        if start < len(content):
            self._cut(content, start)

    def _decode(self, line: bytes) -> StoredRecord | None:
        try:
            record = _decoder.decode(line)
            position = parse_sequence(record.sequence).position
        except (msgspec.DecodeError, ValueError):
            return None
        if position != self.next_position:
            raise LogDamaged(f"{self.path} holds position {position} where {self.next_position} belongs")
        return record

    def _cut(self, content: bytes, at: int) -> None:
        for line in content[at:].split(LINE_END)[1:]:
            try:
                _decoder.decode(line)
            except (msgspec.DecodeError, ValueError):
                continue
            raise LogDamaged(f"{self.path} is unreadable at byte {at} but goes on with good records")
        self.damaged_bytes = len(content) - at
        os.truncate(self.path, at)

    def read(self, position: int, max_records: int, max_bytes: int) -> Run:
        """The records from `position` on that fit, at least one. `position` must lie inside."""
        low = position - self.first
        before = self.totals[low - 1] if low else 0
        fitting = bisect_right(self.totals, before + max_bytes)
        high = max(low + 1, min(fitting, low + max_records, len(self.ends)))
        begin = self.ends[low - 1] if low else 0
        with self.path.open("rb", buffering=0) as file:
            text = os.pread(file.fileno(), self.ends[high - 1] - begin - len(LINE_END), begin)
        return Run(text, high - low, self.totals[high - 1] - before, self.first + high)


class ShardLog:
    """All segments of one shard, oldest first; the last one is written to.

    Positions count from 1. `first_position` is the oldest that is not trimmed, `next_position` the next to be given.
    """

    def __init__(self, directory: Path, name: str, segment_bytes: int) -> None:
        self._directory = directory
        self._name = name
        self._segment_bytes = segment_bytes
        self._file: int | None = None
        paths = sorted(directory.glob(f"{name}.*.log"))
        self._segments = [Segment(path, int(path.name.split(".")[1])) for path in paths]
        for segment in self._segments:
            segment.load()
        for older, newer in pairwise(self._segments):
            if older.next_position != newer.first:
                raise LogDamaged(f"{newer.path} does not follow {older.path}")
        if not self._segments:
            self._segments.append(self._new_segment(1))
        self.first_position = self._segments[0].first

    @property
    def next_position(self) -> int:
        return self._segments[-1].next_position

    @property
    def last_arrival_ms(self) -> int:
        for segment in reversed(self._segments):
            if segment.arrivals:
                return segment.arrivals[-1]
        return 0

    @property
    def damaged_bytes(self) -> int:
        """How much was cut off when the log was opened."""
        return sum(segment.damaged_bytes for segment in self._segments)

    def append(self, lines: Sequence[Line]) -> None:
        """Hand the lines to the operating system, all or none. Raises OSError (disk full) with nothing appended."""
        if self._segments[-1].length >= self._segment_bytes:
            self._rotate()
        segment = self._segments[-1]
        if self._file is None:
            self._file = os.open(segment.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        text = memoryview(b"".join([line.text for line in lines]))
        written = 0
        try:
            while written < len(text):
                written += os.write(self._file, text[written:])
        except OSError:
            os.ftruncate(self._file, segment.length)
            raise
        for line in lines:
            segment.note(len(line.text), line.arrival_ms, line.size_bytes)

    def read(self, position: int, max_records: int, max_bytes: int) -> Run:
        """The next records from `position` (trimmed ones are passed over), out of one segment at a time."""
        position = max(position, self.first_position)
        if position >= self.next_position:
            return Run(b"", 0, 0, position)
        return self._segment_of(position).read(position, max_records, max_bytes)

    def arrival_ms(self, position: int) -> int:
        """When the record at `position`, which must be there, arrived."""
        segment = self._segment_of(position)
        return segment.arrivals[position - segment.first]

    def position_at(self, timestamp_ms: int) -> int:
        """The first position that arrived at or after a time; the next one to be given when there is none."""
        for segment in self._segments:
            if segment.arrivals and segment.arrivals[-1] >= timestamp_ms:
                return max(self.first_position, segment.first + bisect_left(segment.arrivals, timestamp_ms))
        return self.next_position

    def trim(self, horizon_ms: int) -> None:
        """Forget what arrived before `horizon_ms`; a file goes when all of it is forgotten."""
        self.first_position = max(self.first_position, self.position_at(horizon_ms))
        last = self._segments[-1]
        if last.ends and self.first_position == last.next_position:
            self._rotate()
        while len(self._segments) > 1 and self._segments[0].next_position <= self.first_position:
            self._segments.pop(0).path.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the file; the next append opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def remove(self) -> None:
        self.close()
        for segment in self._segments:
            segment.path.unlink(missing_ok=True)

    def _segment_of(self, position: int) -> Segment:
        index = bisect_right(self._segments, position, key=lambda segment: segment.first) - 1
        return self._segments[index]

    def _rotate(self) -> None:
        self.close()
        segment = self._new_segment(self.next_position)
        # The file exists before the older ones go: its name is what remembers the position over a restart.
        segment.path.touch()
        self._segments.append(segment)

    def _new_segment(self, first: int) -> Segment:
        return Segment(self._directory / f"{self._name}.{first:020d}.log", first)
