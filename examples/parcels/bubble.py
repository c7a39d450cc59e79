"""The parcel company's deployment: its entities, its two back offices, and how tokens name their viewers."""

from __future__ import annotations

from examples.parcels import translators
from examples.parcels.entities import Customer, DeliveryWish, Office, Parcel
from tidegate.bubble import Bubble, ByTime, Env, Header, Offset, PageNumber, Reread, Rest, Source, Viewer
from tidegate.edge import Inbound
from tidegate.report import Measure, Period, Report

_PARCELS_URL = Env("PARCELS_URL")
_PARCELS_KEY = (Header("X-Api-Key", Env("PARCELS_API_KEY", secret=True)),)
_PAGES = PageNumber(param="SEITE", pages="ANZ_SEITEN", total="ANZ_TOTAL", size_param="ANZAHL", size=500)
_CHANGES = ByTime(param="GEAEND_AB", column="AENDZEIT", format="%Y-%m-%d %H:%M:%S", zone="Europe/Zurich")

bubble = Bubble(
    name="parcels",
    entities=(Parcel, Office, Customer),
    sources=(
        Source(
            name="parcels",
            objective_s=60,
            entity=Parcel,
            translate=translators.parcel,
            sweep_interval_s=15,
            feed=Rest(
                url=_PARCELS_URL,
                headers=_PARCELS_KEY,
                path="/PAKET/LISTE",
                rows="SAETZE",
                key="PNR",
                paging=_PAGES,
                changes=_CHANGES,
                reread=Reread(path="/PAKET/EINZEL", param="PNR", size=50),
            ),
        ),
        Source(
            name="offices",
            objective_s=60,
            entity=Office,
            translate=translators.office,
            sweep_interval_s=30,
            feed=Rest(
                url=_PARCELS_URL,
                headers=_PARCELS_KEY,
                path="/FILIALE/LISTE",
                rows="SAETZE",
                key="FIL_NR",
                paging=_PAGES,
                changes=_CHANGES,
                reread=Reread(path="/FILIALE/EINZEL", param="FIL_NR", size=50),
            ),
        ),
        Source(
            name="customers",
            objective_s=60,
            entity=Customer,
            translate=translators.customer,
            sweep_interval_s=15,
            feed=Rest(
                url=Env("CUSTOMERS_URL"),
                headers=(Header("Authorization", Env("CUSTOMERS_API_KEY", secret=True), prefix="ApiKey "),),
                path="/api/v2/clients",
                rows="items",
                key="clientId",
                paging=Offset(param="offset", next="nextOffset", total="total", size_param="limit", size=100),
                changes=ByTime(param="modified_since", column="modified"),
                reread=Reread(path="/api/v2/clients/by-ids", param="ids", size=50, separator=","),
            ),
        ),
    ),
    viewers=(
        # Customers sign in under `customer-<number>`; clerks and partner shops are groups of the user pool.
        Viewer("customer", claim="username", prefix="customer-"),
        Viewer("office", claim="cognito:groups", prefix="office-", many=True),
        Viewer("partner", claim="cognito:groups", prefix="partner-", many=True),
    ),
    inbound=(Inbound(event_type="parcels.delivery_wish", data=DeliveryWish, senders=("customer",)),),
    reports=(
        Report(
            name="shipping-cost",
            title="Shipping cost by office and month",
            entity=Parcel,
            by=("origin_office", Period("booked_at", "month", zone="Europe/Zurich")),
            measures=(
                Measure("parcels", "count"),
                Measure("cost", "sum", "shipping_cost"),
                Measure("mean_cost", "avg", "shipping_cost"),
            ),
            filters=("origin_office", "status", "booked_at"),
        ),
    ),
)
