"""What lies between the processes and the lease table: every request travels, and some do not arrive.

A request takes a moment each way. A lost one is never answered, nor is one whose reply is lost; the caller's own
time-out ends the wait. A late request is carried out whoever waits for it, and even when its sender is dead. A process
that stands still, or that died, has what it sent before carried out all the same.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from local.fleet.clock import ProcessLoop, World
from local.fleet.faults import Weather
from local.fleet.store import TableStore
from local.fleet.table import Table
from tidegate.errors import Superseded, Transient

# One way, for a request about one item.
LATENCY_S = (0.001, 0.006)
# A page of a scan or a query takes longer to read and to send.
PAGE_S = (0.015, 0.04)


class Network:
    """Shared by all links of a world: the table, and the weather."""

    def __init__(self, world: World, table: Table, weather: Weather, seed: int) -> None:
        self.table = table
        self.weather = weather
        self.calls = 0
        self._world = world
        self._draw = random.Random(seed)

    def send(
        self, link: Link, reply: asyncio.Future[Any], step: Callable[..., Any], args: tuple[Any, ...], pages: int
    ) -> None:
        """Put one request on its way."""
        self.calls += 1
        fault = self.weather.of_call()
        if link.is_cut or fault == "lost_request":
            return
        draw = self._draw.uniform
        there_s, back_s = draw(*LATENCY_S), draw(*LATENCY_S)
        for _ in range(pages):
            back_s += draw(*PAGE_S)
        if fault == "late_request":
            there_s += self.weather.late_s()
        elif fault == "late_reply":
            back_s += self.weather.late_s()
        arrives_s = self._world.now_s + there_s
        self._world.call_at(arrives_s, self._arrive, link, reply, step, args, back_s, fault == "lost_reply")

    def _arrive(
        self,
        link: Link,
        reply: asyncio.Future[Any],
        step: Callable[..., Any],
        args: tuple[Any, ...],
        back_s: float,
        is_lost: bool,
    ) -> None:
        answer: Any = None
        error: Exception | None = None
        if self.weather.is_throttled(self._world.now_s):
            error = Transient("the lease table is throttled")
        else:
            try:
                answer = step(*args)
            except Superseded as lost:
                error = lost
        if not (is_lost or link.is_cut):
            link.loop.call_from_world(self._world.now_s + back_s, _answer, reply, answer, error)


def _answer(reply: asyncio.Future[Any], answer: Any, error: Exception | None) -> None:
    """Wake the caller, unless it has given up."""
    if reply.done():
        return
    if error is not None:
        reply.set_exception(error)
    else:
        reply.set_result(answer)


class Link(TableStore):
    """One process's way to the table."""

    def __init__(self, network: Network, loop: ProcessLoop) -> None:
        super().__init__(network.table)
        self.loop = loop
        self.is_cut = False
        self._network = network

    async def _request(self, step: Callable[..., Any], *args: Any, pages: int = 0) -> Any:
        reply = self.loop.create_future()
        self._network.send(self, reply, step, args, pages)
        return await reply
