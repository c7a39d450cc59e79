"""Renders a kustomization: the part of Kustomize that our manifests use, and nothing else.

Kustomize itself comes from no package registry. A kustomization that uses more than this is refused, and a test holds this
against what Kustomize 5.5 made of a sample (`kubectl kustomize tests/deploy/k8s/sample/top`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

Resource = dict[str, Any]

_KNOWN = frozenset(
    {"apiVersion", "kind", "namespace", "labels", "resources", "components", "images", "configMapGenerator", "patches"}
)
_CLUSTER_WIDE = frozenset({"Namespace"})
# Kustomize's own alphabet of hashes: no digit or vowel that could make a word.
_ALPHABET = str.maketrans("013ae", "ghkmt")


class Unknown(Exception):
    """The kustomization uses something that is not rendered here."""


def render(folder: Path) -> list[Resource]:
    """The resources that `kubectl kustomize folder` prints. Raises Unknown."""
    resources = _render(folder, [])
    names = {_generated(each): _hashed(each) for each in resources if _generated(each)}
    for each in resources:
        if _generated(each):
            each["metadata"]["name"] = names[_generated(each)]
            del each["generated"]
        for reference in _references(each):
            reference["name"] = names.get(reference["name"], reference["name"])
    return resources


def _render(folder: Path, below: list[Resource]) -> list[Resource]:
    """`below` is what a component works on: the resources of those who named it before."""
    stated = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    if unknown := stated.keys() - _KNOWN:
        raise Unknown(f"{folder.name}: {', '.join(sorted(unknown))}")
    resources = list(below)
    for name in stated.get("resources", ()):
        place = folder / name
        resources += _render(place, []) if place.is_dir() else _documents(place)
    for name in stated.get("components", ()):
        resources = _render(folder / name, resources)
    for generator in stated.get("configMapGenerator", ()):
        _generate(resources, generator)
    for patch in stated.get("patches", ()):
        _patch(resources, folder / patch["path"], patch.get("target", {}))
    for each in resources:
        _place(each, stated)
    return resources


def _documents(path: Path) -> list[Any]:
    return [each for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each]


# ---------------------------------------------------------------- generated maps


def _generate(resources: list[Resource], generator: Mapping[str, Any]) -> None:
    if unknown := generator.keys() - {"name", "literals", "behavior"}:
        raise Unknown(f"configMapGenerator: {', '.join(sorted(unknown))}")
    values = dict(literal.split("=", 1) for literal in generator["literals"])
    name = generator["name"]
    if generator.get("behavior") == "merge":
        [found] = [each for each in resources if _generated(each) == name]
        found["data"].update(values)
    else:
        resources.append(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": values, "generated": name}
        )


def _generated(resource: Resource) -> str:
    return str(resource.get("generated", ""))


def _hashed(resource: Resource) -> str:
    # As Kustomize does it, which leaves the name empty.
    hashed = {"data": resource["data"], "kind": "ConfigMap", "name": ""}
    encoded = json.dumps(hashed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = hashlib.sha256(encoded.encode()).hexdigest()[:10]
    return f"{resource['metadata']['name']}-{digest.translate(_ALPHABET)}"


def _references(value: object) -> Iterator[dict[str, Any]]:
    """Every configMapRef, wherever it is."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "configMapRef":
                yield inner
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


# ---------------------------------------------------------------- patches


def _patch(resources: Iterable[Resource], path: Path, target: Mapping[str, str]) -> None:
    if unknown := target.keys() - {"kind", "name"}:
        raise Unknown(f"a patch's target: {', '.join(sorted(unknown))}")
    for document in _documents(path):
        if isinstance(document, list):
            for each in resources:
                if _matches(each, target):
                    _operate(each, document)
            continue
        [found] = [each for each in resources if _same(each, document)]
        _merge(found, document)


def _matches(resource: Resource, target: Mapping[str, str]) -> bool:
    has = {"kind": resource["kind"], "name": resource["metadata"]["name"]}
    return all(has[name] == wanted for name, wanted in target.items())


def _same(one: Resource, other: Resource) -> bool:
    return (one["kind"], one["metadata"]["name"]) == (other["kind"], other["metadata"]["name"])


def _operate(resource: Resource, operations: Iterable[Mapping[str, Any]]) -> None:
    """JSON patches that append to a list or replace a value."""
    for operation in operations:
        *way, last = operation["path"].strip("/").split("/")
        place: Any = resource
        for step in way:
            place = place[int(step)] if isinstance(place, list) else place[step]
        match operation["op"], place:
            case "add", list() if last == "-":
                place.append(operation["value"])
            case "replace", dict():
                place[last] = operation["value"]
            case _:
                raise Unknown(f"the patch {operation['op']} {operation['path']}")


def _merge(value: dict[str, Any], patch: Mapping[str, Any]) -> None:
    for name, wanted in patch.items():
        if isinstance(wanted, list):
            raise Unknown(f"a merge of the list {name}; use a JSON patch")
        if isinstance(wanted, dict) and isinstance(value.get(name), dict):
            _merge(value[name], wanted)
        else:
            value[name] = wanted


# ---------------------------------------------------------------- namespace, labels, images


def _place(resource: Resource, stated: Mapping[str, Any]) -> None:
    metadata = resource["metadata"]
    if "namespace" in stated and resource["kind"] not in _CLUSTER_WIDE:
        metadata["namespace"] = stated["namespace"]
    template = resource.get("spec", {}).get("template")
    for label in stated.get("labels", ()):
        metadata.setdefault("labels", {}).update(label["pairs"])
        if label.get("includeTemplates") and template:
            template["metadata"].setdefault("labels", {}).update(label["pairs"])
    for container in template["spec"]["containers"] if template else ():
        for image in stated.get("images", ()):
            if container["image"] == image["name"]:
                tail = f"@{image['digest']}" if "digest" in image else f":{image['newTag']}"
                container["image"] = image["newName"] + tail
