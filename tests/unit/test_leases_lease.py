"""Checkpoints are totally ordered, the way KCL means them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.leases import AT_TIMESTAMP, LATEST, SHARD_END, TRIM_HORIZON, Checkpoint, at, plain_leases

numbers = st.builds(at, st.integers(0, 10**56).map(str), st.integers(0, 5))
checkpoints = st.one_of(numbers, st.sampled_from([AT_TIMESTAMP, TRIM_HORIZON, LATEST, SHARD_END]))


@given(numbers)
def test_words_come_before_and_after_every_number(number: Checkpoint) -> None:
    assert AT_TIMESTAMP < TRIM_HORIZON < LATEST < number < SHARD_END


@given(st.integers(0, 10**56), st.integers(0, 10**56))
def test_numbers_compare_as_integers(one: int, other: int) -> None:
    assert (at(str(one)) < at(str(other))) == (one < other)


def test_a_longer_number_is_larger_though_its_text_sorts_first() -> None:
    assert at("9") < at("10")


def test_the_sub_sequence_decides_inside_one_record() -> None:
    assert at("7", 1) < at("7", 2) < at("8", 0)


@given(st.lists(checkpoints))
def test_sorting_is_consistent(some: list[Checkpoint]) -> None:
    for one, other in pairwise(sorted(some)):
        assert one <= other
        assert (one == other) == (not one < other)


@given(numbers)
def test_equal_places_are_equal_however_they_are_written(number: Checkpoint) -> None:
    padded = Checkpoint("000" + number.position, number.sub_sequence)
    assert padded == number
    assert hash(padded) == hash(number)


@pytest.mark.parametrize("wrong", ["", "-1", "1.5", "trim_horizon", "٣", "1 "])
def test_anything_else_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="not a checkpoint"):
        Checkpoint(wrong)


def test_plain_leases_begin_at_the_start() -> None:
    leases = plain_leases(["a", "b"], epoch=7)
    assert [(lease.key, lease.checkpoint, lease.owner, lease.epoch) for lease in leases] == [
        ("a", TRIM_HORIZON, None, 7),
        ("b", TRIM_HORIZON, None, 7),
    ]
