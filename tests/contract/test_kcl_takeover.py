"""A stopped KCL application's lease table, taken over and handed back: what is read, what is kept, what is written."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.contract.kcl_tables import SENTINELS, SIDE_ITEMS, Item, kcl_lease, read_lease
from tests.contract.record_readers import gaps, records, serving_kinesis
from tests.unit.test_worker_kpl import aggregate
from tidegate.cli import leases_plan
from tidegate.cli.leases_plan import normal
from tidegate.cli.leases_table import LeaseTable
from tidegate.leases import Checkpoint, Coordinator, DynamoLeaseStore, Hold, Lease, at, planner
from tidegate.settings import LeaseSettings
from worker.batch import Position
from worker.shards import gap_at_start, other_streams, start_position

ME = "tidegate-1"
QUICK = LeaseSettings(
    expiry_s=1.5, patience_s=1.2, renew_interval_s=0.3, request_timeout_s=0.6, plan_interval_s=0.2, restart_delay_s=30
)
NUMBER = "49590338271490256608559692538361571095921575989136588898"
LATER = "49590338271490256608559692538361571095921575989136588999"
UNKNOWN: Item = {"futureAttribute": {"M": {"a": {"L": [{"N": "1"}, {"BOOL": True}]}}}, "note": {"SS": ["b", "a"]}}


async def put(dynamodb: Any, table: str, *items: Mapping[str, Any]) -> None:
    for item in items:
        await dynamodb.put_item(TableName=table, Item=item)


async def table_of(dynamodb: Any, table: str) -> dict[str, Item]:
    found = (await dynamodb.scan(TableName=table, ConsistentRead=True))["Items"]
    return {item["leaseKey"]["S"]: normal(item) for item in found}  # type: ignore[misc]


async def taken(store: DynamoLeaseStore, key: str) -> Hold:
    """The lease in our hands, as a worker gets it."""
    sent_s = asyncio.get_running_loop().time()
    lease = await store.get(key)
    assert lease is not None
    won = await store.take(lease, ME)
    assert won is not None
    return Hold(store, won, LeaseSettings(), sent_s=sent_s)


def differs(before: Item, after: Item) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


@pytest.mark.parametrize(
    "wrong",
    [
        {"leaseCounter": None},
        {"leaseCounter": {"N": "1.5"}},
        {"leaseCounter": {"S": "1"}},
        {"ownerSwitchesSinceCheckpoint": None},
        {"checkpoint": None},
        {"checkpoint": {"S": "soon"}},
        {"checkpointSubSequenceNumber": {"S": "0"}},
        {"leaseOwner": {"S": ""}},
        {"childShardIds": {"S": "a"}},
        {"childShardIds": {"SS": []}},
        {"endingHashKey": {"S": "0xff"}},
        {"pendingCheckpointState": {"S": "text"}},
        {"throughputKBps": {"N": "fast"}},
        {"entityType": {"S": "TIDEGATE_STREAM"}},
    ],
    ids=str,
)
def test_the_reader_is_as_strict_as_that_of_kcl(wrong: dict[str, Any]) -> None:
    assert read_lease(kcl_lease("shard", NUMBER, 3)).checkpoint == (NUMBER, 3)
    with pytest.raises(ValueError, match=" "):
        read_lease({name: value for name, value in (kcl_lease("shard", NUMBER) | wrong).items() if value is not None})


# ---------------------------------------------------------------- what is read


async def test_every_position_of_kcl_is_read_as_it_is(dynamodb: Any, table: str) -> None:
    await put(dynamodb, table, *(kcl_lease(word, word) for word in SENTINELS), kcl_lease("number", NUMBER, 3))
    leases = {lease.key: lease.checkpoint for lease in await DynamoLeaseStore(dynamodb, table).scan()}
    assert leases == {word: Checkpoint(word) for word in SENTINELS} | {"number": at(NUMBER, 3)}


async def test_leases_of_2_x_have_no_kind_and_other_kinds_are_no_leases(dynamodb: Any, table: str) -> None:
    """2.x and 3.0 to 3.4 write no entityType; 3.5 writes it on every item, and keeps other things in the table."""
    await put(dynamodb, table, kcl_lease("old", NUMBER), kcl_lease("new", NUMBER, entityType={"S": "LEASE"}))
    # The kind says it, whatever else the item holds.
    await put(dynamodb, table, *SIDE_ITEMS.values(), kcl_lease("later kind", NUMBER, entityType={"S": "SHARD_GROUP"}))
    leases = await DynamoLeaseStore(dynamodb, table).scan()
    assert {lease.key for lease in leases} == {"old", "new"}
    for key in ("Leader", "later kind"):
        assert await DynamoLeaseStore(dynamodb, table).get(key) is None


def merged(**parents: str) -> list[Item]:
    """Two parents at the given positions, and the shard they were merged into."""
    child = kcl_lease("child", "TRIM_HORIZON", parentShardId={"SS": ["left", "right"]})
    return [kcl_lease(name, position) for name, position in parents.items()] + [child]


@pytest.mark.parametrize(
    ("parents", "may_start"),
    [
        ({"left": "SHARD_END", "right": "SHARD_END"}, True),
        ({"left": "SHARD_END", "right": NUMBER}, False),
        ({"left": "TRIM_HORIZON", "right": "SHARD_END"}, False),
        ({"right": "SHARD_END"}, True),
        ({}, True),
    ],
)
async def test_a_merged_shard_waits_for_both_of_its_parents(
    dynamodb: Any, table: str, parents: dict[str, str], may_start: bool
) -> None:
    await put(dynamodb, table, *merged(**parents))
    leases = await DynamoLeaseStore(dynamodb, table).scan()
    assert {lease.key: lease.parent_keys for lease in leases}["child"] == {"left", "right"}
    assert ("child" in planner.startable(leases)) == may_start


async def test_a_tombstone_stays_until_all_its_children_have_begun(dynamodb: Any, table: str) -> None:
    ended = kcl_lease("parent", "SHARD_END", childShardIds={"SS": ["left", "right"]})
    of_it: dict[str, Any] = {"parentShardId": {"SS": ["parent"]}}
    store = DynamoLeaseStore(dynamodb, table)
    await put(dynamodb, table, ended, kcl_lease("left", NUMBER, **of_it), kcl_lease("right", "TRIM_HORIZON", **of_it))
    assert planner.removable(await store.scan(), ()) == ()
    await put(dynamodb, table, kcl_lease("right", NUMBER, **of_it))
    assert [lease.key for lease in planner.removable(await store.scan(), ())] == ["parent"]
    assert planner.removable(await store.scan(), {"parent"}) == (), "while discovery names it"


async def test_a_table_of_2_x_gets_the_index_that_it_lacks(dynamodb: Any, table: str) -> None:
    """KCL 3.x adds the same one. Our processes ask it what is in their name."""
    name = f"{table}-of-2x"
    await dynamodb.create_table(
        TableName=name, KeySchema=[{"AttributeName": "leaseKey", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "leaseKey", "AttributeType": "S"}],
        ProvisionedThroughput={"ReadCapacityUnits": 10, "WriteCapacityUnits": 10},
    )  # fmt: skip
    await put(dynamodb, name, kcl_lease("shard", NUMBER, leaseOwner={"S": "kcl-1"}))
    store = DynamoLeaseStore(dynamodb, name)
    await store.ensure_table()
    await store.ensure_table()
    [index] = (await dynamodb.describe_table(TableName=name))["Table"]["GlobalSecondaryIndexes"]
    assert index["IndexName"] == "LeaseOwnerToLeaseKeyIndex"
    assert (await store.named("kcl-1")).keys == ["shard"]


# ---------------------------------------------------------------- who worked before


async def test_what_a_dead_fleet_left_is_taken_once_it_has_stood_still(dynamodb: Any, table: str) -> None:
    """Owners that are gone, one hand-over that nobody finished, and what must not be taken."""
    await put(
        dynamodb, table,
        kcl_lease("owned", NUMBER, leaseOwner={"S": "kcl-1"}),
        kcl_lease("half", NUMBER, leaseOwner={"S": "kcl-2"}, checkpointOwner={"S": "kcl-1"}),
        kcl_lease("evicted", NUMBER, checkpointOwner={"S": "kcl-1"}),
        kcl_lease("free", "LATEST"),
        kcl_lease("ended", "SHARD_END", leaseOwner={"S": "kcl-1"}, childShardIds={"SS": ["later"]}),
        kcl_lease("later", "TRIM_HORIZON", parentShardId={"SS": ["owned"]}),
        *SIDE_ITEMS.values(),
    )  # fmt: skip
    before = await table_of(dynamodb, table)
    held: dict[str, Lease] = {}
    all_held, stop = asyncio.Event(), asyncio.Event()

    async def work(hold: Hold) -> None:
        held[hold.key] = hold.lease
        if len(held) == 4:
            all_held.set()
        await hold.stop.wait()

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(Coordinator(DynamoLeaseStore(dynamodb, table), ME, QUICK, work).run(stop))
        await all_held.wait()
        stop.set()
    assert held.keys() == {"owned", "half", "evicted", "free"}
    assert {lease.checkpoint_owner for lease in held.values()} == {None}
    after = await table_of(dynamodb, table)
    assert {key: after[key] for key in (*SIDE_ITEMS, "later", "ended")} == {
        key: before[key] for key in (*SIDE_ITEMS, "later", "ended")
    }
    for key in held:
        lease = read_lease(after[key])
        assert (lease.owner, lease.checkpoint_owner) == (None, None), "handed back: anybody may take it"
        assert lease.checkpoint == read_lease(before[key]).checkpoint


# ---------------------------------------------------------------- what is written


async def test_a_whole_life_in_our_hands_leaves_a_lease_of_kcl(dynamodb: Any, table: str) -> None:
    begun = kcl_lease(
        "shard", NUMBER, 3, leaseOwner={"S": "kcl-1"}, entityType={"S": "LEASE"}, parentShardId={"SS": ["x", "y"]},
        throughputKBps={"N": "12.5"}, ownerSwitchesSinceCheckpoint={"N": "2"}, **UNKNOWN,
    )  # fmt: skip
    await put(dynamodb, table, begun)
    hold = await taken(DynamoLeaseStore(dynamodb, table), "shard")
    assert differs(normal(begun), (await table_of(dynamodb, table))["shard"]) == {  # type: ignore[arg-type]
        "leaseOwner", "leaseCounter", "ownerSwitchesSinceCheckpoint", "tidegateEpoch",
    }  # fmt: skip
    await hold.checkpoint(at(NUMBER, 4))
    await hold.checkpoint(at(LATER))
    assert await hold.release()
    item = (await table_of(dynamodb, table))["shard"]
    lease = read_lease(item)
    assert (lease.checkpoint, lease.owner, lease.switches) == ((LATER, 0), None, 0)
    assert lease.counter > read_lease(begun).counter
    assert lease.parents == {"x", "y"}
    assert {name: item[name] for name in UNKNOWN} == normal(UNKNOWN)
    assert item.keys() - begun.keys() == {"tidegateEpoch"}, "the only attribute that is ours"


@pytest.mark.parametrize("checkpoints", [False, True])
async def test_a_pending_checkpoint_is_void_only_once_we_came_further(
    dynamodb: Any, table: str, checkpoints: bool
) -> None:
    """KCL prepares a checkpoint, keeps its state, and commits it later. What counts is the committed one."""
    pending: dict[str, Any] = {
        "pendingCheckpoint": {"S": LATER}, "pendingCheckpointSubSequenceNumber": {"N": "2"},
        "pendingCheckpointState": {"B": b"\x00prepared\xff"},
    }  # fmt: skip
    await put(dynamodb, table, kcl_lease("shard", NUMBER, **pending))
    hold = await taken(DynamoLeaseStore(dynamodb, table), "shard")
    assert hold.lease.checkpoint == at(NUMBER), "what was only prepared is read again"
    await hold.renew()
    if checkpoints:
        await hold.checkpoint(at(NUMBER, 1))
    assert await hold.release()
    lease = read_lease((await table_of(dynamodb, table))["shard"])
    kept = ((LATER, 2), b"\x00prepared\xff")
    assert (lease.pending, lease.pending_state) == ((None, None) if checkpoints else kept)


async def test_a_finished_shard_leaves_a_tombstone_and_children_as_kcl_would(dynamodb: Any, table: str) -> None:
    await put(dynamodb, table, kcl_lease("parent", NUMBER, 9, **UNKNOWN))
    hold = await taken(DynamoLeaseStore(dynamodb, table), "parent")
    children = [
        Lease(key=key, parent_keys=frozenset({"parent"}), starting_hash_key=start, ending_hash_key=end)
        for key, start, end in (("left", "0", "9"), ("right", "10", "19"))
    ]
    await hold.end(children)
    await hold.release()
    items = await table_of(dynamodb, table)
    parent, left = read_lease(items["parent"]), read_lease(items["left"])
    assert (parent.checkpoint, parent.children) == (("SHARD_END", 0), frozenset({"left", "right"}))
    assert (left.checkpoint, left.parents) == (("TRIM_HORIZON", 0), frozenset({"parent"}))
    assert (left.hash_range, left.owner) == ((0, 9), None)
    assert items["parent"].items() >= normal(UNKNOWN).items()


async def test_handing_back_removes_what_kcl_would_stumble_over(dynamodb: Any, table: str) -> None:
    own: Item = {"leaseKey": {"S": "tidegate#stream"}, "entityType": {"S": "TIDEGATE_STREAM"}, "x": {"N": "1"}}
    await put(dynamodb, table, kcl_lease("shard", NUMBER, 3), own, *SIDE_ITEMS.values())
    with pytest.raises(ValueError, match="would read it as one"):
        read_lease(own)
    await taken(DynamoLeaseStore(dynamodb, table), "shard")
    tool = LeaseTable(dynamodb, table)
    for write in leases_plan.hand_back(await tool.items(), ["shard"]).writes:
        assert await tool.write(write)
    items = await table_of(dynamodb, table)
    assert items.keys() == {"shard", *SIDE_ITEMS}
    assert read_lease(items["shard"]).checkpoint == (NUMBER, 3)
    assert {key: items[key] for key in SIDE_ITEMS} == {key: normal(item) for key, item in SIDE_ITEMS.items()}


# ---------------------------------------------------------------- where reading goes on


def in_aggregate(*texts: str) -> bytes:
    return aggregate([("k", None, text.encode()) for text in texts])


async def test_a_position_inside_an_aggregate_is_exact_both_ways(dynamodb: Any, table: str, tmp_path: Path) -> None:
    """KCL stopped after user record 2 of 5, we after 3; nobody reads a record twice, nobody skips one."""
    async with serving_kinesis(tmp_path, "polling") as kinesis:
        _, whole, _ = await kinesis.put("before", in_aggregate("0", "1", "2", "3", "4"), "after")
        await put(dynamodb, table, kcl_lease("shard", str(whole), 2))
        hold = await taken(DynamoLeaseStore(dynamodb, table), "shard")
        found = await kinesis.read(hold.lease.checkpoint, least=3)
        assert [record.data for record in records(found)] == [b"3", b"4", b"after"]
        assert gaps(found) == []
        position = records(found)[0].position
        await hold.checkpoint(at(str(position.sequence), position.sub))
        await hold.release()
        lease = read_lease((await table_of(dynamodb, table))["shard"])
        assert lease.checkpoint == (str(whole), 3)
        rest = await kinesis.read(at(*lease.checkpoint), least=2)
        assert [record.data for record in records(rest)] == [b"4", b"after"]


async def test_a_rewound_position_is_before_its_record_for_us_and_for_kcl(
    dynamodb: Any, table: str, tmp_path: Path
) -> None:
    """`tidegate leases rewind --to <time>` writes sub-sequence -1: KCL compares it as a Long, and reads record 0 next."""
    async with serving_kinesis(tmp_path, "polling") as kinesis:
        _, whole = await kinesis.put("before", in_aggregate("0", "1"))
        await put(dynamodb, table, kcl_lease("shard", str(whole), -1))
        hold = await taken(DynamoLeaseStore(dynamodb, table), "shard")
        found = await kinesis.read(hold.lease.checkpoint, least=2)
        assert [record.data for record in records(found)] == [b"0", b"1"]
        assert gaps(found) == []
        await hold.release()
        assert read_lease((await table_of(dynamodb, table))["shard"]).checkpoint == (str(whole), -1)


@pytest.mark.parametrize(("word", "first"), [("TRIM_HORIZON", "one"), ("AT_TIMESTAMP", "one"), ("LATEST", "three")])
async def test_words_mean_what_they_mean_for_kcl(
    dynamodb: Any, table: str, tmp_path: Path, word: str, first: str
) -> None:
    """LATEST is the moment when our fleet first looked at the stream. AT_TIMESTAMP's time is not in the table."""
    async with serving_kinesis(tmp_path, "polling") as kinesis:
        await kinesis.put("one", "two")
        kinesis.clock.ahead_ms += 60_000
        looked_s = kinesis.clock.now_s()
        kinesis.clock.ahead_ms += 60_000
        await kinesis.put("three")
        await put(dynamodb, table, kcl_lease("shard", word))
        hold = await taken(DynamoLeaseStore(dynamodb, table), "shard")
        found = await kinesis.read(hold.lease.checkpoint, least=1, reader=await kinesis.reader(latest_s=looked_s))
        assert records(found)[0].data.decode() == first


def test_the_older_of_lease_and_database_is_where_reading_begins() -> None:
    """A database that knows nothing of a shard that KCL had begun reads all there is, and says so by a gap letter."""
    kcl = at(NUMBER, 2)
    assert start_position(kcl, Position(int(NUMBER), 2)) == kcl
    assert start_position(kcl, Position(int(NUMBER), 1)) == at(NUMBER, 1)
    assert start_position(kcl, None) == Checkpoint("TRIM_HORIZON")
    assert gap_at_start(kcl, None) is not None
    assert gap_at_start(Checkpoint("TRIM_HORIZON"), None) is None, "one that it had not begun lacks nothing"


# ---------------------------------------------------------------- what is refused


async def test_a_table_of_several_streams_is_recognised(dynamodb: Any, table: str) -> None:
    key = f"123456789012:orders:1700000000:{'shardId-000000000000'}"
    shared = kcl_lease(key, NUMBER, streamName={"S": key.rpartition(":")[0]}, shardId={"S": "shardId-000000000000"})
    await put(dynamodb, table, shared, kcl_lease("shardId-000000000000", NUMBER))
    assert other_streams(await DynamoLeaseStore(dynamodb, table).scan()) == [key]
