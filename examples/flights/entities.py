"""What the front office of the airports shows."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from tidegate.entity import EVERYONE, Embed, Entity, Meta, Reader


class Flight(Entity):
    """A flight out of New York; its carrier and the staff of its two airports see it."""

    meta = Meta(
        collection="flights",
        key="id",
        version="revision",
        readers=(Reader("partner", ("carrier",)), Reader("airport", ("origin", "destination"))),
        filters=("carrier", "number", "origin", "destination", "status", "scheduled_departure", "departure_delay_min"),
        sorts=("scheduled_departure", "departure_delay_min"),
        embeds=(
            Embed(name="airline", collection="airlines", field="carrier"),
            Embed(name="plane", collection="planes", field="tail_number"),
            Embed(name="to", collection="airports", field="destination"),
        ),
    )
    id: str
    carrier: str
    number: int
    origin: str
    destination: str
    tail_number: str | None
    scheduled_departure: datetime
    status: Literal["scheduled", "departed", "arrived", "cancelled"]
    departure_delay_min: int | None
    arrival_delay_min: int | None
    air_time_min: int | None
    distance_miles: int
    gate: str | None
    revision: int


class Airline(Entity):
    """A carrier, under its IATA code."""

    meta = Meta(collection="airlines", key="code", readers=(Reader(EVERYONE),))
    code: str
    name: str


class Airport(Entity):
    """An airport, under its FAA code."""

    meta = Meta(collection="airports", key="code", readers=(Reader(EVERYONE),))
    code: str
    name: str
    latitude: float
    longitude: float
    altitude_ft: int
    tz_offset_h: int
    dst: Literal["A", "U", "N"]


class Plane(Entity):
    """A plane, under its tail number."""

    meta = Meta(collection="planes", key="tail_number", readers=(Reader(EVERYONE),))
    tail_number: str
    year: int | None
    type: str
    manufacturer: str
    model: str
    engines: int
    seats: int
    engine: str


class GateNote(msgspec.Struct, forbid_unknown_fields=True):
    """What somebody at a gate has to say about a flight."""

    flight: Annotated[str, msgspec.Meta(min_length=1, max_length=40)]
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]
