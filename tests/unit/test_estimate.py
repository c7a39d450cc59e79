"""Sizes stay within the limits of the services, nothing gets cheaper by more load, and the page of figures is true."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.unit import capacity_page
from tidegate import estimate
from tidegate.cli import main
from tidegate.estimate import PROFILES, Load, ProfileName
from tidegate.prices import HOURS, PRICES

MIB = 1024**2
loads = st.builds(
    Load,
    events_s=st.floats(0.1, 50_000),
    size=st.integers(1, 200_000),
    entities=st.integers(1, 50),
    rows=st.integers(0, 10**9),
    reads_s=st.floats(0, 5_000),
)
profiles = st.sampled_from(sorted(PROFILES))


@given(loads, profiles)
def test_no_limit_is_passed(load: Load, profile: ProfileName) -> None:
    found = estimate.estimate(load, profile)
    size, peak_s = found.size, load.events_s * found.assumptions.peak
    watermarks_s = load.entities / found.assumptions.poll_s
    assert peak_s / size.shards + watermarks_s <= 1_000 + 1e-6
    assert peak_s * load.size / size.shards <= MIB + 1e-6
    assert size.workers <= size.shards
    assert size.pollers <= max(load.entities, PROFILES[profile].pollers)
    assert size.acu * 2 == math.floor(size.acu * 2) <= size.acu_peak * 2
    assert size.acu_peak >= load.rows * load.size * found.assumptions.hot_share / (1.5 * 1024**3)
    assert found.dollars == pytest.approx(sum(estimate.by_service(found.items).values()))
    assert all(item.units >= 0 and item.price in PRICES for item in (*found.items, *found.lambda_items))


@given(loads, profiles, st.sampled_from(["events_s", "size", "entities", "rows", "reads_s"]), st.integers(2, 5))
def test_more_of_anything_costs_no_less(load: Load, profile: ProfileName, what: str, times: int) -> None:
    most = {"events_s": 1_000_000, "size": 10 * MIB}
    more = replace(load, **{what: min(getattr(load, what) * times, most.get(what, math.inf))})
    before, after = estimate.estimate(load, profile), estimate.estimate(more, profile)
    assert after.dollars >= before.dollars * (1 - 1e-9)
    assert after.lambda_dollars >= before.lambda_dollars * (1 - 1e-9)
    assert (after.size.shards, after.size.acu, after.size.workers) >= (before.size.shards, 0, before.size.workers)


@given(loads)
def test_the_large_profile_is_never_cheaper(load: Load) -> None:
    assert estimate.estimate(load, "large").dollars > estimate.estimate(load, "small").dollars


def test_the_network_costs_what_is_known_of_it() -> None:
    """262 $ through NAT, 102 $ with the endpoints, at 500 events/s of 2 KB."""
    load = Load(events_s=500, size=2048)
    with_endpoints = estimate.by_service(estimate.estimate(load).items)["Network"]
    without = estimate.by_service(estimate.estimate(load, endpoints=False).items)["Network"]
    assert with_endpoints == pytest.approx(102, abs=6)
    assert without == pytest.approx(262, abs=6)


def test_a_bill_by_hand() -> None:
    """20 events/s in two shards: 2 × 730 h × (1.5 + 2 cents), and 26 records/s, each one unit."""
    found = estimate.estimate(Load(events_s=20, size=2_000))
    assert found.size.shards == 2
    by_hand = 2 * 730 * (0.015 + 0.020) + 26 * HOURS * 3600 * 0.014 / 1e6
    assert estimate.by_service(found.items)["Kinesis"] == pytest.approx(by_hand)


def test_the_three_sizes_grow() -> None:
    found = [estimate.estimate(load, profile) for load, profile in capacity_page.RUNS]
    assert [each.size.shards for each in found] == sorted(each.size.shards for each in found)
    assert found[0].dollars < found[1].dollars < found[2].dollars
    assert found[0].size.shards == found[0].size.workers == 2
    # 20,000 events/s of 2,000 bytes at the peak: 38.1 MiB/s.
    assert found[2].size.shards == 39


def test_a_source_that_is_too_busy_for_one_poller_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--events-per-second", "10000", "--entities", "1", "--brief"]) == 0
    assert "a source shows more than one such poller can do" in capsys.readouterr().out
    assert main(["estimate", "--events-per-second", "10", "--brief"]) == 0
    assert "more than one such poller" not in capsys.readouterr().out


def test_the_page_of_figures_is_what_the_command_says() -> None:
    page = capacity_page.PAGE.read_text(encoding="utf-8")
    assert page.partition(capacity_page.MARK)[2] == capacity_page.generated(), "run: python -m tests.unit.capacity_page"


def test_json_has_every_line_of_the_bill(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--events-per-second", "500", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert sum(item["dollars"] for item in answer["items"]) == pytest.approx(answer["dollars"])
    assert answer["size"]["shards"] == 2
    assert answer["prices"]["region"] == "us-east-1"


@pytest.mark.parametrize("arguments", [["--events-per-second", "0"], ["--events-per-second", "5", "--size", "0"]])
def test_nonsense_is_refused_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", *arguments]) == 1
    assert capsys.readouterr().err.startswith("tidegate: cannot estimate that: ")
