"""The API: from process start to the first answer, then latency and throughput of warm reads, ours and others' in turns.

The functions start from their packages (`tidegate package`), without anything else that is installed here; an empty handler
shows what Python alone takes. Reads are compared with `fastapi` (bench/_api_fastapi.py) and with the bare driver. The ten most
expensive imports of the reads go to standard error.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench import Result
from bench import _api_world as world
from local.postgres import Postgres
from tidegate.cli.package_build import HANDLERS, assemble

STARTS = 5
TURNS = 40
REQUESTS = {"get": 20, "list": 8, "not-modified": 20}
"""Endpoint → requests of each side in a turn."""
SIDES = ("tidegate", "fastapi", "bare-asyncpg")

_FIRST = """
import sys
sys.path[:0] = sys.argv[1].split('|')
import importlib, json
event = json.loads(sys.argv[3])
answer = importlib.import_module(sys.argv[2]).handler(event, None)
sys.stderr.write(str(answer['statusCode']) if answer['statusCode'] in (200, 202) else repr(answer))
"""
_EMPTY = 'def handler(event, context):\n    return {"statusCode": 200}\n'
_IMPORT = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \| ( *)(\S+)")

Timings = dict[str, list[float]]


def run() -> Iterator[Result]:
    with asyncio.Runner() as runner, world.aws() as aws_url, tempfile.TemporaryDirectory() as place:
        postgres = Postgres()
        runner.run(postgres.start())
        try:
            environment = world.environment(runner.run(world.make(postgres)), aws_url)
            yield from _starts(Path(place), environment)
            yield from _warm(environment)
        finally:
            runner.run(postgres.stop())


# --- from process start to the first answer --------------------------------------------------------


def _starts(place: Path, environment: Mapping[str, str]) -> Iterator[Result]:
    (place / "empty").mkdir()
    (place / "empty" / "empty.py").write_text(_EMPTY)
    folders = {"reads": place / "reads", "ingest": place / "ingest", "user": place / "ingest"}
    for function in ("reads", "ingest"):
        folders[function].mkdir()
        assemble(function, environment["TIDEGATE_BUBBLE"], folders[function])
    installed = "|".join(filter(None, [str(world.ROOT), *sys.path]))
    sides = {
        "empty": (str(place / "empty"), "empty", "reads"),
        **{name: (str(folders[name]), HANDLERS[name], name) for name in HANDLERS},
        "fastapi": (installed, "bench._api_fastapi", "reads"),
    }
    taken: Timings = {name: [] for name in sides}
    busy: Timings = {name: [] for name in sides}
    for _ in range(STARTS):
        for name, (path, module, function) in sides.items():
            before = _children_cpu_s()
            taken[name].append(_start(path, module, function, environment))
            busy[name].append(_children_cpu_s() - before)
    best_ms = {name: min(each) * 1000 for name, each in taken.items()}
    cpu_ms = {name: min(each) * 1000 for name, each in busy.items()}
    yield _lower("api-start-reads", "ms to the first 200", best_ms["reads"], "fastapi", best_ms["fastapi"])
    for name in HANDLERS:
        yield _lower(f"api-start-{name}", "ms to the first 200", best_ms[name], "empty", best_ms["empty"])
    over_ms = best_ms["reads"] - best_ms["empty"]
    yield _lower("api-start-reads-over-empty", "ms", over_ms, "limit", 300.0)
    # What other programs on this machine do shows in the time, and hardly in this.
    yield _lower("api-start-reads-cpu-over-empty", "ms of processor", cpu_ms["reads"] - cpu_ms["empty"], "limit", 300.0)
    _print_imports(str(folders["reads"]), environment)


def _children_cpu_s() -> float:
    """Of all processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _start(path: str, module: str, function: str, environment: Mapping[str, str], *options: str) -> float:
    """Seconds from the start of a process to its first answer."""
    asked = json.dumps(world.EVENTS[function]())
    argv = [sys.executable, "-I", "-S", *options, "-c", _FIRST, path, module, asked]
    started = time.perf_counter()
    with subprocess.Popen(
        argv, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        said = process.stderr.read(3)
        seconds = time.perf_counter() - started
        rest = process.stderr.read()
        if said not in (b"200", b"202"):
            raise SystemExit(f"{module} answered {(said + rest).decode()[-2_000:]}")
    return seconds


def _print_imports(path: str, environment: Mapping[str, str]) -> None:
    """The ten packages that take longest, each with all that it imports first."""
    argv = [sys.executable, "-I", "-S", "-X", "importtime", "-c", _FIRST, path, HANDLERS["reads"]]
    ran = subprocess.run(
        [*argv, json.dumps(world.EVENTS["reads"]())], env={**os.environ, **environment},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = [match.groups() for match in map(_IMPORT.search, ran.stderr.splitlines()) if match]
    dearest = sorted(((int(cumulative), name) for _, cumulative, _, name in found), reverse=True)[:10]
    for micros, name in dearest:
        print(f"import {micros / 1000:7.1f} ms  {name}", file=sys.stderr)


# --- warm ------------------------------------------------------------------------------------------


def _warm(environment: Mapping[str, str]) -> Iterator[Result]:
    events = {
        "get": world.event("GET", f"/v1/parcels/{world.KEY}"),
        "list": world.event("GET", "/v1/parcels", query={"limit": str(world.PAGE_ROWS)}),
    }
    for endpoint, count in REQUESTS.items():
        taken: Timings = {side: [] for side in SIDES}
        with ExitStack() as stack:
            asked = {side: stack.enter_context(_side(side, endpoint, events, environment)) for side in SIDES}
            # In turns of a few requests, each time another one first: what else this machine does, it does to all alike.
            for turn in range(TURNS):
                for place in range(len(SIDES)):
                    side = SIDES[(turn + place) % len(SIDES)]
                    taken[side] += asked[side](count)
        yield from _compared(endpoint, taken)


def _compared(endpoint: str, taken: Timings) -> Iterator[Result]:
    rate = {side: len(each) / sum(each) for side, each in taken.items()}
    yield Result.of(f"api-{endpoint}", "requests/s", rate["tidegate"], "fastapi", rate["fastapi"])
    for side in SIDES[1:]:
        for name, part in (("p50", 0.5), ("p99", 0.99)):
            ours, theirs = (_quantile(taken[each], part) * 1000 for each in ("tidegate", side))
            yield _lower(f"api-{endpoint}-{name}", "ms", ours, side, theirs)


@contextmanager
def _side(
    side: str, endpoint: str, events: Mapping[str, Any], environment: Mapping[str, str]
) -> Iterator[Callable[[int], list[float]]]:
    """A process of one side; yields what to call for the seconds of so many requests more."""
    argv = [sys.executable, "-m", "bench._api_sides", side, endpoint, json.dumps(events)]
    with subprocess.Popen(
        argv,
        env={**os.environ, **environment},
        cwd=world.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        put, got = process.stdin, process.stdout

        def ask(count: int) -> list[float]:
            print(count, file=put, flush=True)
            seconds: list[float] = json.loads(got.readline())
            return seconds

        yield ask
        put.close()


def _quantile(taken: list[float], part: float) -> float:
    return sorted(taken)[min(len(taken) - 1, int(len(taken) * part))]


def _lower(bench: str, unit: str, value: float, baseline: str, baseline_value: float) -> Result:
    """A time, where less is better."""
    return Result(
        bench=bench,
        value=round(value, 2),
        unit=unit,
        baseline=baseline,
        baseline_value=round(baseline_value, 2),
        ratio=round(baseline_value / value, 2),
    )
