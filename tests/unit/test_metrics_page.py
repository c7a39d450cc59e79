"""docs/METRICS.md names every metric and every log event, as tidegate/telemetry.py has them now."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from tests.unit.metrics_page import PAGE, SOURCE, Event, Metric, page, sections
from tidegate import telemetry

SAMPLE = '''"""Names."""

import x

# ---------------------------------------------------------------- first part
STARTED = "started"  # once; nothing else
ENDED = (
    "ended"  # lease=…, children=[…]: the shard is finished
)
FAILED = (
    # Why it is here.
    "failed"  # error=…, one line
)  # fmt: skip

READS = Counter("t_reads_total", "Reads | all.", ["shard", "code"])
# Not a title.
LAG = Gauge(
    "t_lag_seconds",
    "Lag. "
    "Growing: add workers.",
)

# The second part.

WAIT = Histogram("t_wait_seconds", "Wait.", buckets=(1, 2))
OTHER = compute()
'''


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "run: python -m tests.unit.metrics_page"


def test_names_and_meanings_are_read_from_the_source() -> None:
    first, second = sections(SAMPLE)
    assert (first.title, second.title) == ("first part", "The second part")
    assert first.events == [
        Event("started", "", "once; nothing else"),
        Event("ended", "lease=…, children=[…]", "the shard is finished"),
        Event("failed", "error=…, one line", ""),
    ]
    assert first.metrics == [
        Metric("t_reads_total", "counter", ("shard", "code"), "Reads | all."),
        Metric("t_lag_seconds", "gauge", (), "Lag. Growing: add workers."),
    ]
    assert second.metrics == [Metric("t_wait_seconds", "histogram", (), "Wait.")]


def test_nothing_of_the_module_is_missing() -> None:
    """What the module holds when it runs, against what was read from its text."""
    found = sections(SOURCE.read_text(encoding="utf-8"))
    events = {event.name for section in found for event in section.events}
    assert events == {value for name, value in vars(telemetry).items() if name.isupper() and isinstance(value, str)}
    metrics = {metric.name: metric for section in found for metric in section.metrics}
    held = [value for value in vars(telemetry).values() if isinstance(value, Counter | Gauge | Histogram)]
    described = {family.name: family for each in held for family in each.describe()}
    assert {name.removesuffix("_total") for name in metrics} == set(described)
    for name, metric in metrics.items():
        family = described[name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.kind, metric.meaning)


def test_everything_says_how_to_read_it() -> None:
    for section in sections(SOURCE.read_text(encoding="utf-8")):
        assert all(event.fields or event.meaning for event in section.events)
        assert all(metric.meaning for metric in section.metrics)
