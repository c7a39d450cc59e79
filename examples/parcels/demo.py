"""The demo of the parcel company: its two back offices, and who signs in at the front office."""

from __future__ import annotations

from local.demo_spec import BackOffice, Burst, Demo, User

_ALL_OFFICES = tuple(f"office-{number}" for number in range(101, 141))

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
            burst=Burst(creates=500, updates=800, corrections=200, deletes=200),
        ),
        BackOffice(
            name="customers",
            title="Customer back office",
            args=("customers",),
            entities=("customer",),
            url_env="CUSTOMERS_URL",
            key_env="CUSTOMERS_API_KEY",
            burst=Burst(creates=60, updates=150, corrections=40, deletes=30),
        ),
    ),
    users=(
        User("customer-1001", "Customer 1001", viewer="customer:1001"),
        User("customer-1002", "Customer 1002", viewer="customer:1002"),
        User("shop-s01", "Partner shop S01", viewer="partner:S01", groups=("partner-S01",)),
        User("clerk-101", "Clerk of office 101", viewer="office:101", groups=("office-101",)),
    ),
    # Every parcel goes through an office, so a clerk of all of them sees every parcel.
    observer=User("dispatcher", "Dispatcher", groups=_ALL_OFFICES),
    observer_sees=("parcel", "office"),
    event={"type": "parcels.delivery_wish", "data": {"parcel": "P0000001", "place": "neighbour"}},
)
