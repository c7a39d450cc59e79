"""Rules that hold templates and programs together: settings, calls of AWS, metrics, alarms, the runbook."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from botocore import xform_name
from botocore.session import Session
from prometheus_client import Counter, Gauge, Histogram

from tests.deploy.ecs import alarms as listed_alarms
from tests.deploy.ecs.rules import Rule
from tests.deploy.ecs.templates import Template, containers, environment, listed, resources, statements
from tidegate import telemetry
from tidegate.settings import VARIABLES, describe

ROOT = Path(__file__).resolve().parents[3]

# Where → the settings that what runs there reads, by import path; the first one's required variables must be set.
PROGRAMS = {
    "services.Poller": ("poller.settings:PollerSettings",),
    "services.Worker": ("worker.settings:WorkerSettings",),
    "services.Inbound": ("worker.settings:WorkerSettings",),
    "ops.Owner": ("tidegate.cli.logins:LoginSettings",),
    "ops.Operator": (
        "tidegate.cli.leases_run:ToolSettings",
        "tidegate.cli.status_run:StatusSettings",
        "tidegate.cli.explain_run:ExplainSettings",
        "tidegate.cli.sources_run:ToolSettings",
    ),
    "api.Reads": ("api.settings:ApiSettings",),
    "api.Ingest": ("api.settings:IngestSettings",),
    "api.User": ("api.settings:UserSettings",),
}
# A setting of the class that the program itself never looks at.
UNUSED = {"services.Inbound": {"TIDEGATE_CLAIM_BUCKET"}}
# Read by every verb of `tidegate` itself, apart from any settings class.
VERBS = {"TIDEGATE_BUBBLE", "TIDEGATE_DATABASE_URL", "TIDEGATE_USER_TABLE"}
# The database driver's own: where the password is, and how the server's identity is checked.
DRIVER = {"PGPASSWORD", "PGSSLMODE", "PGSSLROOTCERT"}

# Program → (stack.role, the files that call AWS for it). What both share is in tidegate/.
_SHARED = ("tidegate/aws/dynamo.py", "tidegate/leases/*.py")
CALLERS = {
    "services.PollerRole": ("poller/*.py", "tidegate/source_table.py", "tidegate/aws/puts.py", *_SHARED),
    "services.WorkerRole": ("worker/*.py", "tidegate/aws/records.py", "tidegate/aws/streams.py", *_SHARED),
    "services.InboundRole": (
        "worker/reader.py", "worker/stream.py", "worker/origin.py", "tidegate/aws/records.py",
        "tidegate/aws/streams.py", *_SHARED,
    ),
    "api.IngestRole": ("api/ingest_handler.py", "tidegate/aws/puts.py"),
    "api.UserRole": ("api/user_handler.py", "tidegate/users.py"),
}  # fmt: skip
# Written by every function: its log.
LOGS = {"logs:CreateLogStream", "logs:PutLogEvents"}
# Called only where a table is missing, or by TIDEGATE_READ_MODE=fan_out, which the templates do not set.
NOT_NEEDED = {
    "dynamodb:CreateTable",
    "dynamodb:UpdateTable",
    "kinesis:DescribeStreamConsumer",
    "kinesis:RegisterStreamConsumer",
    "kinesis:SubscribeToShard",
}
# The stream's and the tables' encryption: called by the services on our behalf, with the caller's right.
ON_OUR_BEHALF = {"kms:Decrypt", "kms:GenerateDataKey"}
# Calls that IAM names otherwise.
RENAMED = {
    "s3:ListObjectsV2": "s3:ListBucket",
    "s3:DeleteObjects": "s3:DeleteObject",
    "s3:HeadObject": "s3:GetObject",
}


def settings_of(where: str) -> tuple[set[str], set[str]]:
    """Every variable that may be set there, and those that must."""
    known, required = set(VERBS if where.startswith("ops.") else ()), set()
    for path in PROGRAMS[where]:
        module, _, name = path.partition(":")
        variables = describe(getattr(importlib.import_module(module), name))
        known |= {variable.name for variable in variables}
        # A table or bucket has to be made beforehand, so that its name is the deployment's, whatever the default.
        required |= {each.name for each in variables if each.required or each.name.endswith(("_TABLE", "_BUCKET"))}
    return known, required - UNUSED.get(where, set())


def environments(templates: dict[str, Template]) -> Iterator[str]:
    """Every variable of a task definition or function is a setting of its program, and every required one is set."""
    found = {where: environment(container) for where, container in containers(templates)}
    for stack, name, properties in resources(templates, "AWS::Lambda::Function"):
        found[f"{stack}.{name}"] = properties["Environment"]["Variables"]
    if set(found) != set(PROGRAMS):
        yield f"programs: {sorted(set(found) ^ set(PROGRAMS))} are in the templates or in this list only"
    for where in set(found) & set(PROGRAMS):
        known, required = settings_of(where)
        for name in sorted(set(found[where]) - known - DRIVER - {VARIABLES}):
            yield f"{where}: {name} is no setting of its program"
        for name in sorted(required - set(found[where])):
            yield f"{where}: {name} is required and not set"
        if "TIDEGATE_DATABASE_URL" in found[where] and not _connects_safely(found[where]):
            yield f"{where}: connects to the database without a password or without checking who answers"


def _connects_safely(variables: dict[str, Any]) -> bool:
    """By password or by the role, and either way the server must prove who it is."""
    by_role = "sslmode=verify-full&sslrootcert=" in str(variables["TIDEGATE_DATABASE_URL"])
    return set(variables) >= DRIVER or (by_role and variables.get("TIDEGATE_DATABASE_IAM") == "true")


@cache
def _operations() -> dict[str, str]:
    """snake_case call → service:Operation, of the services that the programs use."""
    session = Session()
    found: dict[str, str] = {}
    for service in ("s3", "dynamodb", "kinesis"):
        for operation in session.get_service_model(service).operation_names:
            found[xform_name(operation)] = f"{service}:{operation}"
    return found


def called(patterns: tuple[str, ...]) -> set[str]:
    """The actions that the code of these files calls, by name of the client's method or of its paginator."""
    actions = set()
    for pattern in patterns:
        for file in sorted(ROOT.glob(pattern)):
            text = file.read_text(encoding="utf-8")
            for name in re.findall(r"(?<=\.)\w+|(?<=get_paginator\(\")\w+", text):
                if operation := _operations().get(name):
                    actions.add(RENAMED.get(operation, operation))
    return actions


def rights(templates: dict[str, Template]) -> Iterator[str]:
    """A task's role may do what its program calls, and nothing else."""
    for where, patterns in CALLERS.items():
        stack, name = where.split(".")
        role = templates[stack]["Resources"][name]["Properties"]
        granted = (
            {action for statement in statements(role) for action in listed(statement["Action"])} - ON_OUR_BEHALF - LOGS
        )
        needed = called(patterns) - NOT_NEEDED
        yield from (f"{where}: {action} is called and not granted" for action in sorted(needed - granted))
        yield from (f"{where}: {action} is granted and nobody calls it" for action in sorted(granted - needed))


def metrics() -> dict[str, set[str]]:
    """Metric → its labels, as CloudWatch and /metrics name it."""
    found = {}
    for metric in vars(telemetry).values():
        if isinstance(metric, Counter | Gauge | Histogram):
            name = f"{metric._name}_total" if isinstance(metric, Counter) else metric._name
            found[name] = set(metric._labelnames)
    return found


def watched(templates: dict[str, Template]) -> Iterator[str]:
    """What an alarm or a dashboard names exists: metrics of ours in the code, lines counted by a filter, names of resources."""
    known = metrics()
    filtered = {
        each["MetricName"]
        for _, _, properties in resources(templates, "AWS::Logs::MetricFilter")
        for each in properties["MetricTransformations"]
    }
    names = set(_names(templates))
    for where, metric in _watched_metrics(templates):
        dimensions = {each["Name"]: each["Value"] for each in metric.get("Dimensions", ())}
        if str(metric["Namespace"]).startswith("AWS/") or metric["Namespace"] == "ECS/ContainerInsights":
            for value in (value for value in dimensions.values() if isinstance(value, dict) and "Fn::Sub" in value):
                if value["Fn::Sub"] not in names:
                    yield f"{where}: nothing is called {value['Fn::Sub']}"
            continue
        name = metric["MetricName"]
        if name not in known and name not in filtered:
            yield f"{where}: there is no metric {name}"
        elif name in known and (strange := set(dimensions) - known[name] - {"service"}):
            yield f"{where}: {name} has no label {sorted(strange)}"
        elif name in known and dimensions.get("service") not in ("poller", "worker", "inbound"):
            yield f"{where}: {name} is looked at without its service"
    for stack, name, properties in resources(templates, "AWS::CloudWatch::Dashboard"):
        for metric_name in set(re.findall(r"\"(tidegate_\w+)\"", str(properties["DashboardBody"]))) - set(known):
            yield f"{stack}.{name}: there is no metric {metric_name}"


def _watched_metrics(templates: dict[str, Template]) -> Iterator[tuple[str, dict[str, Any]]]:
    for stack, name, properties in resources(templates, "AWS::CloudWatch::Alarm"):
        if "MetricName" in properties:
            yield f"{stack}.{name}", properties
        for each in properties.get("Metrics", ()):
            if "MetricStat" in each:
                yield f"{stack}.{name}", each["MetricStat"]["Metric"]


def _names(templates: dict[str, Template]) -> Iterator[str]:
    """What the templates call their resources: "${Name}-changes"."""
    keys = ("Name", "TableName", "FunctionName", "ServiceName", "ClusterName", "DBClusterIdentifier")
    for template in templates.values():
        for resource in template["Resources"].values():
            for key in keys:
                value = resource.get("Properties", {}).get(key)
                if isinstance(value, dict) and "Fn::Sub" in value:
                    yield value["Fn::Sub"]
                elif value == {"Ref": "Name"}:
                    yield "${Name}"


def one_list(templates: dict[str, Template], alarms: list[dict[str, Any]] | None = None) -> Iterator[str]:
    """The list of alarms, the template and the runbook tell of the same alarms; Prometheus' side names metrics that exist."""
    alarms = listed_alarms.load() if alarms is None else alarms
    names = [alarm["name"] for alarm in alarms]
    text = listed_alarms.TEMPLATE.read_text(encoding="utf-8")
    if listed_alarms.replaced(text, alarms) != text:
        yield "observe.yaml: not what the list says; run `python -m tests.deploy.ecs.alarms`"
    chapter = (
        (ROOT / "docs" / "RUNBOOK.md").read_text(encoding="utf-8").partition("\n## Alarms\n")[2].partition("\n## ")[0]
    )
    told = re.findall(r"^### ([a-z0-9-]+)$", chapter, re.MULTILINE)
    yield from (f"{name}: no entry in docs/RUNBOOK.md" for name in names if name not in told)
    yield from (f"{name}: in docs/RUNBOOK.md, and there is no such alarm" for name in told if name not in names)
    if len(set(names)) < len(names):
        yield "two alarms of one name"
    known = set(metrics())
    for alarm in alarms:
        for name in re.findall(r"\btidegate_\w+", alarm.get("prometheus", {}).get("expr", "")):
            if name not in known and re.sub(r"_(count|sum|bucket)$", "", name) not in known:
                yield f"{alarm['name']}: there is no metric {name}"
        if "cloudwatch" not in alarm and "prometheus" not in alarm:
            yield f"{alarm['name']}: watches nothing"


ALL: tuple[Rule, ...] = (environments, rights, watched, one_list)
