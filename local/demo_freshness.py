"""Measures freshness: from a change's commit in the back office to its being readable in the API.

The sampler follows every back office's change log and asks the API for each changed row, as a signed-in user who
may see it, until the change shows. A measurement is late by at most one round of asking; the report says how long
those were (`resolution_ms`).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict, deque
from collections.abc import Iterable

import msgspec

from local.demo_compare import ApiReader, Row, shape_of, truth
from local.stack import Office, Stack

_ROUND_S = 0.2
_ASKS_AT_ONCE = 3
# More at a time would only load the machine that is measured.
_PENDING_MOST = 40


class Change(msgspec.Struct, frozen=True):
    """One line of a back office's change log."""

    no: int
    entity: str
    key: str
    operation: str
    committed_at_ms: int
    row: Row | None


class Percentiles(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds, nearest rank; None without samples."""

    p50: int | None
    p99: int | None
    most: int | None
    samples: int


class Freshness(msgspec.Struct, frozen=True, kw_only=True):
    changes: Percentiles
    deletions: Percentiles
    by_entity: dict[str, Percentiles]
    resolution_ms: int
    unseen: int


def percentiles(values: Iterable[float]) -> Percentiles:
    ordered = sorted(round(value) for value in values)
    if not ordered:
        return Percentiles(p50=None, p99=None, most=None, samples=0)
    p50, p99 = (ordered[math.ceil(len(ordered) * share / 100) - 1] for share in (50, 99))
    return Percentiles(p50=p50, p99=p99, most=ordered[-1], samples=len(ordered))


class Sampler:
    """Use: `await prepare()`, `run(life_s)` while the back offices live, then `result()`."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._observer: ApiReader | None = None
        self._positions: dict[str, int] = {}
        self._pending: dict[tuple[str, str], deque[Change]] = {}
        self._seen_ms: dict[str, list[float]] = defaultdict(list)
        self._deleted_ms: list[float] = []
        self._rounds_ms: list[float] = []
        self._own: dict[tuple[str, str], ApiReader] = {}

    async def prepare(self) -> None:
        """Sign in, and learn which rows the demo's users see, beside the observer, who sees whole entities."""
        demo = self._stack.demo
        if demo.observer is not None:
            self._observer = await ApiReader.signed_in(self._stack, demo.observer)
        readers = [await ApiReader.signed_in(self._stack, user) for user in demo.users]
        for office in self._stack.offices:
            self._positions[office.name] = await _last_change(self._stack, office)
            for entity in office.spec.entities:
                for reader in readers:
                    rows = await truth(self._stack, office, entity, reader.user.viewer or "everyone:*")
                    self._own.update({(entity, key): reader for key in rows})

    async def run(self, life_s: float, settle_s: float) -> None:
        """Follow the changes of `life_s` seconds, then wait at most `settle_s` for those not yet seen."""
        loop = asyncio.get_running_loop()
        until, most = loop.time() + life_s, loop.time() + life_s + settle_s
        while loop.time() < until or (self._pending and loop.time() < most):
            started = loop.time()
            if started < until:
                for office in self._stack.offices:
                    await self._follow(office)
            await self._ask_all()
            await asyncio.sleep(max(0.0, _ROUND_S - (loop.time() - started)))
            self._rounds_ms.append((loop.time() - started) * 1000)

    @property
    def reads(self) -> int:
        readers = {*self._own.values(), *([self._observer] if self._observer else [])}
        return sum(reader.reads for reader in readers)

    def result(self) -> Freshness:
        everything = [value for values in self._seen_ms.values() for value in values]
        rounds = sorted(self._rounds_ms) or [0.0]
        return Freshness(
            changes=percentiles(everything),
            deletions=percentiles(self._deleted_ms),
            by_entity={entity: percentiles(values) for entity, values in sorted(self._seen_ms.items())},
            resolution_ms=round(rounds[len(rounds) // 2]),
            unseen=sum(len(changes) for changes in self._pending.values()),
        )

    async def _follow(self, office: Office) -> None:
        query = {"after": self._positions[office.name], "limit": 1000}
        async with self._stack.session.get(f"{office.url}/_sim/changes", params=query) as answer:
            changes = msgspec.json.decode(await answer.read(), type=list[Change])
        for change in changes:
            self._positions[office.name] = change.no
            place = (change.entity, change.key)
            if place in self._pending and change.operation == "delete":
                # "Not there" would be true before the row first came, so this one says nothing.
                del self._pending[place]
            elif place in self._pending or (len(self._pending) < _PENDING_MOST and self._reader(place)):
                self._pending.setdefault(place, deque()).append(change)

    def _reader(self, place: tuple[str, str]) -> ApiReader | None:
        if self._observer is not None and place[0] in self._stack.demo.observer_sees:
            return self._observer
        return self._own.get(place)

    async def _ask_all(self) -> None:
        places = list(self._pending)
        at_once = asyncio.Semaphore(_ASKS_AT_ONCE)

        async def ask(place: tuple[str, str]) -> None:
            async with at_once:
                await self._ask(place)

        async with asyncio.TaskGroup() as together:
            for place in places:
                together.create_task(ask(place))

    async def _ask(self, place: tuple[str, str]) -> None:
        waiting = self._pending[place]
        reader = self._reader(place)
        if reader is None:
            return
        status, row = await reader.row(shape_of(self._stack, place[0]).collection, place[1])
        now_ms = time.time() * 1000
        if status not in (200, 404):
            return
        # A later state shows that the earlier ones were overtaken: they count as seen now, too.
        shown = [number for number, change in enumerate(waiting) if change.row == row]
        for _ in range(shown[-1] + 1 if shown else 0):
            change = waiting.popleft()
            into = self._deleted_ms if change.operation == "delete" else self._seen_ms[change.entity]
            into.append(now_ms - change.committed_at_ms)
        if not waiting:
            del self._pending[place]


async def _last_change(stack: Stack, office: Office) -> int:
    async with stack.session.get(f"{office.url}/_sim/stats") as answer:
        return int((await answer.json())["changes"])
