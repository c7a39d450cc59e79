"""What must hold of the templates and no linter knows. Each rule yields its findings; none means all is well.

Every rule is proven by a template that was spoiled on purpose: test_rules.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any

from api.routes import gateway_routes
from tests.deploy.ecs.templates import (
    Template,
    containers,
    environment,
    exports,
    imports,
    listed,
    load,
    resources,
    statements,
)
from tidegate.bubble import load as load_bubble

Rule = Callable[[dict[str, Template]], Iterator[str]]

# Amazon ECS on Fargate: a task is killed after at most 120 s, and must have drained before.
STOP_MOST_S, DRAIN_MOST_S = 120, 100
# ECS, HealthCheck: Interval 5–300, Timeout 2–60, Retries 1–10, StartPeriod 0–300.
HEALTH_LIMITS = {"Interval": (5, 300), "Timeout": (2, 60), "Retries": (1, 10), "StartPeriod": (0, 300)}
WIDGETS = {"alarm", "custom", "explorer", "log", "metric", "text"}
# A bubble that has everything: entities, inbound events.
BUBBLE = "examples.parcels.bubble"
METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "ANY"}
# Actions for which AWS knows no resource ("Service Authorization Reference"): only these may stand with "*".
WITHOUT_RESOURCE = {
    "ecr:GetAuthorizationToken",
    "ec2:CreateNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSubnets",
    "ec2:DeleteNetworkInterface",
    "ec2:AssignPrivateIpAddresses",
    "ec2:UnassignPrivateIpAddresses",
    "cloudformation:ListExports",
    "cloudformation:ValidateTemplate",
    "cloudwatch:DescribeAlarms",
    "cloudwatch:GetMetricData",
    "ecs:DescribeTaskDefinition",
}
# What holds data: kept when its stack, or its place in a template, goes.
KEPT = {
    "AWS::KMS::Key": "Retain",
    "AWS::Kinesis::Stream": "Retain",
    "AWS::DynamoDB::Table": "Retain",
    "AWS::S3::Bucket": "Retain",
    "AWS::RDS::DBCluster": "Snapshot",
    "AWS::SecretsManager::Secret": "Retain",
    "AWS::Cognito::UserPool": "Retain",
    "AWS::ECR::Repository": "Retain",
}


def stop_limits(templates: dict[str, Template]) -> Iterator[str]:
    """drain < stopTimeout ≤ 120, and there is a drain budget wherever there is a service."""
    for where, container in containers(templates):
        stop_s = container.get("StopTimeout", 30)
        if stop_s > STOP_MOST_S:
            yield f"{where}: StopTimeout {stop_s} is more than {STOP_MOST_S}"
        drain_s = float(environment(container).get("TIDEGATE_LEASES_DRAIN_BUDGET_S", DRAIN_MOST_S))
        if drain_s > DRAIN_MOST_S or drain_s >= stop_s:
            yield f"{where}: drains for {drain_s:g} s, is killed after {stop_s}"


def health_limits(templates: dict[str, Template]) -> Iterator[str]:
    """The health check is the event loop's heartbeat, within the bounds of ECS."""
    services = {"services.Poller", "services.Worker"}
    for where, container in containers(templates):
        check = container.get("HealthCheck")
        if check is None:
            if where in services:
                yield f"{where}: has no health check"
            continue
        if not any("/livez" in word for word in check["Command"]):
            yield f"{where}: its health is not /livez; a dependency that is down would restart all tasks"
        for name, (least, most) in HEALTH_LIMITS.items():
            if not least <= check[name] <= most:
                yield f"{where}: {name} {check[name]} is not within {least} and {most}"
        ports = {mapping["ContainerPort"] for mapping in container.get("PortMappings", ())}
        if not any(f":{port}/" in word for port in ports for word in check["Command"]):
            yield f"{where}: the health check asks a port that the container does not open"


def port_names(templates: dict[str, Template]) -> Iterator[str]:
    """ECS: a port's name has lower-case letters, digits, _ and -, at most 64; each once in a task."""
    for where, container in containers(templates):
        names = [mapping.get("Name", "") for mapping in container.get("PortMappings", ())]
        for name in names:
            if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name):
                yield f"{where}: port name {name!r}"
        if len(set(names)) < len(names):
            yield f"{where}: two ports of one name"


def hardened(templates: dict[str, Template]) -> Iterator[str]:
    """Not root, nothing written but /tmp, no capability, by digest, and its log goes to a group of the stack."""
    for where, container in containers(templates):
        if container.get("User", "0").split(":")[0] in ("0", "root"):
            yield f"{where}: runs as root"
        if container.get("ReadonlyRootFilesystem") is not True:
            yield f"{where}: its root file system can be written"
        linux = container.get("LinuxParameters", {})
        if linux.get("Capabilities", {}).get("Drop") != ["ALL"]:
            yield f"{where}: keeps capabilities"
        if [mount["ContainerPath"] for mount in (*linux.get("Tmpfs", ()), *container.get("MountPoints", ()))] != [
            "/tmp"
        ]:
            yield f"{where}: has no /tmp of its own"
    for stack, template in templates.items():
        pattern = template.get("Parameters", {}).get("Image", {}).get("AllowedPattern", "@sha256:")
        if "@sha256:" not in pattern:
            yield f"{stack}: takes an image without a digest"


def rollout(templates: dict[str, Template]) -> Iterator[str]:
    """Rolling, never below what is wanted, taken back by circuit breaker and by alarms that exist in the stack."""
    for stack, name, properties in resources(templates, "AWS::ECS::Service"):
        where, deployment = f"{stack}.{name}", properties["DeploymentConfiguration"]
        if deployment["MaximumPercent"] <= deployment["MinimumHealthyPercent"]:
            yield f"{where}: MaximumPercent leaves no room for a new task"
        if deployment["MinimumHealthyPercent"] < 100:
            yield f"{where}: a rollout takes tasks away first"
        if deployment.get("DeploymentCircuitBreaker") != {"Enable": True, "Rollback": True}:
            yield f"{where}: no circuit breaker with rollback"
        alarms = deployment.get("Alarms", {})
        if not (alarms.get("Enable") and alarms.get("Rollback") and alarms.get("AlarmNames")):
            yield f"{where}: no alarm takes a rollout back"
        if properties["NetworkConfiguration"]["AwsvpcConfiguration"]["AssignPublicIp"] != "DISABLED":
            yield f"{where}: has a public address"


def tasks_and_shards(templates: dict[str, Template]) -> Iterator[str]:
    """Never more workers than shards; out by lag, by records per task in between; the stream keeps seven days."""
    for stack, name, properties in resources(templates, "AWS::ApplicationAutoScaling::ScalableTarget"):
        if properties["MaxCapacity"] != {"Ref": "Shards"}:
            yield f"{stack}.{name}: may have more tasks than shards"
    kinds = {p["PolicyType"] for _, _, p in resources(templates, "AWS::ApplicationAutoScaling::ScalingPolicy")}
    if kinds != {"TargetTrackingScaling", "StepScaling"}:
        yield f"scaling policies: {kinds}"
    default = templates["data"]["Parameters"]["RetentionHours"]["Default"]
    if default != 168:
        yield f"data: the stream keeps {default} hours by default, not seven days"
    half = [p for _, name, p in resources(templates, "AWS::CloudWatch::Alarm") if name == "RetentionHalf"]
    if [(each["Threshold"], "(${RetentionHours} * 3600000)" in str(each["Metrics"])) for each in half] != [(50, True)]:
        yield "observe: no alarm at half of the retention, whatever it is"


def capacity_steps(templates: dict[str, Template]) -> Iterator[str]:
    """Aurora counts capacity in halves, 0 to 256, and the least is not above the most."""
    parameters = templates["data"]["Parameters"]
    least, most = parameters["LeastAcu"]["Default"], parameters["MostAcu"]["Default"]
    for value in (least, most):
        if value * 2 != int(value * 2) or not 0 <= value <= 256:
            yield f"data: {value} ACU is no step of Aurora"
    if least > most:
        yield f"data: at least {least} ACU and at most {most}"


def dashboards(templates: dict[str, Template]) -> Iterator[str]:
    """A dashboard's body is JSON, its widgets are of known types and stand within 24 columns."""
    for stack, name, properties in resources(templates, "AWS::CloudWatch::Dashboard"):
        body = properties["DashboardBody"]
        text = body["Fn::Sub"] if isinstance(body, dict) else body
        try:
            widgets = json.loads(text[0] if isinstance(text, list) else text)["widgets"]
        except ValueError as error:
            yield f"{stack}.{name}: no JSON: {error}"
            continue
        for widget in widgets:
            title = widget.get("properties", {}).get("title", "?")
            if widget["type"] not in WIDGETS:
                yield f"{stack}.{name}: {title}: there is no widget of type {widget['type']}"
            if widget["x"] + widget["width"] > 24:
                yield f"{stack}.{name}: {title} stands beyond the 24th column"


def routes(templates: dict[str, Template]) -> Iterator[str]:
    """The gateway has the API's own routes, each open or not as there; the stage throttles every one by name."""
    wanted = {f"{route.method} {route.path}": route.is_open for route in gateway_routes(load_bubble(BUBBLE))}
    keys = set()
    for stack, name, properties in resources(templates, "AWS::ApiGatewayV2::Route"):
        key = properties["RouteKey"]
        keys.add(key)
        method, _, path = key.partition(" ")
        if method not in METHODS or not path.startswith("/"):
            yield f"{stack}.{name}: route key {key!r}"
        is_open = properties.get("AuthorizationType", "NONE") == "NONE"
        if is_open and not wanted.get(key):
            yield f"{stack}.{name}: {key} is open to all"
    yield from (f"api: no route for {key}" for key in sorted(set(wanted) - keys))
    yield from (f"api: {key} is no address of the API" for key in sorted(keys - set(wanted)))
    for stack, name, properties in resources(templates, "AWS::ApiGatewayV2::Stage"):
        throttled = set(properties.get("RouteSettings", {}))
        if throttled != keys:
            yield f"{stack}.{name}: throttles {sorted(throttled)}, the routes are {sorted(keys)}"


def narrow(templates: dict[str, Template]) -> Iterator[str]:
    """No statement with a "*" that AWS does not force, and no role without the boundary."""
    for kind in ("AWS::IAM::Role", "AWS::IAM::ManagedPolicy"):
        for stack, name, properties in resources(templates, kind):
            where = f"{stack}.{name}"
            for statement in statements(properties):
                yield from (f"{where}: {finding}" for finding in _too_wide(where, statement))
            # The pipeline's own roles are what makes the boundary.
            if kind == "AWS::IAM::Role" and stack != "pipeline" and "PermissionsBoundary" not in properties:
                yield f"{where}: has no permissions boundary"


def _too_wide(where: str, statement: dict[str, Any]) -> Iterator[str]:
    if statement["Effect"] == "Deny":
        return
    # A boundary says what may at most be granted; within it services are named whole, resources are not.
    is_boundary = where == "pipeline.Boundary"
    actions = listed(statement["Action"])
    for action in actions:
        if "*" in action and not (is_boundary and action in ("kinesis:*", "dynamodb:*")):
            yield f"action {action}"
    if "*" in listed(statement["Resource"]) and (wide := set(actions) - WITHOUT_RESOURCE):
        yield f"{sorted(wide)} on every resource"


def within_boundary(templates: dict[str, Template]) -> Iterator[str]:
    """What a role is granted, the boundary allows; else it would be granted in vain."""
    boundary = templates["pipeline"]["Resources"]["Boundary"]["Properties"]
    allowed = [action for statement in statements(boundary) for action in listed(statement["Action"])]
    for stack, name, properties in resources(templates, "AWS::IAM::Role"):
        if stack == "pipeline":
            continue
        for statement in statements(properties):
            for action in listed(statement["Action"]) if statement["Effect"] == "Allow" else ():
                if not any(fnmatchcase(action, pattern) for pattern in allowed):
                    yield f"{stack}.{name}: {action} is beyond the boundary"


def kept(templates: dict[str, Template]) -> Iterator[str]:
    """What holds data survives its stack."""
    for stack, template in templates.items():
        for name, resource in template["Resources"].items():
            policy = KEPT.get(resource["Type"])
            if policy and not resource.get("DeletionPolicy") == resource.get("UpdateReplacePolicy") == policy:
                yield f"{stack}.{name}: is not kept ({policy}) when it goes"


# Type → what must be so, and what is wrong when it is not.
_PROTECTED: dict[str, tuple[tuple[Callable[[dict[str, Any]], Any], str], ...]] = {
    "AWS::DynamoDB::Table": (
        (lambda p: p["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"], "no point-in-time recovery"),
        (lambda p: p["SSESpecification"]["SSEType"] == "KMS", "not encrypted with our key"),
        (lambda p: p["DeletionProtectionEnabled"], "can be deleted by mistake"),
    ),
    "AWS::Kinesis::Stream": ((lambda p: p["StreamEncryption"]["EncryptionType"] == "KMS", "not encrypted"),),
    "AWS::RDS::DBCluster": (
        (lambda p: p["StorageEncrypted"], "not encrypted"),
        (lambda p: p["DeletionProtection"], "can be deleted by mistake"),
        (lambda p: p["ManageMasterUserPassword"] and "MasterUserPassword" not in p, "the password is not RDS' own"),
    ),
    "AWS::S3::Bucket": (
        (lambda p: set(p["PublicAccessBlockConfiguration"].values()) == {True}, "not closed to the public"),
        (lambda p: p["BucketEncryption"], "not encrypted"),
        (lambda p: p["VersioningConfiguration"]["Status"] == "Enabled", "what is overwritten is lost"),
    ),
    "AWS::RDS::DBProxy": ((lambda p: p["RequireTLS"], "talks without TLS"),),
}


def protected(templates: dict[str, Template]) -> Iterator[str]:
    """Encrypted, hard to delete by mistake, and to be set back to an earlier time."""
    for kind, demands in _PROTECTED.items():
        for stack, name, properties in resources(templates, kind):
            for holds, fault in demands:
                try:
                    is_well = bool(holds(properties))
                except KeyError:
                    is_well = False
                if not is_well:
                    yield f"{stack}.{name}: {fault}"


def joints(templates: dict[str, Template]) -> Iterator[str]:
    """Every import is exported, every export is imported (what nobody needs is a promise too many), by an earlier stack."""
    offered = exports(templates)
    wanted = {name for template in templates.values() for name in imports(template)}
    # `tidegate ops run` looks these up.
    wanted |= {"PrivateSubnets", "OpsGroup", "WorkerGroup", "PollerGroup"}
    yield from (f"{name} is imported and nobody exports it" for name in sorted(wanted - offered))
    yield from (f"{name} is exported and nobody imports it" for name in sorted(offered - wanted))
    for stack, template in templates.items():
        if stack not in ("edge", "pipeline") and "Name" not in template["Parameters"]:
            yield f"{stack}: has no parameter Name"
        for name, output in template.get("Outputs", {}).items():
            # CloudFormation refuses to change what another stack imports.
            if "Export" in output and output["Value"].get("Ref") in template["Parameters"]:
                yield f"{stack}.{name}: exports a parameter, which could never be changed"


def cached(templates: dict[str, Template]) -> Iterator[str]:
    """What a REST API keeps is kept apart by who asks and by all that the method names: else one gets another's answer."""
    for stack, name, properties in resources(templates, "AWS::ApiGateway::Method"):
        keys = set(properties["Integration"].get("CacheKeyParameters", ()))
        named = set(properties.get("RequestParameters", ()))
        if keys != named:
            yield f"{stack}.{name}: {sorted(keys ^ named)} are named or in the cache's key only"
        if named and "method.request.header.Authorization" not in keys:
            yield f"{stack}.{name}: an answer is kept for whoever asks next, whose authorization may be another"


def parameters(templates: dict[str, Template]) -> Iterator[str]:
    """A parameter of several stacks means the same in each: one line of the settings sets it, or its default stands."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for stack, template in templates.items():
        for name, declared in template["Parameters"].items():
            first, other = found.setdefault(name, (stack, declared))
            if any(declared.get(key) != other.get(key) for key in ("Type", "Default", "MinValue", "MaxValue")):
                yield f"{stack}.{name}: not declared as in {first}"


ALL: tuple[Rule, ...] = (
    stop_limits,
    health_limits,
    port_names,
    hardened,
    rollout,
    tasks_and_shards,
    capacity_steps,
    dashboards,
    routes,
    narrow,
    within_boundary,
    kept,
    protected,
    joints,
    cached,
    parameters,
)


def main() -> int:
    """Print every finding; for people who change templates."""
    templates = load()
    found = [f"{rule.__name__}: {finding}" for rule in ALL for finding in rule(templates)]
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
