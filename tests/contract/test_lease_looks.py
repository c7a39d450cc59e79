"""Looking at the lease table in part and by owner, and the writes of one that stops: the fake and DynamoDB alike."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from tests.contract.lease_tables import ME, OTHER, item, now, taken
from tidegate.errors import Superseded
from tidegate.leases import SHARD_END, DynamoLeaseStore, Lease, LeaseStore, Part, at

# ---------------------------------------------------------------- looks


@pytest.mark.parametrize("total", [1, 2, 7])
async def test_the_parts_together_are_the_table(store: LeaseStore, total: int) -> None:
    for index in range(40):
        await store.create(Lease(key=f"shard-{index:03}", checkpoint=at(str(index))))
    parts = [await store.look(Part(index, total)) for index in range(total)]
    leases = [lease for look in parts for lease in look.leases]
    assert sorted(leases, key=lambda lease: lease.key) == await sorted_scan(store)
    whole = await store.look()
    assert sorted(whole.leases, key=lambda lease: lease.key) == await sorted_scan(store)
    assert all(look.read_units >= 0.5 for look in parts)
    assert whole.read_units < 40


async def sorted_scan(store: LeaseStore) -> list[Lease]:
    return sorted(await store.scan(), key=lambda lease: lease.key)


async def test_a_lease_stays_in_its_part(store: LeaseStore) -> None:
    """Its watchers must not lose sight of it."""
    for index in range(20):
        await store.create(Lease(key=f"shard-{index}"))
    before = {lease.key for lease in (await store.look(Part(1, 3))).leases}
    for index in range(20):
        assert await store.take(await now(store, f"shard-{index}"), ME) is not None
    assert {lease.key for lease in (await store.look(Part(1, 3))).leases} == before


async def test_what_is_in_a_name(store: LeaseStore) -> None:
    mine, wanted, gone = await taken(store, "mine"), await taken(store, "wanted"), await taken(store, "gone")
    await taken(store, "other", OTHER)
    await store.ask(wanted, OTHER)
    await store.release(gone)
    assert await names(store, ME) == {"mine"}
    assert await names(store, OTHER) == {"other", "wanted"}
    assert (await store.named("nobody")).keys == []
    await store.end(mine, [])
    assert await names(store, ME) == {"mine"}, "it keeps its owner until it is given up"


async def names(store: LeaseStore, owner: str) -> set[str]:
    return set((await store.named(owner)).keys)


async def test_other_kinds_of_item_are_not_leases_though_they_have_an_owner(dynamodb: Any, table: str) -> None:
    """KCL's leader lock has a leaseOwner and a leaseCounter, and so is in the index on the owner."""
    leader = {
        "leaseKey": {"S": "leader"},
        "leaseOwner": {"S": ME},
        "leaseCounter": {"N": "3"},
        "checkpoint": {"S": "TRIM_HORIZON"},
        "entityType": {"S": "LEADER"},
    }
    await dynamodb.put_item(TableName=table, Item=leader)
    store = DynamoLeaseStore(dynamodb, table)
    mine = await taken(store)
    assert (await store.named(ME)).keys == ["leader", "shard"]
    assert await store.get("leader") is None
    assert (await store.look()).leases == [mine]
    assert (await store.look(Part(0, 1))).leases == [mine]


# ---------------------------------------------------------------- a checkpoint is the renewal


async def test_a_renewal_takes_the_checkpoint_and_the_throughput_along(store: LeaseStore) -> None:
    lease = await taken(store)
    done = await store.renew(lease, at("5", 1), 12.5)
    assert done == replace(lease, counter=2, checkpoint=at("5", 1), throughput_kbps=12.5)
    assert await now(store) == done
    measured = await store.renew(done, None, 0.125)
    assert measured == replace(done, counter=3, throughput_kbps=0.125)
    assert await store.renew(measured) == replace(measured, counter=4), "what is not given stays"
    assert await now(store) == replace(measured, counter=4)


async def test_a_renewal_whose_reply_was_lost_counts_though_the_throughput_is_another_now(store: LeaseStore) -> None:
    lease = await taken(store)
    done = await store.renew(lease, at("5"), 10.0)
    assert await store.renew(lease, at("5"), 11.0) == done


async def test_throughput_is_written_as_kcl_writes_it(dynamodb: Any, table: str) -> None:
    store = DynamoLeaseStore(dynamodb, table)
    lease = await store.renew(await taken(store), None, 1234.5)
    assert (await item(dynamodb, table))["throughputKBps"] == {"N": "1234.5"}
    written = await item(dynamodb, table) | {"throughputKBps": {"N": "1.5E-7"}}
    await dynamodb.put_item(TableName=table, Item=written)
    assert (await now(store)).throughput_kbps == 1.5e-7
    assert (await store.renew(lease)).counter == lease.counter + 1


# ---------------------------------------------------------------- giving away


async def test_what_is_given_up_goes_to_the_one_that_is_named_with_its_checkpoint(store: LeaseStore) -> None:
    mine = await taken(store)
    left = await store.release(mine, at("7"), OTHER)
    assert left == replace(mine, owner=OTHER, counter=2, checkpoint=at("7"), owner_switches=1)
    assert await now(store) == left
    assert await names(store, OTHER) == {"shard"}
    assert await store.release(mine, at("7"), OTHER) == left, "the reply may have been lost"
    begun = await store.take(left, OTHER)
    assert begun == replace(left, counter=3, epoch=2)
    assert await store.release(mine, at("7"), OTHER) is None


async def test_who_asked_goes_before_who_is_named(store: LeaseStore) -> None:
    mine = await taken(store)
    await store.ask(mine, OTHER)
    left = await store.release(mine, at("7"), "third")
    assert left == replace(mine, owner=OTHER, counter=2, checkpoint=at("7"), owner_switches=1)


async def test_a_zombie_gives_nothing_away(store: LeaseStore) -> None:
    mine = await taken(store)
    theirs = await store.take(mine, OTHER)
    assert await store.release(mine, at("7"), "third") is None
    assert not await store.withdraw(mine)
    assert await now(store) == theirs


async def test_what_was_not_taken_can_be_withdrawn_once(store: LeaseStore) -> None:
    left = await store.release(await taken(store), None, OTHER)
    assert left is not None
    assert await store.withdraw(left)
    free = await now(store)
    assert free == replace(left, owner=None, counter=3)
    assert await store.withdraw(left), "the reply may have been lost"
    assert await store.take(left, OTHER) is None, "it was not taken in time"
    with pytest.raises(Superseded):
        await store.renew(left)


async def test_of_a_take_and_a_withdrawal_one_wins(store: LeaseStore) -> None:
    for _ in range(10):
        lease = await taken(store, f"shard-{_}")
        left = await store.release(lease, None, OTHER)
        assert left is not None
        took, withdrew = await asyncio.gather(store.take(left, OTHER), store.withdraw(left))
        assert (took is None) == withdrew


# ---------------------------------------------------------------- taking over what KCL left


async def test_a_pending_checkpoint_of_kcl_is_void(dynamodb: Any, table: str) -> None:
    """Its record processor had prepared it and not committed it: work goes on from `checkpoint`."""
    pending = {
        "leaseKey": {"S": "shard"},
        "leaseOwner": {"S": "kcl"},
        "leaseCounter": {"N": "9"},
        "checkpoint": {"S": "41"},
        "checkpointSubSequenceNumber": {"N": "2"},
        "ownerSwitchesSinceCheckpoint": {"N": "3"},
        "pendingCheckpoint": {"S": "77"},
        "pendingCheckpointSubSequenceNumber": {"N": "0"},
        "pendingCheckpointState": {"B": b"state"},
        "strange": {"S": "kept"},
    }
    await dynamodb.put_item(TableName=table, Item=pending)
    store = DynamoLeaseStore(dynamodb, table)
    mine = await store.take(await now(store), ME)
    assert mine is not None
    assert (mine.checkpoint, mine.owner_switches) == (at("41", 2), 4)
    assert "pendingCheckpoint" in await item(dynamodb, table)
    await store.release(mine, at("42"), OTHER)
    after = await item(dynamodb, table)
    assert not {name for name in after if name.startswith("pending")}
    assert after["strange"] == {"S": "kept"}


@pytest.mark.parametrize("word", ["AT_TIMESTAMP", "LATEST", "TRIM_HORIZON"])
async def test_a_lease_of_kcl_that_has_not_begun_is_taken_as_it_is(dynamodb: Any, table: str, word: str) -> None:
    fresh = {"leaseKey": {"S": "shard"}, "leaseCounter": {"N": "0"}, "checkpoint": {"S": word}}
    await dynamodb.put_item(TableName=table, Item=fresh)
    store = DynamoLeaseStore(dynamodb, table)
    mine = await store.take(await now(store), ME)
    assert mine is not None
    assert mine.checkpoint.position == word
    assert (await store.renew(mine, at("5"))).checkpoint == at("5")


async def test_a_tombstone_of_kcl_is_an_ended_lease(dynamodb: Any, table: str) -> None:
    ended = {
        "leaseKey": {"S": "shard"},
        "leaseCounter": {"N": "12"},
        "checkpoint": {"S": "SHARD_END"},
        "childShardIds": {"SS": ["left", "right"]},
    }
    await dynamodb.put_item(TableName=table, Item=ended)
    [lease] = (await DynamoLeaseStore(dynamodb, table).look()).leases
    assert lease.is_ended
    assert lease.checkpoint == SHARD_END
    assert lease.child_keys == {"left", "right"}
