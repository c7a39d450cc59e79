"""The demo of the parcel company: its two back offices, and who signs in at the front office."""

from __future__ import annotations

from local.demo_spec import BackOffice, Demo, User

demo = Demo(
    title="Parcels",
    back_offices=(
        BackOffice(
            name="parcels",
            title="Parcel back office",
            args=("parcels", "--rows", "5000"),
            entities=("parcel", "office"),
            url_env="PARCELS_URL",
            key_env="PARCELS_API_KEY",
            burst={"creates": 500, "updates": 800, "corrections": 200, "deletes": 200},
        ),
        BackOffice(
            name="customers",
            title="Customer back office",
            args=("customers",),
            entities=("customer",),
            url_env="CUSTOMERS_URL",
            key_env="CUSTOMERS_API_KEY",
            burst={"creates": 60, "updates": 150, "corrections": 40, "deletes": 30},
        ),
    ),
    users=(
        User("customer-1001", "Customer 1001", viewer="customer:1001"),
        User("customer-1002", "Customer 1002", viewer="customer:1002"),
        User("shop-s01", "Partner shop S01", viewer="partner:S01", groups=("partner-S01",)),
    ),
)
