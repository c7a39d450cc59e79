"""Schemas of the kinds that Kubernetes itself does not have: only the fields that our manifests use, and no others.

From the API references of the Prometheus Operator (monitoring.coreos.com/v1) and KEDA (keda.sh/v1alpha1, scalers
"aws-kinesis-stream" and "prometheus", "scalingModifiers" since 2.12).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TEXT = {"type": "string", "minLength": 1}
_TEXTS = {"type": "object", "additionalProperties": _TEXT}
_COUNT = {"type": "integer", "minimum": 0}
_DURATION = {"type": "string", "pattern": r"^(0|([0-9]+(ms|s|m|h|d))+)$"}


def _object(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> dict[str, Any]:
    properties = {**required, **(optional or {})}
    return {"type": "object", "required": list(required), "properties": properties, "additionalProperties": False}


def _list(of: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": of}


_METADATA = _object({"name": _TEXT}, {"namespace": _TEXT, "labels": _TEXTS, "annotations": _TEXTS})


def _kind(version: str, kind: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    return _object({"apiVersion": {"const": version}, "kind": {"const": kind}, "metadata": _METADATA, "spec": spec})


_POLICY = _object({"type": {"enum": ["Percent", "Pods"]}, "value": _COUNT, "periodSeconds": _COUNT})
_SCALING = _object({"stabilizationWindowSeconds": _COUNT, "policies": _list(_POLICY)})
_METRIC_TYPE = {"enum": ["AverageValue", "Value"]}
_KINESIS = _object(
    {
        "type": {"const": "aws-kinesis-stream"},
        "metadata": _object({"streamName": _TEXT, "awsRegion": _TEXT, "shardCount": {"pattern": "^[1-9][0-9]*$"}}),
    },
    {"name": _TEXT, "metricType": _METRIC_TYPE, "authenticationRef": _object({"name": _TEXT})},
)
_PROMETHEUS = _object(
    {
        "type": {"const": "prometheus"},
        "metadata": _object({"serverAddress": {"pattern": "^https?://"}, "query": _TEXT, "threshold": _TEXT}),
    },
    {"name": _TEXT, "metricType": _METRIC_TYPE, "authenticationRef": _object({"name": _TEXT})},
)
_RULE = {
    "oneOf": [
        _object({"record": {"pattern": "^[a-z_:][a-z0-9_:]*$"}, "expr": _TEXT}),
        _object({"alert": _TEXT, "expr": _TEXT, "for": _DURATION, "labels": _TEXTS, "annotations": _TEXTS}),
    ]
}

SCHEMAS: Mapping[str, dict[str, Any]] = {
    "PodMonitor": _kind(
        "monitoring.coreos.com/v1",
        "PodMonitor",
        _object(
            {
                "selector": _object({"matchLabels": _TEXTS}),
                "podMetricsEndpoints": _list(_object({"port": _TEXT, "path": _TEXT, "interval": _DURATION})),
            },
            {"jobLabel": _TEXT},
        ),
    ),
    "PrometheusRule": _kind(
        "monitoring.coreos.com/v1",
        "PrometheusRule",
        _object({"groups": _list(_object({"name": _TEXT, "rules": _list(_RULE)}, {"interval": _DURATION}))}),
    ),
    "ScaledObject": _kind(
        "keda.sh/v1alpha1",
        "ScaledObject",
        _object(
            {
                "scaleTargetRef": _object({"name": _TEXT}),
                "minReplicaCount": _COUNT,
                "maxReplicaCount": _COUNT,
                "triggers": _list({"oneOf": [_KINESIS, _PROMETHEUS]}),
            },
            {
                "pollingInterval": _COUNT,
                "fallback": _object(
                    {"failureThreshold": _COUNT, "replicas": _COUNT},
                    {"behavior": {"enum": ["static", "currentReplicas"]}},
                ),
                "advanced": _object(
                    {},
                    {
                        "scalingModifiers": _object({"formula": _TEXT, "target": _TEXT}, {"metricType": _METRIC_TYPE}),
                        "horizontalPodAutoscalerConfig": _object(
                            {"behavior": _object({"scaleUp": _SCALING, "scaleDown": _SCALING})}
                        ),
                    },
                ),
            },
        ),
    ),
    "TriggerAuthentication": _kind(
        "keda.sh/v1alpha1", "TriggerAuthentication", _object({"podIdentity": _object({"provider": {"const": "aws"}})})
    ),
}
