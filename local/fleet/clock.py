"""Virtual time: one world, and in it one event loop for each simulated process, with a clock of its own.

Who calls: production code, which asks its running loop for the time and for timers, and never learns that no second
really passes. All timers of all loops stand in one calendar; the world jumps from one to the next. A loop's clock runs
a little fast or slow and starts anywhere, so nothing works by accident because two processes read the same time.

A process can stand still (`freeze`): its clock runs on, what becomes due waits, and is done in order when it comes
back, as after SIGSTOP or a long pause of the machine. It can be dead (`dead`): nothing of it runs again, no `finally`
either, as after SIGKILL.

Computing takes no virtual time. Same seeds, same order: nothing here depends on real time or on hashes.
"""

from __future__ import annotations

import asyncio
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from heapq import heappop, heappush
from itertools import count
from typing import Any, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Timer:
    """One call to come. Stands in for asyncio.Handle, of which production code uses `cancel` only."""

    __slots__ = ("args", "callback", "context")

    def __init__(self, callback: Callable[..., object] | None, args: tuple[Any, ...], context: Context) -> None:
        self.callback = callback
        self.args = args
        self.context = context

    def cancel(self) -> None:
        self.callback = None
        self.args = ()

    def cancelled(self) -> bool:
        return self.callback is None


class World:
    """The calendar of everything that is due. `now_s` is the true time, which no simulated process can read."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.failures: list[str] = []  # what a loop was told about: tasks and callbacks that raised into nowhere
        self._calendar: list[tuple[float, int, ProcessLoop | None, Timer]] = []
        self._next_entry = count().__next__  # breaks ties: first written, first due
        self._context = copy_context()

    def call_at(self, when_s: float, callback: Callable[..., object], *args: Any) -> None:
        """Call something outside of all processes, such as the arrival of a request at the table."""
        self.enter(when_s, None, Timer(callback, args, self._context))

    def enter(self, when_s: float, loop: ProcessLoop | None, timer: Timer) -> None:
        heappush(self._calendar, (when_s, self._next_entry(), loop, timer))

    def run(self, until_s: float) -> None:
        """Let everything happen that is due until then."""
        calendar = self._calendar
        while calendar and calendar[0][0] <= until_s:
            when_s, _, loop, timer = heappop(calendar)
            if timer.callback is None:
                continue
            self.now_s = max(self.now_s, when_s)
            if loop is None:
                timer.callback(*timer.args)
            else:
                loop.due(timer)
        self.now_s = max(self.now_s, until_s)


class ProcessLoop(asyncio.AbstractEventLoop):
    """The event loop of one simulated process: as much of it as asyncio's tasks, futures and time-outs need."""

    def __init__(self, world: World, *, rate: float = 1.0, began_s: float = 0.0) -> None:
        """`rate`: seconds of this clock in one true second. `began_s`: what it showed at the true time 0."""
        self.dead = False
        self.rate = rate
        self._world = world
        self._began_s = began_s
        self._frozen = False
        self._ready: deque[Timer] = deque()

    def time(self) -> float:
        return self._began_s + self._world.now_s * self.rate

    def due(self, timer: Timer) -> None:
        """One timer's time has come: call it, and all that follows from it at once."""
        if self.dead:
            return
        self._ready.append(timer)
        if not self._frozen:
            self._run_ready()

    def freeze(self, seconds: float) -> None:
        """Stand still from now on for so many true seconds. From outside of the loop only."""
        self._frozen = True
        self._world.call_at(self._world.now_s + seconds, self._thaw)

    def _thaw(self) -> None:
        self._frozen = False
        if not self.dead:
            self._run_ready()

    def _run_ready(self) -> None:
        ready = self._ready
        events._set_running_loop(self)
        try:
            while ready:
                timer = ready.popleft()
                if timer.callback is not None:
                    timer.context.run(timer.callback, *timer.args)
        finally:
            events._set_running_loop(None)

    # ------------------------------------------------------------------ what asyncio calls

    # They return our Timer where asyncio has Handle, whose constructor and debug mode cost more than the call itself.

    def call_soon(self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None) -> Any:
        timer = Timer(callback, args, context if context is not None else copy_context())
        self._ready.append(timer)
        return timer

    def call_later(
        self, delay: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> Any:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> Any:
        timer = Timer(callback, args, context if context is not None else copy_context())
        self._world.enter((when - self._began_s) / self.rate, self, timer)
        return timer

    def call_from_world(self, when_s: float, callback: Callable[..., object], *args: Any) -> None:
        """Something reaches the process at a true time, such as a reply."""
        self._world.enter(when_s, self, Timer(callback, args, copy_context()))

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
        *,
        name: object = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        return asyncio.Task(coro, loop=self, name=None if name is None else str(name), context=context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return events._get_running_loop() is self

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Nothing is fire-and-forget here, so whatever asyncio would log is a fault."""
        self._world.failures.append(f"{context.get('message')}: {context.get('exception')!r}")
