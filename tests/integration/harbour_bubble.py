"""A bubble that declares all that the reads of the API offer: filters, sorts, embedded rows, objectives."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Literal
from uuid import UUID

from tidegate.bubble import Bubble, Env, PageNumber, Rest, Source, Viewer
from tidegate.entity import EVERYONE, Embed, Entity, Meta, Reader
from tidegate.report import Measure, Period, Report


class Ship(Entity):
    """A ship that calls at the harbour; its owner and its agent see it, the harbour master all."""

    meta = Meta(
        collection="ships",
        key="imo",
        readers=(Reader("owner", ("owner", "agent")), Reader("master")),
        filters=(
            "imo", "name", "flag", "owner", "agent", "quay", "tonnage", "draught_m", "speed_kn", "piloted", "built_on", "eta",
            "transponder",
        ),
        sorts=("name", "tonnage", "draught_m", "speed_kn", "piloted", "built_on", "eta"),
        embeds=(
            Embed(name="berth", collection="quays", field="quay"),
            Embed(name="visits", collection="visits", by="ship", most=3),
        ),
        indexes=("eta",),
    )  # fmt: skip
    imo: str
    name: str
    flag: Literal["ch", "fr", "pa"]
    owner: str
    agent: str | None
    quay: int | None
    tonnage: int
    draught_m: Decimal | None
    speed_kn: float
    piloted: bool
    built_on: date | None
    eta: datetime | None
    transponder: UUID


class Quay(Entity):
    """Where ships lie."""

    meta = Meta(
        collection="quays",
        key="number",
        readers=(Reader(EVERYONE),),
        embeds=(Embed(name="ships", collection="ships", by="quay"),),
    )
    number: int
    name: str


class Visit(Entity):
    """A ship came; who paid for it sees it, and the harbour master."""

    meta = Meta(
        collection="visits",
        key="id",
        readers=(Reader("owner", ("payer",)), Reader("master")),
        filters=("ship", "paid", "at"),
        sorts=("at",),
    )
    id: UUID
    ship: str
    payer: str
    paid: Decimal
    at: datetime


def _source(
    name: str, entity: type[Entity], *, watermark: bool = True, objective_s: float | None = None
) -> Source:  # fmt: skip
    feed = Rest(url=Env("OFFICE_URL"), path="/", rows="rows", key="key", paging=PageNumber(param="page", pages="pages"))
    return Source(
        name=name, entity=entity, feed=feed, translate=entity, watermark=watermark, objective_s=objective_s
    )  # fmt: skip


bubble = Bubble(
    name="harbour",
    entities=(Ship, Quay, Visit),
    sources=(
        _source("register", Ship, objective_s=600),
        _source("quay_plan", Quay, watermark=False),
        _source("till", Visit),
    ),
    viewers=(
        Viewer("owner", claim="username", prefix="owner-"),
        Viewer("master", claim="cognito:groups", prefix="master-", many=True),
    ),
    reports=(
        Report(
            name="dues",
            title="What ships paid, by payer and month",
            entity=Visit,
            by=("payer", Period("at", "month", zone="Europe/Zurich")),
            measures=(
                Measure("visits", "count"),
                Measure("paid", "sum", "paid"),
                Measure("mean", "avg", "paid"),
                Measure("last", "max", "at"),
            ),
            filters=("ship", "at", "paid"),
        ),
        Report(
            name="fleet",
            title="Ships in all",
            entity=Ship,
            by=(),
            measures=(
                Measure("ships", "count"),
                Measure("tonnage", "sum", "tonnage"),
                Measure("speed", "avg", "speed_kn"),
                Measure("oldest", "min", "built_on"),
            ),
        ),
        Report(
            name="names",
            title="Ships by name",
            entity=Ship,
            by=("name", "flag"),
            measures=(Measure("ships", "count"),),
            most_rows=5,
        ),
    ),
)
