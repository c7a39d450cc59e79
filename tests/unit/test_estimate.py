"""Sizes stay within the limits of the services, nothing gets cheaper by more load, and the page of figures is true."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.unit import capacity_page, metrics_page
from tidegate import estimate
from tidegate.cli import main
from tidegate.estimate import PROFILES, Assumptions, Load, ProfileName
from tidegate.prices import PRICES, PriceTable

ROOT = Path(__file__).parents[2]
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


SECONDS = 730 * 3600


def test_a_bill_by_hand_at_20_events_a_second() -> None:
    """Two shards and one of arrivals at 1.5 + 2 cents an hour; 20 events and 3 × 2 watermarks a second, a unit each."""
    found = estimate.estimate(Load(events_s=20, size=2_000))
    assert (found.size.shards, found.size.workers, found.size.pollers) == (2, 2, 2)
    ours = estimate.by_service(found.items)
    assert ours["Kinesis"] == pytest.approx(3 * 730 * 0.035 + 26 * SECONDS * 0.014 / 1e6)
    # Two workers of half a core and 1 GB, three tasks of a quarter and half a GB.
    assert ours["Fargate"] == pytest.approx(730 * (1.75 * 0.03238 + 3.5 * 0.00356))
    # A poll a second for each source is a PUT a second, and twenty events are no more pages than that.
    assert ours["S3"] == pytest.approx(3 * SECONDS * 0.005 / 1e3)
    theirs = estimate.by_service(found.lambda_items)
    # Three pollers that never end, and a consumer called once a second for each shard, with ten events each.
    busy_s = 3 + 2 * 0.06 + 20 * 0.0003
    assert theirs["Lambda"] == pytest.approx(SECONDS * (busy_s * 0.5 * 0.0000166667 + 2 * 0.20 / 1e6))
    assert "Fargate" not in theirs
    assert {name: theirs[name] for name in ("Kinesis", "Aurora", "API")} == {
        name: ours[name] for name in ("Kinesis", "Aurora", "API")
    }


def test_a_bill_by_hand_at_500_events_a_second() -> None:
    found = estimate.estimate(Load(events_s=500, size=2_000))
    assert (found.size.shards, found.size.workers) == (2, 2), "1,000 a second at the peak are 1.9 MiB: two shards"
    ours = estimate.by_service(found.items)
    # 1.5 ACUs would do for the peak; the memory of a fifth of 4.66 GiB asks for one.
    assert (found.size.acu, found.size.acu_peak) == (1.0, 1.5)
    assert ours["Aurora"] == pytest.approx(730 * 0.12 + 2_000 * 2.5e6 / 1024**3 * 0.10 + 150 * SECONDS * 0.20 / 1e6)
    stream_gb = 2 * 500 * 2_000 * SECONDS / 1024**3
    assert ours["Network"] == pytest.approx(730 * (0.045 + 3 * 0.01) + stream_gb * 0.01 + 40 * 0.045)
    # A function outside of the VPC reads; only what the pollers put goes through the endpoint.
    theirs = estimate.by_service(found.lambda_items)
    assert ours["Network"] - theirs["Network"] == pytest.approx(stream_gb / 2 * 0.01)


def test_a_bill_by_hand_at_10000_events_a_second() -> None:
    load, profile = capacity_page.RUNS[2]
    found = estimate.estimate(load, profile)
    assert (found.size.shards, found.size.workers) == (39, 10)
    ours, theirs = estimate.by_service(found.items), estimate.by_service(found.lambda_items)
    puts_s = 10_000 + 10 * 39
    assert ours["Kinesis"] == pytest.approx(40 * 730 * 0.035 + puts_s * SECONDS * 0.014 / 1e6)
    # Each shard has 256 events a second, less than the 500 of a batch: a call a second for each.
    busy_s = 10 + 39 * 0.06 + 10_000 * 0.0003
    assert theirs["Lambda"] == pytest.approx(SECONDS * (busy_s * 0.5 * 0.0000166667 + 39 * 0.20 / 1e6))
    # Ten workers of two cores and 4 GB, eight pollers and one for arrivals of one core and 2 GB.
    assert ours["Fargate"] == pytest.approx(730 * (29 * 0.03238 + 58 * 0.00356))
    assert found.dollars == pytest.approx(sum(ours.values()))
    assert found.lambda_dollars == pytest.approx(sum(theirs.values()))


def test_metrics_are_no_fewer_than_the_code_has() -> None:
    """Each program publishes all that have no label, and those with labels once for all of them."""
    families = [metric for each in metrics_page.sections(metrics_page.SOURCE.read_text()) for metric in each.metrics]
    given, plain = Assumptions(), [metric for metric in families if not metric.labels]
    assert 3 * len(plain) + len(families) - len(plain) <= given.metrics
    assert sum("source" in metric.labels for metric in families) <= given.metrics_source
    listed = yaml.safe_load((ROOT / "k8s_or_ecs" / "observability" / "alarms.yaml").read_text())["alarms"]
    assert sum("cloudwatch" in alarm for alarm in listed) <= given.alarms


# ---------------------------------------------------------------- prices of one's own


def test_a_table_of_ones_own_changes_what_it_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prices.toml"
    file.write_text('region = "eu-central-1"\ndate = "2026-11"\n[prices]\nshard = 0.018\n"s3 put" = 0\n')
    before = said(capsys, "--json")
    after = said(capsys, "--json", "--prices", str(file))
    assert after["prices"] == {"region": "eu-central-1", "date": "2026-11", "changed": ["s3 put", "shard"]}
    changes = {
        (old["service"], old["what"]): new["dollars"] - old["dollars"]
        for old, new in zip(before["items"], after["items"], strict=True)
        if new["dollars"] != old["dollars"]
    }
    assert changes.keys() == {
        ("Kinesis", "shards"), ("Kinesis", "arrivals, one shard"), ("S3", "journals of the index"),
    }  # fmt: skip
    assert changes["Kinesis", "shards"] == pytest.approx(2 * 730 * 0.003)
    assert main(["estimate", "--events-per-second", "20", "--prices", str(file)]) == 0
    assert "Prices of eu-central-1 as of 2026-11. Not the list's: s3 put, shard." in capsys.readouterr().out


def test_the_list_that_is_printed_can_be_handed_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--list-prices"]) == 0
    file = tmp_path / "prices.toml"
    file.write_text(capsys.readouterr().out)
    assert PriceTable.read(tomllib.loads(file.read_text())) == PriceTable()
    assert said(capsys, "--json", "--prices", str(file)) == said(capsys, "--json")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('region = "x"\n', "missing required field `date`"),
        ('region = "x"\ndate = "y"\n[prices]\nshards = 1\n', "no price is called shards; there are shard, retention"),
        ('region = "x"\ndate = "y"\n[prices]\nshard = -1\n', "no price: shard"),
        ('region = "x"\ndate = "y"\n[prices]\nshard = nan\n', "no price: shard"),
        ('region = "x"\ndate = "y"\n[prices]\nshard = "a"\n', "Expected `float`, got `str`"),
        ('region = "x"\ndate = "y"\ncurrency = "EUR"\n[prices]\n', "unknown field `currency`"),
        ("region", "Expected '=' after a key"),
    ],
)
def test_a_wrong_table_is_refused_in_one_line(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(text)
    assert main(["estimate", "--events-per-second", "20", "--prices", str(file)]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"tidegate: cannot use the prices of {file}: ")
    assert says in told
    assert told.count("\n") == 1


def said(capsys: pytest.CaptureFixture[str], *more: str) -> Any:
    assert main(["estimate", "--events-per-second", "20", *more]) == 0
    return json.loads(capsys.readouterr().out)


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


@pytest.mark.parametrize(
    "arguments",
    [
        ["--events-per-second", "0"],
        ["--events-per-second", "nan"],
        ["--events-per-second", "5", "--size", "0"],
        ["--events-per-second", "5", "--entities", "0"],
        ["--events-per-second", "5", "--rows", "-1"],
        ["--events-per-second", "5", "--reads-per-second", "nan"],
        ["--events-per-second", "5", "--reads-per-second", "inf"],
    ],
)
def test_nonsense_is_refused_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", *arguments]) == 1
    assert capsys.readouterr().err.startswith("tidegate: cannot estimate that: ")
