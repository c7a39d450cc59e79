"""The gate to one back office: whoever wants to ask it passes here, one gate for all sources of a process.

Closed outside of its hours, while it asked to be left alone (Retry-After), and while its breaker is open; nobody passes
then, whatever it is for. Else requests take turns within the budget (`poller.budget`), live ones first.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from poller.breaker import Breaker, State
from poller.budget import Budget, SlotStore
from poller.hours import check, is_open, opens_at
from poller.source import Refused
from tidegate import telemetry
from tidegate.errors import Fatal, Transient
from tidegate.feeds import Office

_REST_S = 2.0
_REST_MOST_S = 15.0
"""How late a recovery is noticed."""
_PAUSE_MOST_S = 3600.0
"""A wish to wait for days is a mistake of somebody's."""


class Gate:
    """`clock` is monotonic, in seconds; `owner` names this process. Raises Fatal for hours that cannot be read."""

    def __init__(
        self,
        office: Office,
        store: SlotStore | None = None,
        *,
        owner: str = "poller",
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if office.hours is not None:
            try:
                check(office.hours)
            except ValueError as error:
                raise Fatal(f"back office {office.name!r}: {error}") from error
        self.owner = owner
        self._office = office
        self._clock = clock
        self._now = now
        self._breaker = Breaker(office.failures, _REST_S, _REST_MOST_S)
        self._paused_until = float("-inf")
        self._opens_at: datetime | None = None
        self._to_tell: float | None = None
        self._told = asyncio.Event()
        self._budget = Budget(office, store, owner=owner, clock=clock, on_pause=self._pause_until)
        self._log = telemetry.get_logger("poller.gate")

    def closed_s(self) -> float:
        """How long nobody may pass; 0.0 when it is open."""
        now = self._clock()
        return max(0.0, self._closed_hours_s(), self._paused_until - now, self._breaker.wait_s(now))

    def _closed_hours_s(self) -> float:
        hours = self._office.hours
        if hours is None:
            return 0.0
        now = self._now()
        if self._opens_at is None or now >= self._opens_at:
            self._opens_at = None if is_open(hours, now) else opens_at(hours, now)
        return 0.0 if self._opens_at is None else (self._opens_at - now) / timedelta(seconds=1)

    @asynccontextmanager
    async def turn(self, *, urgent: bool) -> AsyncIterator[None]:
        """One request. Raises Transient when it is closed, before or while the turn was waited for."""
        self._refuse_closed()
        async with self._budget.turn(urgent=urgent):
            self._refuse_closed()
            self._breaker.begin(self._clock())
            try:
                yield
            except Refused:
                # It answers, and knows what it does not want.
                self._succeeded()
                raise
            except Transient as error:
                self._failed(error)
                raise
            except BaseException:
                self._breaker.said_nothing()
                raise
            self._succeeded()

    def pause(self, wait_s: float) -> None:
        """The back office asked to be left alone for so long: nobody passes, and the other processes are told."""
        bounded = min(wait_s, _PAUSE_MOST_S)
        self._pause_until(bounded)
        self._to_tell = bounded
        self._told.set()

    async def keep(self) -> None:
        """Look after the shared budget for as long as the process runs. Raises Fatal."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._budget.keep())
            group.create_task(self._tell_pauses())

    async def give_back(self) -> None:
        """At the end: others need not wait until our slots run out."""
        try:
            await self._budget.give_back()
        except Transient as error:
            self._log.warning(telemetry.POLLER_BUDGET_BLIND, office=self._office.name, error=str(error))

    async def _tell_pauses(self) -> None:
        while True:
            await self._told.wait()
            self._told.clear()
            wait_s, self._to_tell = self._to_tell, None
            if wait_s is None:
                continue
            try:
                await self._budget.tell_pause(wait_s, secrets.token_hex(4))
            except Transient as error:
                # They will be told by the back office itself.
                self._log.warning(telemetry.POLLER_BUDGET_BLIND, office=self._office.name, error=str(error))

    def _pause_until(self, wait_s: float) -> None:
        self._paused_until = max(self._paused_until, self._clock() + wait_s)

    def _refuse_closed(self) -> None:
        wait_s = self.closed_s()
        if wait_s > 0:
            raise Transient(f"back office {self._office.name!r} is not to be asked now", retry_after_s=wait_s)

    def _succeeded(self) -> None:
        if self._breaker.state(self._clock()) is not State.CLOSED:
            self._log.info(telemetry.POLLER_BREAKER_CLOSED, office=self._office.name)
        self._breaker.succeeded()
        telemetry.POLLER_BREAKER_OPEN.labels(self._office.name).set(0)

    def _failed(self, error: Transient) -> None:
        before = self._breaker.state(self._clock())
        if error.retry_after_s is not None:
            # A wish is an answer, and the pause sees to it.
            self._breaker.said_nothing()
            return
        self._breaker.failed(self._clock())
        if before is State.CLOSED and self._breaker.state(self._clock()) is State.OPEN:
            self._log.error(telemetry.POLLER_BREAKER_OPENED, office=self._office.name, error=str(error))
            telemetry.POLLER_BREAKER_OPEN.labels(self._office.name).set(1)
