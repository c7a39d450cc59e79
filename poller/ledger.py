"""What became of each dropped file: every version of it is worked through once, refused once, or passed over once.

A file is known by its name and etag, so a file that is overwritten is another one. Entries state facts (every row of it
is acknowledged, it was refused), which stay true whoever writes them; so the last writer wins, a late one included.
"""

from __future__ import annotations

from typing import Protocol

from poller.files import FileEntry
from tidegate.source_table import SourceTable

PREFIX = "file#"


class Ledger(Protocol):
    async def entries(self, source: str) -> dict[str, FileEntry]:
        """The entry of every file, by its name. Raises Transient, Fatal."""
        ...

    async def write(self, source: str, entry: FileEntry) -> None:
        """Raises as entries does."""
        ...

    async def forget(self, source: str, name: str) -> None:
        """Raises as entries does."""
        ...


class TableLedger:
    def __init__(self, table: SourceTable) -> None:
        self._table = table

    async def entries(self, source: str) -> dict[str, FileEntry]:
        found = [item.read(FileEntry) for item in await self._table.items(source, PREFIX)]
        return {entry.name: entry for entry in found}

    async def write(self, source: str, entry: FileEntry) -> None:
        await self._table.put(source, PREFIX + entry.name, entry)

    async def forget(self, source: str, name: str) -> None:
        await self._table.delete(source, PREFIX + name)
