"""The bubble of the outbox' process tests: the gadgets, with a webhook for the live ones."""

from __future__ import annotations

from tests.integration.worker_rows import ENTITIES, Gadget
from tidegate.bubble import Bubble, Env, Webhook

bubble = Bubble(
    name="gadgets",
    entities=ENTITIES,
    sources=(),
    destinations=(
        Webhook(
            name="partner",
            url=Env("PARTNER_URL"),
            secrets=(Env("PARTNER_SECRET", secret=True),),
            entities=(Gadget,),
            timeout_s=2,
        ),
    ),
)
