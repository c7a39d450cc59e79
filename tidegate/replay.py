"""Dead letters go back on the stream, at a bounded rate, for the workers to try once more.

A replay takes the normal way: the same bytes, hence the same event id and version, under the entity's partition key.
So it changes nothing that is newer, and the worker knows the letter again by what its record says, wherever that stands
in the stream: it resolves the letter when the row holds its version or a newer one, and counts one more try when it
fails again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import NamedTuple

from tidegate import codec, letters
from tidegate.database import Database
from tidegate.errors import Rejected
from tidegate.event import ChangeEvent, EntityKey
from tidegate.letter import LetterKind, event_identity
from tidegate.letters import Letter, Selection

_MOST_LETTERS = 100
_MOST_KEY_CHARACTERS = 256


class Record(NamedTuple):
    """What the stream gets."""

    partition_key: str
    data: bytes


Publish = Callable[[str, Sequence[Record]], Awaitable[None]]
"""Puts records on the stream of this name; returns when all are acknowledged."""


class Replayed(NamedTuple):
    """`sent` letters; `skipped` by why, with some of their ids."""

    sent: int
    skipped: dict[str, list[int]]


class Pace:
    """At most `per_second` records a second."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._free_s = float("-inf")

    async def wait(self, records: int) -> None:
        """Returns when so many more may be sent; they count as sent then."""
        now_s = asyncio.get_running_loop().time()
        start_s = max(self._free_s, now_s)
        self._free_s = start_s + records / self._per_second
        await asyncio.sleep(start_s - now_s)


def record_of(letter: Letter) -> tuple[Record, ChangeEvent]:
    """What a replay of the letter sends.

    Raises Rejected: reason `gap`, `row`, `resolved`, `parked`, `unreadable` or `watermark`, with what to do instead.
    """
    if letter.resolved_at is not None:
        raise Rejected("resolved", "it is resolved; nothing is missing")
    if letter.parked_at is not None:
        raise Rejected("parked", "it waits for older letters of its key and follows by itself; see `dead-letters show`")
    if letter.kind is LetterKind.GAP:
        raise Rejected("gap", "a gap holds no record; republish the sources (TIDEGATE_REPUBLISH), then drop it")
    data = letter.record
    if data is None:
        raise Rejected(
            "row",
            "the poller could not translate the row: mend the translator, raise the source's `translation` and deploy, "
            "then the next sweep sends it again; or edit it first",
        )
    try:
        event = codec.decode(data)
    except Rejected as error:
        raise Rejected("unreadable", "this release cannot read the record either; edit it, or drop it") from error
    if not isinstance(event, ChangeEvent):
        raise Rejected("watermark", "it changes no row, and what came later has taken its place; drop it")
    return Record(partition_key(event.key), data), event


def partition_key(key: EntityKey) -> str:
    """The entity's partition key; one that Kinesis would refuse is hashed, for its row is refused as well."""
    text = str(key)
    if 0 < len(text) <= _MOST_KEY_CHARACTERS:
        return text
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


class Replay:
    """Sends the letters of a selection, oldest first, each once."""

    def __init__(self, database: Database, publish: Publish, per_second: float) -> None:
        self._database = database
        self._publish = publish
        self._pace = Pace(per_second)
        self._size = max(1, min(_MOST_LETTERS, int(per_second / 4)))

    async def run(self, selection: Selection, *, dry_run: bool = False) -> Replayed:
        """Raises Transient or Fatal as the stream and the database do; what was sent until then is marked so."""
        sent, skipped = Counter[str](), dict[str, list[int]]()
        async with self._database.transaction("count the dead letters") as connection:
            _, newest = await letters.count(connection, selection)
        after = 0
        while page := await self._page(selection, after, newest):
            after = page[-1].id
            good: list[tuple[Letter, Record, ChangeEvent]] = []
            for letter in page:
                try:
                    good.append((letter, *record_of(letter)))
                except Rejected as error:
                    skipped.setdefault(str(error), []).append(letter.id)
            if good and not dry_run:
                await self._send(good)
            sent["records"] += len(good)
        return Replayed(sent["records"], skipped)

    async def _page(self, selection: Selection, after: int, newest: int) -> list[Letter]:
        async with self._database.transaction("read the dead letters") as connection:
            return await letters.find(connection, selection, self._size, after, newest)

    async def _send(self, good: Sequence[tuple[Letter, Record, ChangeEvent]]) -> None:
        await self._pace.wait(len(good))
        async with self._database.transaction("prepare a replay") as connection:
            for letter, record, event in good:
                if letter.entity is None and (identity := event_identity(record.data)):
                    await letters.adopt(connection, letter.id, event, identity)
            # By the clock that the worker files by, before it can: later filings are of the replay.
            at: datetime = await connection.fetchval("SELECT clock_timestamp()")
        for stream in sorted({letter.stream for letter, _, _ in good}):
            mine = [(letter, record) for letter, record, _ in good if letter.stream == stream]
            await self._publish(stream, [record for _, record in mine])
            async with self._database.transaction("mark what was replayed") as connection:
                await letters.mark_replayed(connection, [letter.id for letter, _ in mine], at)
