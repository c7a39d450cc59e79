"""What the front office of the parcel company shows."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Literal

import msgspec

from tidegate.entity import EVERYONE, Embed, Entity, Meta, Reader

ParcelStatus = Literal["booked", "accepted", "in_transit", "delayed", "out_for_delivery", "delivered", "returned"]


class Parcel(Entity):
    """A parcel on its way from sender to recipient."""

    meta = Meta(
        collection="parcels",
        key="number",
        version="changed_at",
        readers=(
            Reader("customer", ("sender", "recipient")),
            Reader("office", ("origin_office", "current_office", "destination_office")),
            Reader("partner", ("partner_shop",)),
        ),
        filters=(
            "status",
            "origin_office",
            "current_office",
            "destination_office",
            "express",
            "booked_at",
            "changed_at",
        ),
        sorts=("changed_at", "booked_at", "shipping_cost"),
        embeds=(
            Embed(name="origin", collection="offices", field="origin_office"),
            Embed(name="current", collection="offices", field="current_office"),
            Embed(name="destination", collection="offices", field="destination_office"),
        ),
    )
    number: str
    status: ParcelStatus
    origin_office: str
    current_office: str | None
    destination_office: str
    sender: str
    recipient: str
    partner_shop: str | None
    shipping_cost: Decimal
    weight_kg: Decimal
    express: bool
    booked_at: datetime
    promised_on: date | None
    changed_at: datetime


class Office(Entity):
    """A place where parcels are taken in, sorted or handed out."""

    meta = Meta(
        collection="offices",
        key="number",
        version="changed_at",
        readers=(Reader(EVERYONE),),
        filters=("city", "postal_code", "kind"),
        sorts=("name", "city"),
    )
    number: str
    name: str
    city: str
    postal_code: str
    kind: Literal["counter", "sorting_centre", "partner_shop"]
    changed_at: datetime


class Customer(Entity):
    """A person or business that sends and receives parcels; sees itself only."""

    meta = Meta(collection="customers", key="number", version="revision", readers=(Reader("customer", ("number",)),))
    number: str
    name: str
    email: str
    phone: str | None
    street: str
    postal_code: str
    city: str
    segment: Literal["private", "business"]
    vip: bool
    language: Literal["de", "fr", "it", "en"]
    revision: int


class DeliveryWish(msgspec.Struct, forbid_unknown_fields=True):
    """Where a customer wants a parcel to be left; sent from the page, handled by the back office."""

    parcel: Annotated[str, msgspec.Meta(min_length=1, max_length=40)]
    place: Literal["door", "neighbour", "office"]
    note: Annotated[str, msgspec.Meta(max_length=500)] = ""
