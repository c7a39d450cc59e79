"""Files that business units drop in S3 as a source. What it reads and in which order is decided in `files`.

**Everything.** Each file is a full extract, the newest one is the truth. It is walked page by page, the index knows what
it said before, and a row missing from it is gone: there is nobody to ask again, and the limit on mass deletions is what
stands between a short file and the front office. Older files that nobody has read are passed over.

**Changes.** Each file is worked through once, in the order of the times they state; the cursor says how far. A file that
is overwritten comes again, and by the index only its difference is published. A file that comes late, or again, cannot
move a row back: its rows are of the time that it states (`Page.stated_at`).

Before a row of a file is published the whole file is looked at, from the local disk. A file that is not what it should
be is refused whole, and told: a log line, a metric, `tidegate sources show`. The ledger says what became of each version
of a file; it is written when the cursor shows that all of it was acknowledged, which is at the next call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from poller.dialect import Judgement
from poller.drop_bucket import DropBucket
from poller.files import Fate, FileEntry, Found, forgettable, fresh, newest_done, newest_order
from poller.ledger import Ledger
from poller.settings import DropSettings
from poller.source import FileRow, FullWalk, InFiles, Page, Position, Refused
from poller.translate import Reading, raw_key, translate
from poller.unpacked import Unpacked, page_of
from tidegate import telemetry
from tidegate.bubble import CsvDrop, Source
from tidegate.errors import Rejected, Transient


class _Reading:
    """A file that was taken, and how many of its rows were shown."""

    def __init__(self, found: Found, file: Any, unpacked: Unpacked, judgement: Judgement) -> None:
        self.found = found
        self.file = file
        self._unpacked = unpacked
        self._rows: Iterator[FileRow] = unpacked.rows()
        self.row = 0
        self.judgement = judgement

    async def next(self, most: int) -> list[FileRow]:
        page = await asyncio.to_thread(page_of, self._unpacked, self._rows, most)
        self.row += len(page)
        return page


class CsvDropSource:
    """`bucket` looks where the declaration says. Call `close` at the end."""

    def __init__(
        self, declared: Source, feed: CsvDrop, bucket: DropBucket, ledger: Ledger, settings: DropSettings
    ) -> None:
        self._declared = declared
        self._feed = feed
        self._bucket = bucket
        self._ledger = ledger
        self._settings = settings
        self._reading = Reading.of(declared)
        self._entries: dict[str, FileEntry] | None = None
        self._open: _Reading | None = None
        self._counts: dict[str, tuple[int, int]] = {}
        self._as_of: datetime | None = None
        self._has_tidied = False
        self._log = telemetry.get_logger("poller.csv_drop")

    @property
    def start(self) -> InFiles | None:
        return InFiles() if self._feed.holds == "changes" else None

    @property
    def reread_size(self) -> int:
        return 0

    @property
    def absence_decides(self) -> bool:
        return True

    def may_ask_ahead(self, position: Position) -> bool:
        """The ledger is written by what the cursor shows."""
        return False

    def close(self) -> None:
        """Let go of the file in hand."""
        if self._open is not None:
            self._open.file.close()
        self._open = None

    async def fetch(self, position: Position, mark: str = "", *, urgent: bool = True) -> Page:
        match position, self._feed.holds:
            case FullWalk(page=None), "everything":
                return await self._first_of_extract(mark)
            case FullWalk(), "everything":
                return await self._rest_of_extract(position)
            case InFiles(), "changes":
                return await self._changes(position)
            case FullWalk(), _:
                # Files of changes cannot be asked for everything: there is nothing to sweep.
                return _nothing(FullWalk(), mark, unchanged=True)
        raise Refused(f"source {self._declared.name!r}: its cursor is of another kind; delete the cursor's item")

    async def reread(self, keys: Sequence[str]) -> Page:
        raise ValueError(f"{self._declared.name}: files cannot be asked by key")

    # ---------------------------------------------------------------- everything

    async def _first_of_extract(self, mark: str) -> Page:
        entries = await self._known()
        found = await self._look()
        await self._settle(found, mark)
        coming = [each for each in fresh(found, entries) if each.order >= newest_order(entries)]
        # Without a mark nothing was published yet, or everything is to be published once more.
        chosen = coming[-1] if coming else newest_done(found, entries) if not mark else None
        if chosen is None or chosen.mark == mark or not await self._take(chosen):
            return _nothing(FullWalk(), mark, unchanged=True)
        return await self._rest_of_extract(FullWalk(page=0))

    async def _rest_of_extract(self, position: FullWalk) -> Page:
        reading = self._open
        if reading is None or reading.row != position.page:
            raise Transient(f"{self._declared.name}: the file in hand was let go; the walk begins anew")
        rows = await self._next(reading)
        found = reading.found
        if rows:
            return Page(
                rows=tuple(rows), following=FullWalk(page=reading.row), has_more=True, served_at=found.written_at
            )
        self.close()
        as_of = found.written_at - timedelta(seconds=self._declared.safety_s)
        return Page(
            rows=(), following=FullWalk(), has_more=False, served_at=found.written_at, as_of=as_of, mark=found.mark
        )

    async def _settle(self, found: Sequence[Found], mark: str) -> None:
        """Write down that the extract was worked through which the cursor names, and what it made superfluous."""
        entries = await self._known()
        name, _, etag = mark.rpartition(" ")
        known = entries.get(name)
        # Overwritten since by a version that was refused: what lies there now is known, and stays so.
        is_overwritten = known is not None and any((each.name, each.etag) == (name, known.etag) for each in found)
        if mark and (known is None or known.etag != etag) and not is_overwritten:
            stated_at = next((each.stated_at for each in found if each.mark == mark), None)
            await self._write(Found(name, etag, 0, datetime.now(UTC), stated_at), Fate.DONE)
        stand = newest_order(entries)
        for each in fresh(found, entries):
            if each.order < stand:
                await self._write(each, Fate.SUPERSEDED)

    # ---------------------------------------------------------------- changes

    async def _changes(self, position: InFiles) -> Page:
        at = position
        if at.done:
            await self._write_done(at)
            at = InFiles()
        reading = self._open
        if reading is None or (reading.found.name, reading.found.etag, reading.row) != (at.name, at.etag, at.row):
            chosen = await self._next_file(at)
            if chosen is None:
                as_of = None if self._as_of is None else self._as_of - timedelta(seconds=self._declared.safety_s)
                return _nothing(InFiles(), as_of=as_of)
            if not await self._take(chosen):
                return _nothing(InFiles(), has_more=True)
            reading = self._open
            assert reading is not None
            while reading.row < at.row and (at.name, at.etag) == (chosen.name, chosen.etag):
                if not await reading.next(min(self._settings.page_rows, at.row - reading.row)):
                    break
        return await self._page_of_changes(reading)

    async def _page_of_changes(self, reading: _Reading) -> Page:
        rows = await self._next(reading)
        found = reading.found
        if not rows:
            self.close()
            self._as_of = found.written_at
        return Page(
            rows=tuple(rows),
            following=InFiles(name=found.name, etag=found.etag, row=reading.row, done=not rows),
            has_more=True,
            served_at=found.written_at,
            stated_at=found.stated_at,
        )

    async def _next_file(self, at: InFiles) -> Found | None:
        """The file that was in hand, if it is still there as it was; else the first in order of which nothing became."""
        found = await self._look()
        in_hand = [each for each in found if at.name and (each.name, each.etag) == (at.name, at.etag)]
        coming = in_hand or fresh(found, await self._known())
        return coming[0] if coming else None

    async def _write_done(self, at: InFiles) -> None:
        known = (await self._known()).get(at.name)
        if known is None or known.etag != at.etag:
            found = [each for each in await self._look() if (each.name, each.etag) == (at.name, at.etag)]
            await self._write(found[0] if found else Found(at.name, at.etag, 0, datetime.now(UTC)), Fate.DONE)

    # ---------------------------------------------------------------- both

    async def _look(self) -> list[Found]:
        found = [await self._bucket.dated(each) for each in await self._bucket.look()]
        if not self._has_tidied:
            # Once in a term: the ledger must not grow for ever.
            entries = await self._known()
            for name in forgettable(found, entries, datetime.now(UTC)):
                await self._ledger.forget(self._declared.name, name)
                del entries[name]
            self._has_tidied = True
        return found

    async def _next(self, reading: _Reading) -> list[FileRow]:
        try:
            return await reading.next(self._settings.page_rows)
        except Rejected as error:
            # It was read to its end once, so it is the disk.
            self.close()
            raise Transient(f"{self._declared.name}: {reading.found.name}: {error}") from error

    async def _take(self, found: Found) -> bool:
        """Bring a file here, look at all of it, and open it. False: it was refused, and that was told."""
        self.close()
        file = NamedTemporaryFile(prefix="tidegate-", dir=self._settings.folder)  # noqa: SIM115  (it is kept open)
        is_taken = False
        try:
            judgement, refusal = await self._judged(found, file)
            if refusal:
                await self._write(found, Fate.REFUSED, judgement, refusal)
                return False
            self._open = _Reading(found, file, self._unpacked(found, file), judgement)
            self._counts[found.mark] = (judgement.rows, judgement.faults)
            is_taken = True
        finally:
            if not is_taken:
                file.close()
        self._log.info(telemetry.POLLER_FILE_TAKEN, source=self._declared.name, file=found.name, rows=judgement.rows)
        return True

    async def _judged(self, found: Found, file: Any) -> tuple[Judgement, str]:
        """Raises Transient: it could not be brought here now."""
        judgement = Judgement(self._feed, self._fault)
        if found.size_bytes > self._settings.most_bytes:
            return (
                judgement,
                f"it has {found.size_bytes} bytes, more than the {self._settings.most_bytes} that are allowed",
            )
        if found.stated_at is None and self._feed.holds == "changes":
            return judgement, f"it does not say of which time it is, as {self._feed.stated} wants"
        await self._bucket.fetch(found, file)
        steps = self._unpacked(found, file).judged(self._fault)
        try:
            # In steps, each in a thread: leases must be renewed meanwhile, and a stop must not wait for the whole file.
            while (step := await asyncio.to_thread(next, steps, None)) is not None:
                judgement = step
        except Rejected as error:
            return judgement, str(error)
        return judgement, judgement.refusal

    def _unpacked(self, found: Found, file: Any) -> Unpacked:
        return Unpacked(Path(file.name), found.name, self._feed, self._settings.most_unpacked_bytes)

    def _fault(self, values: Mapping[str, str]) -> str:
        try:
            translate(values, raw_key(values, self._reading.key_path), self._reading)
        except Rejected as error:
            return str(error)
        return ""

    async def _known(self) -> dict[str, FileEntry]:
        if self._entries is None:
            self._entries = await self._ledger.entries(self._declared.name)
        return self._entries

    async def _write(self, found: Found, fate: Fate, judgement: Judgement | None = None, reason: str = "") -> None:
        rows, faults = self._counts.pop(found.mark, (0, 0)) if judgement is None else (judgement.rows, judgement.faults)
        before = (await self._known()).get(found.name)
        stood = before if fate is Fate.REFUSED and before is not None and before.stands else None
        stated_at = found.stated_at or (None if stood is None else stood.stated_at)
        entry = FileEntry(
            name=found.name, etag=found.etag, fate=fate, at=datetime.now(UTC), stated_at=stated_at, rows=rows,
            faults=faults, reason=reason[:2_000], was_done=stood is not None,
        )  # fmt: skip
        await self._ledger.write(self._declared.name, entry)
        (await self._known())[found.name] = entry
        telemetry.POLLER_FILES.labels(self._declared.name, fate).inc()
        name = self._declared.name
        if fate is Fate.REFUSED:
            self._log.error(telemetry.POLLER_FILE_REFUSED, source=name, file=found.name, reason=reason)
        else:
            self._log.info(
                telemetry.POLLER_FILE_DONE, source=name, file=found.name, fate=fate, rows=rows, faults=faults
            )


def _nothing(
    following: Position,
    mark: str = "",
    *,
    unchanged: bool = False,
    has_more: bool = False,
    as_of: datetime | None = None,
) -> Page:
    """An answer that says nothing about any row."""
    return Page(
        rows=(), following=following, has_more=has_more, served_at=datetime.now(UTC), mark=mark, unchanged=unchanged,
        as_of=as_of,
    )  # fmt: skip
