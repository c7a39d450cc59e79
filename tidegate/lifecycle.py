"""The life of a process: how it starts, hears that it should stop, and says how it ended.

    sys.exit(main(run))          # run(stop: asyncio.Event) is the program

A first SIGTERM or SIGINT sets `stop`: finish what is in hand, take nothing new. A second one, or the spent drain
budget, cancels. A program runs until it is told to stop, so one that returns earlier has failed, and a background
task that ends ends the process (`never_ends`): restarting is the scheduler's business.

Exit codes: 0 stopped in good order, also when leases were given back with work in hand (`lease_drain_cut`); 1 one of
our own errors, logged in one line each, or the budget here was spent; 70 (EX_SOFTWARE) a bug, with its traceback.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator

import structlog

from tidegate import telemetry
from tidegate.errors import Fatal, TidegateError

_MIB = 1024 * 1024
# As glibc's malloc.h numbers them.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

EXIT_GRACEFUL = 0
EXIT_FAILED = 1
EXIT_BUG = 70

Run = Callable[[asyncio.Event], Awaitable[None]]

log = telemetry.get_logger(__name__)


def main(run: Run, *, drain_budget_s: float = 110.0) -> int:
    """Run a program to its end; returns the exit code. Sets logging up, and the signals for as long as it runs.

    `drain_budget_s` is the time between the first signal and the cut; ECS kills after at most 120 s.
    """
    set_up_logging()
    exit_code = _run(run, drain_budget_s)
    log.info(telemetry.PROCESS_STOPPED, exit_code=exit_code)
    return exit_code


def _run(run: Run, drain_budget_s: float) -> int:
    try:
        with asyncio.Runner() as runner:
            is_cut = runner.run(_until_stopped(run, drain_budget_s))
    except Exception as error:  # noqa: BLE001
        # The only place that catches everything: here the process ends anyway, and it should say why.
        return _report(error)
    return EXIT_FAILED if is_cut else EXIT_GRACEFUL


async def _until_stopped(run: Run, drain_budget_s: float) -> bool:
    """Run until told to stop and drained. True when the drain was cut short."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    try:
        async with asyncio.timeout(None) as budget:

            def hear(number: signal.Signals) -> None:
                seconds_left = 0.0 if stop.is_set() else drain_budget_s
                stop.set()
                budget.reschedule(loop.time() + seconds_left)
                log.info(telemetry.PROCESS_STOPPING, signal=number.name, seconds_left=seconds_left)

            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, hear, number)
            try:
                await run(stop)
            finally:
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.remove_signal_handler(number)
    except TimeoutError:
        if not budget.expired():
            raise
        log.warning(telemetry.PROCESS_DRAIN_CUT)
        return True
    if not stop.is_set():
        raise Fatal("the program ended without being asked to")
    return False


async def never_ends(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run a background task that should run until it is cancelled. Raises Fatal when it returns."""
    await work()
    raise Fatal(f"background task {name!r} ended")


def settle_memory() -> None:
    """Let the garbage collector leave alone what lives as long as the process. Call it once that is loaded.

    And let it look at young objects less often than after every 700. Every page brings thousands of them, which die with
    it and hold no cycles: looking at them took an eighth of a worker's time. Cycles are still collected.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Have glibc keep some freed memory for what comes next; other C libraries decide for themselves.

    A page of records is megabytes of text. By itself glibc gives such memory back to the kernel, which hands it out anew
    for the next page, emptied, 4 KiB by 4 KiB: a twelfth of a worker's time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 * _MIB)
        mallopt(_M_TRIM_THRESHOLD, 128 * _MIB)


def _report(error: Exception) -> int:
    """Log why the process ends. Our own errors speak for themselves; anything else needs its traceback."""
    leaves = list(_leaves(error))
    bugs = [leaf for leaf in leaves if not isinstance(leaf, TidegateError)]
    if bugs:
        log.error(telemetry.PROCESS_BUG, error=repr(bugs[0]), exc_info=error)
        return EXIT_BUG
    for leaf in leaves:
        log.error(telemetry.PROCESS_FAILED, kind=type(leaf).__name__, error=str(leaf))
    return EXIT_FAILED


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The plain exceptions in a tree of exception groups."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def set_up_logging(level: str = "info") -> None:
    """One JSON object a line on stdout. Libraries that use the standard `logging` come out the same way."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stdout)
    formatter = structlog.stdlib.ProcessorFormatter(
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(),
        ],
        foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
    )
    handler.setFormatter(formatter)
    # Libraries are heard from warnings on: botocore's debug lines hold whole replies.
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
