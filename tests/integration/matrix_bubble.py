"""A bubble whose rows belong to customers, partners and offices in every combination."""

from __future__ import annotations

import msgspec

from tidegate.bubble import Bubble, Env, PageNumber, RawRow, Rest, Source, Viewer
from tidegate.edge import Inbound
from tidegate.entity import EVERYONE, Entity, Meta, Reader
from tidegate.report import Measure, Report


class Consignment(Entity):
    """Goods on their way; the customer, the partner and the office they are at see them."""

    meta = Meta(
        collection="consignments",
        key="number",
        readers=(Reader("customer", ("customer",)), Reader("partner", ("partner",)), Reader("office", ("office",))),
    )
    number: str
    customer: str
    partner: str | None
    office: str


class Invoice(Entity):
    """Its customer sees it, and nobody else."""

    meta = Meta(collection="invoices", key="number", readers=(Reader("customer", ("customer",)),))
    number: str
    customer: str


class Town(Entity):
    """Everybody sees it."""

    meta = Meta(collection="towns", key="number", readers=(Reader(EVERYONE),))
    number: str


class Note(msgspec.Struct):
    """A line about a consignment."""

    text: str


def _translated(row: RawRow) -> Entity:
    return Consignment(**row)


_FEED = Rest(url=Env("OFFICE_URL"), path="/", rows="rows", key="key", paging=PageNumber(param="page", pages="pages"))
bubble = Bubble(
    name="matrix",
    entities=(Consignment, Invoice, Town),
    sources=(Source(name="consignments", entity=Consignment, feed=_FEED, translate=_translated),),
    viewers=(
        Viewer("customer", claim="username", prefix="customer-"),
        # One partner has a client of its own, another's people sign in and are in a group.
        Viewer("partner", claim="client_id", prefix="partner-"),
        Viewer("partner", claim="cognito:groups", prefix="partner-", many=True),
        Viewer("office", claim="cognito:groups", prefix="office-", many=True),
    ),
    inbound=(Inbound(event_type="matrix.note", data=Note, senders=("customer", "office")),),
    reports=(
        Report(
            name="load", title="Consignments by office", entity=Consignment, by=("office",),
            measures=(Measure("consignments", "count"),),
        ),
    ),
)  # fmt: skip
