"""Aggregates: what is packed comes out as it went in, and its size is known beforehand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from poller.aggregate import Aggregate, hash_of, most_added, varint
from poller.calls import OpenShard, ShardMap
from tests.unit.test_worker_kpl import varint as plain_varint
from worker import kpl

keys = st.text(min_size=1, max_size=200).filter(lambda text: text.isprintable())
pairs = st.lists(st.tuples(keys, st.binary(max_size=400)), min_size=1, max_size=300)


@given(pairs)
def test_what_is_packed_comes_out_as_it_went_in(records: list[tuple[str, bytes]]) -> None:
    made = Aggregate()
    for key, data in records:
        before = made.size_bytes
        made.add(key.encode(), data)
        assert made.size_bytes - before <= most_added(key.encode(), data)
    assert len(made.encode()) == made.size_bytes
    assert kpl.split(made.encode()) == [kpl.UserRecord(key, kpl.hash_key(key), data) for key, data in records]


@given(st.integers(0, 2**70))
def test_numbers_are_written_as_protobuf_does(number: int) -> None:
    assert varint(number) == plain_varint(number)


@given(keys, st.sets(st.integers(1, 2**128 - 1), max_size=12))
def test_a_key_belongs_to_the_shard_whose_range_holds_its_hash(key: str, cuts: set[int]) -> None:
    starts = [0, *sorted(cuts)]
    shards = ShardMap([OpenShard(f"shard-{start}", str(start)) for start in reversed(starts)])
    expected = max(start for start in starts if start <= kpl.hash_key(key))
    assert shards.home(hash_of(key.encode())) == f"shard-{expected}"
