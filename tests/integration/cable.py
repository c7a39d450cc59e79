"""A TCP cable to a server that can be cut, plugged out, or go dead without a word."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_CHUNK = 65_536
# As PostgreSQL's protocol has them: the driver's Query, and CommandComplete.
COMMIT_ASKED = b"Q\x00\x00\x00\x0cCOMMIT;\x00"
COMMIT_ANSWERED = b"C\x00\x00\x00\x0bCOMMIT\x00"


class Cable:
    """Forwards 127.0.0.1:`port` to the server's port.

    is_dead     bytes vanish in both directions, and connections stay open: a host that died behind a router
    cut_one_in  a connection is reset after so many chunks on average; 0: never
    lose        the next chunk that holds this is lost, and its connection reset; empty: none
    """

    def __init__(self, to_port: int, seed: int = 0) -> None:
        self.port = 0
        self.is_dead = False
        self.cut_one_in = 0
        self.lose = b""
        self.cuts = 0
        self.lost = 0
        self._to_port = to_port
        self._random = random.Random(seed)
        self._open: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Reset every connection, as a failover does."""
        for writer in list(self._open):
            self.cuts += 1
            writer.transport.abort()

    @asynccontextmanager
    async def plugged(self) -> AsyncIterator[Cable]:
        server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.cut()

    async def _carry(self, here_reader: asyncio.StreamReader, here: asyncio.StreamWriter) -> None:
        self._open.add(here)
        try:
            with suppress(OSError):
                there_reader, there = await asyncio.open_connection("127.0.0.1", self._to_port)
                self._open.add(there)
                try:
                    await asyncio.gather(self._pump(here_reader, there, here), self._pump(there_reader, here, there))
                finally:
                    self._open.discard(there)
                    there.transport.abort()
        finally:
            self._open.discard(here)
            here.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, other: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                if self.is_dead:
                    continue
                if self.lose and self.lose in chunk:
                    self.lose = b""
                    self.lost += 1
                    break
                if self.cut_one_in and self._random.randrange(self.cut_one_in) == 0:
                    self.cuts += 1
                    # Half of it may still arrive, or all of it, and the answer never.
                    writer.write(chunk[: self._random.randrange(len(chunk) + 1)])
                    await writer.drain()
                    break
                writer.write(chunk)
                await writer.drain()
        if not self.is_dead:
            writer.transport.abort()
            other.transport.abort()
