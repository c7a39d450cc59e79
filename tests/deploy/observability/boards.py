"""Dashboards and Prometheus rules from the two lists: k8s_or_ecs/observability/dashboards.yaml and alarms.yaml.

`python -m tests.deploy.observability.write` writes what is made here; a test compares, so no file can be changed alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.observability.metrics import known

ROOT = Path(__file__).resolve().parents[3]
PLACE = ROOT / "k8s_or_ecs" / "observability"
RULES_OF_KUBERNETES = ROOT / "k8s_or_ecs" / "k8s" / "components" / "monitoring" / "rules.yaml"
RUNBOOK = "https://github.com/tidegate/tidegate/blob/main/docs/RUNBOOK.md"
_MADE = (
    "# Written by `python -m tests.deploy.observability.write`, from observability/dashboards.yaml and alarms.yaml.\n"
)

Panel = Mapping[str, Any]

_GRAFANA_UNITS = {
    "s": "s", "ms": "ms", "bytes": "bytes", "count": "short", "per_s": "ops", "bytes_per_s": "binBps", "ratio": "percentunit",
    "bool": "bool_yes_no",
}  # fmt: skip
_HEIGHT = 8


def load(name: str) -> dict[str, Any]:
    """One of the two lists."""
    found: dict[str, Any] = yaml.safe_load((PLACE / name).read_text(encoding="utf-8"))
    return found


def everything() -> dict[Path, str]:
    """What every generated file should hold."""
    boards, alarms = load("dashboards.yaml"), load("alarms.yaml")["alarms"]
    files = {PLACE / "prometheus" / "rules.yaml": _MADE + _yaml(rules(boards["rules"], alarms))}
    files[RULES_OF_KUBERNETES] = _MADE + _yaml(_custom_resource(rules(boards["rules"], alarms)))
    for board in boards["dashboards"]:
        files[PLACE / "grafana" / f"{board['name']}.json"] = _json(grafana(board))
        files[PLACE / "cloudwatch" / f"{board['name']}.json"] = _json(cloudwatch(board))
    return files


def _json(document: object) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _yaml(document: object) -> str:
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=130)


def _placed(panels: Sequence[Panel]) -> Iterator[tuple[int, int, Panel]]:
    """Column and row of each panel on a grid 24 wide: left to right, then the next line."""
    x = y = 0
    for panel in panels:
        if x + panel["width"] > 24:
            x, y = 0, y + _HEIGHT
        yield x, y, panel
        x += panel["width"]


# ---------------------------------------------------------------- Prometheus


def rules(recorded: Sequence[Mapping[str, str]], alarms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Prometheus' rule file: what is recorded, and an alert for each alarm that Prometheus can judge."""
    return {
        "groups": [
            {"name": "tidegate-recorded", "interval": "1m", "rules": [dict(rule) for rule in recorded]},
            {"name": "tidegate-alerts", "rules": [_alert(alarm) for alarm in alarms if "prometheus" in alarm]},
        ]
    }


def alert_name(alarm: str) -> str:
    """`data-stale` → `TidegateDataStale`."""
    return "Tidegate" + "".join(part.capitalize() for part in alarm.split("-"))


def _alert(alarm: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "alert": alert_name(alarm["name"]),
        "expr": alarm["prometheus"]["expr"],
        "for": alarm["prometheus"]["for"],
        "labels": {"severity": alarm["severity"]},
        "annotations": {"summary": alarm["says"], "runbook_url": f"{RUNBOOK}#{alarm['name']}"},
    }


def _custom_resource(document: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "tidegate"},
        "spec": document,
    }


# ---------------------------------------------------------------- Grafana


def grafana(board: Mapping[str, Any]) -> dict[str, Any]:
    """A dashboard that asks for its Prometheus when it is imported."""
    return {
        "uid": f"tidegate-{board['name']}",
        "title": board["title"],
        "tags": ["tidegate"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [{"name": "prometheus", "label": "Prometheus", "type": "datasource", "query": "prometheus"}]},
        "links": [{"title": "tidegate", "type": "dashboards", "tags": ["tidegate"], "asDropdown": True}],
        "panels": [_panel(number, *placed) for number, placed in enumerate(_placed(board["panels"]), 1)],
    }  # fmt: skip


def _panel(number: int, x: int, y: int, panel: Panel) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${prometheus}"}
    is_stat = panel.get("kind") == "stat"
    defaults: dict[str, Any] = {"unit": _GRAFANA_UNITS[panel["unit"]], "custom": {} if is_stat else {"fillOpacity": 10}}
    if "limit" in panel:
        # Of a share that is left less is worse, of everything else more.
        low, high = ("red", "green") if panel["unit"] == "ratio" else ("green", "red")
        defaults["thresholds"] = {
            "mode": "absolute",
            "steps": [{"color": low, "value": None}, {"color": high, "value": panel["limit"]}],
        }
        if not is_stat:
            defaults["custom"]["thresholdsStyle"] = {"mode": "line"}
    return {
        "id": number,
        "type": "stat" if is_stat else "timeseries",
        "title": panel["title"],
        "description": panel["says"],
        "gridPos": {"x": x, "y": y, "w": panel["width"], "h": _HEIGHT},
        "datasource": source,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + at),
                "datasource": source,
                "expr": expr,
                "legendFormat": legend,
                "instant": is_stat,
            }
            for at, (expr, legend) in enumerate(panel["prom"].items())
        ],
    }


# ---------------------------------------------------------------- CloudWatch


def cloudwatch(board: Mapping[str, Any]) -> dict[str, Any]:
    """A dashboard's body; `${Name}` and `${AWS::Region}` are for CloudFormation's Sub."""
    widgets: list[dict[str, Any]] = [
        {"type": "text", "x": 0, "y": 0, "width": 24, "height": 1, "properties": {"markdown": f"## {board['title']}"}}
    ]
    for x, y, panel in _placed(board["panels"]):
        properties: dict[str, Any] = {
            "title": panel["title"],
            "region": "${AWS::Region}",
            "view": "singleValue" if panel.get("kind") == "stat" else "timeSeries",
            "period": 60,
            "metrics": [line for number, query in enumerate(panel["cloud"]) for line in _lines(number, query)],
        }
        if "limit" in panel and properties["view"] == "timeSeries":
            properties["annotations"] = {"horizontal": [{"label": "limit", "value": panel["limit"]}]}
        at = {"x": x, "y": y + 1, "width": panel["width"], "height": _HEIGHT}
        widgets.append({"type": "metric", **at, "properties": properties})
    return {"widgets": widgets}


def _lines(number: int, query: Mapping[str, Any]) -> Iterator[list[Any]]:
    """One query as CloudWatch's metrics array wants it. Ids are unique within the widget."""
    if "math" in query:
        yield [{"expression": query["math"], "label": query["label"], "id": f"e{number}"}]
        for name, part in query["of"].items():
            yield [*_series(part), {"id": name, "stat": part["stat"], "visible": False}]
        return
    yield [*_series(query), {"id": f"m{number}", "stat": query["stat"], "label": f"{query['metric']} {query['stat']}"}]
    if query.get("by"):
        yield [{"expression": _search(query), "id": f"s{number}", "label": ""}]


def _series(query: Mapping[str, Any]) -> list[str]:
    """Namespace, name, and dimensions with their values."""
    wanted = {**query.get("where", {}), "service": query["service"]}
    return ["tidegate/${Name}", query["metric"], *(text for pair in sorted(wanted.items()) for text in pair)]


def _search(query: Mapping[str, Any]) -> str:
    """A line for each label set: a metric has dimensions of its own for all its labels together."""
    names = ",".join(["service", *sorted(known()[query["metric"]].labels)])
    return (
        f'SEARCH(\'{{tidegate/${{Name}},{names}}} MetricName="{query["metric"]}" service="{query["service"]}"\', '
        f"'{query['stat']}', 60)"
    )
