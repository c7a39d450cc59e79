"""CloudWatch's dashboards as a stack: `python -m tests.deploy.ecs.dashboards` writes k8s_or_ecs/ecs/dashboards.yaml.

From k8s_or_ecs/observability/cloudwatch/*.json, which in turn are written from the one list of dashboards.
"""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
BODIES = ROOT / "k8s_or_ecs" / "observability" / "cloudwatch"
TEMPLATE = ROOT / "k8s_or_ecs" / "ecs" / "dashboards.yaml"

_HEAD = """\
# Written by `python -m tests.deploy.ecs.dashboards`, from observability/cloudwatch/*.json.
AWSTemplateFormatVersion: "2010-09-09"
Description: tidegate 9/10, dashboards. What Grafana shows from Prometheus, for CloudWatch; `observe` has the overview.

Parameters:
  Name:
    Type: String
    AllowedPattern: "[a-z][a-z0-9-]{1,19}"
    Description: Name of the deployment; the first part of every name.

Resources:
"""


def rendered() -> str:
    """The whole template."""
    text = _HEAD
    for file in sorted(BODIES.glob("*.json")):
        body = json.dumps(json.loads(file.read_text(encoding="utf-8")), separators=(",", ":"), ensure_ascii=False)
        quoted = body.replace("'", "''")
        text += (
            f"  {file.stem.capitalize()}:\n"
            "    Type: AWS::CloudWatch::Dashboard\n"
            "    Properties:\n"
            f'      DashboardName: !Sub "${{Name}}-{file.stem}"\n'
            f"      DashboardBody: !Sub '{quoted}'\n"
        )
    return text


if __name__ == "__main__":
    TEMPLATE.write_text(rendered(), encoding="utf-8")
