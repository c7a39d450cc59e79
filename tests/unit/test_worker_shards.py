"""Lineage: no child before its parents, nothing read twice, nothing forgotten."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tidegate.leases.lease import AT_TIMESTAMP, LATEST, SHARD_END, TRIM_HORIZON, Checkpoint, Lease, at
from worker.batch import Position
from worker.shards import (
    HashRange,
    Shard,
    children_of,
    finished,
    foreign_leases,
    from_listing,
    gap_at_start,
    lease_of,
    parents_first,
    start_position,
    unleased_parents,
    wanted_leases,
)


def shard(number: int, *parents: int, closed: bool = False) -> Shard:
    return Shard(name(number), tuple(name(parent) for parent in parents), HashRange(0, 9), closed)


def name(number: int) -> str:
    return f"shardId-{number:012d}"


# 0 was split into 1 and 2, which were merged into 3; 4 stands alone.
FAMILY = [shard(0, closed=True), shard(1, 0, closed=True), shard(2, 0, closed=True), shard(3, 1, 2), shard(4)]


def keys(leases: list[Lease]) -> list[str]:
    return [lease.key for lease in leases]


@st.composite
def lineages(draw: st.DrawFn) -> list[Shard]:
    """Shards whose parents are earlier ones or forgotten, in any order."""
    shards = []
    for number in range(draw(st.integers(1, 12))):
        parents = draw(st.lists(st.integers(-3, number - 1), max_size=2, unique=True)) if number else []
        shards.append(shard(number, *(parent + 100 if parent < 0 else parent for parent in parents)))
    return draw(st.permutations(shards))


@given(lineages())
def test_parents_come_first_and_nobody_is_lost(shards: list[Shard]) -> None:
    ordered = parents_first(shards)
    assert sorted(each.id for each in ordered) == sorted(each.id for each in shards)
    place = {each.id: number for number, each in enumerate(ordered)}
    for each in ordered:
        assert all(place[parent] < place[each.id] for parent in each.parent_ids if parent in place)


@given(lineages(), st.data())
def test_wanted_leases_name_each_missing_shard_once_unless_it_was_read_before(
    shards: list[Shard], data: st.DataObject
) -> None:
    held = data.draw(st.sets(st.sampled_from([each.id for each in shards])))
    leases = [lease_of(each) for each in shards if each.id in held]
    wanted = keys(wanted_leases(shards, leases, TRIM_HORIZON))
    assert len(set(wanted)) == len(wanted)
    assert not held & set(wanted)
    parents = {each.id: each.parent_ids for each in shards}
    for each in shards:
        has_leased_descendant = any(each.id in _ancestors(other, parents) for other in held)
        assert (each.id in wanted) == (each.id not in held and not has_leased_descendant)
    place = {key: number for number, key in enumerate(wanted)}
    assert all(place[p] < place[key] for key in wanted for p in parents[key] if p in place)
    # Made all of them, there is nothing more to make.
    made = [*leases, *(lease_of(each) for each in shards if each.id in wanted)]
    assert wanted_leases(shards, made, TRIM_HORIZON) == []


def _ancestors(of: str, parents: dict[str, tuple[str, ...]]) -> set[str]:
    found: set[str] = set()
    for parent in parents.get(of, ()):
        found |= {parent} | _ancestors(parent, parents)
    return found


def test_a_finished_and_cleaned_up_parent_is_not_read_again() -> None:
    assert keys(wanted_leases(FAMILY, [lease_of(FAMILY[3])], TRIM_HORIZON)) == [name(4)]


def test_finished_are_the_ended_and_the_cleaned_up() -> None:
    ended = replace(lease_of(FAMILY[2]), checkpoint=SHARD_END)
    assert finished(FAMILY, [lease_of(FAMILY[1]), ended]) == {name(0), name(2)}
    assert finished(FAMILY, []) == frozenset()


def test_latest_starts_with_the_open_shards_but_loses_nothing_of_a_known_family() -> None:
    fresh = wanted_leases(FAMILY, [], LATEST)
    assert [(lease.key, lease.checkpoint) for lease in fresh] == [(name(3), LATEST), (name(4), LATEST)]
    known = wanted_leases(FAMILY, [lease_of(FAMILY[0])], LATEST)
    assert [(lease.key, lease.checkpoint) for lease in known] == [
        (name(1), TRIM_HORIZON), (name(2), TRIM_HORIZON), (name(3), TRIM_HORIZON), (name(4), LATEST),
    ]  # fmt: skip


def test_at_a_time_every_shard_begins_there_unless_its_family_is_known() -> None:
    """The time may lie within a closed shard."""
    fresh = wanted_leases(FAMILY, [], AT_TIMESTAMP)
    assert {(lease.key, lease.checkpoint) for lease in fresh} == {(each.id, AT_TIMESTAMP) for each in FAMILY}
    known = wanted_leases(FAMILY, [lease_of(FAMILY[0])], AT_TIMESTAMP)
    assert {lease.checkpoint for lease in known if lease.key != name(4)} == {TRIM_HORIZON}
    assert known[-1].checkpoint == AT_TIMESTAMP


def test_a_merged_shard_waits_for_both_leases_of_its_parents() -> None:
    child = FAMILY[3]
    assert unleased_parents([child], {name(1)}) == {name(2)}
    assert unleased_parents([child], {name(1), name(2)}) == frozenset()
    assert unleased_parents([child], {name(1), name(3)}) == frozenset(), "it has its lease already"


def test_a_position_from_before_its_shard_is_foreign() -> None:
    shards = [replace(each, first_sequence=100) for each in FAMILY]
    leases = [
        replace(lease_of(shards[0]), checkpoint=SHARD_END),
        lease_of(shards[1], at("99")),
        lease_of(shards[2], at("100")),
        lease_of(shards[3], LATEST),
        Lease(key="somebody else's", checkpoint=at("5")),
    ]
    assert foreign_leases(shards, leases) == [name(1)]


def test_children_are_found_by_either_parent() -> None:
    assert [each.id for each in children_of(name(0), FAMILY)] == [name(1), name(2)]
    assert [each.id for each in children_of(name(2), FAMILY)] == [name(3)]


def test_a_listing_is_understood() -> None:
    item: dict[str, Any] = {
        "ShardId": "shardId-000000000003", "ParentShardId": "shardId-000000000001",
        "AdjacentParentShardId": "shardId-000000000002",
        "HashKeyRange": {"StartingHashKey": "0", "EndingHashKey": str(2**128 - 1)},
        "SequenceNumberRange": {"StartingSequenceNumber": "1", "EndingSequenceNumber": "9"},
    }  # fmt: skip
    found = from_listing(item)
    assert found == Shard(name(3), (name(1), name(2)), HashRange(0, 2**128 - 1), is_closed=True, first_sequence=1)
    assert 2**128 - 1 in found.hash_range
    lease = lease_of(found)
    assert (lease.parent_keys, lease.ending_hash_key) == (frozenset({name(1), name(2)}), str(2**128 - 1))
    del item["SequenceNumberRange"]["EndingSequenceNumber"]
    assert not from_listing(item).is_closed


def test_reading_starts_at_the_older_of_the_two_positions() -> None:
    ten = Position(10, 3)
    assert start_position(at("9"), ten) == at("9"), "a crash between commit and checkpoint"
    assert start_position(at("10", 2), ten) == at("10", 2)
    assert start_position(at("11"), ten) == at("10", 3), "a restored database"
    assert start_position(at("11"), None) == TRIM_HORIZON, "a new database"
    assert start_position(LATEST, ten) == at("10", 3), "a new lease table"
    assert start_position(TRIM_HORIZON, ten) == TRIM_HORIZON
    for word in (TRIM_HORIZON, LATEST, AT_TIMESTAMP):
        assert start_position(word, None) == word


def test_only_a_lease_that_has_come_somewhere_misses_a_position_in_the_database() -> None:
    assert "11" in (gap_at_start(at("11"), None) or "")
    for checkpoint, stored in (
        (at("11"), Position(3, 0)),
        (TRIM_HORIZON, None),
        (LATEST, None),
        (LATEST, Position(3, 0)),
    ):
        assert gap_at_start(checkpoint, stored) is None


@given(st.integers(0, 50), st.integers(0, 50))
def test_numbers_compare_as_numbers(one: int, other: int) -> None:
    start: Checkpoint = start_position(at(str(one)), Position(other, 0))
    assert int(start.position) == min(one, other)
    assert start < SHARD_END
