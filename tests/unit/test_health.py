"""The three pages of the health server."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter

from tidegate.health import Readiness, serving
from tidegate.settings import HealthSettings

ANY_PORT = HealthSettings(port=0)


async def get(port: int, page: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/{page}") as reply:
        return reply.status, await reply.text()


async def test_ready_only_when_every_part_says_so() -> None:
    readiness = Readiness("leases", "database")
    async with serving(ANY_PORT, readiness) as port:
        status, text = await get(port, "readyz")
        assert status == 503
        assert '"leases":"starting"' in text
        readiness.yes("leases")
        readiness.yes("database")
        assert await get(port, "readyz") == (200, '{"ready":true,"reasons":{}}')
        readiness.no("database", "away")
        status, text = await get(port, "readyz")
        assert (status, text) == (503, '{"ready":false,"reasons":{"database":"away"}}')


async def test_a_process_whose_parts_are_all_down_is_alive() -> None:
    async with serving(ANY_PORT, Readiness("database")) as port:
        status, text = await get(port, "livez")
    assert status == 200
    assert '"alive":true' in text


async def test_an_event_loop_that_stands_still_is_not() -> None:
    """A limit shorter than the heartbeat's second makes every loop look stalled."""
    async with serving(HealthSettings(port=0, stall_limit_s=1e-6), Readiness()) as port:
        status, _ = await get(port, "livez")
    assert status == 503


async def test_metrics_of_the_given_registry() -> None:
    registry = CollectorRegistry()
    Counter("tidegate_tests_total", "Tests.", registry=registry).inc(3)
    async with serving(ANY_PORT, Readiness(), registry=registry) as port:
        status, text = await get(port, "metrics")
    assert status == 200
    assert "tidegate_tests_total 3.0" in text


async def test_the_port_is_free_again_afterwards() -> None:
    async with serving(ANY_PORT, Readiness()) as port:
        pass
    async with serving(HealthSettings(port=port), Readiness()) as again:
        assert again == port


async def test_a_failing_body_is_not_hidden() -> None:
    with pytest.raises(ExceptionGroup) as raised:
        async with asyncio.timeout(5), serving(ANY_PORT, Readiness()):
            raise LookupError("in the body")
    assert raised.group_contains(LookupError)


def test_a_part_that_nobody_announced_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        Readiness("leases").yes("leses")
