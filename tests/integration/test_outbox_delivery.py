"""From the outbox to a real receiver: order, repetition, outages, refusals, and dispatchers that die or are two."""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeAlias

import asyncpg
import msgspec
import pytest
import pytest_asyncio
from aiohttp import web

from local.postgres import Postgres
from tests.integration.outbox_receiver import NEXT_SECRET, SECRET, Receiver, Told, receiving
from tests.integration.worker_rows import SHAPES, batch, change, create_tables, gadget, rows
from tests.integration.worker_stack import wait_for
from tidegate.bubble import Env, Webhook
from tidegate.database import Database, DatabaseSettings, connect
from tidegate.errors import Rejected, Transient
from worker import dead_letter, webhook
from worker.aurora import AuroraSink
from worker.dispatch import Dispatch
from worker.outbox import PostgresOutbox
from worker.ports import Effect
from worker.routes import Routes
from worker.settings import OutboxSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")
Sql: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

HOOK = Webhook(
    name="partner", url=Env("URL"), timeout_s=0.5,
    secrets=(Env("SECRET", secret=True), Env("NEXT", secret=True, default="")),
)  # fmt: skip
QUICK = OutboxSettings(
    poll_interval_ms=20, claim_margin_s=0.3, retry_base_ms=5, retry_most_s=0.1, pause_most_s=0.05, keep_interval_s=0.05
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def dsn() -> AsyncIterator[str]:
    async with Postgres() as postgres:
        await create_tables(postgres.dsn)
        yield postgres.dsn


@dataclass
class World:
    """A sink that fills the outbox, a look into it, and what empties it."""

    database: Database
    sql: Sql
    receiver: Receiver
    environ: dict[str, str]
    position: Any = field(default_factory=lambda: itertools.count(1, 1_000))

    async def fill(self, *versions: tuple[str, int], queued: Callable[[Any], None] = lambda counts: None) -> None:
        routes = Routes((HOOK,), [shape.name for shape in SHAPES])
        sink = AuroraSink(self.database, "stream", SHAPES, dead_letter.file, routes, queued)
        await sink.register(["shard-0"], [], [])
        await sink.register(["shard-0"], [], [])
        await sink.open("shard-0", 1)
        events = [change(key, version, gadget(key, pieces=version)) for key, version in versions]
        await sink.write(batch(*events, first=next(self.position)), 1)

    @asynccontextmanager
    async def dispatching(self, settings: OutboxSettings = QUICK) -> AsyncIterator[Dispatch]:
        """What every worker runs; at the end of the block it stops and drains."""
        stop = asyncio.Event()
        async with webhook.connect((HOOK,), {"URL": self.receiver.url, **self.environ}) as destinations:
            dispatch = Dispatch(PostgresOutbox(self.database), destinations, settings)
            async with dispatch.delivering(stop):
                yield dispatch
                stop.set()

    async def states(self) -> dict[str, int]:
        return dict(await rows(self.sql, "SELECT state, count(*) FROM tidegate.outbox GROUP BY state"))

    async def until(self, **states: int) -> None:
        async def reached() -> bool:
            return await self.states() == states

        await wait_for(reached)


@pytest_asyncio.fixture(loop_scope="module")
async def world(dsn: str) -> AsyncIterator[World]:
    sql = await asyncpg.connect(dsn)
    await sql.execute(
        "TRUNCATE gadgets, tidegate.shard, tidegate.dead_letter, tidegate.outbox RESTART IDENTITY CASCADE"
    )
    receiver = Receiver()
    async with connect(dsn, DatabaseSettings(connections=20), "test") as database, receiving(receiver):
        yield World(database, sql, receiver, {"SECRET": SECRET})
    await sql.close()


async def test_changes_go_out_signed_once_and_in_the_order_of_their_row_from_two_workers(world: World) -> None:
    dice = random.Random(3)
    under_way: Counter[str] = Counter()
    most: Counter[str] = Counter()

    async def answer(told: Told) -> web.Response:
        under_way[told.key] += 1
        most[told.key] = max(most[told.key], under_way[told.key])
        await asyncio.sleep(dice.uniform(0, 0.01))
        under_way[told.key] -= 1
        return web.Response(status=200, text="thank you")

    world.receiver.answer = answer
    # Fewer rows than could be sent at once, so that only their order holds them back.
    keys = [f"G{n}" for n in range(5)]
    await world.fill(*((key, version) for version in range(1, 19) for key in keys))
    async with world.dispatching(), world.dispatching() as second:
        await world.fill(*((key, version) for version in range(19, 25) for key in keys), queued=second.queued)
        await world.until(sent=5 * 24)
    assert {key: world.receiver.versions(key) for key in keys} == {key: list(range(1, 25)) for key in keys}
    assert max(most.values()) == 1, "of a row one change at a time"
    first = world.receiver.told[0]
    assert first.id == first.event["id"] == change(first.key, 1, gadget(first.key, pieces=1)).event_id
    assert (first.event["type"], first.event["tidegatecause"]) == ("tidegate.gadget.upsert", "live")
    assert msgspec.convert(first.event["data"], dict[str, Any])["pieces"] == 1
    assert await rows(world.sql, "SELECT DISTINCT attempts, reason FROM tidegate.outbox") == [(1, None)]


async def test_a_commit_of_this_worker_is_sent_without_waiting_for_the_next_look(world: World) -> None:
    never = msgspec.structs.replace(QUICK, poll_interval_ms=3_600_000)
    async with world.dispatching(never) as dispatch:
        await world.fill(*(("A", version) for version in range(1, 30)), queued=dispatch.queued)
        await world.until(sent=29)
    assert world.receiver.versions("A") == list(range(1, 30))


async def test_a_receiver_that_is_down_loses_nothing(world: World) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    late = Receiver(url=f"http://127.0.0.1:{port}/changes")
    world.receiver = late
    await world.fill(("A", 1), ("A", 2), ("B", 1))
    async with world.dispatching():

        async def tried() -> bool:
            return bool(await world.sql.fetchval("SELECT min(attempts) >= 3 FROM tidegate.outbox WHERE reason <> ''"))

        await wait_for(tried)
        assert await world.states() == {"waiting": 3}
        async with receiving(late, port):
            await world.until(sent=3)
    assert late.versions("A") == [1, 2]


async def test_work_that_was_done_without_an_answer_is_offered_again_under_the_same_id(world: World) -> None:
    """The connection is cut after the work, or the answer takes too long: the receiver sees the id twice."""
    outcomes = iter(("cut", "slow"))

    async def answer(told: Told) -> web.Response:
        world.receiver.done.setdefault(told.id, told)
        outcome = next(outcomes, "fine")
        if outcome == "slow":
            await asyncio.sleep(5)
        if outcome == "cut":
            # Nothing is sent back, and the connection closes.
            raise ConnectionAbortedError
        return web.Response()

    world.receiver.answer = answer
    await world.fill(("A", 1))
    async with world.dispatching():
        await world.until(sent=1)
    assert len({told.id for told in world.receiver.told}) == len(world.receiver.done) == 1
    assert world.receiver.versions("A") == [1, 1, 1]
    assert await rows(world.sql, "SELECT attempts FROM tidegate.outbox") == [(3,)]


@pytest.mark.parametrize("status", [302, 401, 404, 408, 425, 500, 503])
async def test_what_may_pass_is_tried_again_and_later_changes_of_the_row_wait(world: World, status: int) -> None:
    seen: Counter[str] = Counter()

    async def answer(told: Told) -> web.Response:
        seen[told.id] += 1
        headers = {"Location": world.receiver.url}
        return web.Response(status=status if seen[told.id] <= 2 else 200, headers=headers)

    world.receiver.answer = answer
    await world.fill(("A", 1), ("A", 2), ("B", 1))
    async with world.dispatching():
        await world.until(sent=3)
    assert world.receiver.versions("A") == [1, 1, 1, 2, 2, 2]


async def test_retry_after_is_honoured_for_everything_that_goes_there(world: World) -> None:
    times: list[float] = []

    async def answer(told: Told) -> web.Response:
        times.append(asyncio.get_running_loop().time())
        return web.Response(status=429, headers={"Retry-After": "1"}) if len(times) == 1 else web.Response()

    world.receiver.answer = answer
    one_at_a_time = msgspec.structs.replace(QUICK, concurrency=1)
    await world.fill(("A", 1), ("B", 1))
    async with world.dispatching(one_at_a_time):
        await world.until(sent=2)
    assert len(times) == 3
    assert times[1] - times[0] >= 1.0


@pytest.mark.parametrize("status", [400, 410, 422])
async def test_a_refused_change_is_dead_whole_and_the_next_one_goes_on(world: World, status: int) -> None:
    async def answer(told: Told) -> web.Response:
        return web.Response(status=status, text="not \0 this one") if told.version == 2 else web.Response()

    world.receiver.answer = answer
    await world.fill(("A", 1), ("A", 2), ("A", 3))
    async with world.dispatching():
        await world.until(sent=2, dead=1)
    assert world.receiver.versions("A") == [1, 2, 3]
    [dead] = await world.sql.fetch("SELECT * FROM tidegate.outbox WHERE state = 'dead'")
    assert (dead["reason"], dead["attempts"], dead["entity"], dead["key"]) == (f"http_{status}", 1, "gadget", "A")
    assert "not \N{REPLACEMENT CHARACTER} this one" in dead["message"]
    assert msgspec.json.decode(dead["payload"])["data"]["pieces"] == 2
    assert await PostgresOutbox(world.database).look("partner") == (0.0, 1)


async def test_a_change_that_failed_for_too_long_is_dead_and_a_person_can_send_it_again(world: World) -> None:
    is_well = False

    async def answer(told: Told) -> web.Response:
        return web.Response(status=200 if is_well or told.key == "B" else 500)

    world.receiver.answer = answer
    await world.fill(("A", 1), ("B", 1))
    async with world.dispatching(msgspec.structs.replace(QUICK, retry_for_s=0.2)):
        await world.until(sent=1, dead=1)
        [dead] = await world.sql.fetch("SELECT * FROM tidegate.outbox WHERE state = 'dead'")
        assert dead["reason"] == "not_accepted"
        assert dead["attempts"] > 1
        assert dead["answered_at"] - dead["tried_since"] >= timedelta(seconds=0.2)
        is_well = True
        # As the runbook says it.
        await world.sql.execute(
            "UPDATE tidegate.outbox SET state = 'waiting', due_at = now(), tried_since = NULL WHERE state = 'dead'"
        )
        await world.until(sent=2)


async def test_a_dispatcher_that_dies_while_it_sends_is_replaced(world: World) -> None:
    begun = asyncio.Event()

    async def answer(told: Told) -> web.Response:
        if not begun.is_set():
            begun.set()
            await asyncio.sleep(5)
        return web.Response()

    world.receiver.answer = answer
    await world.fill(("A", 1), ("A", 2))
    async with webhook.connect((HOOK,), {"URL": world.receiver.url, **world.environ}) as destinations:
        dying = asyncio.create_task(Dispatch(PostgresOutbox(world.database), destinations, QUICK).run(asyncio.Event()))
        await begun.wait()
        dying.cancel()
        await asyncio.gather(dying, return_exceptions=True)
    assert await rows(world.sql, "SELECT state, attempts FROM tidegate.outbox ORDER BY id") == [
        ("waiting", 1),
        ("waiting", 0),
    ]
    async with world.dispatching():
        await world.until(sent=2)
    assert world.receiver.versions("A") == [1, 1, 2]


async def test_on_stop_what_is_under_way_is_finished_and_nothing_more_is_begun(world: World) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def answer(told: Told) -> web.Response:
        begun.set()
        await go.wait()
        return web.Response()

    world.receiver.answer = answer
    await world.fill(("A", 1), ("A", 2))
    stop = asyncio.Event()
    async with webhook.connect((HOOK,), {"URL": world.receiver.url, **world.environ}) as destinations:
        running = asyncio.create_task(Dispatch(PostgresOutbox(world.database), destinations, QUICK).run(stop))
        await begun.wait()
        stop.set()
        done, _ = await asyncio.wait([running], timeout=0.1)
        assert not done
        go.set()
        await running
    assert await world.states() == {"sent": 1, "waiting": 1}


async def test_the_receiver_can_change_over_to_another_secret_while_both_sign(world: World) -> None:
    await world.fill(("A", 1), ("B", 1))
    world.environ = {"SECRET": SECRET, "NEXT": NEXT_SECRET}
    async with world.dispatching():
        await world.until(sent=2)
        world.receiver.secret = NEXT_SECRET
        await world.fill(("C", 1))
        await world.until(sent=3)
    world.environ = {"SECRET": SECRET}
    await world.fill(("D", 1))
    async with world.dispatching():

        async def refused() -> bool:
            return bool(await world.sql.fetchval("SELECT message LIKE '%401%' FROM tidegate.outbox WHERE key = 'D'"))

        await wait_for(refused)
    assert [told.key for told in world.receiver.done.values()] in (["A", "B", "C"], ["B", "A", "C"])


async def test_claims_of_several_workers_share_nothing_and_pass_no_earlier_change(world: World) -> None:
    outbox = PostgresOutbox(world.database)
    await world.fill(*((f"G{n % 40}", n // 40 + 1) for n in range(120)))
    claims = await asyncio.gather(*(outbox.claim("partner", 10, 60) for _ in range(8)))
    taken = [effect for claim in claims for effect in claim]
    assert len(taken) == len({effect.id for effect in taken}) == 40
    assert {version(effect) for effect in taken} == {1}
    assert await outbox.claim("partner", 10, 60) == []
    assert await outbox.claim("somebody else", 10, 60) == []
    for effect in taken[:5]:
        assert await outbox.sent(effect)
    assert [version(effect) for effect in await outbox.claim("partner", 10, 60)] == [2] * 5


async def test_only_the_latest_claim_has_a_say(world: World) -> None:
    outbox = PostgresOutbox(world.database)
    await world.fill(("A", 1))
    [first] = await outbox.claim("partner", 10, -1)
    [second] = await outbox.claim("partner", 10, 60)
    assert (first.id, first.attempt, second.attempt) == (second.id, 1, 2)
    assert not await outbox.sent(first)
    assert not await outbox.failed(first, Rejected("http_400", "late"), wait_s=0, retry_for_s=0)
    assert await world.states() == {"waiting": 1}
    assert not await outbox.failed(second, Transient("away"), wait_s=0, retry_for_s=60)
    [third] = await outbox.claim("partner", 10, 60)
    assert await outbox.sent(third)
    assert not await outbox.sent(third)
    assert await outbox.failed(third, Rejected("http_400", "late"), wait_s=0, retry_for_s=0) is False


async def test_what_stands_behind_a_failed_change_is_put_aside_until_that_is_done(world: World) -> None:
    outbox = PostgresOutbox(world.database)
    aside = "SELECT key, due_at > now() + interval '30 minutes' FROM tidegate.outbox WHERE state = 'waiting' ORDER BY key, id"
    await world.fill(("A", 1), ("A", 2), ("A", 3), ("B", 1))
    [first, other] = await outbox.claim("partner", 10, 60)
    await outbox.failed(first, Transient("away"), wait_s=-1, retry_for_s=60)
    assert await rows(world.sql, aside) == [("A", False), ("A", True), ("A", True), ("B", False)]
    await outbox.sent(other)
    [again] = await outbox.claim("partner", 10, 60)
    assert again.id == first.id
    await outbox.sent(again)
    assert await rows(world.sql, aside) == [("A", False), ("A", True)]
    [second] = await outbox.claim("partner", 10, 60)
    await outbox.failed(second, Rejected("http_400", "never"), wait_s=0, retry_for_s=60)
    assert [version(effect) for effect in await outbox.claim("partner", 10, 60)] == [3]


async def test_what_was_sent_is_deleted_later_and_neither_waits_for_others_nor_makes_them_wait(world: World) -> None:
    outbox = PostgresOutbox(world.database)
    await world.fill(*((f"G{n}", 1) for n in range(30)))
    for effect in await outbox.claim("partner", 20, 60):
        await outbox.sent(effect)
    assert await outbox.sweep(3_600, 8) == 0, "it is kept for a while"
    async with world.database.transaction("hold one") as connection:
        await connection.execute("SELECT FROM tidegate.outbox WHERE id = 3 FOR UPDATE")
        assert [await outbox.sweep(-1, 8) for _ in range(4)] == [8, 8, 3, 0]
    await world.sql.execute("UPDATE tidegate.outbox SET state = 'dead' WHERE id = 30")
    assert await outbox.sweep(-1, 8) == 1
    assert await world.states() == {"waiting": 9, "dead": 1}
    async with world.dispatching(msgspec.structs.replace(QUICK, keep_s=0)):
        await world.until(dead=1)
    assert len(world.receiver.done) == 9


async def test_a_lost_note_of_an_outcome_is_written_again(world: World) -> None:
    class Flaky(PostgresOutbox):
        """Its first note is written, and the reply lost; the second is not even written."""

        faults = 2

        async def sent(self, effect: Effect) -> bool:
            Flaky.faults -= 1
            if Flaky.faults == 1:
                await super().sent(effect)
            if Flaky.faults >= 0:
                raise Transient("no reply")
            return await super().sent(effect)

    await world.fill(("A", 1), ("A", 2))
    stop = asyncio.Event()
    patient = msgspec.structs.replace(QUICK, claim_margin_s=30.0)
    async with (
        webhook.connect((HOOK,), {"URL": world.receiver.url, **world.environ}) as destinations,
        Dispatch(Flaky(world.database), destinations, patient).delivering(stop),
    ):
        await world.until(sent=2)
        stop.set()
    assert world.receiver.versions("A") == [1, 2], "sent once, noted at the third try"


async def test_a_destination_that_refuses_everything_kills_a_few_and_not_all(world: World) -> None:
    async def answer(told: Told) -> web.Response:
        return web.Response(status=400)

    world.receiver.answer = answer
    await world.fill(*((f"G{n}", 1) for n in range(100)))
    slow = msgspec.structs.replace(QUICK, retry_base_ms=3_600_000, pause_most_s=3_600.0, pause_after=3, concurrency=4)
    async with world.dispatching(slow):

        async def paused() -> bool:
            return (await world.states()).get("dead", 0) >= 3

        await wait_for(paused)
    assert (await world.states())["waiting"] >= 100 - 3 - 4


async def test_garbage_instead_of_an_answer_is_a_failure_like_any_other(world: World) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"\xff\xfe\x00 what?\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        for scheme in ("http", "https"):
            environ = {"URL": f"{scheme}://127.0.0.1:{port}/", **world.environ}
            async with webhook.connect((HOOK,), environ) as [destination]:
                with pytest.raises(Transient, match="partner: "):
                    await destination.send(Effect(id=1, event_id="e", attempt=1, payload=b"{}"))


def version(effect: Effect) -> int:
    return int(msgspec.json.decode(effect.payload)["tidegateversion"].split(".")[1])
