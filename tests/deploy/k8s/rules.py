"""What our manifests must be beyond what the schemas of Kubernetes say. Each fault is a sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import jsonschema
import kubernetes_validate
import promql_parser

from poller.settings import PollerSettings
from tests.deploy.k8s.render import Resource
from tests.deploy.k8s.schemas import SCHEMAS
from tests.deploy.observability.metrics import faults as query_faults
from tidegate.settings import VARIABLES, Variable, describe
from worker.settings import WorkerSettings

KUBERNETES = "1.34"
PROGRAMS: Mapping[str, list[Variable]] = {"poller": describe(PollerSettings), "worker": describe(WorkerSettings)}
# What every AWS client reads by itself.
_OF_AWS = re.compile(r"AWS_[A-Z_]+\Z")
DRAIN = "TIDEGATE_LEASES_DRAIN_BUDGET_S"


def faults(resources: Sequence[Resource]) -> list[str]:
    """What is wrong with a rendered overlay."""
    found = [fault for each in resources for fault in schema_faults(each)]
    by_kind: dict[str, list[Resource]] = {}
    for each in resources:
        by_kind.setdefault(each["kind"], []).append(each)
    for workload in (*by_kind.get("Deployment", ()), *by_kind.get("Job", ())):
        found += _security_faults(workload)
    for deployment in by_kind.get("Deployment", ()):
        found += _deployment_faults(deployment, by_kind)
    for scaled in by_kind.get("ScaledObject", ()):
        found += _scaling_faults(scaled)
    return found


def schema_faults(resource: Resource) -> Sequence[str]:
    """What Kubernetes, or whoever defines the kind, would say."""
    return _schema_faults(json.dumps(resource))


@cache
def _schema_faults(text: str) -> tuple[str, ...]:
    resource = json.loads(text)
    kind = resource["kind"]
    try:
        if kind in SCHEMAS:
            jsonschema.validate(resource, SCHEMAS[kind])
        else:
            kubernetes_validate.validate(resource, KUBERNETES, strict=True)
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
        return (f"{_name(resource)}: {error.message}",)
    except kubernetes_validate.SchemaNotFoundError:
        return (f"{_name(resource)}: nobody here knows this kind",)
    return ()


def _name(resource: Resource) -> str:
    return f"{resource['kind']} {resource['metadata']['name']}"


def _security_faults(workload: Resource) -> Iterator[str]:
    """Kubernetes' own restricted standard, and a root file system that cannot be written to."""
    pod = workload["spec"]["template"]["spec"]
    name, context = _name(workload), pod.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or context.get("runAsUser") != 10001:
        yield f"{name}: it must run as 10001, not as root"
    if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield f"{name}: it has no seccomp profile"
    if pod.get("automountServiceAccountToken") is not False:
        yield f"{name}: it is given a token of the cluster that it has no use for"
    for container in pod["containers"]:
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{name}: {container['name']} may gain privileges"
        if own.get("readOnlyRootFilesystem") is not True:
            yield f"{name}: {container['name']} may write to its root file system"
        if "memory" not in container["resources"].get("limits", {}) or "cpu" in container["resources"]["limits"]:
            yield f"{name}: {container['name']} needs a limit of memory, and none of CPU"
        if container["image"].endswith(":latest") and "example.com" not in container["image"]:
            yield f"{name}: {container['name']} runs whatever is latest"


def _deployment_faults(deployment: Resource, by_kind: Mapping[str, list[Resource]]) -> Iterator[str]:
    name, spec = _name(deployment), deployment["spec"]
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    variables = environment(deployment, by_kind)
    yield from _variable_faults(name, container["args"][0], variables)
    drain = float(variables.get(DRAIN, "inf"))
    if not drain < pod.get("terminationGracePeriodSeconds", 30):
        yield f"{name}: it is killed before its drain budget of {drain:g} s is over"
    if container["livenessProbe"]["httpGet"]["path"] != "/livez":
        yield f"{name}: it is restarted for what is no fault of its own; liveness is /livez"
    if spec["strategy"]["rollingUpdate"]["maxUnavailable"] != 0:
        yield f"{name}: a rollout leaves leases without a process"
    labels = spec["template"]["metadata"]["labels"].items()
    for kind, path in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        selectors = [each["spec"][path]["matchLabels"].items() for each in by_kind.get(kind, ())]
        if not any(selector <= labels for selector in selectors):
            yield f"{name}: no {kind} is about it"
    accounts = {each["metadata"]["name"] for each in by_kind.get("ServiceAccount", ())}
    if pod.get("serviceAccountName") not in accounts:
        yield f"{name}: there is no service account {pod.get('serviceAccountName')}"


def environment(deployment: Resource, by_kind: Mapping[str, list[Resource]]) -> dict[str, str]:
    """The variables of its container; what comes from a secret is named only."""
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    maps = {each["metadata"]["name"]: each["data"] for each in by_kind.get("ConfigMap", ())}
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        if "configMapRef" in source:
            found |= maps.get(source["configMapRef"]["name"], {})
    return found | {each["name"]: each.get("value", "(secret)") for each in container.get("env", ())}


def _variable_faults(name: str, program: str, variables: Mapping[str, str]) -> Iterator[str]:
    known = {variable.name: variable for variable in PROGRAMS[program]}
    for given in variables:
        if given not in known and given != VARIABLES and not _OF_AWS.match(given):
            yield f"{name}: {given} is no setting of {program}"
    for variable in known.values():
        if variable.required and not variables.get(variable.name):
            yield f"{name}: {variable.name} is required and not set"
    if not variables.get("AWS_REGION"):
        yield f"{name}: AWS_REGION is not set"
    if variables.get("TIDEGATE_HEALTH_HOST") != "0.0.0.0":
        yield f"{name}: nobody reaches its health pages"


def _scaling_faults(scaled: Resource) -> Iterator[str]:
    """Never more workers than shards, and every query one that tidegate answers."""
    name, spec = _name(scaled), scaled["spec"]
    triggers = {trigger.get("name"): trigger for trigger in spec["triggers"]}
    stream = [key for key, trigger in triggers.items() if trigger["type"] == "aws-kinesis-stream"]
    formula = spec.get("advanced", {}).get("scalingModifiers", {}).get("formula", "")
    if not stream or not formula.startswith(f"min({stream[0]},"):
        yield f"{name}: it may have more workers than the stream has shards"
    for key in triggers:
        if key is None or not re.search(rf"\b{key}\b", formula):
            yield f"{name}: the formula does not use {key}"
    queries = [trigger["metadata"]["query"] for trigger in spec["triggers"] if trigger["type"] == "prometheus"]
    for query in queries:
        yield from (f"{name}: {fault}" for fault in query_faults(query))
    if not any("tidegate_millis_behind_latest" in promql_parser.parse(query).prettify() for query in queries):
        yield f"{name}: nothing scales by the distance from the tip"
