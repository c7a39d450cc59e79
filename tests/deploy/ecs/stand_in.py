"""The stand-in that the templates are deployed to: ministack, and beside it what its CloudFormation lacks.

    python -m tests.deploy.ecs.stand_in          # with ministack's own variables (GATEWAY_PORT, …)

A resource type that it does not know would end the deployment. Those that nothing here uses are taken by name only: they
get a physical id and the attributes that the templates ask for; their properties are looked at by the other tests of this
folder. What ministack does otherwise than AWS is mended:

- a database cluster with a managed password has a secret; a Ref to a secret is its ARN
- a number that came through a parameter is a number for ECS; a container's secrets and health check are spelt as ECS does
- an index of a table is active when the table is
- an alarm over several metrics is taken by name instead of refused
"""

from __future__ import annotations

import json
import secrets
from typing import Any

from ministack.app import main
from ministack.services import dynamodb, secretsmanager
from ministack.services.cloudformation import provisioners

HANDLERS: dict[str, Any] = provisioners._RESOURCE_HANDLERS

BY_NAME_ONLY: dict[str, tuple[str, ...]] = {
    "AWS::APS::Scraper": (),
    "AWS::APS::Workspace": ("Arn",),
    "AWS::ApplicationAutoScaling::ScalableTarget": (),
    "AWS::ApplicationAutoScaling::ScalingPolicy": (),
    "AWS::Budgets::Budget": (),
    "AWS::CloudWatch::CompositeAlarm": ("Arn",),
    "AWS::Cognito::UserPoolIdentityProvider": (),
    "AWS::EC2::EIP": ("AllocationId",),
    "AWS::EC2::FlowLog": (),
    "AWS::EC2::NatGateway": (),
    "AWS::EC2::SecurityGroupIngress": (),
    "AWS::ECS::ClusterCapacityProviderAssociations": (),
    "AWS::IAM::OIDCProvider": ("Arn",),
    "AWS::Logs::QueryDefinition": (),
    "AWS::RDS::DBProxy": ("Endpoint", "DBProxyArn"),
    "AWS::RDS::DBProxyTargetGroup": (),
    "AWS::WAFv2::LoggingConfiguration": (),
}
"""Type → the attributes that a template may ask for."""


def install() -> None:
    """Teach the types above to the CloudFormation of this process."""
    for kind, attributes in BY_NAME_ONLY.items():
        HANDLERS.setdefault(kind, {"create": _named(attributes), "update": _kept(attributes), "delete": _gone})
    secret = HANDLERS["AWS::SecretsManager::Secret"]
    for change in ("create", "update", "delete"):
        secret[change] = _by_arn(secret[change])
    table = HANDLERS["AWS::DynamoDB::Table"]
    table["create"] = _with_active_indexes(table["create"])
    cluster = HANDLERS["AWS::RDS::DBCluster"]
    cluster["create"] = _with_password(cluster["create"])
    cluster["update"] = _still_with_password(cluster["update"])
    provisioners._normalize_container_defs = provisioners._pascal_to_camel
    service = HANDLERS["AWS::ECS::Service"]
    service["create"] = _with_numbers(service["create"], 1)
    service["update"] = _with_numbers(service["update"], 2)
    alarm = HANDLERS["AWS::CloudWatch::Alarm"]
    alarm["create"] = _unless_math(alarm["create"])


def _named(attributes: tuple[str, ...]) -> Any:
    def create(logical_id: str, props: dict[str, Any], stack_name: str) -> tuple[str, dict[str, str]]:
        physical_id = f"{stack_name}-{logical_id}".lower()
        return physical_id, _attributes(physical_id, attributes)

    return create


def _kept(attributes: tuple[str, ...]) -> Any:
    def update(
        physical_id: str, old: dict[str, Any], new: dict[str, Any], stack_name: str
    ) -> tuple[str, dict[str, str]]:
        return physical_id, _attributes(physical_id, attributes)

    return update


def _attributes(physical_id: str, names: tuple[str, ...]) -> dict[str, str]:
    """Something for each, in the shape of an ARN where it is one."""
    return {
        name: f"arn:aws:any:eu-central-1:000000000000:kind:{physical_id}"
        if name.endswith("Arn")
        else f"{physical_id}-{name.lower()}"
        for name in names
    }


def _gone(physical_id: str, props: dict[str, Any]) -> None:
    """Nothing was made."""


def _with_password(create: Any) -> Any:
    def create_cluster(logical_id: str, props: dict[str, Any], stack_name: str) -> tuple[str, dict[str, Any]]:
        physical_id, attributes = create(logical_id, props, stack_name)
        if props.get("ManageMasterUserPassword"):
            value = {"username": props["MasterUsername"], "password": secrets.token_urlsafe(24)}
            secret = HANDLERS["AWS::SecretsManager::Secret"]["create"](
                "Master", {"Name": f"rds!cluster-{physical_id}", "SecretString": json.dumps(value)}, stack_name
            )
            attributes = {**attributes, "MasterUserSecret.SecretArn": secret[0]}
        return physical_id, attributes

    return create_cluster


def _still_with_password(update: Any) -> Any:
    def update_cluster(*arguments: Any, **named: Any) -> tuple[str, dict[str, Any]]:
        physical_id, attributes = update(*arguments, **named)
        secret = secretsmanager._secrets.get(f"rds!cluster-{physical_id}")
        return physical_id, {**attributes, **({"MasterUserSecret.SecretArn": secret["ARN"]} if secret else {})}

    return update_cluster


def _by_arn(change: Any) -> Any:
    """ministack knows a secret by its name, CloudFormation by its ARN, which ends in a dash and six characters."""

    def by_arn(first: str, *others: Any, **named: Any) -> Any:
        name = first.partition(":secret:")[2].rpartition("-")[0] if first.startswith("arn:") else first
        result = change(name, *others, **named)
        return (result[1]["Id"], result[1]) if isinstance(result, tuple) else result

    return by_arn


def _with_active_indexes(create: Any) -> Any:
    def create_table(logical_id: str, props: dict[str, Any], stack_name: str) -> Any:
        made = create(logical_id, props, stack_name)
        for index in dynamodb._tables[made[0]].get("GlobalSecondaryIndexes") or ():
            index["IndexStatus"] = "ACTIVE"
        return made

    return create_table


def _with_numbers(change: Any, place: int) -> Any:
    """`place`: which argument has the (new) properties. CloudFormation converts by the resource's schema."""

    def converted(*arguments: Any) -> Any:
        given = list(arguments)
        props = dict(given[place])
        if "DesiredCount" in props:
            props["DesiredCount"] = int(props["DesiredCount"])
        given[place] = props
        return change(*given)

    return converted


def _unless_math(create: Any) -> Any:
    by_name = _named(("Arn",))

    def create_alarm(logical_id: str, props: dict[str, Any], stack_name: str) -> Any:
        return (by_name if "Metrics" in props else create)(logical_id, props, stack_name)

    return create_alarm


if __name__ == "__main__":
    install()
    main()
