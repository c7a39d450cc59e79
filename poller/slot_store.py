"""The board of each back office's budget, in the table that all pollers share: one small item, compare-and-set."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from poller.budget import Board
from tidegate.errors import Transient
from tidegate.source_table import SourceTable

_NAME = "budget"
_TRIES = 8


class TableSlots:
    """A `poller.budget.SlotStore`. An office's item stands beside the sources', under "office:" and its name."""

    def __init__(self, table: SourceTable) -> None:
        self._table = table

    async def look(self, office: str) -> Board:
        return (await self._read(office))[0]

    async def swap(self, office: str, slot: int, expected: str, value: str) -> tuple[bool, Board]:
        def change(board: Board) -> Board | None:
            if board.slots.get(slot, "") != expected:
                return None
            return replace(board, slots={**board.slots, slot: value})

        return await self._change(office, change)

    async def want(self, office: str) -> Board:
        return (await self._change(office, lambda board: replace(board, wants=board.wants + 1)))[1]

    async def set_pause(self, office: str, pause: str) -> Board:
        return (await self._change(office, lambda board: replace(board, pause=pause)))[1]

    async def end_pause(self, office: str, pause: str) -> Board:
        def end(board: Board) -> Board | None:
            return replace(board, pause="") if board.pause == pause else None

        return (await self._change(office, end))[1]

    async def _read(self, office: str) -> tuple[Board, int]:
        item = await self._table.get(f"office:{office}", _NAME)
        return (item.read(Board) if item.revision else Board()), item.revision

    async def _change(self, office: str, change: Callable[[Board], Board | None]) -> tuple[bool, Board]:
        for _ in range(_TRIES):
            board, revision = await self._read(office)
            changed = change(board)
            if changed is None:
                return False, board
            if await self._table.put(f"office:{office}", _NAME, changed, revision):
                return True, changed
        raise Transient(f"budget of {office}: {_TRIES} writes lost to others at the same time")
