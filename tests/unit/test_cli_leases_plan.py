"""What the lease tools decide to write, from items alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tidegate.cli import leases_plan
from tidegate.cli.leases_plan import Age, Plan, Targets, Watch, request
from tidegate.errors import Fatal
from tidegate.leases import LATEST, SHARD_END, TRIM_HORIZON, Checkpoint, Lease, at
from tidegate.leases.items import Item, item_of, lease_of

UNKNOWN: dict[str, Any] = {"someoneElse": {"M": {"deep": {"L": [{"BOOL": True}]}}}, "note": {"B": b"\x00\xff"}}
PENDING: dict[str, Any] = {"pendingCheckpoint": {"S": "90"}, "pendingCheckpointState": {"B": b"state"}}
LEADER: Item = {"leaseKey": {"S": "Leader"}, "entityType": {"S": "LEADER"}, "rvn": {"S": "1"}}


def item(key: str, **fields: Any) -> Item:
    return {**item_of(replace(Lease(key=key, counter=7), **fields)), **UNKNOWN}


def after(plan: Plan) -> dict[str, Item]:
    return {write.key: write.after for write in plan.writes if write.after is not None}


def reasons(plan: Plan) -> dict[str, str]:
    return dict(plan.left)


PARENT = item("p", checkpoint=SHARD_END, child_keys=frozenset({"a", "b"}))
LEFT = item("a", checkpoint=at("50"), parent_keys=frozenset({"p"}), owner="w1")
RIGHT = item("b", parent_keys=frozenset({"p"}), owner="w2", checkpoint_owner="w1")
FAMILY: Sequence[Item] = (PARENT, LEFT, RIGHT, LEADER)


# ---------------------------------------------------------------- which leases are meant


def test_leases_are_named_by_key_by_owner_or_all() -> None:
    leases = leases_plan.leases_in(FAMILY)
    assert leases_plan.chosen(leases, ["b", "a", "b"], None) == ["b", "a"]
    assert leases_plan.chosen(leases, [], None) == ["a", "b", "p"]
    assert leases_plan.chosen(leases, [], "w1") == ["a", "b"], "owner, or at work until it hands over"
    assert leases_plan.chosen(leases, [], "w2") == ["b"]


@pytest.mark.parametrize(("keys", "owner"), [(["a", "x"], None), (["Leader"], None), ([], "w3")])
def test_a_name_that_is_not_there_is_a_mistake(keys: list[str], owner: str | None) -> None:
    with pytest.raises(Fatal, match="tidegate leases list"):
        leases_plan.chosen(leases_plan.leases_in(FAMILY), keys, owner)


# ---------------------------------------------------------------- release


def test_release_frees_and_fences_and_keeps_the_rest() -> None:
    plan = leases_plan.release(FAMILY, ["a", "b", "p"])
    assert after(plan)["a"] == item("a", checkpoint=at("50"), parent_keys=frozenset({"p"}), counter=8)
    assert after(plan)["b"] == item("b", parent_keys=frozenset({"p"}), counter=8)
    assert reasons(plan) == {"p": "nobody holds it"}
    assert [write.holder for write in plan.writes] == ["w1", "w1"]


def test_handed_back_all_is_free_and_nothing_is_there_of_ours() -> None:
    own: Item = {"leaseKey": {"S": "tidegate#stream"}, "entityType": {"S": "TIDEGATE_STREAM"}}
    plan = leases_plan.hand_back([*FAMILY, own], ["a", "b", "p"])
    assert [(write.key, write.after is None) for write in plan.writes] == [
        ("a", False), ("b", False), ("tidegate#stream", True),
    ]  # fmt: skip


# ---------------------------------------------------------------- reset


def test_reset_removes_leases_and_nothing_else() -> None:
    plan = leases_plan.reset(FAMILY, ["a", "b", "p"])
    assert [(write.key, write.after) for write in plan.writes] == [("a", None), ("b", None), ("p", None)]


def test_a_finished_parent_may_go_and_an_unfinished_one_only_with_its_children() -> None:
    assert [write.key for write in leases_plan.reset(FAMILY, ["p"]).writes] == ["p"]
    unfinished = (item("p", checkpoint=at("9")), LEFT, RIGHT)
    with pytest.raises(Fatal, match="p is not read to its end, and its children b have leases"):
        leases_plan.reset(unfinished, ["p", "a"])
    assert len(leases_plan.reset(unfinished, ["p", "a", "b"]).writes) == 3


# ---------------------------------------------------------------- rewind


def rewound(target: Checkpoint | None, *, forward: bool = False, **fields: Any) -> Plan:
    return leases_plan.rewind([item("a", **fields)], Targets(of={"a": target}, forward=forward))


def test_rewind_moves_the_checkpoint_and_frees_the_lease() -> None:
    before = {**item("a", checkpoint=at("50", 2), owner="w1", owner_switches=3), **PENDING}
    plan = leases_plan.rewind([before], Targets(of={"a": at("20", -1)}))
    assert after(plan)["a"] == item("a", checkpoint=at("20", -1), counter=8), "no owner, no switches, nothing pending"
    assert plan.writes[0].what == "50.2 → 20.-1"


@pytest.mark.parametrize(
    ("now", "target", "ahead"),
    [
        (at("50"), TRIM_HORIZON, False),
        (at("50"), at("49", 8), False),
        (at("50"), at("50", -1), False),
        (at("9"), at("10"), True),
        (at("50"), LATEST, True),
        (TRIM_HORIZON, LATEST, True),
        (TRIM_HORIZON, at("1"), True),
        (LATEST, at("1"), False),
        (LATEST, TRIM_HORIZON, False),
        (Checkpoint("AT_TIMESTAMP"), TRIM_HORIZON, False),
    ],
)
def test_nothing_goes_ahead_by_mistake(now: Checkpoint, target: Checkpoint, ahead: bool) -> None:
    plan = rewound(target, checkpoint=now)
    assert bool(plan.left) == ahead
    assert bool(plan.writes) != ahead
    assert len(rewound(target, forward=True, checkpoint=now).writes) == 1


def test_what_is_there_already_or_has_no_such_record_stays() -> None:
    assert reasons(rewound(TRIM_HORIZON)) == {"a": "is at TRIM_HORIZON already"}
    assert reasons(rewound(None, checkpoint=at("5"))) == {"a": "its shard has no record that is so young"}
    gone = leases_plan.rewind([LEFT], Targets(of={"a": at("1")}, listed={"other"}))
    assert reasons(gone) == {"a": "the stream does not have its shard any more"}


def test_a_finished_lease_is_read_again_from_its_start_with_its_children() -> None:
    everything: Mapping[str, Checkpoint | None] = {"p": at("5"), "a": at("40"), "b": TRIM_HORIZON}
    plan = leases_plan.rewind(FAMILY, Targets(of=everything, listed={"p", "a", "b"}))
    assert lease_of(after(plan)["p"]).checkpoint == TRIM_HORIZON
    assert lease_of(after(plan)["a"]).checkpoint == at("40")
    assert reasons(plan) == {"b": "is at TRIM_HORIZON already"}
    assert leases_plan.forgotten(FAMILY, ["p", "a"]) == ["a", "b", "p"], "the database must forget them all"
    assert leases_plan.forgotten(FAMILY, ["a", "b"]) == []
    with pytest.raises(Fatal, match="p is finished and its children b go on from it"):
        leases_plan.rewind(FAMILY, Targets(of={"p": TRIM_HORIZON, "a": TRIM_HORIZON}, listed={"p", "a", "b"}))
    assert reasons(leases_plan.rewind(FAMILY, Targets(of={"p": LATEST}, listed={"p"}))) == {"p": "is finished"}


# ---------------------------------------------------------------- import


def test_what_is_not_there_is_written_as_it_was_exported() -> None:
    assert after(leases_plan.restore([], FAMILY, force=False)) == {leases_plan.key_in(each): each for each in FAMILY}


def test_what_is_there_takes_every_attribute_and_keeps_its_fence() -> None:
    now = {**item("a", checkpoint=at("80"), counter=30, epoch=4, owner="w9"), "later": {"N": "1"}, **PENDING}
    plan = leases_plan.restore([now], [LEFT], force=False)
    wanted = {**item("a", checkpoint=at("50"), parent_keys=frozenset({"p"}), counter=31, epoch=4), "later": {"N": "1"}}
    assert after(plan)["a"] == wanted
    assert plan.writes[0].what == "checkpoint: 80 → 50; parentShardId: nothing → p"
    assert plan.writes[0].holder == "w9"


def test_a_pending_checkpoint_of_the_file_comes_with_it() -> None:
    plan = leases_plan.restore([LEFT], [{**LEFT, **PENDING}], force=False)
    assert after(plan)["a"].items() >= PENDING.items()


def test_fences_and_owners_alone_are_no_difference() -> None:
    older = item("a", checkpoint=at("50"), parent_keys=frozenset({"p"}), counter=1, owner="w0", epoch=2)
    assert reasons(leases_plan.restore([LEFT], [older], force=False)) == {"a": "is the same"}


def test_an_item_that_is_no_lease_is_overwritten_by_force_only() -> None:
    exported = {**LEADER, "rvn": {"S": "0"}}
    kept = leases_plan.restore([LEADER], [exported], force=False)
    assert reasons(kept) == {"Leader": "is no lease and differs; pass --force to overwrite it: rvn: 1 → 0"}
    assert after(leases_plan.restore([LEADER], [exported], force=True)) == {"Leader": exported}
    with pytest.raises(Fatal, match="something else in the other"):
        leases_plan.restore([LEADER], [item("Leader")], force=True)


# ---------------------------------------------------------------- requests


def test_a_new_item_is_put_only_where_none_is() -> None:
    [write] = leases_plan.restore([], [LEADER], force=False).writes
    assert request(write) == ("put_item", {"Item": LEADER, "ConditionExpression": "attribute_not_exists(leaseKey)"})


def test_a_lease_is_updated_attribute_by_attribute_if_nobody_wrote() -> None:
    before = {**item("a", checkpoint=at("50"), owner="w1", owner_switches=1), **PENDING}
    operation, parts = request(leases_plan.rewind([before], Targets(of={"a": TRIM_HORIZON})).writes[0])
    names, values = parts["ExpressionAttributeNames"], parts["ExpressionAttributeValues"]
    said = parts["ConditionExpression"] + " | " + parts["UpdateExpression"]
    for short, name in sorted(names.items(), reverse=True):
        said = said.replace(short, name)
    for short, value in sorted(values.items(), reverse=True):
        said = said.replace(short, next(iter(value.values())))
    assert operation == "update_item"
    assert said == (
        "attribute_exists(leaseKey) AND leaseCounter = 7 AND leaseOwner = w1 AND attribute_not_exists(checkpointOwner) | "
        "SET leaseCounter = 8, checkpoint = TRIM_HORIZON, ownerSwitchesSinceCheckpoint = 0 "
        "REMOVE leaseOwner, pendingCheckpoint, pendingCheckpointState"
    )
    assert not set(UNKNOWN) & set(names.values()), "what we do not know is not touched"


def test_a_lease_is_deleted_if_nobody_wrote() -> None:
    operation, parts = request(leases_plan.reset([LEFT], ["a"]).writes[0])
    assert operation == "delete_item"
    assert parts["Key"] == {"leaseKey": {"S": "a"}}
    assert parts["ExpressionAttributeValues"] == {":v0": {"N": "7"}, ":v1": {"S": "w1"}}


def test_another_item_is_compared_attribute_by_attribute() -> None:
    _, parts = request(
        leases_plan.restore([LEADER], [{**LEADER, "rvn": {"S": "0"}, "new": {"N": "1"}}], force=True).writes[0]
    )
    assert set(parts["ExpressionAttributeNames"].values()) == {"entityType", "rvn", "new"}
    assert {"S": "1"} in parts["ExpressionAttributeValues"].values(), "as it was read"


# ---------------------------------------------------------------- who lives


def test_who_moves_a_counter_lives_and_nobody_else() -> None:
    watch = Watch()
    first = {key: Lease(key=key, owner="w1", counter=1) for key in ("renewed", "still", "taken", "given up")}
    watch.look(first | {"taken": Lease(key="taken", counter=1)}, 100.0)
    assert watch.live() == frozenset()
    then = {
        "renewed": replace(first["renewed"], counter=2),
        "still": replace(first["still"], owner="w2", checkpoint_owner="w1"),
        "taken": replace(first["taken"], counter=2),
        "given up": replace(first["given up"], counter=2, owner=None),
    }
    watch.look(then, 102.0)
    assert watch.live() == {"renewed", "taken"}, "asking for a lease is no sign of life of its holder"
    assert watch.age("renewed", 103.0) == Age(1.0, is_least=False)
    assert watch.age("still", 103.0) == Age(3.0, is_least=True)


checkpoints = st.one_of(
    st.sampled_from([TRIM_HORIZON, LATEST, Checkpoint("AT_TIMESTAMP")]),
    st.builds(at, st.integers(0, 10**56).map(str), st.integers(-1, 300)),
)


@given(checkpoints, checkpoints, st.booleans(), st.integers(0, 2**40))
def test_a_rewind_changes_what_it_says_and_nothing_else(
    now: Checkpoint, target: Checkpoint, forward: bool, counter: int
) -> None:
    before = {**item("a", checkpoint=now, counter=counter, owner="w1", epoch=3), **PENDING}
    plan = leases_plan.rewind([before], Targets(of={"a": target}, forward=forward))
    assert len(plan.writes) + len(plan.left) == 1
    for write in plan.writes:
        assert write.after is not None
        lease = lease_of(write.after)
        assert (lease.checkpoint, lease.counter, lease.owner, lease.epoch) == (target, counter + 1, None, 3)
        touched = {name for name in before.keys() | write.after.keys() if before.get(name) != write.after.get(name)}
        assert touched <= {"checkpoint", "checkpointSubSequenceNumber", "leaseCounter", "leaseOwner", *PENDING}
