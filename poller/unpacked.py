"""One dropped file on the local disk: unpacked, and read row by row. Everything here blocks; call it in a thread.

What a file is is told by its first bytes, not by its name: gzip, zip (all CSV files in it, by name), else plain text.
Memory is bounded by `poller.dialect` and by the decompressors; the disk holds what was dropped, packed.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping
from io import BufferedReader, RawIOBase, TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast
from zipfile import BadZipFile, ZipFile

from poller.dialect import ESCAPES, Judgement, Table
from poller.source import FileRow
from tidegate.drops import CsvDrop
from tidegate.errors import Rejected

_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
# What the three unpackers raise for what is damaged, encrypted, or packed in a way they do not know.
_BAD_PACKING = (EOFError, OSError, zlib.error, BadZipFile, RuntimeError)
_JUDGED_AT_ONCE = 20_000
_PAGE_CHARS = 8 * 1024 * 1024


class _Left:
    """How many bytes may still come."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = self.bytes = most_bytes


class _Bounded(RawIOBase):
    """What is unpacked, as far as it may be: a few kilobytes can become terabytes."""

    def __init__(self, packed: IO[bytes], left: _Left) -> None:
        self._packed = packed
        self._left = left

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        part = self._packed.read(len(into))
        self._left.bytes -= len(part)
        if self._left.bytes < 0:
            raise Rejected("packing", f"it unpacks to more than the {self._left.most_bytes} bytes that are allowed")
        into[: len(part)] = part
        return len(part)


class Unpacked:
    """`name` is the object's, for people. `most_bytes`: what it may unpack to, all its members together."""

    def __init__(self, path: Path, name: str, feed: CsvDrop, most_bytes: int = 100_000_000_000) -> None:
        self._path = path
        self._most_bytes = most_bytes
        self._name = name.rpartition("/")[2]
        self._feed = feed
        self._table: Table | None = None

    @property
    def chars(self) -> int:
        """How many characters of the text in hand were read so far."""
        return 0 if self._table is None else self._table.chars

    def rows(self) -> Iterator[FileRow]:
        """Every row, those that cannot be read among them. Raises Rejected: `header`, or `packing`."""
        left = _Left(self._most_bytes)
        try:
            for name, packed in self._members():
                with (
                    packed,
                    BufferedReader(_Bounded(packed, left)) as binary,
                    TextIOWrapper(binary, self._feed.encoding, errors=ESCAPES, newline="") as text,
                ):
                    self._table = table = Table(text, self._feed, name)
                    yield from table
        except UnicodeError as error:
            raise Rejected("header", f"it is not {self._feed.encoding}: {error}; check the encoding") from error
        except _BAD_PACKING as error:
            raise Rejected("packing", f"it cannot be unpacked: {error}") from error

    def judged(self, translates: Callable[[Mapping[str, str]], str]) -> Iterator[Judgement]:
        """Looks at the whole file, in steps, and answers the same judgement after each. Raises as rows does."""
        judgement = Judgement(self._feed, translates)
        rows = self.rows()
        while step := list(islice(rows, _JUDGED_AT_ONCE)):
            for row in step:
                judgement.look(row)
            yield judgement
        yield judgement

    def _members(self) -> Iterator[tuple[str, IO[bytes]]]:
        with self._path.open("rb") as file:
            magic = file.read(4)
        if magic == _ZIP:
            with ZipFile(self._path) as archive:
                for member in sorted(filter(_is_csv, archive.namelist())):
                    yield f"{self._name}/{member}", archive.open(member)
        elif magic.startswith(_GZIP):
            yield self._name, cast("IO[bytes]", gzip.open(self._path))  # noqa: SIM115  (the text over it closes it)
        else:
            yield self._name, self._path.open("rb")


def _is_csv(member: str) -> bool:
    """Hidden files are none: what a Mac packs beside each file is called as the file is, with `._` before it."""
    name = member.rpartition("/")[2].lower()
    return name.endswith(".csv") and not name.startswith(".")


def page_of(unpacked: Unpacked, rows: Iterator[FileRow], most: int) -> list[FileRow]:
    """The next of its rows: so many at most, and fewer when they are long."""
    page: list[FileRow] = []
    start = unpacked.chars
    for row in islice(rows, most):
        page.append(row)
        if unpacked.chars - start > _PAGE_CHARS:
            break
    return page
