"""One budget for all pollers, measured at the back office's side, on virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from poller.breaker import Breaker, State
from poller.budget import EXPIRY_S, Board, cut
from poller.gate import Gate
from poller.source import Refused
from tidegate.errors import Fatal, Transient
from tidegate.feeds import Hours, Office

pytestmark = pytest.mark.looptime(noop_cycles=0)
OFFICE = Office(name="office", requests_per_s=10, concurrency=3)


class Slots:
    """As `poller.slot_store.TableSlots`, in memory; a call takes a moment. `outage` makes it unreachable."""

    def __init__(self) -> None:
        self.board = Board()
        self.outage = False
        self.writes = 0

    async def _reach(self) -> None:
        await asyncio.sleep(0.004)
        if self.outage:
            raise Transient("the table does not answer")

    async def look(self, office: str) -> Board:
        await self._reach()
        return self.board

    async def swap(self, office: str, slot: int, expected: str, value: str) -> tuple[bool, Board]:
        await self._reach()
        if self.board.slots.get(slot, "") != expected:
            return False, self.board
        self.writes += 1
        self.board = replace(self.board, slots={**self.board.slots, slot: value})
        return True, self.board

    async def want(self, office: str) -> Board:
        await self._reach()
        self.board = replace(self.board, wants=self.board.wants + 1)
        return self.board

    async def set_pause(self, office: str, pause: str) -> Board:
        await self._reach()
        self.board = replace(self.board, pause=pause)
        return self.board

    async def end_pause(self, office: str, pause: str) -> Board:
        await self._reach()
        if self.board.pause == pause:
            self.board = replace(self.board, pause="")
        return self.board


class Log:
    """The back office's own: who asked when, and how many were under way."""

    def __init__(self) -> None:
        self.arrivals: list[tuple[float, str]] = []
        self.most_at_once = 0
        self._now = 0

    async def ask(self, gate: Gate, *, urgent: bool = True, takes_s: float = 0.02) -> None:
        async with gate.turn(urgent=urgent):
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            self.arrivals.append((clock(), gate.owner))
            try:
                await asyncio.sleep(takes_s)
            finally:
                self._now -= 1

    def most_in(self, window_s: float) -> int:
        times = [at for at, _ in self.arrivals]
        return max(sum(start <= at < start + window_s for at in times) for start in times)


def clock() -> float:
    return asyncio.get_running_loop().time()


def now() -> datetime:
    return datetime(2026, 11, 21, 5, tzinfo=UTC) + timedelta(seconds=clock())


def gate(office: Office, store: Slots | None, owner: str = "one") -> Gate:
    return Gate(office, store, owner=owner, clock=clock, now=now)


@asynccontextmanager
async def kept(*gates: Gate) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each.keep()) for each in gates]
        yield
        for task in tasks:
            task.cancel()


async def ask_for(log: Log, each: Gate, seconds: float, takes_s: float = 0.02) -> None:
    end = clock() + seconds
    while clock() < end:
        await log.ask(each, takes_s=takes_s)


async def test_slots_that_are_never_seen_free_go_round_all_the_same() -> None:
    """Each request lasts longer than the pace of its slot, so a slot is busy whenever its holder looks."""
    office = replace(OFFICE, requests_per_s=2, concurrency=2)
    log, store = Log(), Slots()
    gates = [gate(office, store, f"poller-{number}") for number in range(3)]
    async with kept(*gates), asyncio.TaskGroup() as group:
        for each in gates:
            group.create_task(ask_for(log, each, 60.0, takes_s=1.5))
    asked = Counter(owner for _, owner in log.arrivals)
    assert min(asked[each.owner] for each in gates) >= 5, asked
    assert log.most_at_once <= 2


@pytest.mark.parametrize("rate", [0.5, 1, 2.5, 7, 10, 20, 25, 100])
@pytest.mark.parametrize("concurrency", [1, 3, 4])
async def test_three_pollers_never_ask_more_than_one_budget(rate: float, concurrency: int) -> None:
    office = Office(name="office", requests_per_s=rate, concurrency=concurrency)
    store, log = Slots(), Log()
    gates = [gate(office, store, owner) for owner in ("one", "two", "three")]
    async with kept(*gates), asyncio.timeout(120), asyncio.TaskGroup() as group:
        for each in gates:
            for _ in range(3):
                group.create_task(ask_for(log, each, 40, takes_s=0.01 if rate > 30 else 0.12))
    assert log.most_in(1.0) <= max(1, rate)
    assert log.most_at_once <= concurrency
    busy = len(log.arrivals) / 40
    assert busy >= 0.55 * min(rate, concurrency / 0.12 if rate <= 30 else rate)
    shares = {owner: sum(name == owner for _, name in log.arrivals) for owner in ("one", "two", "three")}
    assert min(shares.values()) >= 1, "everybody has its turn"


def test_the_slots_waste_little() -> None:
    for rate in (0.2, 1.0, 2.0, 3.0, 10.0, 25.0, 33.0, 200.0):
        for concurrency in (1, 2, 4, 16):
            count, pace_s = cut(replace(OFFICE, requests_per_s=rate, concurrency=concurrency))
            assert 1 <= count <= concurrency
            assert 0.8 * rate <= count / pace_s <= rate or rate < 1


async def test_a_poller_that_died_is_replaced_and_one_that_is_idle_gives_way() -> None:
    store, log = Slots(), Log()
    office = replace(OFFICE, concurrency=1)
    dead, idle, third = (gate(office, store, owner) for owner in ("dead", "idle", "third"))
    async with kept(dead):
        await log.ask(dead)
    began = clock()
    async with kept(idle, third):
        await log.ask(idle)
        assert clock() - began <= EXPIRY_S + 3
        began = clock()
        await log.ask(third)
        assert clock() - began <= 3, "it was idle, and somebody wanted the slot"


async def test_a_poller_alone_costs_few_writes() -> None:
    store, log = Slots(), Log()
    one = gate(OFFICE, store)
    async with kept(one):
        for _ in range(60):
            await log.ask(one)
            await asyncio.sleep(1)
    assert store.writes <= 40, "less than one a second"


async def test_when_the_table_is_away_slots_run_out_and_come_back() -> None:
    store, log = Slots(), Log()
    one = gate(OFFICE, store)
    async with kept(one):
        await log.ask(one)
        store.outage = True
        await asyncio.sleep(10)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await log.ask(one)
        store.outage = False
        async with asyncio.timeout(10):
            await log.ask(one)


async def test_live_goes_before_backfill() -> None:
    log, order = Log(), list[str]()
    one = gate(replace(OFFICE, requests_per_s=2, concurrency=1), None)

    async def ask(name: str, *, urgent: bool) -> None:
        await log.ask(one, urgent=urgent)
        order.append(name)

    async with asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(ask(f"sweep {number}", urgent=False))
        await asyncio.sleep(0.001)
        for number in range(2):
            group.create_task(ask(f"live {number}", urgent=True))
    assert order == ["sweep 0", "live 0", "live 1", "sweep 1", "sweep 2"]


async def test_who_is_asked_to_wait_waits_and_tells_the_others() -> None:
    store, log = Slots(), Log()
    one, two = gate(OFFICE, store, "one"), gate(OFFICE, store, "two")
    async with kept(one, two):
        await log.ask(one)
        await log.ask(two)
        one.pause(20)
        paused_at = clock()
        with pytest.raises(Transient) as caught:
            await log.ask(one)
        assert caught.value.retry_after_s == pytest.approx(20, abs=0.1)
        await asyncio.sleep(1)
        with pytest.raises(Transient):
            await log.ask(two)
        late = gate(OFFICE, store, "late")
        async with kept(late):
            with pytest.raises(Transient):
                await log.ask(late)
        await asyncio.sleep(22)
        await log.ask(one)
        await log.ask(two)
        assert not [at for at, _ in log.arrivals if paused_at < at < paused_at + 20]
        assert store.board.pause == "", "it is over for everybody"


async def test_a_wish_to_wait_ends_though_who_was_told_of_it_is_gone() -> None:
    store, log = Slots(), Log()
    one = gate(OFFICE, store, "one")
    async with kept(one):
        await log.ask(one)
        one.pause(20)
        await asyncio.sleep(1)
    assert store.board.pause
    await asyncio.sleep(10)
    # How long ago it was asked nobody can know, so the first to come waits it out, and nobody after that.
    for name, least_s, most_s in (("two", 19, 40), ("three", 0, 15)):
        after, began = gate(OFFICE, store, name), clock()
        async with kept(after):
            while not [at for at, owner in log.arrivals if owner == name]:
                try:
                    await log.ask(after)
                except Transient as error:
                    await asyncio.sleep(error.retry_after_s or 0)
        assert least_s <= clock() - began <= most_s, name


async def test_a_newer_wish_outlives_an_older_one() -> None:
    store, log = Slots(), Log()
    one, two = gate(OFFICE, store, "one"), gate(OFFICE, store, "two")
    async with kept(one, two):
        one.pause(5)
        await asyncio.sleep(4)
        two.pause(30)
        await asyncio.sleep(10)
        with pytest.raises(Transient):
            await log.ask(one)
        assert store.board.pause.endswith("30")


async def test_closed_hours_are_kept_to() -> None:
    log = Log()
    one = gate(replace(OFFICE, hours=Hours(zone="UTC", quiet=("05:01-05:03",))), None)
    while clock() < 300:
        closed_s = one.closed_s()
        await (asyncio.sleep(closed_s) if closed_s else log.ask(one))
        await asyncio.sleep(0.5)
    assert not [at for at, _ in log.arrivals if 60 <= at < 180]
    assert [at for at, _ in log.arrivals if at < 60]
    assert [at for at, _ in log.arrivals if 180 <= at < 182], "it opens when it opens"


def test_hours_that_make_no_sense_end_the_process_at_its_start() -> None:
    with pytest.raises(Fatal, match=r"back office 'office'.*no window"):
        Gate(replace(OFFICE, hours=Hours(zone="UTC", open=("always",))))


async def test_a_broken_back_office_is_left_alone_and_one_request_tries() -> None:
    one = gate(replace(OFFICE, failures=3), None)
    arrivals: list[float] = []
    is_broken = True

    async def ask() -> None:
        async with one.turn(urgent=True):
            arrivals.append(clock())
            await asyncio.sleep(0.05)
            if is_broken:
                raise Transient("500")

    async def insist() -> None:
        while clock() < 60:
            try:
                await ask()
            except Transient:
                await asyncio.sleep(0.5)

    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(insist())
    assert len(arrivals) <= 8 + 6, "some that were under way, then one try after 2, 4, 8, 15, 15, … s"
    is_broken = False
    await asyncio.sleep(16)
    await ask()
    assert one.closed_s() == 0


async def test_a_refusal_is_an_answer_and_a_wish_to_wait_no_failure() -> None:
    one = gate(replace(OFFICE, failures=2), None)
    for error in (Refused("404"), Transient("429", retry_after_s=0.0)):
        for _ in range(5):
            with pytest.raises(Transient):
                async with one.turn(urgent=True):
                    raise error
    assert one.closed_s() == 0


def test_a_try_that_is_given_up_leaves_the_breaker_as_it_was() -> None:
    breaker = Breaker(1, 2.0, 15.0)
    breaker.failed(0.0)
    assert (breaker.state(1.0), breaker.begin(1.0)) == (State.OPEN, False)
    assert breaker.begin(2.5)
    assert not breaker.begin(2.6), "one tries, the others wait"
    breaker.said_nothing()
    assert breaker.begin(2.7)
    breaker.failed(2.8)
    assert breaker.wait_s(2.8) == 4.0
    assert breaker.begin(7.0)
    breaker.succeeded()
    assert breaker.state(7.0) is State.CLOSED
