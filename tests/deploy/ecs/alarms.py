"""CloudWatch's alarms from the one list of alarms: `python -m tests.deploy.ecs.alarms` writes them into observe.yaml.

The list is k8s_or_ecs/observability/alarms.yaml; its header says what the fields mean. A test compares, so neither file can
be changed alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
LIST = ROOT / "k8s_or_ecs" / "observability" / "alarms.yaml"
TEMPLATE = ROOT / "k8s_or_ecs" / "ecs" / "observe.yaml"
COMPOSITE = "hurt"

_BEGIN = (
    "  # From here to the end of the alarms written by `python -m tests.deploy.ecs.alarms`, "
    "from observability/alarms.yaml.\n"
)
_END = "  # END of the alarms\n"
# A ${…} of the list is a parameter of observe.yaml, or one of these, which another stack exports.
_IMPORTS = {"ApiId"}

Alarm = dict[str, Any]


def load() -> list[Alarm]:
    """Every alarm of the list."""
    listed: list[Alarm] = yaml.safe_load(LIST.read_text(encoding="utf-8"))["alarms"]
    return listed


def logical_id(name: str) -> str:
    """`data-stale` → `DataStale`."""
    return "".join(part.capitalize() for part in name.split("-"))


def rendered(alarms: list[Alarm]) -> str:
    """The alarms' part of observe.yaml."""
    watched = [alarm for alarm in alarms if "cloudwatch" in alarm]
    lines = [line for alarm in watched for line in _resource(alarm)]
    pages = [alarm["name"] for alarm in watched if alarm["severity"] == "page"]
    rule = " OR ".join(f"ALARM(${{{logical_id(name)}}})" for name in pages)
    lines += [
        f"  {logical_id(COMPOSITE)}:",
        "    Type: AWS::CloudWatch::CompositeAlarm",
        "    Properties:",
        f'      AlarmName: !Sub "${{Name}}-{COMPOSITE}"',
        "      AlarmDescription: The front office hurts; one of the alarms below it says how. docs/RUNBOOK.md#alarms",
        f'      AlarmRule: !Sub "{rule}"',
        "      AlarmActions: [!Ref PageTopic]",
        "      OKActions: [!Ref PageTopic]",
    ]
    return "\n".join(lines) + "\n"


def replaced(template: str, alarms: list[Alarm]) -> str:
    """observe.yaml with its alarms made anew."""
    before, _, rest = template.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return before + _BEGIN + rendered(alarms) + _END + after


def _resource(alarm: Alarm) -> Iterator[str]:
    watch = alarm["cloudwatch"]
    above = "above" in watch
    yield f"  {logical_id(alarm['name'])}:"
    yield "    Type: AWS::CloudWatch::Alarm"
    if "condition" in watch:
        yield f"    Condition: {watch['condition']}"
    yield "    Properties:"
    yield f'      AlarmName: !Sub "${{Name}}-{alarm["name"]}"'
    yield f"      AlarmDescription: {json.dumps(alarm['says'] + ' docs/RUNBOOK.md#' + alarm['name'])}"
    if "expression" in watch:
        yield "      Metrics:"
        yield f"        - {{Id: value, Expression: {_value(watch['expression'])}, ReturnData: true}}"
        for name, metric in watch["metrics"].items():
            yield f"        - Id: {name}"
            yield "          ReturnData: false"
            yield "          MetricStat:"
            yield f"            Stat: {metric['statistic']}"
            yield f"            Period: {watch['minutes'] * 60}"
            yield "            Metric:"
            yield from (f"              {line}" for line in _metric(metric))
    else:
        yield from (f"      {line}" for line in _metric(watch))
        kind = "ExtendedStatistic" if watch["statistic"].startswith("p") else "Statistic"
        yield f"      {kind}: {watch['statistic']}"
        yield f"      Period: {watch['minutes'] * 60}"
    yield f"      EvaluationPeriods: {watch['of']}"
    yield f"      DatapointsToAlarm: {watch['bad']}"
    yield f"      Threshold: {_value(watch['above' if above else 'below'])}"
    yield f"      ComparisonOperator: {'GreaterThanThreshold' if above else 'LessThanThreshold'}"
    yield f"      TreatMissingData: {watch['missing']}"
    # Those that page do it through the composite; everybody gets the others.
    yield "      AlarmActions: [!Ref Topic]"
    yield "      OKActions: [!Ref Topic]"


def _metric(metric: Mapping[str, Any]) -> Iterator[str]:
    yield f"Namespace: {_value(metric.get('namespace', 'tidegate/${Name}'))}"
    yield f"MetricName: {json.dumps(metric['metric'])}"
    dimensions = dict(metric.get("dimensions", {}))
    if "service" in metric:
        dimensions["service"] = metric["service"]
    if dimensions:
        yield "Dimensions:"
        yield from (f"  - {{Name: {name}, Value: {_value(value)}}}" for name, value in sorted(dimensions.items()))


def _value(value: object) -> str:
    """As YAML: a parameter by !Ref or !Sub, another stack's export by its import."""
    if not isinstance(value, str) or "${" not in value:
        return json.dumps(value)
    if named := re.fullmatch(r"\$\{(\w+)\}", value):
        return f'{{"Fn::ImportValue": !Sub "${{Name}}-{named[1]}"}}' if named[1] in _IMPORTS else f"!Ref {named[1]}"
    return f"!Sub {json.dumps(value)}"


if __name__ == "__main__":
    TEMPLATE.write_text(replaced(TEMPLATE.read_text(encoding="utf-8"), load()), encoding="utf-8")
