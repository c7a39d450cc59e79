"""Whether a query names metrics as tidegate/telemetry.py defines them: name, kind, labels, unit.

PromQL is read by Prometheus' own grammar (promql-parser). What is found wrong comes as sentences, so that a seeded
mistake can be looked for in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import promql_parser as promql

from tests.unit import metrics_page

# What Prometheus adds to each target.
TARGET = frozenset({"job", "instance", "namespace", "pod", "service", "__name__"})
_OVER_COUNTERS = frozenset({"rate", "irate", "increase"})


class Metric(NamedTuple):
    """`kind` is counter, gauge or histogram; `labels` its own."""

    kind: str
    labels: frozenset[str]


@cache
def known() -> dict[str, Metric]:
    """Every metric of telemetry.py, by the name of its family."""
    source = metrics_page.SOURCE.read_text(encoding="utf-8")
    return {
        metric.name: Metric(metric.kind, frozenset(metric.labels))
        for section in metrics_page.sections(source)
        for metric in section.metrics
    }


@cache
def series() -> dict[str, Metric]:
    """Every series that a scrape shows: a histogram is three of them, each a counter."""
    found: dict[str, Metric] = {}
    for name, metric in known().items():
        if metric.kind == "histogram":
            found |= {f"{name}_{part}": Metric("counter", metric.labels) for part in ("count", "sum")}
            found[f"{name}_bucket"] = Metric("counter", metric.labels | {"le"})
        else:
            found[name] = metric
    return found


def faults(query: str, recorded: Mapping[str, frozenset[str]] | None = None) -> list[str]:
    """What is wrong with a PromQL query. `recorded`: names of recording rules with their labels."""
    try:
        parsed = promql.parse(query)
    except ValueError as error:
        return [f"no PromQL: {error}"]
    allowed = series() | {name: Metric("gauge", labels) for name, labels in (recorded or {}).items()}
    return list(_faults(parsed, allowed, within=""))


def _faults(node: Any, allowed: Mapping[str, Metric], within: str) -> Iterator[str]:
    if isinstance(node, promql.VectorSelector):
        yield from _selector_faults(node, allowed, within)
        return
    if isinstance(node, promql.MatrixSelector):
        yield from _selector_faults(node.vector_selector, allowed, within)
        return
    if isinstance(node, promql.AggregateExpr):
        had = frozenset().union(*(_labels(each, allowed) for each in _selectors(node.expr))) | TARGET
        for label in _grouped(node):
            if label not in had:
                yield f"grouped by {label}, which nothing below has"
    inner = node.func.name if isinstance(node, promql.Call) else within
    for child in _children(node):
        yield from _faults(child, allowed, inner)


def _selector_faults(selector: Any, allowed: Mapping[str, Metric], within: str) -> Iterator[str]:
    metric = allowed.get(selector.name)
    if metric is None:
        yield f"no metric {selector.name}"
        return
    for matcher in selector.matchers.matchers:
        if matcher.name not in metric.labels | TARGET:
            yield f"{selector.name} has no label {matcher.name}"
    if metric.kind == "counter" and within not in _OVER_COUNTERS:
        yield f"{selector.name} is a counter; its bare value means nothing"
    if metric.kind == "gauge" and within in _OVER_COUNTERS:
        yield f"{selector.name} is a gauge; {within} is for counters"


def _labels(selector: Any, allowed: Mapping[str, Metric]) -> frozenset[str]:
    metric = allowed.get(selector.name)
    return metric.labels if metric else frozenset()


def _grouped(node: Any) -> list[str]:
    if not isinstance(node, promql.AggregateExpr) or node.modifier is None:
        return []
    return list(node.modifier.labels) if str(node.modifier.type).endswith("By") else []


def _selectors(node: Any) -> Iterator[Any]:
    for each in _nodes(node):
        if isinstance(each, promql.VectorSelector):
            yield each


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for child in _children(node):
        yield from _nodes(child)


def _children(node: Any) -> list[Any]:
    found = [getattr(node, name, None) for name in ("lhs", "rhs", "expr", "vector_selector", "param")]
    found += list(getattr(node, "args", None) or ())
    return [child for child in found if child is not None]


# ---------------------------------------------------------------- CloudWatch

_STATISTICS = {"counter": {"Sum"}, "gauge": {"Maximum", "Minimum", "Average", "Sum"}}


def cloud_faults(query: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with one CloudWatch query of dashboards.yaml."""
    for part in query["of"].values() if "math" in query else [query]:
        metric = known().get(part["metric"])
        if metric is None:
            yield f"no metric {part['metric']}"
            continue
        if wrong := part.get("where", {}).keys() - metric.labels:
            yield f"{part['metric']} has no label {', '.join(sorted(wrong))}"
        elif part.get("where") and part["where"].keys() != metric.labels:
            yield f"{part['metric']}: a metric of CloudWatch has all labels or none"
        if part.get("by") and not metric.labels:
            yield f"{part['metric']} has no labels to draw lines by"
        statistic = part["stat"]
        is_percentile = statistic.startswith("p") and statistic[1:].isdigit()
        good = (is_percentile or statistic == "SampleCount") if metric.kind == "histogram" else (
            statistic in _STATISTICS[metric.kind]
        )  # fmt: skip
        if not good:
            yield f"{statistic} of the {metric.kind} {part['metric']} means nothing"


_UNITS = {"_seconds": "s", "_bytes": "bytes", "millis_": "ms"}


def unit_faults(unit: str, query: str) -> Iterator[str]:
    """Whether a panel's unit is that of what it shows, where the name says it and nothing is computed from it."""
    parsed = promql.parse(query)
    while isinstance(parsed, promql.AggregateExpr | promql.ParenExpr):
        parsed = parsed.expr
    if isinstance(parsed, promql.Call) and parsed.func.name == "histogram_quantile":
        [name] = {each.name.removesuffix("_bucket") for each in _selectors(parsed)}
    elif isinstance(parsed, promql.VectorSelector):
        name = parsed.name
    else:
        return
    meant = next((unit for mark, unit in _UNITS.items() if name.endswith(mark) or mark in name), None)
    if meant is not None and meant != unit:
        yield f"{name} is in {meant}, the panel's unit is {unit}"
