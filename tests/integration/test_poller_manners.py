"""Three poller processes and one back office that bears little, judged by the back office's own log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pytest
from aiohttp import web

from tests.contract.kinesis_peers import Server, start_ministack
from tests.integration.clock_poller import CLOCK
from tests.integration.manners_bubble import REQUESTS_PER_S
from tests.integration.poller_stack import BUCKET, LOGIN, REGION, Stack, answering, running, wait_for
from tidegate import aws
from tidegate.signals import STATE, State
from tidegate.source_table import SourceTable

BUBBLE = "tests.integration.manners_bubble"
NAMES = ("ants", "bees", "cats")
WAIT_S = 4
WINDOW_S = 3.0


class Visit(NamedTuple):
    at: float
    path: str
    owner: str


class Shy:
    """The back office. `scold`: the next request is answered with 429 and the wish to be left alone."""

    def __init__(self) -> None:
        self.visits: list[Visit] = []
        self.most_at_once = 0
        self.scold = False
        self.scolded_at: float | None = None
        self._now = 0

    async def answer(self, request: web.Request) -> web.Response:
        self.visits.append(Visit(asyncio.get_running_loop().time(), request.path[1:], request.headers["User-Agent"]))
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            await asyncio.sleep(0.05)
        finally:
            self._now -= 1
        if self.scold:
            self.scold, self.scolded_at = False, self.visits[-1].at
            return web.Response(status=429, headers={"Retry-After": str(WAIT_S)})
        return web.json_response({"rows": [{"key": f"{request.path[1:]}-{number}"} for number in range(5)], "pages": 1})

    def owners(self, path: str) -> list[str]:
        """Who asked for it, one after the other."""
        return [owner for owner, _ in groupby(visit.owner for visit in self.visits if visit.path == path)]

    def most_in(self, window_s: float) -> int:
        times = [visit.at for visit in self.visits]
        return max(sum(start <= at < start + window_s for at in times) for start in times)

    def between(self, start: float, end: float) -> list[Visit]:
        return [visit for visit in self.visits if start < visit.at < end]


@pytest.fixture(scope="module")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_ministack(tmp_path_factory.mktemp("ministack"))
    yield server
    server.stop()


@pytest.fixture
async def stack(ministack: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stack]:
    for name, value in {**REGION, **LOGIN, "AWS_ENDPOINT_URL": ministack.url, "AWS_ENDPOINT_URL_KINESIS": ""}.items():
        monkeypatch.setenv(name, value)
    async with aws.client("s3") as s3, aws.client("dynamodb") as dynamodb:
        await s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION["AWS_REGION"]})
        async with running(ministack, tmp_path) as made:
            yield made
        for item in (await s3.list_objects_v2(Bucket=BUCKET)).get("Contents", ()):
            await s3.delete_object(Bucket=BUCKET, Key=item["Key"])
        await s3.delete_bucket(Bucket=BUCKET)
        for table in (await dynamodb.list_tables())["TableNames"]:
            await dynamodb.delete_table(TableName=table)


async def test_the_budget_the_wish_to_wait_and_one_poller_for_each_source(stack: Stack) -> None:
    shy = Shy()
    async with answering(shy.answer) as url, AsyncExitStack() as pollers:
        stack.environment["SHY_URL"] = url
        processes = [await pollers.enter_async_context(stack.poller(BUBBLE)) for _ in range(3)]

        async def is_spread() -> bool:
            return len({shy.owners(name)[-1] for name in NAMES if shy.owners(name)}) == 3

        await wait_for(is_spread, 40)
        count = len(shy.visits)

        async def is_busy() -> bool:
            return len(shy.visits) >= count + 4 * REQUESTS_PER_S

        await wait_for(is_busy, 30)
        shy.scold = True

        async def is_over() -> bool:
            return bool(shy.scolded_at and shy.visits[-1].at > shy.scolded_at + WAIT_S)

        await wait_for(is_over, 30)
        before = {name: shy.owners(name)[-1] for name in NAMES}
        assert await stack.stop(processes[0]) == 0

        async def is_handed_over() -> bool:
            now = [shy.owners(name)[-1] for name in NAMES]
            asked = {visit.path for visit in shy.visits[-12:]}
            return len(set(now)) == 2 and asked == set(NAMES) and now != list(before.values())

        await wait_for(is_handed_over, 30)
    assert shy.most_in(WINDOW_S) <= WINDOW_S * REQUESTS_PER_S + REQUESTS_PER_S / 2, (
        "three budgets would be three times that"
    )
    assert shy.most_at_once <= 2
    assert shy.scolded_at is not None
    # The others are told within a second.
    assert shy.between(shy.scolded_at + 1.2, shy.scolded_at + WAIT_S - 0.1) == []
    for name in NAMES:
        # It goes to another once when the three share, and once more when one of them leaves, perhaps back.
        assert len(shy.owners(name)) <= 3, f"{name} was never asked for by two in turns"


async def test_a_quiet_window_is_kept_by_three_pollers(stack: Stack, tmp_path: Path) -> None:
    shy, clock = Shy(), tmp_path / "clock"

    def it_is(time: str) -> None:
        """At once: no poller may read half of it."""
        (tmp_path / "next").write_text(f"2026-11-21T{time}+01:00")
        (tmp_path / "next").replace(clock)

    it_is("01:59:00")
    async with answering(shy.answer) as url, AsyncExitStack() as running_:
        stack.environment |= {
            "SHY_URL": url, "SHY_QUIET": "02:00-02:15", CLOCK: str(clock),
            "TIDEGATE_SIGNALS_INTERVAL_S": "0.2", "TIDEGATE_SIGNALS_STATE_S": "0.5",
        }  # fmt: skip
        for _ in range(3):
            await running_.enter_async_context(stack.poller(BUBBLE, "tests.integration.clock_poller"))
        table = SourceTable(await running_.enter_async_context(aws.client("dynamodb")), "tidegate-sources")

        async def is_shared() -> bool:
            return len({visit.owner for visit in shy.visits}) == 3

        await wait_for(is_shared, 40)
        # Whoever is turned away at the door comes again when it opens, by its own clock.
        it_is("02:14:57")
        closed_at, quiet_from = datetime.now(UTC), asyncio.get_running_loop().time()

        async def have_been_quiet() -> bool:
            states = [(await table.get(name, STATE)).read(State) for name in NAMES]
            return all(each.doing == "closed" and each.at > closed_at + timedelta(seconds=3) for each in states)

        await wait_for(have_been_quiet, 30)
        it_is("02:15:00")
        quiet_until = asyncio.get_running_loop().time()

        async def all_are_asked_for() -> bool:
            return {visit.path for visit in shy.visits if visit.at > quiet_until} == set(NAMES)

        await wait_for(all_are_asked_for, 30)
    # What was sent right before may still be on its way.
    assert shy.between(quiet_from + 0.3, quiet_until) == []
    assert quiet_until - quiet_from > 3
