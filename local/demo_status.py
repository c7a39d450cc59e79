"""The live status line of `tidegate demo`: how far a change has come, from the back office to what was served."""

from __future__ import annotations

import asyncio

import aiohttp
import asyncpg
from prometheus_client.parser import text_string_to_metric_families

from local.demo_once import oldest_age_s
from local.stack import Stack

UNREACHABLE = (asyncpg.PostgresError, OSError, aiohttp.ClientError, TimeoutError)


async def status(stack: Stack) -> str:
    """One line. What does not answer at the moment is left out of its numbers and said.

    Raises:
        one of UNREACHABLE: the database or a back office does not answer.
    """
    rows, changes = await _back_offices(stack)
    shown, filed = await _front_office(stack)
    scraped = await asyncio.gather(*(_scrape(stack, url) for url in stack.health.values()))
    total = {name: sum(metrics.get(name, 0.0) for metrics in scraped) for name in _SUMMED}
    lag_ms = max((metrics.get(_LAG, 0.0) for metrics in scraped), default=0.0)
    age_s = await oldest_age_s(stack)
    age = "?" if age_s is None else f"{age_s:.1f} s ago"
    restarts = sum(child.restarts for child in stack.supervisor.children)
    return (
        f"back office {rows} rows, {changes} changes > published {total[_PUBLISHED]:.0f} > "
        f"projected {total[_PROJECTED]:.0f}, lag {lag_ms:.0f} ms > front office {shown} rows, as of {age}, "
        f"served {stack.served.answers} | dead letters {filed} | restarts {restarts}"
    )


_PUBLISHED = "tidegate_poller_published_total"
_PROJECTED = "tidegate_records_written_total"
_SUMMED = (_PUBLISHED, _PROJECTED)
_LAG = "tidegate_millis_behind_latest"


async def _back_offices(stack: Stack) -> tuple[int, int]:
    rows = changes = 0
    for office in stack.offices:
        async with stack.session.get(f"{office.url}/_sim/stats") as answer:
            stats = await answer.json()
        rows += sum(stats["rows"].values())
        changes += stats["changes"]
    return rows, changes


async def _front_office(stack: Stack) -> tuple[int, int]:
    connection = await asyncpg.connect(stack.database("operator_login"), timeout=5)
    try:
        shown = 0
        for shape in stack.bubble.shapes:
            shown += await connection.fetchval(f'SELECT count(*) FROM "{shape.table}" WHERE NOT _deleted')
        filed: int = await connection.fetchval("SELECT count(*) FROM tidegate.dead_letter WHERE resolved_at IS NULL")
    finally:
        await connection.close()
    return shown, filed


async def _scrape(stack: Stack, url: str) -> dict[str, float]:
    """The samples of one program: counters summed over their labels, the lag at its worst shard."""
    try:
        async with stack.session.get(f"{url}/metrics") as answer:
            text = await answer.text()
    except (OSError, aiohttp.ClientError, TimeoutError):
        return {}
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in _SUMMED:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
            elif sample.name == _LAG:
                found[_LAG] = max(found.get(_LAG, 0.0), sample.value)
    return found
