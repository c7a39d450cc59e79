"""Good weather, and for each alert what is different when it must fire: the unit tests of the Prometheus rules.

`document` makes promtool's test file of it. Values are in promtool's notation (`0+60x500`: from 0, 60 more each minute),
time starts at 0, so a watermark of `0+60x500` is always of this minute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tests.deploy.observability.boards import RUNBOOK, alert_name

_MINUTES = 500
_QUIET = f"0x{_MINUTES}"
_W1, _W2 = 'instance="w1",job="tidegate-worker"', 'instance="w2",job="tidegate-worker"'
_SOURCE = 'instance="p1",job="tidegate-poller",source="parcels"'

GOOD: Mapping[str, str] = {
    f"tidegate_poller_watermark_seconds{{{_SOURCE}}}": f"0+60x{_MINUTES}",
    f"tidegate_poller_request_seconds_count{{{_SOURCE},status=\"200\"}}": f"0+60x{_MINUTES}",
    f"tidegate_poller_request_seconds_count{{{_SOURCE},status=\"503\"}}": f"0+6x{_MINUTES}",
    f"tidegate_poller_refusals_total{{{_SOURCE}}}": _QUIET,
    f'tidegate_poller_shape_drifts_total{{{_SOURCE},kind="missing"}}': _QUIET,
    f"tidegate_poller_quarantined_total{{{_SOURCE}}}": _QUIET,
    f"tidegate_poller_deletions_held{{{_SOURCE}}}": _QUIET,
    'tidegate_poller_publish_retries_total{instance="p1",job="tidegate-poller"}': f"0+10x{_MINUTES}",
    f'tidegate_millis_behind_latest{{{_W1},shard="s0"}}': f"20x{_MINUTES}",
    f'tidegate_millis_behind_latest{{{_W2},shard="s1"}}': f"20x{_MINUTES}",
    f"tidegate_leases_held{{{_W1}}}": f"1x{_MINUTES}",
    f"tidegate_leases_held{{{_W2}}}": f"1x{_MINUTES}",
    f'tidegate_leases_taken_total{{{_W1},way="steal"}}': _QUIET,
    f"tidegate_leases_lost_total{{{_W1}}}": _QUIET,
    f'tidegate_lease_conflicts_total{{{_W1},write="take"}}': f"0+1x{_MINUTES}",
    f'tidegate_reads_retried_total{{{_W1},code="ProvisionedThroughputExceededException"}}': f"0+1x{_MINUTES}",
    f"tidegate_gaps_total{{{_W1}}}": _QUIET,
    f'tidegate_records_written_total{{{_W1},outcome="applied"}}': f"0+600x{_MINUTES}",
    f'tidegate_records_written_total{{{_W1},outcome="rejected"}}': _QUIET,
    f"tidegate_dead_letters_oldest_seconds{{{_W1}}}": _QUIET,
    f"tidegate_stream_retention_seconds{{{_W1}}}": f"604800x{_MINUTES}",
    # One that has not been told yet.
    f"tidegate_stream_retention_seconds{{{_W2}}}": _QUIET,
    f'tidegate_parked_open{{{_W1},entity="parcel"}}': _QUIET,
    f'tidegate_parked_oldest_seconds{{{_W1},entity="parcel"}}': _QUIET,
    f'tidegate_poller_files_total{{{_SOURCE},fate="refused"}}': _QUIET,
    f'tidegate_outbox_dead_open{{{_W1},destination="partner"}}': _QUIET,
    f'tidegate_outbox_oldest_seconds{{{_W1},destination="partner"}}': f"2x{_MINUTES}",
    f"tidegate_tombstones_kept{{{_W1}}}": _QUIET,
    f"tidegate_event_loop_lag_seconds{{{_W1}}}": f"0.001x{_MINUTES}",
    f"tidegate_database_up{{{_W1}}}": f"1x{_MINUTES}",
    f"tidegate_database_up{{{_W2}}}": f"1x{_MINUTES}",
}  # fmt: skip


class Storm(NamedTuple):
    """What is different, when the alert must have fired, and the labels that tell which one it is."""

    series: Mapping[str, str]
    at: str
    labels: Mapping[str, str] = {}


_BY_SOURCE = {"source": "parcels"}
_BY_DESTINATION = {"destination": "partner"}


def _of(part: str) -> str:
    """The only series of good weather that has this in its name."""
    [found] = [name for name in GOOD if part in name]
    return found


STORMS: Mapping[str, Storm] = {
    "data-stale": Storm({_of("watermark"): _QUIET}, "12m"),
    # An hour and a half of six that nobody polled.
    "freshness-budget": Storm({_of("watermark"): "0+60x300 18000x90 23400+60x110"}, "395m"),
    "source-refuses": Storm({_of("refusals"): f"0+1x{_MINUTES}"}, "20m", _BY_SOURCE),
    "source-fails": Storm({_of('status="503"'): f"0+120x{_MINUTES}"}, "25m", _BY_SOURCE),
    "deletions-held": Storm({_of("deletions_held"): f"1x{_MINUTES}"}, "5m", _BY_SOURCE),
    "rows-quarantined": Storm({_of("quarantined"): f"0x5 1x{_MINUTES}"}, "10m", _BY_SOURCE),
    "workers-behind": Storm({_of('shard="s1"'): f"90000x{_MINUTES}"}, "10m"),
    "retention-half": Storm({_of('shard="s1"'): f"302500000x{_MINUTES}"}, "15m"),
    "gap": Storm({_of("gaps"): f"0x5 1x{_MINUTES}"}, "10m"),
    "stream-reads-throttled": Storm({_of("reads_retried"): f"0+100x{_MINUTES}"}, "30m"),
    "stream-writes-throttled": Storm({_of("publish_retries"): f"0+1000x{_MINUTES}"}, "30m"),
    "leases-unowned": Storm({_of('shard="s1"'): "20x30 stale"}, "50m"),
    "leases-stolen": Storm({_of("leases_taken"): f"0+3x{_MINUTES}"}, "30m"),
    "leases-lost": Storm({_of("leases_lost"): f"0+3x{_MINUTES}"}, "30m"),
    "lease-conflicts": Storm({_of("lease_conflicts"): f"0+30x{_MINUTES}"}, "30m"),
    "leases-uneven": Storm({_of('leases_held{instance="w1"'): f"4x{_MINUTES}"}, "30m"),
    "dead-letters": Storm({_of('outcome="rejected"'): f"0x5 1x{_MINUTES}"}, "10m"),
    "dead-letters-old": Storm({_of("letters_oldest"): f"90000x{_MINUTES}"}, "15m"),
    "shape-drifts": Storm({_of("shape_drifts"): f"0x5 1x{_MINUTES}"}, "10m", _BY_SOURCE),
    "files-refused": Storm({_of("files_total"): f"0x5 1x{_MINUTES}"}, "10m", _BY_SOURCE),
    "parked": Storm(
        {_of("parked_open"): f"3x{_MINUTES}", _of("parked_oldest"): f"0+60x{_MINUTES}"}, "80m", {"entity": "parcel"}
    ),
    "outbox-dead": Storm({_of("dead_open"): f"1x{_MINUTES}"}, "15m", _BY_DESTINATION),
    "outbox-waits": Storm({_of("outbox_oldest"): f"0+60x{_MINUTES}"}, "40m", _BY_DESTINATION),
    "tombstones-kept": Storm({_of("tombstones"): f"1x{_MINUTES}"}, "90m"),
    "loop-stalls": Storm({_of("loop_lag"): f"5x{_MINUTES}"}, "10m"),
    "database-down": Storm({name: _QUIET for name in GOOD if "database_up" in name}, "10m"),
}


def document(alarms: Sequence[Mapping[str, Any]], rules: str, storms: Mapping[str, Storm] = STORMS) -> dict[str, Any]:
    """promtool's test file: nothing fires in good weather, and each alert in its storm. `rules`: the rule file's path."""
    by_name = {alarm["name"]: alarm for alarm in alarms if "prometheus" in alarm}
    well = [{"eval_time": "450m", "alertname": alert_name(name), "exp_alerts": []} for name in by_name]
    tests = [_test("good weather", GOOD, well)]
    for name, storm in storms.items():
        expected = {
            "exp_labels": {"severity": by_name[name]["severity"], **storm.labels},
            "exp_annotations": {"summary": by_name[name]["says"], "runbook_url": f"{RUNBOOK}#{name}"},
        }
        fired = {"eval_time": storm.at, "alertname": alert_name(name), "exp_alerts": [expected]}
        tests.append(_test(name, {**GOOD, **storm.series}, [fired]))
    return {"rule_files": [rules], "evaluation_interval": "1m", "tests": tests}


def _test(name: str, series: Mapping[str, str], alerts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    inputs = [{"series": each, "values": values} for each, values in series.items()]
    return {"name": name, "interval": "1m", "input_series": inputs, "alert_rule_test": list(alerts)}
