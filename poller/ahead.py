"""The next page of a walk, asked for while the one in hand is judged and published.

A page takes the back office's time and then Kinesis'; side by side it is the longer of the two. Nothing else changes:
the request is one of the walk's own and passes the same gate; the cursor follows what was published, as ever, so whoever
takes over asks for that page again.

What was asked for ahead may be judged after requests that were sent later: re-reads, or a poll between two pages of a
sweep. It cannot undo what those showed (`snapshot.judge`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from poller.source import Page, Position
from poller.term import Term
from tidegate.errors import Transient


class Ahead:
    """Of one walk: holds one page at most."""

    def __init__(self, term: Term) -> None:
        self._term = term
        self._asked: tuple[Position, int, Page] | None = None
        self._fault: Transient | None = None

    async def fetch(self, position: Position, mark: str = "") -> tuple[int, Page]:
        """As `Term.fetch`; at once, if it is the page that was asked for."""
        asked, self._asked = self._asked, None
        if asked is not None and asked[0] == position:
            return asked[1:]
        return await self._term.fetch(position, mark)

    @asynccontextmanager
    async def asking(self, position: Position | None) -> AsyncIterator[None]:
        """Ask for a page while the block runs, unless there is none, or it may not be asked for yet.

        Ends when both have; the asking is given up when the block fails, or the poller is to stop. Raises what the block
        raises; after the block, what `Term.fetch` did.
        """
        term, self._fault = self._term, None
        if position is None or term.stop.is_set() or not term.source.may_ask_ahead(position):
            yield
            return
        try:
            async with asyncio.TaskGroup() as group:
                asking = group.create_task(self._ask(position))
                # The request is on its way before the block, which may compute for long, begins.
                await asyncio.sleep(0)
                yield
                if term.stop.is_set():
                    asking.cancel()
        except BaseExceptionGroup as faults:
            # Either side's fault ends the other, so it is the first one that says why.
            raise faults.exceptions[0] from None
        if self._fault is not None:
            raise self._fault

    async def _ask(self, position: Position) -> None:
        try:
            self._asked = (position, *await self._term.fetch(position))
        except Transient as error:
            # The page in hand is published all the same.
            self._fault = error
