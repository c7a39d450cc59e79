"""Metrics as CloudWatch's embedded metric format: held against the specification, and against what was counted."""

from __future__ import annotations

import asyncio
import json
from collections import Counter as Tally
from collections.abc import Sequence
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Info, Summary

from tidegate import telemetry
from tidegate.emf import Emf
from tidegate.health import Readiness, serving
from tidegate.settings import EmfSettings, HealthSettings

NOW_MS = 1_700_000_000_000
_SCALES = ("", "Kilo", "Mega", "Giga", "Tera")
_SIZES = [f"{scale}{unit}".capitalize() for unit in ("bytes", "bits") for scale in _SCALES]
UNITS = ["Seconds", "Microseconds", "Milliseconds", "Percent", "Count", "Count/Second", "None", *_SIZES]
UNITS += [f"{size}/Second" for size in _SIZES]
NAME = {"type": "string", "minLength": 1, "maxLength": 1024}
# The structure that CloudWatch's specification demands, its numbers included.
DOCUMENT: dict[str, Any] = {
    "type": "object",
    "required": ["_aws"],
    "properties": {
        "_aws": {
            "type": "object",
            "required": ["Timestamp", "CloudWatchMetrics"],
            "additionalProperties": False,
            "properties": {
                "Timestamp": {"type": "integer"},
                "CloudWatchMetrics": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["Namespace", "Dimensions", "Metrics"],
                        "additionalProperties": False,
                        "properties": {
                            "Namespace": NAME,
                            "Dimensions": {
                                "type": "array",
                                "minItems": 1,
                                "items": {"type": "array", "maxItems": 30, "uniqueItems": True, "items": NAME},
                            },
                            "Metrics": {
                                "type": "array",
                                "maxItems": 100,
                                "items": {
                                    "type": "object",
                                    "required": ["Name"],
                                    "additionalProperties": False,
                                    "properties": {
                                        "Name": NAME,
                                        "Unit": {"enum": UNITS},
                                        "StorageResolution": {"enum": [1, 60]},
                                    },
                                },
                            },
                        },
                    },
                },
            },
        }
    },
}
# The target of a metric: a number, up to 100 of them, or values and counts as AWS' collector writes them.
NUMBERS = {"type": "array", "maxItems": 100, "items": {"type": "number"}}
TARGET: dict[str, Any] = {
    "oneOf": [
        {"type": "number"},
        NUMBERS,
        {
            "type": "object",
            "required": ["Values", "Counts", "Min", "Max", "Count", "Sum"],
            "additionalProperties": False,
            "properties": {
                "Values": {**NUMBERS, "minItems": 1},
                "Counts": {**NUMBERS, "minItems": 1},
                **{name: {"type": "number"} for name in ("Min", "Max", "Count", "Sum")},
            },
        },
    ]
}
DIMENSION = {"type": "string", "pattern": r"^[\x00-\x7f]*\S[\x00-\x7f]*$", "maxLength": 1024}
IS_DOCUMENT, IS_TARGET, IS_DIMENSION = map(jsonschema.Draft202012Validator, (DOCUMENT, TARGET, DIMENSION))


def made(lines: Sequence[str]) -> list[dict[str, Any]]:
    """The lines as objects, each valid to the last target."""
    documents = [json.loads(line) for line in lines]
    for line, document in zip(lines, documents, strict=True):
        assert "\n" not in line
        assert len(line) < 256 * 1024
        IS_DOCUMENT.validate(document)
        [directive] = document["_aws"]["CloudWatchMetrics"]
        names = [metric["Name"] for metric in directive["Metrics"]]
        assert len(set(names)) == len(names)
        for name in names:
            IS_TARGET.validate(document[name])
        for dimensions in directive["Dimensions"]:
            for name in dimensions:
                IS_DIMENSION.validate(document[name])
    return documents


def published(lines: Sequence[str]) -> dict[tuple[str, ...], Any]:
    """What CloudWatch would hold: metric and dimensions → the values."""
    found: dict[tuple[str, ...], list[Any]] = {}
    for document in made(lines):
        [directive] = document["_aws"]["CloudWatchMetrics"]
        for dimensions in directive["Dimensions"]:
            for metric in directive["Metrics"]:
                place = (metric["Name"], *(f"{name}={document[name]}" for name in dimensions))
                found.setdefault(place, []).append(document[metric["Name"]])
    return {place: values[0] if len(values) == 1 else values for place, values in found.items()}


def emf(**changed: Any) -> Emf:
    return Emf(EmfSettings(**({"output": "stdout", "prefixes": ("t_",)} | changed)), "worker")


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def test_counters_are_what_was_counted_since_the_last_line(registry: CollectorRegistry) -> None:
    counter, writer = Counter("t_reads_total", "Reads.", registry=registry), emf()
    counter.inc(5)
    assert published(writer.lines(registry.collect(), NOW_MS)) == {("t_reads_total", "service=worker"): 5}
    counter.inc(2)
    assert published(writer.lines(registry.collect(), NOW_MS)) == {("t_reads_total", "service=worker"): 2}
    assert published(writer.lines(registry.collect(), NOW_MS)) == {("t_reads_total", "service=worker"): 0}


def test_a_count_that_began_anew_counts_in_full(registry: CollectorRegistry) -> None:
    counter, writer = Counter("t_reads_total", "Reads.", ["shard"], registry=registry), emf()
    counter.labels("s").inc(5)
    writer.lines(registry.collect(), NOW_MS)
    counter.remove("s")
    counter.labels("s").inc(3)
    assert published(writer.lines(registry.collect(), NOW_MS))["t_reads_total", "service=worker", "shard=s"] == 3


def test_labels_are_dimensions_beside_the_total_of_the_service(registry: CollectorRegistry) -> None:
    gauge = Gauge("t_behind", "Behind.", ["shard"], registry=registry)
    gauge.labels("s-0").set(10)
    gauge.labels("s-1").set(30)
    assert published(emf().lines(registry.collect(), NOW_MS)) == {
        ("t_behind", "service=worker"): [10, 30],
        ("t_behind", "service=worker", "shard=s-0"): 10,
        ("t_behind", "service=worker", "shard=s-1"): 30,
    }


def test_only_so_many_label_sets_get_dimensions_and_the_rest_counts_all_the_same(registry: CollectorRegistry) -> None:
    counter, writer = Counter("t_reads_total", "Reads.", ["shard"], registry=registry), emf(series_max=2)
    for number in range(5):
        counter.labels(f"s-{number}").inc(number + 1)
    for _ in range(2):
        lines = writer.lines(registry.collect(), NOW_MS)
        found = published(lines)
        assert {place[2] for place in found if len(place) == 3} == {"shard=s-0", "shard=s-1"}, "the same ones for good"
        assert len(found["t_reads_total", "service=worker"]) == 5
        assert {document["shard"] for document in made(lines)} == {f"s-{number}" for number in range(5)}
    assert sum(json.loads(line)["t_reads_total"] for line in emf(series_max=0).lines(registry.collect(), 0)) == 15


def test_a_histogram_is_values_and_counts(registry: CollectorRegistry) -> None:
    histogram, writer = Histogram("t_write_seconds", "Writes.", buckets=(0.1, 1, 10), registry=registry), emf()
    for seconds in (0.01, 0.02, 0.5, 99):
        histogram.observe(seconds)
    [value] = published(writer.lines(registry.collect(), NOW_MS)).values()
    assert value == {
        "Values": [0.05, 0.55, 10], "Counts": [2, 1, 1], "Min": 0, "Max": 10, "Count": 4, "Sum": pytest.approx(99.53),
    }  # fmt: skip
    histogram.observe(5)
    [value] = published(writer.lines(registry.collect(), NOW_MS)).values()
    assert (value["Values"], value["Counts"], value["Sum"]) == ([5.5], [1], 5)
    assert writer.lines(registry.collect(), NOW_MS) == [], "nothing was measured"


def test_units_follow_from_the_name(registry: CollectorRegistry) -> None:
    Counter("t_bytes_read_total", ".", registry=registry)
    Counter("t_reads_total", ".", registry=registry)
    Gauge("t_millis_behind_latest", ".", registry=registry)
    Gauge("t_lag_seconds", ".", registry=registry)
    Gauge("t_share_percent", ".", registry=registry)
    Gauge("t_leases_held", ".", registry=registry)
    Histogram("t_rows", ".", registry=registry).observe(1)
    Summary("t_wait_seconds", ".", registry=registry).observe(1)
    [document] = made(emf().lines(registry.collect(), NOW_MS))
    units = {metric["Name"]: metric["Unit"] for metric in document["_aws"]["CloudWatchMetrics"][0]["Metrics"]}
    assert units == {
        "t_bytes_read_total": "Bytes", "t_reads_total": "Count", "t_millis_behind_latest": "Milliseconds",
        "t_lag_seconds": "Seconds", "t_share_percent": "Percent", "t_leases_held": "None", "t_rows": "Count",
        "t_wait_seconds_count": "Count", "t_wait_seconds_sum": "Seconds",
    }  # fmt: skip


def test_what_cloudwatch_refuses_is_left_out_or_put_in_its_words(registry: CollectorRegistry) -> None:
    gauge = Gauge("t_gauge", ".", ["place"], registry=registry)
    for place, value in {
        "nan": float("nan"),
        "inf": float("inf"),
        "": 1.0,
        " ": 2.0,
        "Zürich": 3.0,
        "x" * 2000: 4.0,
    }.items():
        gauge.labels(place).set(value)
    Info("t_build", ".", registry=registry).info({"version": "1"})
    Gauge("other", ".", registry=registry).set(1)
    places = {place[2] for place in published(emf().lines(registry.collect(), NOW_MS)) if len(place) == 3}
    assert places == {"place=-", "place=Z\\xfcrich", f"place={'x' * 1024}"}


def test_many_metrics_go_on_several_lines_and_many_buckets_into_a_hundred(registry: CollectorRegistry) -> None:
    for number in range(250):
        Gauge(f"t_gauge_{number}", ".", registry=registry).set(number)
    fine = Histogram("t_fine", ".", buckets=[float(bound) for bound in range(1, 400)], registry=registry)
    for number in range(399):
        fine.observe(number + 0.5)
    documents = made(emf().lines(registry.collect(), NOW_MS))
    assert [len(each["_aws"]["CloudWatchMetrics"][0]["Metrics"]) for each in documents] == [100, 100, 51]
    value = documents[-1]["t_fine"]
    assert (len(value["Values"]), sum(value["Counts"]), value["Count"], value["Min"], value["Max"]) == (
        100,
        399,
        399,
        0,
        399,
    )
    assert all(one < other for one, other in zip(value["Values"], value["Values"][1:], strict=False))


def test_the_house_s_own_metrics_are_valid_and_leave_the_interpreter_s_out() -> None:
    names = {
        place[0] for place in published(Emf(EmfSettings(output="stdout"), "worker").lines(REGISTRY.collect(), NOW_MS))
    }
    assert {"tidegate_event_loop_lag_seconds", "tidegate_leases_lost_total", "process_cpu_seconds_total"} <= names
    assert not [name for name in names if name.startswith("python_")]
    taken = {name for value in vars(telemetry).values() for name in getattr(value, "_labelnames", ())}
    assert not taken & {"service", "_aws"}, "these names are the format's"


events = st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 20)), max_size=30)


@given(st.lists(events, min_size=1, max_size=4), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_nothing_is_counted_twice_or_not_at_all(intervals: list[list[tuple[str, float]]], series_max: int) -> None:
    registry = CollectorRegistry()
    counter = Counter("t_reads_total", ".", ["shard"], registry=registry)
    histogram = Histogram("t_seconds", ".", ["shard"], buckets=(1, 5), registry=registry)
    writer, counted, measured = emf(series_max=series_max), Tally[str](), Tally[str]()
    for interval in intervals:
        for shard, seconds in interval:
            counter.labels(shard).inc()
            histogram.labels(shard).observe(seconds)
        for document in made(writer.lines(registry.collect(), NOW_MS)):
            counted[document["shard"]] += document["t_reads_total"]
            measured[document["shard"]] += sum(document.get("t_seconds", {"Counts": ()})["Counts"])
    expected = Tally(shard for interval in intervals for shard, _ in interval)
    assert counted == expected
    assert measured == expected


# ---------------------------------------------------------------- in a process


async def test_it_writes_at_intervals_and_at_the_end(
    registry: CollectorRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    counter = Counter("tidegate_tests_total", "Tests.", registry=registry)
    every = HealthSettings(port=0, emf=EmfSettings(output="stdout", interval_s=1, namespace="house"))
    shown = ""
    async with serving(every, Readiness(), registry=registry, service="poller"):
        counter.inc(3)
        async with asyncio.timeout(10):
            while not (shown := capsys.readouterr().out):
                await asyncio.sleep(0.05)
        counter.inc(4)
    [first], [last] = made(shown.splitlines()), made(capsys.readouterr().out.splitlines())
    assert (first["tidegate_tests_total"], last["tidegate_tests_total"]) == (3, 4)
    assert first["service"] == "poller"
    assert first["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "house"
    assert first["_aws"]["Timestamp"] > NOW_MS


async def test_off_means_off(registry: CollectorRegistry, capsys: pytest.CaptureFixture[str]) -> None:
    Counter("tidegate_tests_total", "Tests.", registry=registry).inc()
    assert HealthSettings().emf.output == "off"
    async with serving(HealthSettings(port=0), Readiness(), registry=registry):
        await asyncio.sleep(0)
    assert capsys.readouterr().out == "", "neither at once nor at the end"
