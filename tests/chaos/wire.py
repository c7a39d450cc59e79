"""A TCP proxy whose connections can be cut at any moment, in front of a database.

async with wired(port) as wire:        # 127.0.0.1:wire.port → 127.0.0.1:port
    wire.cut()                         # every connection breaks, in the middle of whatever goes on
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Wire:
    """`cuts` counts the connections that were broken."""

    def __init__(self, to_port: int) -> None:
        self.port = 0
        self.cuts = 0
        self._to_port = to_port
        self._open: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Reset every connection, on the side that connected as on the other."""
        for writer in tuple(self._open):
            self.cuts += 1
            writer.transport.abort()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, to_writer}
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_pass_on(reader, to_writer))
                both.create_task(_pass_on(to_reader, writer))
        finally:
            self._open -= {writer, to_writer}


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until one side is gone; then the other is told."""
    try:
        while chunk := await reader.read(65_536):
            writer.write(chunk)
            await writer.drain()
    except OSError:
        return
    finally:
        writer.transport.abort()


@asynccontextmanager
async def wired(to_port: int) -> AsyncIterator[Wire]:
    """The proxy, on a port of its own, for the block."""
    wire = Wire(to_port)
    server = await asyncio.start_server(wire.handle, "127.0.0.1", 0)
    wire.port = server.sockets[0].getsockname()[1]
    try:
        yield wire
    finally:
        server.close()
        wire.cut()
