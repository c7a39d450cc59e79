"""What docs/DEPLOY.md promises of resources, one by one: encrypted, closed, logged, kept in bounds.

`DEMANDS` is a table: type of resource → what must be so, and what is wrong when it is not. Every line of it is proven by a
resource without properties, every rule by a mistake made on purpose: test_rules.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tests.deploy.ecs.templates import Template, containers, listed, resources

Properties = dict[str, Any]
Demand = tuple[Callable[[Properties], Any], str]

DEMANDS: dict[str, tuple[Demand, ...]] = {
    "AWS::ApiGateway::UsagePlan": ((lambda p: p["Quota"]["Limit"] and p["Throttle"]["RateLimit"], "no quota or rate"),),
    "AWS::ApiGatewayV2::Api": (
        (lambda p: p["DisableExecuteApiEndpoint"] == {"Fn::If": ["HasDomain", True, False]}, "two addresses, one open"),
    ),
    "AWS::ApiGatewayV2::Stage": ((lambda p: p["AccessLogSettings"]["Format"], "nobody knows who asked"),),
    "AWS::CloudFront::Distribution": (
        (lambda p: p["DistributionConfig"]["WebACLId"] == {"Fn::GetAtt": ["Wall", "Arn"]}, "no wall before it"),
        (lambda p: _sends_origin_key(p["DistributionConfig"]["Origins"]), "the API cannot tell the edge from others"),
    ),
    "AWS::Cognito::UserPool": (
        (lambda p: p["DeletionProtection"] == "ACTIVE", "can be deleted by mistake"),
        (lambda p: p["Policies"]["PasswordPolicy"]["MinimumLength"] >= 12, "short passwords"),
        (lambda p: p["AccountRecoverySetting"]["RecoveryMechanisms"], "no way back in"),
    ),
    "AWS::Cognito::UserPoolClient": (
        (lambda p: p["EnableTokenRevocation"], "tokens cannot be taken back"),
        (lambda p: p["AccessTokenValidity"] <= 15 and p["TokenValidityUnits"]["AccessToken"] == "minutes", "long tokens"),
    ),
    "AWS::ECR::Repository": (
        (lambda p: p["ImageTagMutability"] == "IMMUTABLE", "a tag can become another image"),
        (lambda p: p["ImageScanningConfiguration"]["ScanOnPush"], "images are not scanned"),
    ),
    "AWS::ECS::Cluster": (
        (lambda p: {"Name": "containerInsights", "Value": "enabled"} in p["ClusterSettings"], "scaling has no metric"),
    ),
    "AWS::KMS::Key": ((lambda p: p["EnableKeyRotation"], "the key is for ever"),),
    "AWS::Kinesis::Stream": (
        (lambda p: p["RetentionPeriodHours"] == {"Ref": "RetentionHours"}, "keeps what AWS keeps, a day"),
    ),
    "AWS::Lambda::Function": (
        (lambda p: p["KmsKeyArn"], "its environment is not encrypted with our key"),
        (lambda p: p["ReservedConcurrentExecutions"], "may take every connection there is"),
        (lambda p: p["LoggingConfig"]["LogGroup"], "logs to a group that nobody bounded"),
    ),
    "AWS::Logs::LogGroup": ((lambda p: p["RetentionInDays"], "keeps its lines for ever"),),
    "AWS::RDS::DBCluster": (
        (lambda p: p["BackupRetentionPeriod"], "cannot be set back"),
        (lambda p: p["DBClusterParameterGroupName"] == {"Ref": "DatabaseSettings"}, "takes connections without TLS"),
    ),
    "AWS::RDS::DBClusterParameterGroup": ((lambda p: p["Parameters"]["rds.force_ssl"] == "1", "TLS is optional"),),
    "AWS::RDS::DBInstance": ((lambda p: p["PubliclyAccessible"] is False, "has a public address"),),
    "AWS::RDS::DBProxy": (
        (lambda p: [each["IAMAuth"] for each in p["Auth"]] == ["REQUIRED"], "lets in by password"),
    ),
    "AWS::SNS::Topic": ((lambda p: p["KmsMasterKeyId"], "not encrypted"),),
    "AWS::SecretsManager::Secret": ((lambda p: p["KmsKeyId"], "not encrypted with our key"),),
    "AWS::WAFv2::WebACL": (
        (lambda p: any("RateBasedStatement" in rule["Statement"] for rule in p["Rules"]), "one address may do anything"),
        (lambda p: sum("ManagedRuleGroupStatement" in rule["Statement"] for rule in p["Rules"]) >= 3, "no managed rules"),
    ),
}  # fmt: skip
# What the tasks reach without NAT.
ENDPOINTS = {"s3": "Gateway", "dynamodb": "Gateway", "kinesis-streams": "Interface"}


def _sends_origin_key(origins: list[Properties]) -> bool:
    [api] = [origin for origin in origins if origin["Id"] == "api"]
    return bool(
        api["OriginCustomHeaders"] == [{"HeaderName": "x-tidegate-origin", "HeaderValue": {"Ref": "OriginKey"}}]
    )


def holds(demand: Demand, properties: Properties) -> bool:
    try:
        return bool(demand[0](properties))
    except (KeyError, ValueError):
        return False


def demanded(templates: dict[str, Template]) -> Iterator[str]:
    """Every resource is as the table wants its type."""
    for kind, demands in DEMANDS.items():
        for stack, name, properties in resources(templates, kind):
            yield from (f"{stack}.{name}: {demand[1]}" for demand in demands if not holds(demand, properties))


def closed_buckets(templates: dict[str, Template]) -> Iterator[str]:
    """Every bucket refuses whoever comes without TLS."""
    for stack, name, _ in resources(templates, "AWS::S3::Bucket"):
        policies = [
            p for s, _, p in resources(templates, "AWS::S3::BucketPolicy") if (s, p["Bucket"]) == (stack, {"Ref": name})
        ]
        denied = [
            statement.get("Condition")
            for policy in policies
            for statement in policy["PolicyDocument"]["Statement"]
            if statement["Effect"] == "Deny" and statement["Action"] == "s3:*"
        ]
        if denied != [{"Bool": {"aws:SecureTransport": "false"}}]:
            yield f"{stack}.{name}: can be read without TLS"


def own_way(templates: dict[str, Template]) -> Iterator[str]:
    """The endpoints that save money, and nothing of ours in a public subnet."""
    found = {
        properties["ServiceName"]["Fn::Sub"].rpartition("${AWS::Region}.")[2]: properties["VpcEndpointType"]
        for _, _, properties in resources(templates, "AWS::EC2::VPCEndpoint")
    }
    yield from (
        f"network: no {kind} endpoint for {name}" for name, kind in ENDPOINTS.items() if found.get(name) != kind
    )
    exported = templates["network"]["Outputs"]["PrivateSubnets"]["Value"]["Fn::Join"][1]
    routed = {
        properties["SubnetId"]["Ref"]: properties["RouteTableId"]["Ref"]
        for _, _, properties in resources(templates, "AWS::EC2::SubnetRouteTableAssociation")
    }
    for subnet in exported:
        if routed.get(subnet["Ref"], "PublicRoutes") == "PublicRoutes":
            yield f"network.{subnet['Ref']}: is called private and is not"


def trusted(templates: dict[str, Template]) -> Iterator[str]:
    """A role can be taken on for this account only. Lambda knows no such condition; its roles say what for by their names."""
    for stack, name, properties in resources(templates, "AWS::IAM::Role"):
        for statement in properties["AssumeRolePolicyDocument"]["Statement"]:
            service = statement["Principal"].get("Service")
            conditions = statement.get("Condition", {}).get("StringEquals", {})
            if service and service != "lambda.amazonaws.com" and "aws:SourceAccount" not in conditions:
                yield f"{stack}.{name}: {service} may take it on for anybody"


def told(templates: dict[str, Template]) -> Iterator[str]:
    """What pages reaches a mailbox and a telephone, what notifies a mailbox."""
    ways = {
        (properties["TopicArn"]["Ref"], properties["Protocol"])
        for _, _, properties in resources(templates, "AWS::SNS::Subscription")
    }
    for way in {("Topic", "email"), ("PageTopic", "email"), ("PageTopic", "sms")} - ways:
        yield f"observe: nothing of {way[0]} goes out by {way[1]}"
    for stack, name, properties in resources(templates, "AWS::CloudWatch::CompositeAlarm"):
        if properties.get("AlarmActions") != [{"Ref": "PageTopic"}]:
            yield f"{stack}.{name}: wakes nobody"


def keyed(templates: dict[str, Template]) -> Iterator[str]:
    """Whoever asks a façade has a key; only the preflight of a page, which cannot send one, needs none."""
    for stack, name, properties in resources(templates, "AWS::ApiGateway::Method"):
        if properties["HttpMethod"] != "OPTIONS" and properties.get("ApiKeyRequired") is not True:
            yield f"{stack}.{name}: answers whoever asks"


def mounted(templates: dict[str, Template]) -> Iterator[str]:
    """What a container mounts, its task has."""
    definitions = {f"{s}.{n}": properties for s, n, properties in resources(templates, "AWS::ECS::TaskDefinition")}
    for where, container in containers(templates):
        volumes = {volume["Name"] for volume in definitions[where].get("Volumes", ())}
        for mount in listed(container.get("MountPoints", [])):
            if mount["SourceVolume"] not in volumes:
                yield f"{where}: there is no volume {mount['SourceVolume']}"


ALL = (demanded, closed_buckets, own_way, trusted, told, keyed, mounted)
