"""From the two back offices' rows to clean entities. Pure: raw row in, entity out.

A translator raises for what it does not understand; the raw row is then quarantined whole.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Literal
from zoneinfo import ZoneInfo

from examples.parcels.entities import Customer, Office, Parcel, ParcelStatus
from tidegate.bubble import RawRow

_ZURICH = ZoneInfo("Europe/Zurich")

_STATUS: dict[int, ParcelStatus] = {
    10: "booked",
    20: "accepted",
    30: "in_transit",
    35: "delayed",
    40: "out_for_delivery",
    50: "delivered",
    90: "returned",
}
_OFFICE_KIND: dict[int, Literal["counter", "sorting_centre", "partner_shop"]] = {
    1: "counter",
    2: "sorting_centre",
    3: "partner_shop",
}


def parcel(row: RawRow) -> Parcel:
    return Parcel(
        number=row["PNR"],
        status=_STATUS[row["STAT_CD"]],
        origin_office=row["FIL_ABG"],
        current_office=row["FIL_AKT"] or None,
        destination_office=row["FIL_EMPF"],
        sender=row["KD_ABS"],
        recipient=row["KD_EMPF"],
        partner_shop=row["PARTNER"] or None,
        shipping_cost=_decimal(row["PREIS"]),
        weight_kg=_decimal(row["GEW"]),
        express={"J": True, "N": False}[row["EXPR_KZ"]],
        booked_at=_local_time(row["ERFZEIT"]),
        promised_on=_local_date(row["ZUSTDAT"]) if row["ZUSTDAT"] else None,
        changed_at=_local_time(row["AENDZEIT"]),
    )


def office(row: RawRow) -> Office:
    return Office(
        number=row["FIL_NR"],
        name=row["BEZ"],
        city=row["ORT"],
        postal_code=row["PLZ"],
        kind=_OFFICE_KIND[row["FIL_TYP"]],
        changed_at=_local_time(row["AENDZEIT"]),
    )


def customer(row: RawRow) -> Customer:
    attributes = row["attributes"]
    contact, address = attributes["contact"], attributes["address"]
    return Customer(
        number=str(row["clientId"]),
        name=attributes["displayName"],
        email=contact["mail"],
        phone=contact["phone"] or None,
        street=address["street"],
        postal_code=address["zip"],
        city=address["town"],
        segment="business" if attributes["segment"] == "B" else "private",
        vip=bool(attributes["vipFlag"]),
        language=attributes["language"],
        revision=row["rev"],
    )


def _decimal(text: str) -> Decimal:
    return Decimal(text.replace(".", "").replace(",", "."))


def _local_time(text: str) -> datetime:
    # In the repeated hour of autumn this takes the earlier instant; the poller's observation orders such ties.
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=_ZURICH).astimezone(UTC)


def _local_date(text: str) -> date:
    return datetime.strptime(text, "%d.%m.%Y").date()
