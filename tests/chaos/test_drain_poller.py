"""SIGTERM under load: a poller hands its sources over and ends with 0 in time, and no change is published twice.

Two poller processes, tuned as the task definition of k8s_or_ecs/ecs/services.yaml does it, poll two back offices whose rows
change all the time. One is told to stop while a page of its is on the way to the stream. What was published and what each
source's index knows go together, so the successor knows it all.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from local.legacy.customers import CustomerOffice
from local.legacy.parcels import ParcelOffice
from tests.chaos.audit import LeaseWatch
from tests.chaos.proxy import Fault, FaultProxy, fronting
from tests.chaos.scene import leases
from tests.contract.kinesis_peers import Server, start_ministack
from tests.deploy.ecs.rules import DRAIN_MOST_S
from tests.deploy.ecs.templates import containers, load, tuning
from tests.integration.poller_stack import BUCKET, LOGIN, POLLER, REGION, Stack, offices, running, wait_for
from tidegate import aws
from tidegate.event import EntityKey
from tidegate.leases import DynamoLeaseStore
from tidegate.settings import LeaseSettings

BUBBLE = "examples.parcels.bubble"
SOURCES = {"parcels", "offices", "customers"}
BURST = {"creates": 5, "updates": 40, "corrections": 5, "deletes": 2}
ROUNDS_BEFORE = 10


@pytest.fixture(scope="module")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_ministack(tmp_path_factory.mktemp("ministack"))
    yield server
    server.stop()


@pytest.fixture
async def stack(ministack: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stack]:
    for name, value in {**REGION, **LOGIN, "AWS_ENDPOINT_URL": ministack.url, "AWS_ENDPOINT_URL_KINESIS": ""}.items():
        monkeypatch.setenv(name, value)
    none = argparse.Namespace()
    async with aws.client("s3") as s3, running(ministack, tmp_path) as made:
        await s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION["AWS_REGION"]})
        async with offices(made, parcels=(ParcelOffice, none), customers=(CustomerOffice, none)):
            yield made


class Life:
    """Changes at both back offices, as fast as these answer, until told to stop."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._is_over = False
        self.rounds = 0

    async def run(self) -> None:
        while not self._is_over:
            await self._stack.tell("parcels", "burst", BURST)
            await self._stack.tell("customers", "burst", BURST)
            self.rounds += 1

    def stop(self) -> None:
        self._is_over = True


class Watched(LeaseWatch):
    """Who holds the sources."""

    async def holders(self) -> dict[str, str | None]:
        return {key: lease.holder for key, lease in (await self.look()).items()}

    async def has_all(self) -> bool:
        holders = await self.holders()
        return holders.keys() == SOURCES and len(set(holders.values())) == 1 and None not in holders.values()

    async def is_shared(self) -> bool:
        return len({holder for holder in (await self.holders()).values() if holder}) == 2


@pytest.mark.timeout(300)
async def test_a_poller_told_to_stop_under_load_hands_over_in_time_and_nothing_is_published_twice(stack: Stack) -> None:
    templates = load()
    container = dict(containers(templates))["services.Poller"]
    # They are patient: a call that is given up and made again would put its records on the stream twice.
    stack.environment |= {**leases(), **tuning(templates["services"], container), "TIDEGATE_AWS_READ_TIMEOUT_S": "60"}
    async with AsyncExitStack() as stacked:
        store = DynamoLeaseStore(
            await stacked.enter_async_context(aws.client("dynamodb")), POLLER["TIDEGATE_POLLER_LEASE_TABLE"]
        )
        await store.ensure_table()
        watch = Watched(store, every_s=0.1)
        straight = stack.environment["AWS_ENDPOINT_URL_KINESIS"]
        proxy = await stacked.enter_async_context(fronting(straight, seed=1))
        stack.environment["AWS_ENDPOINT_URL_KINESIS"] = proxy.url
        victim = await stacked.enter_async_context(stack.poller(BUBBLE))
        await wait_for(watch.has_all, 120)
        [name] = set((await watch.holders()).values())
        stack.environment["AWS_ENDPOINT_URL_KINESIS"] = straight
        heir = await stacked.enter_async_context(stack.poller(BUBBLE))
        await wait_for(watch.is_shared, 120)
        group = await stacked.enter_async_context(asyncio.TaskGroup())
        stacked.callback(group.create_task(watch.run()).cancel)
        life = Life(stack)
        group.create_task(life.run())
        await wait_for(lambda: has_lived(life, ROUNDS_BEFORE), 120)
        await in_the_middle_of_a_page(proxy)
        drained_s = await told_to_stop(watch, victim, name)
        rounds = life.rounds
        await wait_for(lambda: has_lived(life, rounds + ROUNDS_BEFORE), 120)
        life.stop()
        await wait_for(lambda: stack.is_true("parcels", "parcel", "office"), 120)
        await wait_for(lambda: stack.is_true("customers", "customer"), 120)
        assert twice(stack) == []
        assert await stack.stop(heir) == 0
        print(f"drained in {drained_s:.2f} s; {len(stack.reader.events)} events, each published once")


async def in_the_middle_of_a_page(proxy: FaultProxy) -> None:
    """Until a call is on its way that takes a while."""
    proxy.rates = {"PutRecords": {Fault.SLOW: 1.0}}
    slow = proxy.counts["PutRecords", Fault.SLOW]

    async def is_under_way() -> bool:
        return proxy.counts["PutRecords", Fault.SLOW] > slow

    await wait_for(is_under_way, 120)


async def told_to_stop(watch: Watched, process: asyncio.subprocess.Process, name: str | None) -> float:
    """SIGTERM; exit code 0 in time, and its sources pass to the other without expiring. Seconds until it was gone."""
    loop = asyncio.get_running_loop()
    epochs = {key: lease.epoch for key, lease in (await watch.look()).items() if lease.holder == name}
    assert epochs
    since_s = loop.time()
    process.send_signal(signal.SIGTERM)
    code = await asyncio.wait_for(process.wait(), DRAIN_MOST_S)
    gone_s = loop.time() - since_s
    assert code == 0

    async def are_taken() -> bool:
        await watch.look()
        return watch.taken_after_s(since_s, epochs).keys() == epochs.keys()

    await wait_for(are_taken, 120)
    taken_s = max(watch.taken_after_s(since_s, epochs).values())
    assert taken_s - gone_s < LeaseSettings().expiry_s / 2, "they were not handed over, they expired"
    assert await watch.has_all()
    return gone_s


async def has_lived(life: Life, rounds: int) -> bool:
    return life.rounds >= rounds


def twice(stack: Stack) -> list[tuple[EntityKey, Any]]:
    """Changes of a row that say just what the one before said, of the same version of the back office."""
    last: dict[EntityKey, Any] = {}
    found = []
    for event in stack.reader.events:
        version = event.version
        said = (event.operation, event.payload, version.generation, version.source_version, version.translation)
        if last.get(event.key) == said:
            found.append((event.key, said))
        last[event.key] = said
    return found
