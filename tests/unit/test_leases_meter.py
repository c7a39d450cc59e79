"""The throughput of a lease: a smoothed average that a burst does not upset, and that the next holder goes on from."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.leases.budget import ReadBudget
from tidegate.leases.meter import Meter

KIB = 1024


def test_nothing_is_said_while_nobody_measures() -> None:
    assert Meter(None, 0.0).sample(500.0) is None
    assert Meter(7.5, 0.0).sample(500.0) == 7.5, "what the last holder left stays until there is better"


def test_the_first_seconds_say_nothing() -> None:
    meter = Meter(None, 0.0)
    meter.note(100 * KIB)
    assert meter.sample(4.0) is None
    meter.note(100 * KIB)
    assert meter.sample(10.0) == pytest.approx(20.0)


def test_a_lease_that_nothing_is_read_from_becomes_light() -> None:
    meter = Meter(100.0, 0.0)
    for now_s in range(4, 604, 4):
        meter.note(0)
        kbps = meter.sample(float(now_s))
    assert kbps is not None
    assert kbps < 0.1


@settings(max_examples=30)
@given(st.floats(1, 10_000), st.integers(0, 2**32))
def test_noise_is_smoothed_and_the_mean_is_kept(kbps: float, seed: int) -> None:
    order = random.Random(seed)
    meter, after = Meter(None, 0.0), []
    for step in range(1, 151):
        meter.note(int(kbps * KIB * 4 * order.uniform(0.7, 1.3)))
        after.append(meter.sample(step * 4.0))
    assert all(each == pytest.approx(kbps, rel=0.2) for each in after[20:])


def test_a_burst_moves_the_average_by_its_share_of_a_minute() -> None:
    meter = Meter(100.0, 0.0)
    meter.note(4 * 1000 * KIB)
    assert meter.sample(4.0) == pytest.approx(100 + 900 * 0.0645, rel=0.01)


def test_a_budget_that_is_overdrawn_is_ready_when_the_debt_is_paid() -> None:
    budget = ReadBudget(50.0, 0.0)
    budget.spend(500.0, 0.0)
    assert budget.ready_s() == 0.0, "ten seconds' worth was saved up"
    budget.spend(300.0, 0.0)
    assert budget.ready_s() == 6.0
    budget.spend(100.0, 4.0)
    assert budget.ready_s() == 8.0
    budget.spend(10.0, 1000.0)
    assert budget.ready_s() == 1000.0
    assert budget.spent == 910.0


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0, 400)), max_size=50))
def test_who_waits_for_the_budget_spends_no_more_than_it_allows(looks: list[tuple[float, float]]) -> None:
    budget, now_s, last = ReadBudget(50.0, 0.0), 0.0, 0.0
    for pause_s, units in looks:
        now_s = max(now_s + pause_s, budget.ready_s())
        budget.spend(units, now_s)
        last = units
    assert budget.spent <= 50.0 * (now_s + 10.0) + last + 1e-6
