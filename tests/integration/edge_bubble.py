"""A bubble with nothing but an edge: two inbound events, two kinds of senders, a scope."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from tidegate.bubble import Bubble, Viewer
from tidegate.edge import Inbound, Scope


class Wish(msgspec.Struct, forbid_unknown_fields=True):
    """Where a parcel should go instead."""

    parcel: Annotated[str, msgspec.Meta(max_length=20)]
    place: Literal["door", "neighbour"]
    at: datetime | None = None


class Scan(msgspec.Struct):
    """A shop has a parcel in its hands."""

    parcel: str


bubble = Bubble(
    name="b", entities=(), sources=(),
    viewers=(Viewer("customer", "username", prefix="customer-"), Viewer("partner", "client_id", prefix="shop-")),
    inbound=(
        Inbound(event_type="b.wish", data=Wish, senders=("customer",)),
        Inbound(event_type="b.scan", data=Scan, senders=("partner", "customer")),
    ),
    scopes=(Scope("/v1/events", ("openid", "tidegate/events")),),
)  # fmt: skip
