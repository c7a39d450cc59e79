"""The templates as values: YAML with CloudFormation's short forms, and the parts that the checks ask for."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

TEMPLATES = Path(__file__).resolve().parents[3] / "k8s_or_ecs" / "ecs"

Template = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """Knows !Ref, !Sub, !GetAtt and the others, as their long forms."""


def _short_form(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    name = suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}"
    if isinstance(node, yaml.ScalarNode):
        value: Any = loader.construct_scalar(node)
        return {name: value.split(".", 1) if suffix == "GetAtt" else value}
    if isinstance(node, yaml.SequenceNode):
        return {name: loader.construct_sequence(node, deep=True)}
    assert isinstance(node, yaml.MappingNode)
    return {name: loader.construct_mapping(node, deep=True)}


_Loader.add_multi_constructor("!", _short_form)


def parsed(text: str) -> Template:
    template: Template = yaml.load(text, _Loader)
    return template


@cache
def _templates() -> dict[str, Template]:
    return {path.stem: parsed(path.read_text(encoding="utf-8")) for path in sorted(TEMPLATES.glob("*.yaml"))}


def load() -> dict[str, Template]:
    """Stack name → template, a copy of one's own, so that a test may spoil it."""
    return copy.deepcopy(_templates())


def resources(templates: dict[str, Template], kind: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(stack, logical id, properties) of every resource of a type."""
    for stack, template in templates.items():
        for name, resource in template["Resources"].items():
            if resource["Type"] == kind:
                yield stack, name, resource.get("Properties", {})


def containers(templates: dict[str, Template]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, container definition) of every task definition."""
    for stack, name, properties in resources(templates, "AWS::ECS::TaskDefinition"):
        for container in properties["ContainerDefinitions"]:
            yield f"{stack}.{name}", container


def environment(container: dict[str, Any]) -> dict[str, Any]:
    """Variable → value, of secrets where they come from."""
    plain = {each["Name"]: each["Value"] for each in container.get("Environment", ())}
    return plain | {each["Name"]: each["ValueFrom"] for each in container.get("Secrets", ())}


def tuning(template: Template, container: dict[str, Any]) -> dict[str, str]:
    """How a task definition tunes its program, at the defaults of the parameters: no addresses, no names, no secrets."""
    defaults = {name: each.get("Default") for name, each in template["Parameters"].items()}

    def value_of(value: Any) -> str | None:
        match value:
            case {"Ref": name}:
                return str(defaults[name])
            case {"Fn::FindInMap": [table, row, column]}:
                return str(template["Mappings"][table][value_of(row) or row][column])
            case str():
                return value
        return None

    found = {each["Name"]: value_of(each["Value"]) for each in container.get("Environment", ())}
    families = ("TIDEGATE_LEASES_", "TIDEGATE_READ_", "TIDEGATE_RETENTION_", "TIDEGATE_BATCH_")
    return {name: value for name, value in found.items() if value and name.startswith(families)}


def statements(properties: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every statement of a role's inline policies, or of a managed policy."""
    documents = [policy["PolicyDocument"] for policy in properties.get("Policies", ())]
    documents += [properties["PolicyDocument"]] if "PolicyDocument" in properties else []
    for document in documents:
        yield from document["Statement"]


def listed(value: Any) -> list[Any]:
    """An Action, Resource or the like, which may be one or several."""
    return value if isinstance(value, list) else [value]


def exports(templates: dict[str, Template]) -> set[str]:
    """Names that stacks export, without the deployment's."""
    return {
        output["Export"]["Name"]["Fn::Sub"].removeprefix("${Name}-")
        for template in templates.values()
        for output in template.get("Outputs", {}).values()
        if "Export" in output
    }


def imports(value: Any) -> Iterator[str]:
    """Names that a template, or a part of one, imports."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "Fn::ImportValue":
                yield inner["Fn::Sub"].removeprefix("${Name}-")
            else:
                yield from imports(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from imports(inner)
