"""Flights by REST under a global revision; airlines, airports and planes as CSV files of three business units."""

from __future__ import annotations

from collections.abc import Callable

from examples.flights import translators
from examples.flights.entities import Airline, Airport, Flight, GateNote, Plane
from tidegate.bubble import Bubble, ByRevision, CsvDrop, Env, Header, PageToken, RawRow, Reread, Rest, Source, Viewer
from tidegate.edge import Inbound
from tidegate.entity import Entity
from tidegate.report import Measure, Report

_BUCKET = Env("DROPS_BUCKET")


def _drop(name: str, entity: type[Entity], translate: Callable[[RawRow], Entity], feed: CsvDrop) -> Source:
    # A file says nothing of when its rows changed, so these sources make no statement of freshness.
    return Source(
        name=name,
        entity=entity,
        translate=translate,
        feed=feed,
        poll_interval_s=2,
        sweep_interval_s=30,
        watermark=False,
    )


bubble = Bubble(
    name="flights",
    entities=(Flight, Airline, Airport, Plane),
    sources=(
        Source(
            name="flights",
            objective_s=60,
            entity=Flight,
            translate=translators.flight,
            sweep_interval_s=15,
            feed=Rest(
                url=Env("FLIGHTS_URL"),
                headers=(Header("X-Api-Key", Env("FLIGHTS_API_KEY", secret=True)),),
                path="/ops/flights.json",
                rows="data",
                columns="columns",
                key="ID",
                paging=PageToken(param="page_token", next="next_page_token", size_param="size", size=500),
                changes=ByRevision(param="since_rev", column="REV"),
                reread=Reread(path="/ops/flights.json", param="ids", size=100, separator=";"),
            ),
        ),
        _drop(
            "airlines",
            Airline,
            translators.airline,
            CsvDrop(
                bucket=_BUCKET,
                prefix="drops/commercial/airline-",
                key="KURZZEICHEN",
                encoding="latin-1",
                delimiter=";",
            ),
        ),
        _drop(
            "airports",
            Airport,
            translators.airport,
            CsvDrop(
                bucket=_BUCKET,
                prefix="drops/network/airport-",
                key="FLUGHAFEN",
                encoding="utf-8-sig",
                delimiter="\t",
            ),
        ),
        _drop(
            "planes",
            Plane,
            translators.plane,
            CsvDrop(bucket=_BUCKET, prefix="drops/fleet/plane-", key="tailnum"),
        ),
    ),
    viewers=(
        # Carriers are the external partners; airport staff are groups of the user pool too.
        Viewer("partner", claim="cognito:groups", prefix="partner-", many=True),
        Viewer("airport", claim="cognito:groups", prefix="airport-", many=True),
    ),
    inbound=(Inbound(event_type="flights.gate_note", data=GateNote, senders=("partner", "airport")),),
    reports=(
        Report(
            name="delays",
            title="Delays by airport and airline",
            entity=Flight,
            by=("origin", "carrier"),
            measures=(
                Measure("flights", "count"),
                Measure("mean_departure_delay_min", "avg", "departure_delay_min"),
                Measure("mean_arrival_delay_min", "avg", "arrival_delay_min"),
                Measure("worst_departure_delay_min", "max", "departure_delay_min"),
            ),
            filters=("origin", "destination", "status", "scheduled_departure"),
        ),
    ),
)
