"""Asking for a lease and handing it over: one suite over the table in memory and over DynamoDB, in KCL's attributes."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from tests.contract.lease_tables import ME, OTHER, WRITES, Write, item, now, taken
from tidegate.errors import Superseded
from tidegate.leases import DynamoLeaseStore, Lease, LeaseStore, at


async def asked(store: LeaseStore) -> tuple[Lease, Lease]:
    """A lease as its owner knows it, and as it is after another asked for it."""
    mine = await taken(store)
    wanted = await store.ask(mine, OTHER)
    assert wanted is not None
    return mine, wanted


async def test_asking_names_the_next_owner_and_moves_nothing_else(store: LeaseStore) -> None:
    mine, wanted = await asked(store)
    assert wanted == replace(mine, owner=OTHER, checkpoint_owner=ME)
    assert wanted.holder == ME
    assert await now(store) == wanted
    assert await store.ask(mine, OTHER) == wanted, "the reply may have been lost"


async def test_one_asks_at_a_time_and_only_for_what_it_has_seen(store: LeaseStore) -> None:
    mine, wanted = await asked(store)
    assert await store.ask(mine, "worker-c") is None
    assert await store.take(mine, "worker-c") is None
    renewed = await store.renew(wanted)
    assert await store.ask(mine, OTHER) is None
    assert await now(store) == renewed


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
async def test_the_holder_works_on_while_it_is_asked_and_learns_of_it(store: LeaseStore, write: Write) -> None:
    mine, _ = await asked(store)
    first = await write(store, mine)
    assert (first.owner, first.checkpoint_owner, first.counter) == (OTHER, ME, mine.counter + 1)
    second = await store.renew(first)
    assert second == replace(first, counter=mine.counter + 2)
    assert await now(store) == second


async def test_a_renewal_whose_reply_was_lost_is_recognised_though_it_is_asked_for_since(store: LeaseStore) -> None:
    mine = await taken(store)
    renewed = await store.renew(mine)
    wanted = await store.ask(renewed, OTHER)
    assert await store.renew(mine) == wanted


async def test_a_request_does_not_pass_for_a_renewal(store: LeaseStore) -> None:
    """Others count from the last time the counter moved, so it must move before the holder may count afresh."""
    mine, _ = await asked(store)
    assert (await store.renew(mine)).counter == mine.counter + 1


@pytest.mark.parametrize("knows", [False, True])
async def test_what_is_given_up_goes_to_the_one_that_asked(store: LeaseStore, knows: bool) -> None:
    mine, wanted = await asked(store)
    assert await store.release(wanted if knows else mine)
    left = await now(store)
    assert left == replace(mine, owner=OTHER, counter=mine.counter + 1, owner_switches=1)
    assert await store.release(wanted if knows else mine), "the reply may have been lost"
    with pytest.raises(Superseded):
        await store.renew(wanted, at("5"))
    assert await now(store) == left
    begun = await store.take(left, OTHER)
    assert begun == replace(left, counter=left.counter + 1, epoch=mine.epoch + 1)
    assert not await store.release(wanted)


async def test_a_lease_that_is_asked_for_can_be_taken_by_force(store: LeaseStore) -> None:
    mine, wanted = await asked(store)
    stolen = await store.take(wanted, OTHER)
    assert stolen == replace(mine, owner=OTHER, counter=2, epoch=2, owner_switches=1)
    with pytest.raises(Superseded):
        await store.renew(mine)
    assert not await store.release(mine)
    assert await now(store) == stolen


# ---------------------------------------------------------------- together with KCL


async def test_a_request_of_kcl_is_answered_in_its_own_attributes(dynamodb: Any, table: str) -> None:
    """KCL 3.x names the next owner, leaves the counter and puts the old owner into checkpointOwner."""
    store = DynamoLeaseStore(dynamodb, table)
    lease = await taken(store)
    request = {"leaseOwner": {"S": OTHER}, "checkpointOwner": {"S": ME}}
    before = await item(dynamodb, table)
    await dynamodb.put_item(TableName=table, Item=before | request)
    done = await store.renew(lease, at("5"))
    moved = {"leaseCounter": {"N": "2"}, "checkpoint": {"S": "5"}}
    assert await item(dynamodb, table) == before | request | moved
    assert await store.release(done)
    handed = {"leaseOwner": {"S": OTHER}, "leaseCounter": {"N": "3"}, "ownerSwitchesSinceCheckpoint": {"N": "1"}}
    assert await item(dynamodb, table) == before | moved | handed


async def test_our_request_is_one_that_kcl_understands(dynamodb: Any, table: str) -> None:
    store = DynamoLeaseStore(dynamodb, table)
    lease = await taken(store, owner="kcl")
    before = await item(dynamodb, table)
    await store.ask(lease, ME)
    assert await item(dynamodb, table) == before | {"leaseOwner": {"S": ME}, "checkpointOwner": {"S": "kcl"}}


async def test_a_lease_that_another_is_said_to_work_on_is_not_asked_for(dynamodb: Any, table: str) -> None:
    store = DynamoLeaseStore(dynamodb, table)
    lease = await taken(store, owner="kcl")
    strange = await item(dynamodb, table) | {"checkpointOwner": {"S": "kcl-before"}}
    await dynamodb.put_item(TableName=table, Item=strange)
    assert await store.ask(lease, ME) is None
    assert await store.take(lease, ME) is None
    assert await item(dynamodb, table) == strange


async def test_a_half_done_hand_over_without_an_owner_can_be_finished_or_taken(dynamodb: Any, table: str) -> None:
    """A KCL 2.x process in the same fleet removes the owner and knows nothing of checkpointOwner."""
    store = DynamoLeaseStore(dynamodb, table)
    for key in ("finished", "taken"):
        lease = await taken(store, key)
        half = await item(dynamodb, table, key) | {"checkpointOwner": {"S": ME}}
        del half["leaseOwner"]
        await dynamodb.put_item(TableName=table, Item=half)
        if key == "finished":
            assert await store.release(await store.renew(lease))
        else:
            assert await store.take(await now(store, key), OTHER) is not None
    assert "checkpointOwner" not in await item(dynamodb, table, "finished") | await item(dynamodb, table, "taken")
    assert (await now(store, "finished")).owner is None
    assert (await now(store, "taken")).owner == OTHER
