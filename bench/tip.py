"""Latency at the tip at half load: a record is put → its row is committed, and how much of that is waiting to be read.

First the worker drains a backlog: what it projects in a second, from the embedded Kinesis, is its capacity. Then a producer
puts half as many a second, each a row of its own, and the worker follows. Kinesis, PostgreSQL, producer and worker share the
machine, so that half load is more than that of its cores.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from bench import Result
from bench._project_database import database
from bench._project_stream import SHARDS
from local.provision import make_stream
from tidegate import lifecycle

BACKLOG = 60_000
FOR_S = 15.0
SKIP_S = 3.0
_AWS = {"AWS_REGION": "eu-central-1", "AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}


def run() -> Iterator[Result]:
    with _kinesis() as url, asyncio.Runner() as runner:
        capacity, sent, times = runner.run(_measure(url))
    yield Result.of("tip-load", "records/s put", sent, "capacity", capacity)
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        whole_ms, read_ms, written_ms = (_ms(each, share) for each in times)
        yield _line(f"tip-{name}", whole_ms, "ms, put to committed", "put to read", read_ms)
        yield _line(f"tip-written-{name}", written_ms, "ms, read to committed", "put to read", read_ms)


def _line(name: str, value: float, unit: str, baseline: str, baseline_value: float) -> Result:
    return Result(
        bench=name, value=round(value), unit=unit, baseline=baseline, baseline_value=round(baseline_value),
        ratio=round(baseline_value / value, 2),
    )  # fmt: skip


def _ms(times: list[float], share: float) -> float:
    return sorted(times)[int(share * (len(times) - 1))] * 1000


async def _measure(url: str) -> tuple[float, float, tuple[list[float], ...]]:
    """Capacity and load in records a second; seconds from put to committed, to read, and from read to committed."""
    from bench._tip_sides import drain, follow, produce  # noqa: PLC0415

    environment = {**_AWS, "AWS_ENDPOINT_URL_KINESIS": url}
    for stream in ("backlog", "tip"):
        await make_stream(environment, stream, SHARDS)
    async with database() as made:
        await made.empty()
        await _apart(environment, produce, "backlog", BACKLOG, None)
        capacity: float = await _apart(environment, drain, "backlog", made.dsn, BACKLOG)
        await made.empty()
        records = int(capacity / 2 * FOR_S)
        async with asyncio.TaskGroup() as group:
            following = group.create_task(_apart(environment, follow, "tip", made.dsn, records, SKIP_S))
            sent: float = await _apart(environment, produce, "tip", records, capacity / 2)
    pairs = following.result()
    return capacity, sent, ([sum(each) for each in pairs], [each[0] for each in pairs], [each[1] for each in pairs])


async def _apart(environment: dict[str, str], side: Callable[..., Coroutine[Any, Any, Any]], *arguments: object) -> Any:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return await asyncio.get_running_loop().run_in_executor(pool, _alone, environment, side, arguments)


def _alone(
    environment: dict[str, str], side: Callable[..., Coroutine[Any, Any, Any]], arguments: tuple[object, ...]
) -> Any:
    os.environ |= environment
    lifecycle.set_up_logging("error")
    return asyncio.run(side(*arguments))


@contextmanager
def _kinesis() -> Iterator[str]:
    """The embedded one as a process, without the limits of a shard: ten stand in for a hundred."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "local.kinesis", "--port", "0", "--data", folder, "--no-enforce-limits"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                found = re.search(r"http://\S+", server.stdout.readline())
                assert found is not None
                yield found.group()
            finally:
                server.terminate()
