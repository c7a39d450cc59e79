"""The parcels' bubble with a destination, and sweeps so frequent that a test sees them: for the operator's drills."""

from __future__ import annotations

from msgspec.structs import replace

from examples.parcels.bubble import bubble as parcels
from examples.parcels.entities import Parcel
from tidegate.bubble import Env, Webhook
from tidegate.event import Cause

bubble = replace(
    parcels,
    sources=tuple(replace(source, sweep_interval_s=3.0, safety_s=0.5) for source in parcels.sources),
    destinations=(
        Webhook(
            name="partner",
            url=Env("PARTNER_URL"),
            secrets=(Env("PARTNER_SECRET", secret=True),),
            entities=(Parcel,),
            # Sweeps so frequent often see a change before the poll does, and they alone see deletions.
            causes=(Cause.LIVE, Cause.SWEEP),
        ),
    ),
)
