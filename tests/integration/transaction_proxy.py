"""A database proxy in transaction mode, as RDS Proxy and PgBouncer are: each transaction on whichever connection is free.

    async with proxied(port_of_postgres) as proxy: asyncpg.connect(…, port=proxy.port)

A client authenticates with a connection of its own, which then belongs to all. It has a server connection from its first
message until the server is ready and out of any transaction, then the next one gets it; the one that waited longest is
taken, so that two transactions of one client are hardly ever on the same connection. Whatever a client leaves in a
session, a prepared statement or a setting, is missing in its next transaction and in the way of somebody else's.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_SSL = struct.pack("!ii", 8, 80877103)
_ANSWERED = (b"S", b"Q")
"""Sync and Query: each is answered by "ready for query"."""

_GONE = (ConnectionError, asyncio.IncompleteReadError)


class _Server:
    """A connection to PostgreSQL."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.transactions = 0
        self._next: asyncio.Task[bytes] | None = None

    def next(self) -> asyncio.Task[bytes]:
        """The message that it sends next; whoever comes later waits for the same one."""
        if self._next is None:
            self._next = asyncio.create_task(_message(self.reader))
        return self._next

    def taken(self) -> bytes | None:
        """That message, if it is there."""
        if self._next is None or not self._next.done():
            return None
        done, self._next = self._next, None
        return done.result()

    async def close(self) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
        self.writer.close()


class Proxy:
    """`transactions` are those of each server connection so far."""

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._free: deque[_Server] = deque()
        self._servers: list[_Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def transactions(self) -> list[int]:
        return [server.transactions for server in self._servers]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(*_GONE, asyncio.CancelledError):
                await self._authenticate(reader, writer)
                await self._work(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for server in self._servers:
            await server.close()

    async def _authenticate(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        start = await _packet(reader)
        if start == _SSL:
            writer.write(b"N")
            start = await _packet(reader)
        server = _Server(*await asyncio.open_connection("127.0.0.1", self._to_port))
        server.writer.write(start)
        while True:
            message = await _message(server.reader)
            writer.write(message)
            # An authentication request other than "ok", and other than the last word of SCRAM, wants an answer.
            if message[:1] == b"R" and struct.unpack("!i", message[5:9])[0] not in (0, 12):
                server.writer.write(await _message(reader))
            if message[:1] == b"Z":
                break
        self._servers.append(server)
        self._free.append(server)

    async def _work(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = asyncio.create_task(_message(reader))
        try:
            while (message := await asked)[:1] != b"X":
                server = self._free.popleft()
                server.transactions += 1
                server.writer.write(message)
                asked = await self._transaction(message, reader, writer, server)
                self._free.append(server)
        finally:
            asked.cancel()

    async def _transaction(
        self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: _Server
    ) -> asyncio.Task[bytes]:
        """Pass on both ways until the server is out of any transaction and owes no answer; returns what comes next."""
        owed = int(first[:1] in _ANSWERED)
        asked = asyncio.create_task(_message(reader))
        while True:
            done, _ = await asyncio.wait({asked, server.next()}, return_when=asyncio.FIRST_COMPLETED)
            if asked in done:
                message = asked.result()
                server.writer.write(message)
                owed += message[:1] in _ANSWERED
                asked = asyncio.create_task(_message(reader))
            if (answer := server.taken()) is not None:
                writer.write(answer)
                if answer[:1] == b"Z":
                    owed -= 1
                    if owed == 0 and answer[5:6] == b"I":
                        return asked


async def _packet(reader: asyncio.StreamReader) -> bytes:
    """The first thing that a client sends has no type."""
    size = await reader.readexactly(4)
    return size + await reader.readexactly(struct.unpack("!i", size)[0] - 4)


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(5)
    return head + await reader.readexactly(struct.unpack("!i", head[1:])[0] - 4)


@asynccontextmanager
async def proxied(to_port: int) -> AsyncIterator[Proxy]:
    proxy = Proxy(to_port)
    listening = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield proxy
        await proxy.close()
