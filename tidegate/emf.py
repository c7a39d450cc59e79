"""Metrics in CloudWatch's embedded metric format: JSON lines from which CloudWatch Logs makes metrics.  (pure)

What /metrics shows, and under the same names: counters as what was counted since the last line, gauges as they are,
histograms as values and counts. Where a container's stdout goes to CloudWatch Logs (`awslogs`, Lambda, FireLens),
nothing else is needed: no agent, no scraper, no permission.

Every value is published for the service as a whole and, if the metric has labels, once more with them as dimensions.
Every combination of dimensions is a metric of its own on the bill, so only the first `series_max` label sets of a
metric get theirs; the others count for the service, and their labels can be searched for in the log.

Facts: docs.aws.amazon.com/AmazonCloudWatch, "Specification: Embedded metric format" (at most 100 metrics in a line and
30 dimensions in a set; targets are members of the root). It names numbers and arrays as values; an object of Values and
Counts, as PutMetricData takes it, is what AWS' own collector (ADOT's awsemfexporter) writes for distributions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from tidegate.settings import EmfSettings

_METRICS_MOST = 100
_VALUES_MOST = 100
_DIMENSIONS_MOST = 30
_VALUE_CHARACTERS = 1024

# By the last words of a metric's name, `_total` aside.
_UNITS = {"seconds": "Seconds", "millis": "Milliseconds", "bytes": "Bytes", "percent": "Percent"}

Labels = tuple[tuple[str, str], ...]


class Sample(Protocol):
    """One line of /metrics."""

    @property
    def name(self) -> str: ...
    @property
    def labels(self) -> Mapping[str, str]: ...
    @property
    def value(self) -> float: ...


class Family(Protocol):
    """One metric with all its label sets, as Prometheus' registry collects it."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def samples(self) -> Sequence[Sample]: ...


class Point(Struct, frozen=True):
    """One metric of one label set: a number, or a distribution."""

    name: str
    unit: str
    value: float | dict[str, Any]


class Emf:
    """Remembers the counts of the last lines, and which label sets have dimensions of their own."""

    def __init__(self, settings: EmfSettings, service: str) -> None:
        self._settings = settings
        self._service = service
        self._counts: dict[tuple[str, Labels], float] = {}
        self._series: dict[str, set[Labels]] = {}

    def lines(self, families: Iterable[Family], now_ms: int) -> list[str]:
        """The lines that say what happened since the last ones; `now_ms` is the wall clock, milliseconds since 1970."""
        documents: dict[tuple[Labels, bool], list[Point]] = {}
        for family in families:
            if not family.name.startswith(self._settings.prefixes):
                continue
            for labels, point in self._points(family):
                documents.setdefault((labels, self._has_series(family.name, labels)), []).append(point)
        return [
            _line(self._settings.namespace, {"service": self._service}, labels if own else (), labels, part, now_ms)
            for (labels, own), points in documents.items()
            for part in _parts(points, _METRICS_MOST)
        ]

    def _has_series(self, name: str, labels: Labels) -> bool:
        """First come, first served, and for good: a metric that came and went would be no use."""
        known = self._series.setdefault(name, set())
        if len(known) < self._settings.series_max and len(labels) < _DIMENSIONS_MOST:
            known.add(labels)
        return labels in known

    def _points(self, family: Family) -> Iterator[tuple[Labels, Point]]:
        if family.type == "histogram":
            yield from self._histograms(family)
            return
        for sample in family.samples:
            labels = _labels(sample)
            is_counted = family.type in ("counter", "summary") and not sample.name.endswith("_created")
            if is_counted and "quantile" not in sample.labels:
                counted = self._since(sample.name, labels, sample.value)
                yield labels, Point(sample.name, unit_of(sample.name, family.type), counted)
            elif family.type in ("gauge", "unknown") and math.isfinite(sample.value):
                yield labels, Point(sample.name, unit_of(sample.name, family.type), sample.value)

    def _histograms(self, family: Family) -> Iterator[tuple[Labels, Point]]:
        """Each bucket's count since the last time, at the bucket's middle."""
        buckets: dict[Labels, list[tuple[float, float]]] = {}
        sums: dict[Labels, float] = {}
        for sample in family.samples:
            labels = _labels(sample, without="le")
            if sample.name.endswith("_bucket"):
                bound = sample.labels["le"]
                counted = self._since(f"{sample.name} {bound}", labels, sample.value)
                buckets.setdefault(labels, []).append((float(bound), counted))
            elif sample.name.endswith("_sum"):
                sums[labels] = self._since(sample.name, labels, sample.value)
        for labels, cumulated in buckets.items():
            if value := _distribution(sorted(cumulated), sums.get(labels, 0.0)):
                yield labels, Point(family.name, unit_of(family.name, family.type), value)

    def _since(self, name: str, labels: Labels, value: float) -> float:
        """What was counted since the last time; all of it when the count began anew."""
        before = self._counts.get((name, labels), 0.0)
        self._counts[name, labels] = value
        return value - before if value >= before else value


def _labels(sample: Sample, without: str = "") -> Labels:
    return tuple(sorted((name, value) for name, value in sample.labels.items() if name != without))


def unit_of(name: str, kind: str) -> str:
    """CloudWatch's unit for a metric, from the last word of its name that is one; `kind` is Prometheus' type."""
    words = name.removesuffix("_total").split("_")
    named = next((_UNITS[word] for word in reversed(words) if word in _UNITS), None)
    if named is None or words[-1] == "count":
        return "None" if kind in ("gauge", "unknown") else "Count"
    return named


def _distribution(cumulated: Sequence[tuple[float, float]], total: float) -> dict[str, Any] | None:
    """Values and counts of the buckets that were hit; None if none was.

    `cumulated` has each bucket's upper bound and how many were at or below it, in order. A value stands for its bucket:
    the middle, and beyond the last bound that bound itself. Smallest and largest are therefore bounds, too.
    """
    bounds = [(0.0 if cumulated[0][0] > 0 else cumulated[0][0], 0.0), *cumulated]
    hit: list[tuple[float, float, float]] = []
    for (lower, below), (upper, until) in pairwise(bounds):
        if until > below:
            hit.append((lower, lower if math.isinf(upper) else upper, until - below))
    if not hit:
        return None
    while len(hit) > _VALUES_MOST:
        hit = [_joined(hit[place : place + 2]) for place in range(0, len(hit), 2)]
    return {
        "Values": [(lower + upper) / 2 for lower, upper, _ in hit],
        "Counts": [count for _, _, count in hit],
        "Min": hit[0][0],
        "Max": hit[-1][1],
        "Count": sum(count for _, _, count in hit),
        "Sum": total,
    }


def _joined(buckets: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    return buckets[0][0], buckets[-1][1], sum(count for _, _, count in buckets)


def _parts(points: Sequence[Point], size: int) -> Iterator[Sequence[Point]]:
    for start in range(0, len(points), size):
        yield points[start : start + size]


def _line(
    namespace: str, service: Mapping[str, str], own: Labels, labels: Labels, points: Sequence[Point], now_ms: int
) -> str:
    """`own` are the labels that are dimensions; all of them are members, so that the log can be searched by them."""
    dimensions = [list(service)] + ([[*service, *(name for name, _ in own)]] if own else [])
    metrics = [{"Name": point.name, "Unit": point.unit} for point in points]
    directive = {"Namespace": namespace, "Dimensions": dimensions, "Metrics": metrics}
    document: dict[str, Any] = {"_aws": {"Timestamp": now_ms, "CloudWatchMetrics": [directive]}}
    document |= {name: _dimension_value(value) for name, value in (*service.items(), *labels)}
    document |= {point.name: point.value for point in points}
    return msgspec.json.encode(document).decode()


def _dimension_value(text: str) -> str:
    """CloudWatch takes 1 to 1,024 ASCII characters, not all of them blank."""
    plain = text.encode("ascii", "backslashreplace").decode()[:_VALUE_CHARACTERS]
    return plain if plain.strip() else "-"
