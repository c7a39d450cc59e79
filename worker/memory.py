"""How much may be read that is not yet written: one bound in bytes for all shards of the process.

A reader asks for room before it reads, for as much as it expects; when it knows what came it gives the rest back, and
what is left when that is committed. If more came than was expected and there is no room for it, the reader lets go of
it and asks again for as much as it now knows of. So while the database is away, reading stops at the bound.

No shard starves another: room is given in the order of asking, and a shard that holds some already leaves a page's
worth to those that hold none. Something can always be read: when nothing is held, whoever asks gets the whole bound,
also when that is less than a page.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from tidegate import telemetry

PAGE_BYTES = 10 * 1024 * 1024
"""The most that one answer of GetRecords brings."""


class ReadMemory:
    """The bound. Bytes are those of records' payloads; what Python needs around them comes on top."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._used_bytes = 0
        self._waiting: deque[_Asking] = deque()

    @property
    def used_bytes(self) -> int:
        """What all shards hold now, expectations included."""
        return self._used_bytes

    @contextmanager
    def share(self) -> Iterator[Share]:
        """One shard's part. What it still holds when the block ends is given back."""
        share = Share(self)
        try:
            yield share
        finally:
            share.close()

    def move(self, more_bytes: int) -> None:
        """Count bytes that a room took or, below 0, gave back; who waits may go on."""
        self._used_bytes += more_bytes
        telemetry.READ_MEMORY_BYTES.set(self._used_bytes)
        if more_bytes < 0:
            self._give()

    async def admit(self, share: Share, need_bytes: int) -> None:
        """Return when `need_bytes` are counted as used by `share`."""
        asking = _Asking(share, min(need_bytes, self.limit_bytes))
        self._waiting.append(asking)
        self._give()
        try:
            await asking.admitted.wait()
        except asyncio.CancelledError:
            if asking.admitted.is_set():
                self.move(-asking.need_bytes)
            else:
                self._waiting.remove(asking)
                self._give()
            raise

    def _give(self) -> None:
        """Admit in order. One that holds room already is passed over; one that holds none is waited for."""
        for asking in tuple(self._waiting):
            if self.has_room(asking.need_bytes, beside_bytes=asking.share.held_bytes):
                self._waiting.remove(asking)
                asking.admitted.set()
                self.move(asking.need_bytes)
            elif not asking.share.held_bytes:
                return

    def has_room(self, more_bytes: int, *, beside_bytes: int) -> bool:
        """Whether so much more fits for a shard that holds `beside_bytes` already.

        Who asks is held to the bound, so that it fits at the latest when nothing is held.
        """
        spare_bytes = min(PAGE_BYTES, self.limit_bytes // 2) if beside_bytes else 0
        return self._used_bytes + more_bytes + spare_bytes <= self.limit_bytes


class Share:
    """One shard's part of the bound."""

    def __init__(self, memory: ReadMemory) -> None:
        self._memory = memory
        self._rooms: set[Room] = set()

    @property
    def held_bytes(self) -> int:
        return sum(room.size_bytes for room in self._rooms)

    async def take(self, need_bytes: int) -> Room:
        """Room for what is about to be read. Waits as long as others hold too much."""
        await self._memory.admit(self, need_bytes)
        room = Room(self, min(need_bytes, self._memory.limit_bytes))
        self._rooms.add(room)
        return room

    def resize(self, room: Room, size_bytes: int) -> bool:
        """False, and nothing is changed, when there is no room for it to grow. A room that was released stays so."""
        if room not in self._rooms:
            return True
        more_bytes = min(size_bytes, self._memory.limit_bytes) - room.size_bytes
        beside_bytes = self.held_bytes - room.size_bytes
        if more_bytes > 0 and not self._memory.has_room(more_bytes, beside_bytes=beside_bytes):
            return False
        room.size_bytes += more_bytes
        if not room.size_bytes:
            self._rooms.remove(room)
        self._memory.move(more_bytes)
        return True

    def close(self) -> None:
        for room in tuple(self._rooms):
            room.release()


class Room:
    """Room for one delivery. One larger than the whole bound counts as much as the bound, and then stands alone."""

    def __init__(self, share: Share, size_bytes: int) -> None:
        self._share = share
        self.size_bytes = size_bytes

    def fit(self, size_bytes: int) -> bool:
        """What came is this large. False when that is more than there is room for: let go of it."""
        return self._share.resize(self, size_bytes)

    def release(self) -> None:
        """It is committed. Twice is once."""
        self._share.resize(self, 0)


class _Asking:
    def __init__(self, share: Share, need_bytes: int) -> None:
        self.share = share
        self.need_bytes = need_bytes
        self.admitted = asyncio.Event()
