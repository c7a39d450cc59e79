"""One suite over the lease table in memory and over DynamoDB, so that the fake is proven and not trusted."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from tests.contract.lease_tables import ME, OTHER, WRITES, Write, item, now, taken
from tidegate.errors import Fatal, Superseded
from tidegate.leases import SHARD_END, Checkpoint, DynamoLeaseStore, Lease, LeaseStore, at


async def test_a_lease_comes_back_as_it_was_created(store: LeaseStore) -> None:
    lease = Lease(
        key="child",
        checkpoint=Checkpoint("49590338271490256608559692538361571095921575989136588898", 3),
        parent_keys=frozenset({"left", "right"}),
        child_keys=frozenset({"later"}),
        starting_hash_key="0",
        ending_hash_key="340282366920938463463374607431768211455",
        epoch=1_700_000_000,
    )
    assert await store.create(lease)
    assert await store.get("child") == lease
    assert await store.scan() == [lease]


async def test_creating_again_changes_nothing(store: LeaseStore) -> None:
    lease = await taken(store)
    assert not await store.create(Lease(key="shard"))
    assert await now(store) == lease


async def test_what_does_not_exist_is_none(store: LeaseStore) -> None:
    assert await store.get("nothing") is None
    assert await store.take(Lease(key="nothing"), ME) is None
    with pytest.raises(Superseded):
        await store.renew(Lease(key="nothing", owner=ME))
    assert await store.scan() == []


async def test_a_take_raises_counter_and_epoch(store: LeaseStore) -> None:
    first = await taken(store)
    assert (first.owner, first.counter, first.epoch, first.owner_switches) == (ME, 1, 1, 0)
    second = await store.take(first, OTHER)
    assert second == replace(first, owner=OTHER, counter=2, epoch=2, owner_switches=1)
    assert await now(store) == second


async def test_of_two_takes_one_wins(store: LeaseStore) -> None:
    await store.create(Lease(key="shard"))
    lease = await now(store)
    assert await store.take(lease, ME) is not None
    assert await store.take(lease, OTHER) is None
    assert (await now(store)).owner == ME


async def test_a_take_whose_reply_was_lost_is_recognised(store: LeaseStore) -> None:
    await store.create(Lease(key="shard"))
    lease = await now(store)
    first = await store.take(lease, ME)
    assert await store.take(lease, ME) == first
    assert (await now(store)).counter == 1


async def test_a_renewal_raises_the_counter_only(store: LeaseStore) -> None:
    lease = await taken(store)
    assert await store.renew(lease) == replace(lease, counter=2)
    assert await now(store) == replace(lease, counter=2)


async def test_a_renewal_whose_reply_was_lost_is_recognised(store: LeaseStore) -> None:
    lease = await taken(store)
    renewed = await store.renew(lease)
    assert await store.renew(lease) == renewed


async def test_several_writes_whose_replies_were_lost_are_recognised(store: LeaseStore) -> None:
    lease = await taken(store)
    renewed = await store.renew(await store.renew(lease))
    assert await store.renew(lease) == renewed


async def test_a_lease_that_the_same_owner_took_anew_is_lost_to_the_older_hold(store: LeaseStore) -> None:
    older = await taken(store)
    newer = await store.take(older, ME)
    with pytest.raises(Superseded):
        await store.renew(older)
    assert await now(store) == newer


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
async def test_a_zombie_writes_nothing(store: LeaseStore, write: Write) -> None:
    mine = await taken(store)
    theirs = await store.take(mine, OTHER)
    with pytest.raises(Superseded):
        await write(store, mine)
    assert not await store.release(mine)
    assert not await store.delete(mine)
    assert await now(store) == theirs


async def test_a_checkpoint_is_written_and_clears_the_switches(store: LeaseStore) -> None:
    lease = await store.take(await taken(store, owner=OTHER), ME)
    assert lease is not None
    assert lease.owner_switches == 1
    done = await store.renew(lease, at("77", 2))
    assert done == replace(lease, checkpoint=at("77", 2), owner_switches=0, counter=lease.counter + 1)
    assert await now(store) == done


async def test_a_checkpoint_whose_reply_was_lost_counts_once(store: LeaseStore) -> None:
    lease = await taken(store)
    done = await store.renew(lease, at("5"))
    assert await store.renew(lease, at("5")) == done


async def test_a_checkpoint_after_a_renewal_whose_reply_was_lost_is_done_on_top(store: LeaseStore) -> None:
    lease = await taken(store)
    await store.renew(lease)
    done = await store.renew(lease, at("5"))
    assert (done.checkpoint, done.counter) == (at("5"), lease.counter + 2)
    assert await now(store) == done


async def test_the_end_names_the_children(store: LeaseStore) -> None:
    lease = await taken(store)
    ended = await store.end(lease, ["left", "right"])
    assert ended.checkpoint == SHARD_END
    assert ended.child_keys == {"left", "right"}
    assert await now(store) == ended
    assert await store.end(lease, ["left", "right"]) == ended


async def test_a_released_lease_has_no_owner_and_can_be_taken(store: LeaseStore) -> None:
    lease = await taken(store)
    assert await store.release(lease)
    free = await now(store)
    assert free == replace(lease, owner=None, counter=2)
    assert await store.release(lease), "the reply may have been lost"
    again = await store.take(free, OTHER)
    assert again is not None
    assert (again.owner, again.epoch, again.owner_switches) == (OTHER, 2, 0)


async def test_a_release_after_a_renewal_whose_reply_was_lost_is_done_on_top(store: LeaseStore) -> None:
    lease = await taken(store)
    await store.renew(lease)
    assert await store.release(lease)
    assert (await now(store)).owner is None


async def test_delete(store: LeaseStore) -> None:
    lease = await taken(store)
    assert not await store.delete(replace(lease, counter=99))
    assert await store.delete(lease)
    assert await store.get("shard") is None


# ---------------------------------------------------------------- KCL's table, which only the real adapter has


async def test_the_table_is_created_once_with_the_index_on_the_owner(dynamodb: Any, table: str) -> None:
    await DynamoLeaseStore(dynamodb, table).ensure_table()
    described = (await dynamodb.describe_table(TableName=table))["Table"]
    [index] = described["GlobalSecondaryIndexes"]
    assert index["IndexName"] == "LeaseOwnerToLeaseKeyIndex"
    assert [key["AttributeName"] for key in index["KeySchema"]] == ["leaseOwner", "leaseKey"]
    assert index["Projection"]["ProjectionType"] == "KEYS_ONLY"


async def test_names_and_types_are_those_of_kcl(dynamodb: Any, table: str) -> None:
    store = DynamoLeaseStore(dynamodb, table)
    await store.create(
        Lease(key="shard", parent_keys=frozenset({"p"}), starting_hash_key="0", ending_hash_key="10", epoch=4)
    )
    lease = await store.take(await now(store), ME)
    assert lease is not None
    await store.end(await store.renew(lease, at("12", 1)), ["c"])
    assert await item(dynamodb, table) == {
        "leaseKey": {"S": "shard"},
        "leaseOwner": {"S": ME},
        "leaseCounter": {"N": "3"},
        "checkpoint": {"S": "SHARD_END"},
        "checkpointSubSequenceNumber": {"N": "0"},
        "ownerSwitchesSinceCheckpoint": {"N": "0"},
        "parentShardId": {"SS": ["p"]},
        "childShardIds": {"SS": ["c"]},
        "startingHashKey": {"S": "0"},
        "endingHashKey": {"S": "10"},
        "tidegateEpoch": {"N": "5"},
    }


async def test_unknown_attributes_are_kept_and_other_items_are_not_leases(dynamodb: Any, table: str) -> None:
    kcl = {
        "leaseKey": {"S": "shard"},
        "leaseCounter": {"N": "41"},
        "checkpoint": {"S": "TRIM_HORIZON"},
        "entityType": {"S": "LEASE"},
        "throughputKBps": {"N": "12.5"},
        "someday": {"M": {"x": {"BOOL": True}}},
    }
    metrics = {"leaseKey": {"S": "worker-1"}, "entityType": {"S": "WORKER_METRIC_STATS"}, "leaseCounter": {"N": "1"}}
    leader = kcl | {"leaseKey": {"S": "leader"}, "entityType": {"S": "LEADER"}}
    for each in (kcl, metrics, leader):
        await dynamodb.put_item(TableName=table, Item=each)
    store = DynamoLeaseStore(dynamodb, table)
    [lease] = await store.scan()
    assert (lease.key, lease.counter, lease.owner) == ("shard", 41, None)
    mine = await store.take(lease, ME)
    assert mine is not None
    await store.renew(await store.renew(mine), at("9"))
    after = await item(dynamodb, table)
    assert after["throughputKBps"] == {"N": "12.5"}
    assert after["someday"] == {"M": {"x": {"BOOL": True}}}
    assert after["leaseCounter"] == {"N": "44"}


async def test_a_checkpoint_removes_the_pending_one(dynamodb: Any, table: str) -> None:
    store = DynamoLeaseStore(dynamodb, table)
    lease = await taken(store)
    pending = {
        "pendingCheckpoint": {"S": "7"},
        "pendingCheckpointSubSequenceNumber": {"N": "1"},
        "pendingCheckpointState": {"B": b"x"},
    }
    await dynamodb.put_item(TableName=table, Item=await item(dynamodb, table) | pending)
    renewed = await store.renew(lease)
    assert pending.items() <= (await item(dynamodb, table)).items()
    await store.renew(renewed, at("5", 1))
    assert not pending.keys() & (await item(dynamodb, table)).keys()


async def test_a_long_table_is_read_page_by_page(dynamodb: Any, table: str) -> None:
    """More than DynamoDB's 1 MiB a page: three items of nearly 400 KB each."""
    for index in range(3):
        padded = {
            "leaseKey": {"S": f"shard-{index}"},
            "leaseCounter": {"N": "0"},
            "checkpoint": {"S": "LATEST"},
            "padding": {"S": "x" * 390_000},
        }
        await dynamodb.put_item(TableName=table, Item=padded)
    pages = PagedScan(dynamodb, limit=1)
    assert len(await DynamoLeaseStore(pages, table).scan()) == 3
    assert pages.calls >= 3


class PagedScan:
    """A client whose scans come in short pages, whatever the server thinks a page is."""

    def __init__(self, client: Any, limit: int) -> None:
        self._client = client
        self._limit = limit
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def scan(self, **request: Any) -> dict[str, Any]:
        self.calls += 1
        reply: dict[str, Any] = await self._client.scan(**{**request, "Limit": self._limit})
        return reply


async def test_a_foreign_checkpoint_is_fatal(dynamodb: Any, table: str) -> None:
    strange = {"leaseKey": {"S": "s"}, "leaseCounter": {"N": "0"}, "checkpoint": {"S": "somewhere"}}
    await dynamodb.put_item(TableName=table, Item=strange)
    with pytest.raises(Fatal, match="lease s: not a checkpoint"):
        await DynamoLeaseStore(dynamodb, table).scan()


async def test_a_table_that_is_not_there_is_fatal(dynamodb: Any) -> None:
    with pytest.raises(Fatal, match="ResourceNotFound"):
        await DynamoLeaseStore(dynamodb, "nowhere").scan()
