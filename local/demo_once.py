"""`tidegate demo --once`: one unattended, bounded round that proves the chain, and its report."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import asyncpg
import msgspec

from local import gateway
from local.demo_compare import ApiCheck, ApiReader, Difference, check_api, compare, shape_of
from local.demo_edge import Edge, check_edge
from local.demo_freshness import Freshness, Sampler
from local.legacy.manners import Rules
from local.stack import Office, Stack
from tidegate.bubble import Bubble
from tidegate.errors import Fatal

FIRST_SYNC_S = 90.0
CATCH_UP_S = 120.0
LIFE_S = 25.0
CHANGES_PER_S = 5.0
SETTLE_S = 20.0
FRESH_WITHIN_S = 25.0
FRESH_S = 5.0
_QUIET_PAUSE_S = 1.0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The one JSON object on standard output. Freshness in milliseconds, from commit to readable in the API."""

    bubble: str
    rows_back_office: int
    rows_front_office: int
    missing: int
    stale: int
    ghosts: int
    deletions: int
    changes: dict[str, int]
    api_reads: int
    api_rows: int
    api_mismatches: list[str]
    freshness_ms: dict[str, int | None]
    freshness_bound_ms: int
    freshness_deletions_ms: dict[str, int | None]
    freshness_by_entity_ms: dict[str, dict[str, int | None]]
    freshness_resolution_ms: int
    freshness_unseen: int
    first_sync_s: float
    catch_up_s: float
    chaos: dict[str, int] | None
    event_ms: int | None
    attribute_kept: bool
    seconds: float

    @property
    def is_good(self) -> bool:
        compared = self.rows_back_office > 0 and self.api_rows > 0
        is_equal = self.missing == self.stale == self.ghosts == 0 and not self.api_mismatches
        return compared and is_equal and self.attribute_kept


async def once(stack: Stack, *, chaos: bool, started: float) -> Report:
    """Sync, live, burst (with kills if `chaos`), catch up, compare. `started`: monotonic seconds.

    Raises:
        Fatal: the front office did not catch up in time at all, so that nothing can be compared.
    """
    await live(stack, 0)
    clock = time.monotonic()
    await _caught_up(stack, FIRST_SYNC_S, "first sync")
    first_sync_s = time.monotonic() - clock
    await _fresh(stack)
    sampler = Sampler(stack)
    await _live(stack, sampler)
    clock = time.monotonic()
    applied = await _burst(stack)
    kills = await _havoc(stack) if chaos else None
    difference = await _caught_up(stack, CATCH_UP_S, "catching up")
    catch_up_s = time.monotonic() - clock
    stack.say("comparing the API's answers with the back offices")
    api = await check_api(stack, stack.demo.users)
    edge = await check_edge(stack)
    return _report(
        stack, difference, applied, api, sampler, edge,
        first_sync_s=first_sync_s, catch_up_s=catch_up_s, kills=kills, seconds=time.monotonic() - started,
    )  # fmt: skip


def freshness_bound_ms(bubble: Bubble) -> int:
    """What is promised for the p99: poll interval + safety distance + the back office's slowest answer + 1 s."""
    waits_s = max(source.poll_interval_s + source.safety_s for source in bubble.sources)
    return round((waits_s + Rules().slow_most_s + 1) * 1000)


def _report(
    stack: Stack,
    difference: Difference,
    applied: dict[str, int],
    api: ApiCheck,
    sampler: Sampler,
    edge: Edge,
    *,
    first_sync_s: float,
    catch_up_s: float,
    kills: dict[str, int] | None,
    seconds: float,
) -> Report:
    measured: Freshness = sampler.result()
    return Report(
        bubble=stack.bubble.name,
        rows_back_office=difference.rows_back_office,
        rows_front_office=difference.rows_front_office,
        missing=difference.missing,
        stale=difference.stale,
        ghosts=difference.ghosts,
        deletions=applied.get("deletes", 0),
        changes=applied,
        api_reads=api.reads + sampler.reads,
        api_rows=api.rows,
        api_mismatches=list(api.mismatches),
        freshness_ms=msgspec.structs.asdict(measured.changes),
        freshness_bound_ms=freshness_bound_ms(stack.bubble),
        freshness_deletions_ms=msgspec.structs.asdict(measured.deletions),
        freshness_by_entity_ms={name: msgspec.structs.asdict(each) for name, each in measured.by_entity.items()},
        freshness_resolution_ms=measured.resolution_ms,
        freshness_unseen=measured.unseen,
        first_sync_s=round(first_sync_s, 1),
        catch_up_s=round(catch_up_s, 1),
        chaos=kills,
        event_ms=edge.event_ms,
        attribute_kept=edge.is_kept,
        seconds=round(seconds, 1),
    )


async def _caught_up(stack: Stack, within_s: float, what: str) -> Difference:
    """Compare until nothing differs, at most `within_s`; the last comparison, whatever it says."""
    deadline = time.monotonic() + within_s
    last = ""
    while True:
        difference = await compare(stack)
        if difference.is_none and difference.rows_back_office > 0:
            stack.say(f"{what}: {difference.rows_front_office} rows, equal")
            return difference
        if str(difference) != last:
            last = str(difference)
            stack.say(f"{what}: {difference.rows_front_office} of {difference.rows_back_office} rows; {last}")
        if time.monotonic() > deadline:
            stack.say(f"{what}: not done within {within_s:.0f} s")
            return difference
        await asyncio.sleep(_QUIET_PAUSE_S)


async def _fresh(stack: Stack) -> None:
    """Wait, bounded, until every source has said how fresh it is; what is measured before is the first load."""
    stack.say("waiting until every source is fresh")
    deadline = time.monotonic() + FRESH_WITHIN_S
    while time.monotonic() < deadline:
        age_s = await oldest_age_s(stack)
        if age_s is not None and age_s < FRESH_S:
            return
        await asyncio.sleep(_QUIET_PAUSE_S)


async def oldest_age_s(stack: Stack) -> float | None:
    """How old the oldest watermark of the bubble's sources is; None while one is missing."""
    sources = [source.name for source in stack.bubble.sources if source.watermark]
    connection = await asyncpg.connect(stack.database("operator_login"), timeout=5)
    try:
        ages: list[float | None] = [
            record["age_s"]
            for record in await connection.fetch(
                "SELECT extract(epoch FROM clock_timestamp() - as_of)::float AS age_s FROM tidegate.data_as_of($1)",
                sources,
            )
        ]
    finally:
        await connection.close()
    known = [age for age in ages if age is not None]
    return max(known, default=0.0) if len(known) == len(ages) else None


async def live(stack: Stack, changes_per_s: float) -> None:
    """Let every back office live a life of its own, `changes_per_s` in all; 0 stops it."""
    rate = changes_per_s / len(stack.offices)
    setting = {"on": True, "changes_per_s": rate} if rate else {"on": False}
    for office in stack.offices:
        await _post(stack, office, "life", setting)


async def _live(stack: Stack, sampler: Sampler) -> None:
    stack.say(f"ordinary life for {LIFE_S:.0f} s, {CHANGES_PER_S:g} changes/s; measuring freshness")
    await sampler.prepare()
    await live(stack, CHANGES_PER_S)
    try:
        await sampler.run(LIFE_S, 0.0)
    finally:
        await live(stack, 0)
    # What is still on its way, deletions above all, which the next sweep finds.
    await sampler.run(0.0, SETTLE_S)


async def _burst(stack: Stack) -> dict[str, int]:
    stack.say("burst: creates, updates, corrections and deletions in every back office")
    total: dict[str, int] = {}
    for office in stack.offices:
        answer = await _post(stack, office, "burst", msgspec.to_builtins(office.spec.burst))
        applied = msgspec.convert(answer["applied"], dict[str, int])
        for kind, number in applied.items():
            total[kind] = total.get(kind, 0) + number
    return total


async def _havoc(stack: Stack) -> dict[str, int]:
    """SIGKILL everything that may die, one after the other, under way. Returns program → times killed."""
    kills: dict[str, int] = {}
    names = ["poller", "worker-1", *(f"office-{office.name}" for office in stack.offices)]
    for name in names:
        stack.say(f"SIGKILL {name}")
        stack.child(name).kill()
        kills[name] = 1
        await asyncio.sleep(0.5)
        async with asyncio.timeout(60):
            await stack.child(name).is_ready.wait()
    kills["api"] = await _kill_api(stack)
    return kills


async def _kill_api(stack: Stack) -> int:
    """SIGKILL the function's runtime, then show that the API answers again."""
    stack.say("SIGKILL the API's runtime")
    pids = gateway.runtime_pids(stack.child("aws").pid, stack.deployment.function)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    reader = await ApiReader.signed_in(stack, stack.demo.users[0])
    shape = shape_of(stack, stack.offices[0].spec.entities[0])
    status, _ = await reader.get(f"/v1/{shape.collection}?limit=1")
    if status != 200:
        raise Fatal(f"after its runtime was killed the API answers {status}; see {stack.child('aws').log}")
    return len(pids)


async def _post(stack: Stack, office: Office, what: str, body: object) -> dict[str, object]:
    async with stack.session.post(f"{office.url}/_sim/{what}", json=body) as answer:
        answer.raise_for_status()
        answered: dict[str, object] = await answer.json()
    return answered
