"""The manifests for Kubernetes: rendered, valid, and kept by our own rules; each rule finds a seeded mistake."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.k8s.render import Resource, Unknown, render
from tests.deploy.k8s.rules import faults

HERE = Path(__file__).parent
PLACE = Path(__file__).resolve().parents[3] / "k8s_or_ecs" / "k8s"
OVERLAYS = sorted([*(PLACE / "overlays").iterdir(), PLACE / "migrate"])
EKS = render(PLACE / "overlays" / "eks")


def keyed(resources: list[Resource]) -> dict[tuple[str, str], Resource]:
    return {(each["kind"], each["metadata"]["name"]): each for each in resources}


def test_the_renderer_does_what_kustomize_does() -> None:
    expected = list(yaml.safe_load_all((HERE / "sample" / "expected.yaml").read_text(encoding="utf-8")))
    assert keyed(render(HERE / "sample" / "top")) == keyed(expected)


def test_the_renderer_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("namePrefix: x-", encoding="utf-8")
    with pytest.raises(Unknown, match="namePrefix"):
        render(tmp_path)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_an_overlay_is_valid_and_keeps_the_rules(overlay: Path) -> None:
    assert faults(render(overlay)) == []


def test_eks_has_everything() -> None:
    kinds = {kind for kind, _ in keyed(EKS)}
    assert kinds == {
        "Namespace", "ServiceAccount", "ConfigMap", "Deployment", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor",
        "PrometheusRule", "ScaledObject", "TriggerAuthentication",
    }  # fmt: skip
    roles = [each["metadata"].get("annotations", {}) for each in EKS if each["kind"] == "ServiceAccount"]
    assert all(role["eks.amazonaws.com/role-arn"].startswith("arn:aws:iam::") for role in roles)


Change = Callable[[dict[tuple[str, str], Any]], Any]


def pod(resources: dict[tuple[str, str], Any]) -> Any:
    return resources["Deployment", "tidegate-worker"]["spec"]["template"]["spec"]


def container(resources: dict[tuple[str, str], Any]) -> Any:
    return pod(resources)["containers"][0]


def scaled(resources: dict[tuple[str, str], Any]) -> Any:
    return resources["ScaledObject", "tidegate-worker"]["spec"]


MISTAKES: list[tuple[Change, str]] = [
    (lambda r: pod(r).update(terminationGracePeriodSeconds=60), "killed before its drain budget"),
    (lambda r: pod(r).pop("securityContext"), "not as root"),
    (lambda r: pod(r)["securityContext"].pop("seccompProfile"), "no seccomp profile"),
    (lambda r: pod(r).update(automountServiceAccountToken=True), "a token of the cluster"),
    (lambda r: pod(r).update(serviceAccountName="nobody"), "no service account nobody"),
    (lambda r: container(r)["securityContext"].update(readOnlyRootFilesystem=False), "may write to its root"),
    (lambda r: container(r)["securityContext"].update(capabilities={"drop": []}), "may gain privileges"),
    (lambda r: container(r)["resources"].pop("limits"), "needs a limit of memory"),
    (lambda r: container(r).update(image="tidegate:latest"), "runs whatever is latest"),
    (lambda r: container(r)["livenessProbe"]["httpGet"].update(path="/readyz"), "liveness is /livez"),
    (lambda r: container(r)["env"].append({"name": "TIDEGATE_BATCH_ROWS", "value": "1"}), "is no setting of worker"),
    (lambda r: container(r)["env"].pop(0), "TIDEGATE_DATABASE_URL is required"),
    (lambda r: container(r).update(imagePullPolice="Always"), "imagePullPolice"),
    (lambda r: r.pop(("PodDisruptionBudget", "tidegate-worker")), "no PodDisruptionBudget is about it"),
    (lambda r: r.pop(("NetworkPolicy", "tidegate-worker")), "no NetworkPolicy is about it"),
    (lambda r: scaled(r)["advanced"]["scalingModifiers"].update(formula="work + late"), "more workers than the stream"),
    (lambda r: scaled(r)["triggers"].pop(2), "distance from the tip"),
    (lambda r: scaled(r)["triggers"][1]["metadata"].update(query="sum(tidegate_leases)"), "no metric tidegate_leases"),
    (lambda r: scaled(r).update(maxReplicas=5), "maxReplicas"),
    (lambda r: r["PodMonitor", "tidegate"]["spec"].update(podMetricsEndpoint=[]), "podMetricsEndpoint"),
    (
        lambda r: r["PrometheusRule", "tidegate"]["spec"]["groups"][1]["rules"][0].update({"for": "5 min"}),
        "PrometheusRule",
    ),
]


@pytest.mark.parametrize(("change", "fault"), MISTAKES, ids=[fault for _, fault in MISTAKES])
def test_a_seeded_mistake_is_found(change: Change, fault: str) -> None:
    resources = keyed(copy.deepcopy(EKS))
    change(resources)
    assert any(fault in found for found in faults(list(resources.values())))
