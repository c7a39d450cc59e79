"""How a process hears that it should stop, and with which exit code it ends."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from tidegate import telemetry
from tidegate.errors import Fatal, Superseded, Transient
from tidegate.lifecycle import main, never_ends


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def signal_me(number: signal.Signals = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_for_a_graceful_stop(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    drained = False

    async def run(stop: asyncio.Event) -> None:
        nonlocal drained
        signal_me(number)
        await stop.wait()
        drained = True

    assert main(run) == 0
    assert drained
    logged = lines(capsys)
    assert [line["event"] for line in logged] == [telemetry.PROCESS_STOPPING, telemetry.PROCESS_STOPPED]
    assert logged[0]["signal"] == number.name
    assert logged[-1]["exit_code"] == 0


def test_a_second_signal_cancels(capsys: pytest.CaptureFixture[str]) -> None:
    cancelled = False

    async def run(stop: asyncio.Event) -> None:
        nonlocal cancelled
        signal_me()
        await stop.wait()
        signal_me()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise

    assert main(run) == 1
    assert cancelled
    assert telemetry.PROCESS_DRAIN_CUT in [line["event"] for line in lines(capsys)]


def test_the_drain_has_a_budget() -> None:
    async def run(stop: asyncio.Event) -> None:
        signal_me()
        await asyncio.Event().wait()

    assert main(run, drain_budget_s=0.05) == 1


def test_our_own_errors_end_with_one_line_each_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    async def run(stop: asyncio.Event) -> None:
        nested = ExceptionGroup("inner", [Fatal("no such stream"), Transient("still away")])
        raise ExceptionGroup("outer", [nested, Superseded("the schema moved on")])

    assert main(run) == 1
    logged = lines(capsys)
    assert [line.get("error") for line in logged] == [
        "no such stream",
        "still away",
        "the schema moved on",
        None,
    ]
    assert not any("exception" in line for line in logged)


def test_a_bug_is_logged_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    async def run(stop: asyncio.Event) -> None:
        raise ExceptionGroup("group", [Fatal("a sign of it"), KeyError("the bug")])

    assert main(run) == 70
    [bug, _] = lines(capsys)
    assert bug["event"] == telemetry.PROCESS_BUG
    assert "the bug" in bug["exception"]
    assert "Traceback" in bug["exception"]


def test_a_timeout_of_the_program_is_a_bug_and_not_a_drain() -> None:
    async def run(stop: asyncio.Event) -> None:
        raise TimeoutError

    assert main(run) == 70


def test_a_program_that_returns_unasked_has_failed(capsys: pytest.CaptureFixture[str]) -> None:
    async def run(stop: asyncio.Event) -> None:
        return

    assert main(run) == 1
    assert lines(capsys)[0]["error"] == "the program ended without being asked to"


def test_a_background_task_that_ends_ends_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    async def done_too_soon() -> None:
        return

    async def run(stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as background:
            background.create_task(never_ends("renewer", done_too_soon))
            await stop.wait()

    assert main(run) == 1
    assert lines(capsys)[0]["error"] == "background task 'renewer' ended"


def test_libraries_log_in_the_same_shape(capsys: pytest.CaptureFixture[str]) -> None:
    async def run(stop: asyncio.Event) -> None:
        logging.getLogger("some.library").warning("pool of %d is full", 3)
        logging.getLogger("some.library").info("not heard")
        signal_me()
        await stop.wait()

    assert main(run) == 0
    first = lines(capsys)[0]
    assert (first["event"], first["level"], first["logger"]) == ("pool of 3 is full", "warning", "some.library")
