"""What the reads handler takes from its environment; read once, when the sandbox starts."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from tidegate.settings import Secret


class ApiSettings(Struct, frozen=True, kw_only=True):
    """One sandbox's settings. The login must be a member of tidegate_reader and nothing more."""

    bubble: Annotated[str, Meta(description="import path of the bubble, such as examples.parcels.bubble")]
    database_url: Annotated[Secret, Meta(description="postgresql://reader:password@host:port/database")]
    statement_timeout_s: Annotated[
        float, Meta(ge=0.01, le=29, description="the longest wait for one read; API Gateway itself gives up after 30")
    ] = 5.0
    connect_timeout_s: Annotated[
        float, Meta(ge=0.01, le=29, description="the longest wait for a connection, part of every cold start")
    ] = 3.0
    statement_cache_size: Annotated[
        int,
        Meta(
            ge=0,
            le=1000,
            description="prepared statements kept; 0 behind a transaction-mode proxy, above 0 saves a round trip",
        ),
    ] = 0
