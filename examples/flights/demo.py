"""The demo of the flights: one back office with a web API and three business units' files."""

from __future__ import annotations

from local.demo_spec import BackOffice, Burst, Demo, User

demo = Demo(
    title="Flights",
    back_offices=(
        BackOffice(
            name="flights",
            title="Flight operations",
            args=("flights", "--drops", "s3", "--drops-bucket", "{bucket}"),
            entities=("flight", "airline", "airport", "plane"),
            url_env="FLIGHTS_URL",
            key_env="FLIGHTS_API_KEY",
            bucket_env="DROPS_BUCKET",
            burst=Burst(creates=500, updates=800, corrections=200, deletes=200),
        ),
    ),
    users=(
        User("airline-aa", "American Airlines", viewer="partner:AA", groups=("partner-AA",)),
        User("airline-ua", "United Air Lines", viewer="partner:UA", groups=("partner-UA",)),
        User("tower-lga", "Tower at LaGuardia", viewer="airport:LGA", groups=("airport-LGA",)),
    ),
    # Every flight of the plan leaves from one of the three.
    observer=User("operations", "Operations", groups=("airport-EWR", "airport-JFK", "airport-LGA")),
    observer_sees=("flight", "airline", "airport", "plane"),
    event={"type": "flights.gate_note", "data": {"flight": "1", "text": "boarding is late"}},
)
