"""Runs the programs of the embedded stack: start, wait until ready, restart what dies, stop all in reverse order.

    async with Supervisor(data / "logs", say=print) as supervisor:
        child = await supervisor.start(Program("kinesis", argv, ready=http_ready(url)))

One task watches each child; they live in one TaskGroup. Every child leads a process group of its own, so its
children go with it, and `local.launch` makes the kernel end it should this process be killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from local import launch

ReadyCheck = Callable[[], Awaitable[bool]]

_CHECK_PAUSE_S = 0.05
_BACKOFF_FIRST_S = 0.2
_BACKOFF_MOST_S = 5.0
# A child that stays up this long is taken for well again.
_WELL_AFTER_S = 20.0
_TAIL_LINES = 12
_TAIL_WIDTH = 400


class StartFailed(Exception):
    """A program did not become ready, or keeps dying. The text names it, the reason and the log."""


@dataclass(frozen=True, slots=True)
class Program:
    """What to run.

    argv       the command
    env        the whole environment of the child, nothing is inherited
    ready      asked until it says True; None: ready at once
    restart    False: its death ends the stack, because it cannot come back alone
    user       run as another user id (only as root)
    """

    name: str
    argv: list[str]
    env: Mapping[str, str] = field(default_factory=dict)
    ready: ReadyCheck | None = None
    ready_s: float = 40.0
    restart: bool = True
    restarts_most: int = 8
    stop_signal: signal.Signals = signal.SIGTERM
    stop_s: float = 12.0
    user: int | None = None
    cwd: Path | None = None


class Child:
    """A program that runs, and its history. `restarts` counts how often it was started again."""

    def __init__(self, program: Program, log: Path) -> None:
        self.program = program
        self.log = log
        self.restarts = 0
        self.is_ready = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def name(self) -> str:
        return self.program.name

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return None if self._process is None else self._process.returncode

    def kill(self) -> None:
        """SIGKILL the child and its children, as a crash would."""
        self.is_ready.clear()
        self._signal_group(signal.SIGKILL)

    async def spawn(self) -> None:
        program = self.program
        argv = launch.command(program.argv, death_signal=program.stop_signal, user=program.user)
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *argv,
                env=dict(program.env),
                cwd=program.cwd,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def wait(self) -> int:
        assert self._process is not None
        return await self._process.wait()

    async def become_ready(self) -> None:
        """Wait for the ready check. Raises StartFailed when the child ends or takes too long."""
        ready = self.program.ready
        deadline = asyncio.get_running_loop().time() + self.program.ready_s
        while ready is not None and not await ready():
            if self.exit_code is not None:
                raise self.failure(f"it ended with {ending(self.exit_code)}")
            if asyncio.get_running_loop().time() >= deadline:
                raise self.failure(f"it was not ready within {self.program.ready_s:.0f} s")
            await asyncio.sleep(_CHECK_PAUSE_S)
        self.is_ready.set()

    async def stop(self) -> None:
        """Ask it to end, wait, then force it; its process group is gone afterwards."""
        if self._process is None:
            return
        self.is_ready.clear()
        if self._process.returncode is None:
            self._process.send_signal(self.program.stop_signal)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), self.program.stop_s)
        self._signal_group(signal.SIGKILL)
        await self._process.wait()

    def failure(self, why: str, what: str = "could not start") -> StartFailed:
        last = "\n".join(f"    {line[:_TAIL_WIDTH]}" for line in tail(self.log))
        return StartFailed(f"{what} {self.name}: {why}; see {self.log}\n{last}")

    def _signal_group(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):
            # The group is empty (macOS says so with EPERM).
            return


class Supervisor:
    """Owns the children; leaving its block stops them in reverse order of their start."""

    def __init__(self, logs: Path, say: Callable[[str], None]) -> None:
        self.children: list[Child] = []
        self._logs = logs
        self._say = say
        self._stopping = False
        self._watchers = asyncio.TaskGroup()
        self._tasks: list[asyncio.Task[None]] = []

    def child(self, name: str) -> Child:
        return next(child for child in self.children if child.name == name)

    async def start(self, program: Program) -> Child:
        """Start a program and wait until it is ready; from then on it is restarted when it dies.

        Raises:
            StartFailed: it ended or was not ready in time.
        """
        child = Child(program, self._logs / f"{program.name}.log")
        child.log.write_bytes(b"")
        self.children.append(child)
        await child.spawn()
        await child.become_ready()
        self._tasks.append(self._watchers.create_task(self._watch(child), name=f"watch {program.name}"))
        return child

    async def stop_all(self) -> None:
        """Stop every child, the last started first."""
        self._stopping = True
        try:
            for child in reversed(self.children):
                await child.stop()
        finally:
            # Cancelled half-way (a second Ctrl-C): no more patience.
            for child in self.children:
                if child.exit_code is None:
                    child.kill()

    async def __aenter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        await self._watchers.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.stop_all()
        finally:
            for watch in self._tasks:
                watch.cancel()
            cancelled = isinstance(error, asyncio.CancelledError)
            try:
                await self._watchers.__aexit__(*((kind, error, traceback) if cancelled else (None, None, None)))
            except BaseExceptionGroup as failures:
                # One reason is the rule, and it reads better bare.
                raise (failures.exceptions[0] if len(failures.exceptions) == 1 else failures) from None

    async def _watch(self, child: Child) -> None:
        """Restart the child whenever it ends, waiting longer each time it does so soon."""
        loop = asyncio.get_running_loop()
        in_a_row = 0
        while True:
            started = loop.time()
            code = await child.wait()
            child.is_ready.clear()
            if self._stopping:
                return
            if not child.program.restart:
                raise child.failure(
                    f"it ended with {ending(code)} and cannot come back alone; start the stack again", "lost"
                )
            in_a_row = 1 if loop.time() - started > _WELL_AFTER_S else in_a_row + 1
            if in_a_row > child.program.restarts_most:
                raise child.failure(f"it ended {in_a_row} times in a row, last with {ending(code)}", "gave up on")
            pause_s = min(_BACKOFF_MOST_S, _BACKOFF_FIRST_S * 2 ** (in_a_row - 1))
            child.restarts += 1
            self._say(f"{child.name} ended with {ending(code)}; restart {child.restarts} in {pause_s:.1f} s")
            await asyncio.sleep(pause_s)
            await self._respawn(child)

    async def _respawn(self, child: Child) -> None:
        if self._stopping:
            return
        await child.spawn()
        try:
            await child.become_ready()
        except StartFailed:
            # Not ready in time: have it die, so that the next round counts it. One that ended is counted anyway.
            child.kill()


def http_ready(session: aiohttp.ClientSession, url: str) -> ReadyCheck:
    """Ready when GET `url` answers 2xx."""

    async def check() -> bool:
        try:
            async with session.get(url, timeout=aiohttp.ClientTimeout(total=2)) as answer:
                return answer.status // 100 == 2
        except (aiohttp.ClientError, TimeoutError):
            return False

    return check


def tcp_ready(port: int) -> ReadyCheck:
    """Ready when 127.0.0.1 takes connections on `port`."""

    async def check() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    return check


def line_ready(log: Path, words: str) -> ReadyCheck:
    """Ready when a line of the log holds `words`."""

    async def check() -> bool:
        return any(words in line for line in tail(log, most=200))

    return check


def tail(log: Path, most: int = _TAIL_LINES) -> list[str]:
    """The last lines of a log; no lines when it is not there."""
    try:
        with log.open("rb") as file:
            return [line.decode(errors="replace").rstrip() for line in deque(file, most)]
    except FileNotFoundError:
        return []


def ending(code: int) -> str:
    """An exit code in words: `code 1`, `SIGKILL`."""
    if code >= 0:
        return f"code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
