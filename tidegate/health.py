"""/livez, /readyz and /metrics: what the scheduler, the load balancer and the dashboard ask.

/livez answers for the event loop and for nothing else. A scheduler replaces a process that is not alive, and a
dependency that is down must not get every worker replaced at once.

/readyz answers 503 with its reasons until every named part has said yes: for deployments, and for people.

/metrics is Prometheus' text format. If the settings say so, the same metrics are written to stdout for CloudWatch
(`emf`), where nobody scrapes.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest

from tidegate import telemetry
from tidegate.emf import Emf
from tidegate.lifecycle import never_ends
from tidegate.settings import HealthSettings

_HEARTBEAT_S = 1.0


class Readiness:
    """The parts that must be ready, each with the reason why it is not."""

    def __init__(self, *parts: str) -> None:
        """Every part begins as not ready: "starting"."""
        self._reasons = {part: "starting" for part in parts}
        self._parts = frozenset(parts)

    def yes(self, part: str) -> None:
        """This part is ready. Raises KeyError for a part that was not announced."""
        self._known(part)
        self._reasons.pop(part, None)

    def no(self, part: str, reason: str) -> None:
        """This part is not ready (any more). Raises KeyError for a part that was not announced."""
        self._known(part)
        self._reasons[part] = reason

    def reasons(self) -> dict[str, str]:
        """Why we are not ready, by part; empty when we are."""
        return dict(self._reasons)

    @property
    def is_ready(self) -> bool:
        return not self._reasons

    def _known(self, part: str) -> None:
        if part not in self._parts:
            raise KeyError(part)


class _Heart:
    """How late the event loop's timers are."""

    def __init__(self, stall_limit_s: float) -> None:
        self._stall_limit_s = stall_limit_s
        self._beat_s = asyncio.get_running_loop().time()

    async def beat(self) -> None:
        """Beat once a second, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            self._beat_s = loop.time()
            await asyncio.sleep(_HEARTBEAT_S)
            telemetry.EVENT_LOOP_LAG.set(max(0.0, loop.time() - self._beat_s - _HEARTBEAT_S))

    def silence_s(self) -> float:
        """Seconds since the last beat; about one in good health."""
        return asyncio.get_running_loop().time() - self._beat_s

    @property
    def is_alive(self) -> bool:
        return self.silence_s() < self._stall_limit_s


class _Metrics:
    """The metrics as lines on stdout, once in an interval."""

    def __init__(self, emf: Emf, registry: CollectorRegistry, interval_s: float) -> None:
        self._emf = emf
        self._registry = registry
        self._interval_s = interval_s

    async def write(self) -> None:
        """Write for ever; what the last interval counted is written on the way out."""
        try:
            while True:
                await asyncio.sleep(self._interval_s)
                self._write_lines()
        finally:
            self._write_lines()

    def _write_lines(self) -> None:
        lines = self._emf.lines(self._registry.collect(), time.time_ns() // 1_000_000)
        # In one piece, as a log line is: CloudWatch reads a line, or nothing.
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()


@asynccontextmanager
async def serving(
    settings: HealthSettings, readiness: Readiness, *, registry: CollectorRegistry = REGISTRY, service: str = "tidegate"
) -> AsyncIterator[int]:
    """Serve the three pages for the length of the block; yields the port. Raises OSError when it is taken.

    `service` is what CloudWatch calls the program.
    """
    heart = _Heart(settings.stall_limit_s)
    # A health check is asked every few seconds; an access log would be all there is to read.
    runner = web.AppRunner(_application(heart, readiness, registry), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port)
        await site.start()
        async with asyncio.TaskGroup() as background:
            tasks = [background.create_task(never_ends("heartbeat", heart.beat))]
            if settings.emf.output == "stdout":
                metrics = _Metrics(Emf(settings.emf, service), registry, settings.emf.interval_s)
                tasks.append(background.create_task(never_ends("metrics", metrics.write)))
            yield _port(runner)
            for task in tasks:
                task.cancel()
    finally:
        await runner.cleanup()


def _port(runner: web.AppRunner) -> int:
    port: int = runner.addresses[0][1]
    return port


def _application(heart: _Heart, readiness: Readiness, registry: CollectorRegistry) -> web.Application:
    async def livez(_: web.Request) -> web.Response:
        body = {"alive": heart.is_alive, "silence_s": round(heart.silence_s(), 3)}
        return _json(body, 200 if heart.is_alive else 503)

    async def readyz(_: web.Request) -> web.Response:
        body = {"ready": readiness.is_ready, "reasons": readiness.reasons()}
        return _json(body, 200 if readiness.is_ready else 503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    application = web.Application()
    application.add_routes(
        [web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", metrics)],
    )
    return application


def _json(body: Mapping[str, object], status: int) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")
