"""Dashboards and rules: made from their lists, true to the metrics, and the alerts fire when they must."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.observability import boards, weather
from tests.deploy.observability.metrics import cloud_faults, faults, unit_faults
from tests.unit import metrics_page

LISTED = boards.load("dashboards.yaml")
ALARMS = boards.load("alarms.yaml")["alarms"]
PANELS = [
    pytest.param(panel, id=f"{board['name']}: {panel['title']}")
    for board in LISTED["dashboards"]
    for panel in board["panels"]
]
MADE = boards.everything()
RECORDED = {
    "tidegate:age_seconds": frozenset({"source"}),
    **{rule["record"]: frozenset[str]() for rule in LISTED["rules"] if rule["record"] != "tidegate:age_seconds"},
}
BY_PROMETHEUS = {alarm["name"]: alarm["prometheus"]["expr"] for alarm in ALARMS if "prometheus" in alarm}


@pytest.mark.parametrize("path", sorted(MADE), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_files_are_what_the_lists_make(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == MADE[path], "run: python -m tests.deploy.observability.write"


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_asks_for_metrics_that_exist(panel: dict[str, Any]) -> None:
    for query in panel["prom"]:
        assert faults(query, RECORDED) == []
        assert list(unit_faults(panel["unit"], query)) == []
    assert [fault for query in panel["cloud"] for fault in cloud_faults(query)] == []
    assert panel["says"].endswith(".")


@pytest.mark.parametrize("name", sorted(BY_PROMETHEUS))
def test_an_alert_asks_for_metrics_that_exist(name: str) -> None:
    assert faults(BY_PROMETHEUS[name], RECORDED) == []


def test_every_alert_leads_to_its_entry_in_the_runbook() -> None:
    headings = re.findall(
        r"^### (\S+)$", (boards.ROOT / "docs" / "RUNBOOK.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    made = boards.rules(LISTED["rules"], ALARMS)["groups"][1]["rules"]
    assert {rule["annotations"]["runbook_url"].partition("#")[2] for rule in made} <= set(headings)
    assert {rule["alert"] for rule in made} == {boards.alert_name(name) for name in BY_PROMETHEUS}


def test_what_is_recorded_asks_for_metrics_that_exist() -> None:
    for rule in LISTED["rules"]:
        assert faults(rule["expr"], RECORDED) == []


def test_every_metric_that_asks_for_an_alarm_has_one() -> None:
    watched = json.dumps(ALARMS)
    source = metrics_page.SOURCE.read_text(encoding="utf-8")
    asking = [
        metric.name
        for section in metrics_page.sections(source)
        for metric in section.metrics
        if re.search(r"\bAlarm\b", metric.meaning)
    ]
    assert len(asking) >= 7
    assert [name for name in asking if name not in watched] == []


def test_dashboards_fit_their_grid() -> None:
    for board in LISTED["dashboards"]:
        taken = [panel["gridPos"] for panel in boards.grafana(board)["panels"]]
        assert all(at["x"] + at["w"] <= 24 for at in taken)
        cells = [(x, at["y"]) for at in taken for x in range(at["x"], at["x"] + at["w"])]
        assert len(cells) == len(set(cells))
        for widget in boards.cloudwatch(board)["widgets"][1:]:
            ids = [part["id"] for line in widget["properties"]["metrics"] for part in line if isinstance(part, dict)]
            assert len(ids) == len(set(ids))


# ---------------------------------------------------------------- the checks themselves


@pytest.mark.parametrize(
    ("query", "fault"),
    [
        ("rate(tidegate_gap_total[5m])", "no metric tidegate_gap_total"),
        ("sum by (shard) (tidegate_leases_held)", "grouped by shard"),
        ('tidegate_leases_held{way="steal"}', "has no label way"),
        ("sum(tidegate_gaps_total)", "is a counter"),
        ("rate(tidegate_leases_held[5m])", "is a gauge"),
        ("rate(tidegate_batch_seconds[5m])", "no metric tidegate_batch_seconds"),
        ("sum by (source) (tidegate:stale)", "grouped by source"),
        ("sum(", "no PromQL"),
    ],
)
def test_a_seeded_mistake_is_found(query: str, fault: str) -> None:
    assert any(fault in found for found in faults(query, RECORDED))


@pytest.mark.parametrize(
    ("query", "fault"),
    [
        ({"metric": "tidegate_gap_total", "stat": "Sum", "service": "worker"}, "no metric"),
        ({"metric": "tidegate_gaps_total", "stat": "Maximum", "service": "worker"}, "Maximum of the counter"),
        ({"metric": "tidegate_batch_seconds", "stat": "Maximum", "service": "worker"}, "Maximum of the histogram"),
        ({"metric": "tidegate_leases_held", "stat": "p99", "service": "worker"}, "p99 of the gauge"),
        ({"metric": "tidegate_leases_held", "stat": "Sum", "service": "worker", "by": True}, "has no labels"),
        ({"metric": "tidegate_gaps_total", "stat": "Sum", "service": "worker", "where": {"x": "y"}}, "no label x"),
        (
            {"metric": "tidegate_poller_published_total", "stat": "Sum", "service": "p", "where": {"cause": "live"}},
            "all labels or none",
        ),
    ],
)
def test_a_seeded_mistake_for_cloudwatch_is_found(query: dict[str, Any], fault: str) -> None:
    assert [found for found in cloud_faults(query) if fault in found] or fault in str(list(cloud_faults(query)))


def test_a_seeded_unit_is_found() -> None:
    assert list(unit_faults("ms", "max by (destination) (tidegate_outbox_oldest_seconds)"))
    assert list(unit_faults("s", "tidegate_millis_behind_latest"))
    assert list(unit_faults("ms", "histogram_quantile(0.9, sum by (le) (rate(tidegate_batch_seconds_bucket[5m])))"))


# ---------------------------------------------------------------- the alerts, by Prometheus' own tool


def test_every_alert_has_its_storm() -> None:
    assert weather.STORMS.keys() == BY_PROMETHEUS.keys(), "add or remove one in weather.py"


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("NO PROMTOOL: the alerts were not tried out; install it (apt-get install prometheus)")
    return found


def promtool_says(promtool: str, document: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return subprocess.run([promtool, "test", "rules", str(path)], check=False, capture_output=True, text=True)


def test_alerts_fire_when_they_must_and_not_in_good_weather(promtool: str, tmp_path: Path) -> None:
    rules = boards.PLACE / "prometheus" / "rules.yaml"
    said = promtool_says(promtool, weather.document(ALARMS, str(rules)), tmp_path)
    assert said.returncode == 0, said.stdout + said.stderr


def test_an_alert_that_cannot_fire_is_found(promtool: str, tmp_path: Path) -> None:
    rules = yaml.safe_load((boards.PLACE / "prometheus" / "rules.yaml").read_text(encoding="utf-8"))
    [gap] = [rule for group in rules["groups"] for rule in group["rules"] if rule.get("alert") == "TidegateGap"]
    gap["expr"] = gap["expr"].replace("> 0", "> 1000")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    storms = {"gap": weather.STORMS["gap"]}
    said = promtool_says(promtool, weather.document(ALARMS, str(tmp_path / "rules.yaml"), storms), tmp_path)
    assert said.returncode == 1
    assert "TidegateGap" in said.stdout + said.stderr
