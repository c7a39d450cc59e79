"""One hold on virtual time: when it stops believing, and what its checkpoint promises."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from tests.fakes.lease_store import MemoryLeaseStore
from tests.sim.fleet import SETTINGS, now_s
from tidegate.errors import Superseded, Transient
from tidegate.leases import SHARD_END, Checkpoint, Coordinator, Hold, Lease, at

pytestmark = pytest.mark.looptime(noop_cycles=0)


class ScriptedStore(MemoryLeaseStore):
    """What happens to the next writes: "request lost", "reply lost", "slow" (0.7 s), "hangs"; afterwards all is well."""

    def __init__(self, *script: str) -> None:
        super().__init__()
        self.script = list(script)
        self.writes = 0

    async def take(self, lease: Lease, owner: str) -> Lease | None:
        fate = await self._before()
        taken = await super().take(lease, owner)
        return self._after(fate, taken)

    async def renew(
        self, lease: Lease, checkpoint: Checkpoint | None = None, throughput_kbps: float | None = None
    ) -> Lease:
        fate = await self._before()
        return self._after(fate, await super().renew(lease, checkpoint, throughput_kbps)) or lease

    async def release(self, lease: Lease, checkpoint: Checkpoint | None = None, to: str | None = None) -> Lease | None:
        fate = await self._before()
        released = await super().release(lease, checkpoint, to)
        if fate == "reply lost":
            raise Transient(fate)
        return released

    async def _before(self) -> str:
        self.writes += 1
        fate = self.script.pop(0) if self.script else ""
        if fate == "request lost":
            raise Transient(fate)
        if fate in ("slow", "hangs"):
            await asyncio.sleep(0.7 if fate == "slow" else 3600)
        return fate

    def _after(self, fate: str, lease: Lease | None) -> Lease | None:
        if fate == "reply lost":
            raise Transient(fate)
        return lease


async def held(store: MemoryLeaseStore, *, starts_s: float | None = None) -> Hold:
    await store.create(Lease(key="shard", checkpoint=at("10")))
    lease = await MemoryLeaseStore.take(store, store.leases["shard"], "me")
    assert lease is not None
    return Hold(store, lease, SETTINGS, sent_s=now_s(), starts_s=starts_s)


async def test_belief_ends_a_patience_after_the_last_success_was_sent() -> None:
    hold = await held(ScriptedStore("slow"))
    await asyncio.sleep(3)
    sent_s = now_s()
    await hold.renew()
    assert now_s() == pytest.approx(sent_s + 0.7)
    assert hold.deadline_s == pytest.approx(sent_s + SETTINGS.patience_s)
    assert hold.is_valid(hold.deadline_s - 0.001)
    assert not hold.is_valid(hold.deadline_s)


async def test_a_recognised_write_counts_from_its_first_try() -> None:
    """The table's counter moved then, not at the try that found out: others count from there."""
    hold = await held(ScriptedStore("reply lost", "request lost"))
    first_s = now_s()
    for _ in range(2):
        with pytest.raises(Transient):
            await hold.renew()
        await asyncio.sleep(1)
    await hold.renew()
    assert hold.counter == 2
    assert hold.deadline_s == first_s + SETTINGS.patience_s


async def test_a_renewal_that_hangs_is_cut_and_tried_again() -> None:
    hold = await held(ScriptedStore("hangs"))
    keeping = asyncio.create_task(hold.keep())
    await asyncio.sleep(30)
    assert hold.is_valid()
    await hold.release()
    await keeping


async def test_who_cannot_renew_is_lost_at_the_deadline_and_not_later() -> None:
    hold = await held(ScriptedStore(*["request lost"] * 1000))
    keeping = asyncio.create_task(hold.keep())
    await hold.lost.wait()
    assert now_s() == pytest.approx(SETTINGS.patience_s, abs=0.01)
    await keeping
    with pytest.raises(Superseded):
        hold.check()
    with pytest.raises(Superseded):
        await hold.checkpoint(at("11"))


async def test_a_stalled_process_fences_itself_when_it_wakes() -> None:
    hold = await held(ScriptedStore())
    await asyncio.sleep(SETTINGS.patience_s)  # nobody renewed
    with pytest.raises(Superseded):
        hold.check()
    assert hold.lost.is_set()


async def test_a_checkpoint_is_a_renewal_and_survives_hiccups() -> None:
    store = ScriptedStore("reply lost", "request lost", "hangs")
    hold = await held(store)
    await hold.checkpoint(at("11"))
    assert store.leases["shard"].checkpoint == hold.lease.checkpoint == at("11")
    assert hold.counter == store.leases["shard"].counter
    before_s = hold.deadline_s
    await asyncio.sleep(1)
    await hold.checkpoint(at("12"))
    assert hold.deadline_s > before_s


async def test_a_checkpoint_never_goes_back_and_the_same_one_is_not_written_again() -> None:
    store = ScriptedStore()
    hold = await held(store)
    with pytest.raises(ValueError, match="before"):
        await hold.checkpoint(at("9"))
    await hold.checkpoint(at("10"))
    assert store.leases["shard"].counter == 1


async def test_a_checkpoint_gives_up_after_its_tries() -> None:
    store = ScriptedStore(*["request lost"] * 1000)
    hold = await held(store)
    with pytest.raises(Transient):
        await hold.checkpoint(at("11"))
    assert store.writes == SETTINGS.checkpoint_attempts


async def test_a_renewal_and_a_checkpoint_at_once_do_not_lose_the_lease() -> None:
    hold = await held(ScriptedStore("slow", "slow", "slow"))
    await asyncio.gather(hold.checkpoint(at("11")), hold.renew(), hold.renew())
    assert hold.counter == 4
    assert hold.is_valid()


async def test_a_lease_that_another_took_is_lost_at_the_next_write() -> None:
    store = ScriptedStore()
    hold = await held(store)
    await store.take(store.leases["shard"], "thief")
    with pytest.raises(Superseded):
        await hold.checkpoint(at("11"))
    assert hold.lost.is_set()
    assert not await hold.release()
    assert store.leases["shard"].owner == "thief"


async def test_a_stolen_lease_is_not_given_on_before_its_victim_must_know() -> None:
    store = ScriptedStore()
    hold = await held(store, starts_s=now_s() + SETTINGS.patience_s)
    assert not await hold.release()
    assert store.leases["shard"].owner == "me", "it will expire instead"


# ---------------------------------------------------------------- a checkpoint is the renewal


async def test_what_is_done_is_written_with_the_next_renewal() -> None:
    store = ScriptedStore()
    hold = await held(store)
    keeping = asyncio.create_task(hold.keep())
    hold.advance(at("11"))
    hold.advance(at("11"))
    hold.advance(at("12"))
    assert store.writes == 0
    assert store.leases["shard"].checkpoint == at("10")
    await asyncio.sleep(SETTINGS.renew_interval_s + 0.1)
    assert store.writes == 1
    assert (store.leases["shard"].checkpoint, store.leases["shard"].counter) == (at("12"), 2)
    await asyncio.sleep(86_400)
    assert store.writes <= 26_118, "no more than KCL's renewals alone"
    await hold.release()
    await keeping


async def test_what_is_done_never_goes_back() -> None:
    hold = await held(ScriptedStore())
    hold.advance(at("12"))
    with pytest.raises(ValueError, match=r"checkpoint 11 is before 12"):
        hold.advance(at("11"))
    await hold.renew()
    with pytest.raises(ValueError, match="before"):
        hold.advance(at("11"))
    with pytest.raises(ValueError, match="before"):
        await hold.checkpoint(at("11"))


async def test_what_is_done_survives_lost_requests_and_replies() -> None:
    store = ScriptedStore("request lost", "reply lost", "request lost")
    hold = await held(store)
    hold.advance(at("11"))
    for _ in range(3):
        with pytest.raises(Transient):
            await hold.renew()
    hold.advance(at("12"))
    await hold.renew()
    assert store.leases["shard"].checkpoint == at("12")
    assert hold.lease == store.leases["shard"]


async def test_what_is_done_meanwhile_is_not_forgotten() -> None:
    store = ScriptedStore("slow")
    hold = await held(store)
    hold.advance(at("11"))
    renewing = asyncio.create_task(hold.renew())
    await asyncio.sleep(0.3)
    hold.advance(at("12"))
    await renewing
    assert store.leases["shard"].checkpoint == at("11")
    await hold.renew()
    assert store.leases["shard"].checkpoint == at("12")


async def test_giving_up_writes_what_is_done_in_the_same_step() -> None:
    store = ScriptedStore()
    hold = await held(store)
    hold.advance(at("11"))
    left = await hold.release("next")
    assert store.writes == 1
    assert left == store.leases["shard"]
    assert (left.owner, left.checkpoint, left.counter) == ("next", at("11"), 2)


async def test_what_is_done_is_not_written_over_the_end_of_the_shard() -> None:
    store = ScriptedStore()
    hold = await held(store)
    hold.advance(at("11"))
    await hold.end([])
    await hold.renew()
    assert await hold.release() is not None
    assert store.leases["shard"].checkpoint == SHARD_END
    with pytest.raises(ValueError, match="before"):
        hold.advance(at("12"))


async def test_the_throughput_is_smoothed_and_written_with_the_renewals() -> None:
    store = ScriptedStore()
    hold = await held(store)
    keeping = asyncio.create_task(hold.keep())
    for _ in range(60):
        hold.note_read(512 * 1024)
        await asyncio.sleep(1)
    assert store.leases["shard"].throughput_kbps == pytest.approx(512, rel=0.1)
    await hold.release()
    await keeping
    taken = await MemoryLeaseStore.take(store, store.leases["shard"], "next")
    assert taken is not None
    heir = Hold(store, taken, SETTINGS, sent_s=now_s())
    await heir.renew()
    assert store.leases["shard"].throughput_kbps == pytest.approx(512, rel=0.1), "the next one goes on from there"


# ---------------------------------------------------------------- asked to hand over


async def test_a_renewal_tells_that_the_lease_is_wanted_and_keeps_it() -> None:
    store = ScriptedStore()
    hold = await held(store)
    await store.ask(hold.lease, "next")
    await asyncio.sleep(1)
    await hold.renew()
    assert hold.stop.is_set()
    assert hold.is_valid()
    assert hold.deadline_s == pytest.approx(1 + SETTINGS.patience_s)
    await hold.checkpoint(at("11"))
    assert await hold.release()
    left = store.leases["shard"]
    assert (left.owner, left.checkpoint_owner, left.checkpoint, left.epoch) == ("next", None, at("11"), hold.epoch)
    assert not hold.is_valid()


async def test_a_look_at_the_table_tells_it_earlier() -> None:
    store = ScriptedStore()
    hold = await held(store)
    hold.heed(store.leases["shard"])
    assert not hold.stop.is_set()
    await store.ask(hold.lease, "next")
    wanted = store.leases["shard"]
    hold.heed(replace(wanted, epoch=wanted.epoch - 1))
    assert not hold.stop.is_set(), "an old picture of the table, of somebody else's hold"
    hold.heed(wanted)
    assert hold.stop.is_set()
    assert hold.is_valid()


async def test_a_look_at_the_table_tells_that_the_lease_is_lost() -> None:
    store = ScriptedStore()
    hold = await held(store)
    taken = await MemoryLeaseStore.take(store, store.leases["shard"], "thief")
    assert taken is not None
    hold.heed(taken)
    assert hold.lost.is_set()
    assert await hold.release() is None


async def test_what_may_not_be_given_on_yet_is_kept_until_it_may() -> None:
    """Its task has not begun, because the one we took it from may still believe in it."""
    store = ScriptedStore()
    hold = await held(store, starts_s=now_s() + SETTINGS.patience_s)
    await store.ask(hold.lease, "next")
    await hold.renew()
    assert not hold.stop.is_set()
    await asyncio.sleep(SETTINGS.patience_s - 1)
    await hold.renew()
    await asyncio.sleep(1)
    await hold.renew()
    assert hold.stop.is_set()


async def test_giving_up_survives_hiccups() -> None:
    store = ScriptedStore("request lost", "reply lost", "request lost")
    hold = await held(store)
    await store.ask(hold.lease, "next")
    assert await hold.release()
    assert store.leases["shard"].checkpoint_owner is None
    assert store.leases["shard"].counter == 2


async def test_giving_up_is_bounded_when_the_store_is_away() -> None:
    hold = await held(ScriptedStore(*["request lost"] * 1000))
    assert not await hold.release()
    assert now_s() == pytest.approx(2 * SETTINGS.request_timeout_s)


async def test_a_try_to_give_up_that_hangs_is_followed_by_another() -> None:
    store = ScriptedStore("hangs")
    hold = await held(store)
    await store.ask(hold.lease, "next")
    assert await hold.release()
    assert store.leases["shard"].checkpoint_owner is None
    assert SETTINGS.request_timeout_s <= now_s() <= SETTINGS.request_timeout_s + SETTINGS.renew_retry_s


async def test_the_children_are_there_before_the_parent_ends() -> None:
    class Watched(ScriptedStore):
        async def end(self, lease: Lease, child_keys: Sequence[str]) -> Lease:
            assert set(child_keys) <= self.leases.keys()
            return await super().end(lease, child_keys)

    store = Watched()
    hold = await held(store)
    children = [Lease(key="left", parent_keys=frozenset({"shard"})), Lease(key="right")]
    await hold.end(children)
    assert store.leases["shard"].checkpoint == SHARD_END
    assert store.leases["shard"].child_keys == {"left", "right"}
    with pytest.raises(ValueError, match="before"):
        await hold.checkpoint(at("12"))


async def test_a_take_of_a_silent_lease_whose_reply_was_lost_begins_as_soon_as_it_is_seen() -> None:
    """The lease then bears our name; we remember that it was not by force, so nobody can believe in it."""
    store = ScriptedStore("reply lost")
    await store.create(Lease(key="shard"))
    await MemoryLeaseStore.take(store, store.leases["shard"], "victim")
    begun_s: list[float] = []

    async def work(hold: Hold) -> None:
        begun_s.append(now_s())
        await hold.stop.wait()

    stop = asyncio.Event()
    running = asyncio.create_task(Coordinator(store, "me", SETTINGS, work).run(stop))
    while store.leases["shard"].owner != "me":
        await asyncio.sleep(0.01)
    taken_s = now_s()
    assert taken_s >= SETTINGS.expiry_s
    while not begun_s:
        await asyncio.sleep(0.01)
    assert begun_s[0] <= taken_s + SETTINGS.own_look_s * 1.25 + 0.1
    assert store.leases["shard"].epoch == 3, "taken once more: the work's epoch is nobody else's"
    stop.set()
    await running
