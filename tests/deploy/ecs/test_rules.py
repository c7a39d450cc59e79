"""The rules hold of the templates as they are, and each finds the mistake that it is there for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.deploy.ecs import alarms, dashboards, programs, promises, rules
from tests.deploy.ecs.rules import Rule
from tests.deploy.ecs.templates import TEMPLATES, Template, containers, load, parsed, resources

Templates = dict[str, Template]
Spoil = Callable[[Templates], object]

# What CloudFormation takes in a call; more has to lie in S3.
TEMPLATE_BYTES = 51_200


@pytest.mark.parametrize("rule", [*rules.ALL, *programs.ALL, *promises.ALL], ids=lambda rule: rule.__name__)
def test_the_rule_holds(rule: Rule) -> None:
    assert list(rule(load())) == []


def container(templates: Templates, where: str) -> dict[str, Any]:
    return next(found for name, found in containers(templates) if name == where)


def properties(templates: Templates, stack: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = templates[stack]["Resources"][name]["Properties"]
    return found


def variable(templates: Templates, where: str, name: str, value: str) -> None:
    environment = container(templates, where)["Environment"]
    environment[:] = [each for each in environment if each["Name"] != name] + [{"Name": name, "Value": value}]


def without(templates: Templates, where: str, name: str) -> None:
    for kind in ("Environment", "Secrets"):
        listed = container(templates, where)[kind]
        listed[:] = [each for each in listed if each["Name"] != name]


def set_in(place: dict[str, Any], **values: Any) -> None:
    place.update(values)


def dashboard(templates: Templates, old: str, new: str) -> None:
    body = properties(templates, "observe", "Dashboard")["DashboardBody"]["Fn::Sub"]
    assert old in body[0]
    body[0] = body[0].replace(old, new)


def policy(templates: Templates, stack: str, name: str) -> list[dict[str, Any]]:
    statements: list[dict[str, Any]] = properties(templates, stack, name)["Policies"][0]["PolicyDocument"]["Statement"]
    return statements


WORKER, POLLER = "services.Worker", "services.Poller"
STAR = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"}
SEEDED: list[tuple[Rule, str, Spoil]] = [
    (rules.stop_limits, "more than 120", lambda t: set_in(container(t, WORKER), StopTimeout=180)),
    (rules.stop_limits, "is killed after 60", lambda t: set_in(container(t, WORKER), StopTimeout=60)),
    (rules.stop_limits, "drains for 120", lambda t: variable(t, POLLER, "TIDEGATE_LEASES_DRAIN_BUDGET_S", "120")),
    (rules.health_limits, "StartPeriod 600", lambda t: set_in(container(t, WORKER)["HealthCheck"], StartPeriod=600)),
    (rules.health_limits, "no health check", lambda t: container(t, POLLER).pop("HealthCheck")),
    (rules.health_limits, "is not /livez", lambda t: set_in(container(t, POLLER)["HealthCheck"], Command=["CMD", "x"])),
    (rules.health_limits, "does not open", lambda t: set_in(container(t, WORKER), PortMappings=[])),
    (rules.port_names, "'Metrics!'", lambda t: set_in(container(t, WORKER)["PortMappings"][0], Name="Metrics!")),
    (rules.hardened, "runs as root", lambda t: set_in(container(t, WORKER), User="0:0")),
    (rules.hardened, "can be written", lambda t: container(t, POLLER).pop("ReadonlyRootFilesystem")),
    (rules.hardened, "keeps capabilities", lambda t: container(t, POLLER)["LinuxParameters"].pop("Capabilities")),
    (rules.hardened, "no /tmp", lambda t: container(t, POLLER).pop("MountPoints")),
    (rules.hardened, "no /tmp", lambda t: container(t, WORKER)["LinuxParameters"].pop("Tmpfs")),
    (rules.hardened, "digest", lambda t: set_in(t["ops"]["Parameters"]["Image"], AllowedPattern=".+")),
    (rules.rollout, "no room", lambda t: set_in(deployment(t), MaximumPercent=100)),
    (rules.rollout, "takes tasks away", lambda t: set_in(deployment(t), MinimumHealthyPercent=50)),
    (rules.rollout, "circuit breaker", lambda t: deployment(t).pop("DeploymentCircuitBreaker")),
    (rules.rollout, "no alarm", lambda t: set_in(deployment(t)["Alarms"], AlarmNames=[])),
    (rules.tasks_and_shards, "more tasks", lambda t: set_in(properties(t, "services", "WorkerCount"), MaxCapacity=40)),
    (rules.tasks_and_shards, "policies", lambda t: t["services"]["Resources"].pop("CatchUp")),
    (rules.tasks_and_shards, "24 hours", lambda t: set_in(t["data"]["Parameters"]["RetentionHours"], Default=24)),
    (rules.tasks_and_shards, "half", lambda t: set_in(properties(t, "observe", "RetentionHalf"), Threshold=1)),
    (rules.tasks_and_shards, "half", lambda t: set_in(properties(t, "observe", "RetentionHalf"), Metrics=[])),
    (rules.capacity_steps, "no step", lambda t: set_in(t["data"]["Parameters"]["LeastAcu"], Default=0.7)),
    (rules.capacity_steps, "at least", lambda t: set_in(t["data"]["Parameters"]["LeastAcu"], Default=64)),
    (rules.dashboards, "no JSON", lambda t: dashboard(t, '{"widgets"', '{widgets"')),
    (rules.dashboards, "no widget of type", lambda t: dashboard(t, '"type": "log"', '"type": "logs"')),
    (rules.dashboards, "24th column", lambda t: dashboard(t, '"x": 12, "y": 3', '"x": 18, "y": 3')),
    (rules.routes, "route key", lambda t: set_in(properties(t, "api", "ReadsRoute"), RouteKey="FETCH /v1/{proxy+}")),
    (rules.routes, "open to all", lambda t: set_in(properties(t, "api", "ReadsRoute"), AuthorizationType="NONE")),
    (rules.routes, "no route", lambda t: t["api"]["Resources"].pop("UserPutRoute")),
    (rules.routes, "no address", lambda t: set_in(properties(t, "api", "UserPutRoute"), RouteKey="PUT /v1/users")),
    (rules.routes, "throttles", lambda t: properties(t, "api", "Stage")["RouteSettings"].clear()),
    (rules.narrow, "every resource", lambda t: policy(t, "services", "WorkerRole").append(STAR)),
    (rules.narrow, "kinesis:*", lambda t: set_in(policy(t, "services", "PollerRole")[0], Action="kinesis:*")),
    (rules.narrow, "boundary", lambda t: properties(t, "api", "ReadsRole").pop("PermissionsBoundary")),
    (rules.within_boundary, "beyond", lambda t: set_in(policy(t, "services", "PollerRole")[0], Action="sns:Publish")),
    (rules.kept, "data.Stream", lambda t: t["data"]["Resources"]["Stream"].pop("UpdateReplacePolicy")),
    (rules.protected, "recovery", lambda t: properties(t, "data", "Leases").pop("PointInTimeRecoverySpecification")),
    (rules.protected, "by mistake", lambda t: set_in(properties(t, "data", "Database"), DeletionProtection=False)),
    (rules.protected, "RDS' own", lambda t: set_in(properties(t, "data", "Database"), MasterUserPassword="x")),
    (rules.protected, "public", lambda t: properties(t, "edge", "Site").pop("PublicAccessBlockConfiguration")),
    (rules.joints, "nobody exports", lambda t: t["data"]["Outputs"].pop("StreamArn")),
    (rules.joints, "nobody imports", lambda t: t["observe"]["Resources"].pop("Scraper")),
    (rules.joints, "exports a parameter", lambda t: set_in(t["data"]["Outputs"]["Stream"], Value={"Ref": "Shards"})),
    (rules.cached, "in the cache's key only", lambda t: properties(t, "facade", "Get")["RequestParameters"].popitem()),
    (rules.cached, "for whoever asks", lambda t: without_authorization(properties(t, "facade", "Get"))),
    (rules.parameters, "not declared as in", lambda t: set_in(t["services"]["Parameters"]["Shards"], Default=4)),
    (promises.demanded, "short passwords", lambda t: properties(t, "identity", "Pool").pop("Policies")),
    (promises.closed_buckets, "without TLS", lambda t: t["data"]["Resources"].pop("DropBucketPolicy")),
    (promises.own_way, "no Gateway endpoint", lambda t: t["network"]["Resources"].pop("S3Endpoint")),
    (promises.own_way, "called private", lambda t: t["network"]["Resources"].pop("Private2Routes")),
    (promises.trusted, "for anybody", lambda t: trust(t, "services", "WorkerRole").pop("Condition")),
    (promises.told, "by sms", lambda t: t["observe"]["Resources"].pop("PageSms")),
    (promises.told, "wakes nobody", lambda t: properties(t, "observe", "Hurt").pop("AlarmActions")),
    (promises.keyed, "whoever asks", lambda t: properties(t, "facade", "Get").pop("ApiKeyRequired")),
    (promises.mounted, "no volume scratch", lambda t: properties(t, "services", "Poller").pop("Volumes")),
    (programs.environments, "no setting", lambda t: variable(t, WORKER, "TIDEGATE_BATCH_ROWZ", "1")),
    (programs.environments, "required", lambda t: without(t, POLLER, "TIDEGATE_CURSOR_TABLE")),
    (programs.environments, "TIDEGATE_SOURCE_TABLE", lambda t: without(t, POLLER, "TIDEGATE_SOURCE_TABLE")),
    (programs.environments, "without checking", lambda t: without(t, WORKER, "PGSSLROOTCERT")),
    (programs.environments, "without checking", lambda t: functions_url(t, "postgresql://reader_login@h:5432/tidegate")),
    (programs.rights, "nobody calls", lambda t: policy(t, "services", "WorkerRole")[0]["Action"].append("kinesis:PutRecord")),
    (programs.rights, "not granted", lambda t: policy(t, "services", "PollerRole").pop(0)),
    (programs.watched, "no metric", lambda t: set_in(properties(t, "observe", "Gap"), MetricName="tidegate_gapz_total")),
    (programs.watched, "no metric", lambda t: t["services"]["Resources"].pop("PollerFailedLines")),
    (programs.watched, "no label", lambda t: dimension(t, "Gap", "shard")),
    (programs.watched, "its service", lambda t: set_in(properties(t, "observe", "Gap"), Dimensions=[])),
    (programs.watched, "is called", lambda t: set_in(properties(t, "data", "Stream"), Name="other")),
    (programs.watched, "no metric", lambda t: dashboard(t, "tidegate_leases_held", "tidegate_leases_owned")),
]  # fmt: skip


def deployment(templates: Templates) -> dict[str, Any]:
    found: dict[str, Any] = properties(templates, "services", "WorkerService")["DeploymentConfiguration"]
    return found


def functions_url(templates: Templates, url: str) -> None:
    properties(templates, "api", "Reads")["Environment"]["Variables"]["TIDEGATE_DATABASE_URL"] = url


def trust(templates: Templates, stack: str, name: str) -> dict[str, Any]:
    statement: dict[str, Any] = properties(templates, stack, name)["AssumeRolePolicyDocument"]["Statement"][0]
    return statement


def without_authorization(method: dict[str, Any]) -> None:
    name = "method.request.header.Authorization"
    method["RequestParameters"].pop(name)
    method["Integration"]["CacheKeyParameters"].remove(name)


def dimension(templates: Templates, alarm: str, name: str) -> None:
    properties(templates, "observe", alarm)["Dimensions"].append({"Name": name, "Value": "x"})


@pytest.mark.parametrize(("rule", "says", "spoil"), SEEDED, ids=[f"{r.__name__}: {says}" for r, says, _ in SEEDED])
def test_a_seeded_mistake_is_found(rule: Rule, says: str, spoil: Spoil) -> None:
    templates = load()
    spoil(templates)
    found = list(rule(templates))
    assert any(says in finding for finding in found), found


def test_every_rule_has_a_seeded_mistake() -> None:
    proven = {rule for rule, _, _ in SEEDED} | {programs.one_list}
    assert proven == {*rules.ALL, *programs.ALL, *promises.ALL}


@pytest.mark.parametrize("kind", sorted(promises.DEMANDS))
def test_every_line_of_the_demands_can_fail_and_is_about_something(kind: str) -> None:
    assert list(resources(load(), kind))
    assert not any(promises.holds(demand, {}) for demand in promises.DEMANDS[kind])


def spoiled_lists() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    renamed = alarms.load()
    renamed[0]["name"] = "data-old"
    yield "data-old: no entry", renamed
    yield "data-stale: in docs/RUNBOOK.md", renamed
    moved = alarms.load()
    moved[0]["cloudwatch"]["above"] = 400
    yield "not what the list says", moved
    misspelt = alarms.load()
    misspelt[0]["prometheus"]["expr"] = "tidegate_watermark > 1"
    yield "no metric tidegate_watermark", misspelt
    doubled = alarms.load()
    yield "two alarms", [*doubled, doubled[0]]
    blind = alarms.load()
    blind[0].pop("cloudwatch")
    blind[0].pop("prometheus")
    yield "watches nothing", blind


@pytest.mark.parametrize(
    ("says", "spoiled"), list(spoiled_lists()), ids=lambda each: each if isinstance(each, str) else ""
)
def test_a_seeded_mistake_in_the_list_of_alarms_is_found(says: str, spoiled: list[dict[str, Any]]) -> None:
    assert any(says in finding for finding in programs.one_list(load(), spoiled))


def test_the_dashboards_are_those_of_the_list() -> None:
    assert dashboards.TEMPLATE.read_text(encoding="utf-8") == dashboards.rendered(), (
        "run `python -m tests.deploy.ecs.dashboards`"
    )


def test_no_template_is_too_large_for_one_call() -> None:
    sizes = {path.name: len(path.read_bytes()) for path in TEMPLATES.glob("*.yaml")}
    assert {name: size for name, size in sizes.items() if size > TEMPLATE_BYTES} == {}


def test_short_forms_are_read_as_cloudformation_reads_them() -> None:
    text = "a: !Ref X\nb: !GetAtt X.Y.Z\nc: !Sub ['${A}', {A: !ImportValue q}]\nd: !If [C, 1, !Ref 'AWS::NoValue']\n"
    assert parsed(text) == {
        "a": {"Ref": "X"},
        "b": {"Fn::GetAtt": ["X", "Y.Z"]},
        "c": {"Fn::Sub": ["${A}", {"A": {"Fn::ImportValue": "q"}}]},
        "d": {"Fn::If": ["C", 1, {"Ref": "AWS::NoValue"}]},
    }
