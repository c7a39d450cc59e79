"""The text of a CSV file → rows, each with its line; what cannot be read is a fault of its own line.  (pure)

Polluted files are the rule: a quote that is never closed must not swallow the rest of the file, a row with a column too
many must not shift its neighbours, and one byte in another encoding must not cost more than its row. The reader is
Python's own `csv` (docs/decisions/0031-csv-reader.md), fed a record at a time: when a record that began in one line runs
into others and turns out to be wrong, only its first line is, and the others are read anew.

Blocks of lines in which nothing is unusual, most of them, are read in one step. Memory is bounded whatever the file
holds: a line by `_MOST_LINE` characters, a record by `_MOST_LINES` lines.
"""

from __future__ import annotations

import csv
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from io import StringIO
from typing import TextIO

from poller.source import FileRow
from tidegate.drops import CsvDrop
from tidegate.errors import Rejected

_BLOCK = 16 * 1024
_MOST_LINE = 1024 * 1024
_MOST_LINES = 200
_MOST_RAW = 10_000
_BOM = "\ufeff"
ESCAPES = "surrogateescape"
"""The error handler to decode a file with: a byte that is none of its encoding's becomes a fault of its row."""


class _Lines:
    """Lines with their numbers, which can be given back; or whole blocks of them."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._again: deque[str] = deque()
        self.number = 0
        self.taken: list[str] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else self._text.readline(_MOST_LINE)
        if not line:
            raise StopIteration
        if len(self.taken) == _MOST_LINES:
            self._again.appendleft(line)
            raise csv.Error(f"a quote is not closed within {_MOST_LINES} lines")
        self.number += 1
        self.taken.append(line)
        return line

    @property
    def has_some(self) -> bool:
        """Whether lines of the last block, or lines given back, are still to be taken."""
        return bool(self._again)

    def block(self) -> str:
        """The next lines, as one text that ends where a line does; "" at the end of the file."""
        block = self._text.read(_BLOCK)
        return block and block + self._text.readline(_MOST_LINE)

    def put(self, block: str) -> None:
        """Take a block's lines one by one."""
        self._again.extend(StringIO(block, newline=""))

    def give_back_all_but_first(self) -> None:
        self._again.extendleft(reversed(self.taken[1:]))
        self.number -= len(self.taken) - 1
        del self.taken[1:]


class Table:
    """The rows of one file, called `name`. `chars` is how many characters were read so far.

    Raises Rejected (`header`) when its header cannot be that of the declaration.
    """

    def __init__(self, text: TextIO, feed: CsvDrop, name: str = "") -> None:
        self._name = name
        self.chars = 0
        self._lines = _Lines(text)
        self._reader = csv.reader(self._lines, delimiter=feed.delimiter, quotechar=feed.quote, strict=True)
        self._feed = feed
        for _ in range(feed.skip_lines):
            next(self._lines, None)
        self._lines.taken.clear()
        self.columns = self._header()
        self._commas = [name for name in feed.decimal_comma if name in self.columns]

    def __iter__(self) -> Iterator[FileRow]:
        columns, commas, name = self.columns, self._commas, self._name
        while block := self._lines.block():
            self.chars += len(block)
            line = self._lines.number
            plain = self._plain(block)
            if plain is None:
                self._lines.put(block)
                yield from self._one_by_one()
                continue
            self._lines.number += len(plain)
            for fields in plain:
                line += 1
                if fields and (fields[0] or any(fields)):
                    row = FileRow(zip(columns, fields, strict=True), name, line)
                    yield self._converted(row) if commas else row

    def _plain(self, block: str) -> list[list[str]] | None:
        """The fields of each line; None unless every line is a right row, or blank."""
        if not _is_text([block]):
            return None
        reader = csv.reader(
            StringIO(block, newline=""), delimiter=self._feed.delimiter, quotechar=self._feed.quote, strict=True
        )
        try:
            rows = list(reader)
        except csv.Error:
            return None
        is_plain = reader.line_num == len(rows) and {len(fields) for fields in rows} <= {0, len(self.columns)}
        return rows if is_plain else None

    def _one_by_one(self) -> Iterator[FileRow]:
        """Record by record, to the end of the block's last one."""
        lines = self._lines
        while lines.has_some:
            lines.taken.clear()
            line = lines.number + 1
            reason = ""
            try:
                fields = next(self._reader)
            except csv.Error as error:
                reason, fields = str(error), []
            if len(fields) == len(self.columns) and any(fields) and _is_text(lines.taken):
                yield self._converted(FileRow(zip(self.columns, fields, strict=True), self._name, line))
            elif reason or any(fields):
                yield self._fault(line, reason, fields)

    def _fault(self, line: int, reason: str, fields: list[str]) -> FileRow:
        width, lines = len(self.columns), self._lines
        if not reason and len(fields) > width and not any(fields[width:]) and _is_text(lines.taken):
            # Delimiters at the end of a row, as spreadsheets leave them.
            return self._converted(FileRow(zip(self.columns, fields, strict=False), self._name, line))
        if len(lines.taken) > 1:
            lines.give_back_all_but_first()
        raw = (lines.taken[0] if lines.taken else "").rstrip("\r\n")[:_MOST_RAW]
        if not reason:
            is_text = _is_text(lines.taken)
            reason = f"{len(fields)} columns instead of {width}" if is_text else f"not {self._feed.encoding}"
        return FileRow([("raw", raw.encode("utf-8", "replace").decode())], self._name, line, reason)

    def _converted(self, row: FileRow) -> FileRow:
        for name in self._commas:
            row[name] = row[name].replace(".", "").replace(",", ".")
        return row

    def _header(self) -> list[str]:
        try:
            fields = next(self._reader, [])
        except csv.Error as error:
            raise Rejected("header", f"its header cannot be read: {error}") from error
        if not _is_text(self._lines.taken):
            raise Rejected("header", f"its header is not {self._feed.encoding}; check the encoding")
        aliases = dict(self._feed.aliases)
        names = [aliases.get(name, name) for name in (field.removeprefix(_BOM).strip() for field in fields)]
        while names and not names[-1]:
            names.pop()
        if repeated := sorted(name for name, count in Counter(names).items() if count > 1):
            raise Rejected("header", f"its header has the column {repeated[0]!r} more than once")
        if self._feed.key not in names:
            shown = self._feed.delimiter.join(names)[:200]
            raise Rejected(
                "header",
                f"its header has no column {self._feed.key!r}: {shown!r}; check key, delimiter, encoding and aliases",
            )
        return names


def _is_text(lines: list[str]) -> bool:
    """Whether every byte was one of the encoding's."""
    try:
        for line in lines:
            if not line.isascii():
                line.encode()
    except UnicodeEncodeError:
        return False
    return True


_SAMPLE_FIRST = 2_000
_SAMPLE_EVERY = 100


class Judgement:
    """A first look at every row of a file, and at what the translator says of the first ones and of some of the others.

    `translates` answers why a row cannot be translated, "" for one that can.
    """

    def __init__(self, feed: CsvDrop, translates: Callable[[Mapping[str, str]], str]) -> None:
        self.rows = 0
        self.faults = 0
        self._feed = feed
        self._translates = translates
        self._tried = self._untranslated = 0
        self._first_fault = self._first_untranslated = ""

    def look(self, row: FileRow) -> None:
        """One row, readable or not."""
        self.rows += 1
        if row.fault:
            self.faults += 1
            self._first_fault = self._first_fault or f"{row.origin}: {row.fault}"
        elif self.rows <= _SAMPLE_FIRST or self.rows % _SAMPLE_EVERY == 0:
            self._tried += 1
            if reason := self._translates(row):
                self._untranslated += 1
                self._first_untranslated = self._first_untranslated or f"{row.origin}: {reason}"

    @property
    def refusal(self) -> str:
        """Why the file is refused whole; "" when it is taken."""
        if not self.rows:
            return "it has no rows"
        for count, total, what, first in (
            (self.faults, self.rows, "cannot be read", self._first_fault),
            (self._untranslated, self._tried, "cannot be translated", self._first_untranslated),
        ):
            if count > self._feed.bad_rows and count * 100 > self._feed.bad_percent * total:
                return f"{count} of {total} rows {what}; {first}"
        return ""
