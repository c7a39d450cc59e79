"""What the handlers take from their environment; read once, when the sandbox starts."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from tidegate.settings import Secret

OriginKey = Annotated[
    Secret | None,
    Meta(
        description="what the edge sends as X-Tidegate-Origin; whoever does not send it finds nothing here. Unset: all may"
    ),
]


class TokenSettings(Struct, frozen=True, kw_only=True):
    """Whose access tokens are let in. RS256 only; see docs/ACCESS.md."""

    issuer: Annotated[
        str,
        Meta(description="the `iss` claim, such as https://cognito-idp.<region>.amazonaws.com/<pool id>"),
    ]
    clients: Annotated[
        tuple[str, ...], Meta(description="ids of the clients whose tokens count; for other issuers, the audience")
    ]
    profile: Annotated[
        Literal["cognito", "oidc"],
        Meta(description="cognito checks token_use and client_id; oidc checks aud, as RFC 9068 has it"),
    ] = "cognito"
    uses: Annotated[
        tuple[Literal["access", "id"], ...],
        Meta(description="cognito: kinds of tokens; an ID token says who signed in and has no scopes"),
    ] = ("access",)
    jwks_url: Annotated[
        str | None, Meta(description="where the issuer's keys are; default <issuer>/.well-known/jwks.json")
    ] = None
    jwks: Annotated[
        str | None,
        Meta(description="the keys themselves, a JWKS: for a function that cannot reach the issuer; no rotation"),
    ] = None
    leeway_s: Annotated[float, Meta(ge=0, le=300, description="by how much our clock and the issuer's may differ")] = (
        5.0
    )
    max_bytes: Annotated[
        int, Meta(ge=256, le=16_384, description="a longer token is refused; API Gateway takes 10 KiB of headers")
    ] = 8_192
    fetch_timeout_s: Annotated[float, Meta(gt=0, le=29, description="the longest wait for the issuer's keys")] = 2.0
    refetch_s: Annotated[
        float, Meta(ge=0, description="between two looks for a key that is not known; made-up names make no traffic")
    ] = 60.0
    keys_max_age_s: Annotated[
        float, Meta(gt=0, description="then the keys are looked at anew: how long a withdrawn one lives on")
    ] = 3_600.0
    keys_stale_s: Annotated[
        float, Meta(gt=0, description="known keys count so long while the issuer does not answer; a day")
    ] = 86_400.0

    def __post_init__(self) -> None:
        if not self.clients or not self.uses:
            raise ValueError("CLIENTS and USES must name at least one each, or nobody is let in")
        if not self.keys_url.startswith(("https://", "http://127.0.0.1:", "http://localhost:")):
            raise ValueError("JWKS_URL must be https://…, or anybody on the way could give us keys")

    @property
    def keys_url(self) -> str:
        return self.jwks_url or f"{self.issuer.rstrip('/')}/.well-known/jwks.json"


class ApiSettings(Struct, frozen=True, kw_only=True):
    """One sandbox's settings. The login must be a member of tidegate_reader and nothing more."""

    bubble: Annotated[str, Meta(description="import path of the bubble, such as examples.parcels.bubble")]
    database_url: Annotated[Secret, Meta(description="postgresql://reader:password@host:port/database")]
    tokens: TokenSettings
    origin_key: OriginKey = None
    database_iam: Annotated[
        bool, Meta(description="sign in by RDS IAM authentication; the address has a user and no password, and TLS")
    ] = False
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
    cursor_key: Annotated[
        Secret,
        Meta(
            description="signs the cursors of pages, at least 32 bytes; the same for all sandboxes: openssl rand -base64 32"
        ),
    ]
    cursor_key_before: Annotated[
        Secret | None, Meta(description="accepted too, while cursors of the key before it are in use")
    ] = None
    stale_while_revalidate_s: Annotated[
        int,
        Meta(
            ge=0, le=86_400, description="a browser may show what it has so long while it asks anew; 0: it asks first"
        ),
    ] = 0
    ask_again_s: Annotated[
        int, Meta(ge=1, le=3600, description="what a page for whose caller nothing changed is told to wait")
    ] = 2
    changes_kept_s: Annotated[
        int,
        Meta(
            ge=60,
            description="so old a cursor of changes may be; below the workers' TIDEGATE_RETENTION_DEPARTURES_HOURS",
        ),
    ] = 86_400
    cors_origins: Annotated[
        tuple[str, ...], Meta(description="pages of other origins that may ask, such as https://www.example.com")
    ] = ()


class IngestSettings(Struct, frozen=True, kw_only=True):
    """One sandbox of the function that takes events."""

    bubble: Annotated[str, Meta(description="import path of the bubble, such as examples.parcels.bubble")]
    tokens: TokenSettings
    origin_key: OriginKey = None
    cors_origins: Annotated[
        tuple[str, ...], Meta(description="pages of other origins that may ask, such as https://www.example.com")
    ] = ()
    stream: Annotated[
        str,
        Meta(
            extra={"env": "TIDEGATE_INBOUND_STREAM"},
            description="name or ARN of the stream of arrivals; never the one that pollers write to",
        ),
    ]
    max_events: Annotated[int, Meta(ge=1, le=500, description="in one request; Kinesis takes 500 in one call")] = 100
    max_event_bytes: Annotated[
        int, Meta(ge=256, le=1_000_000, description="of one event; a Kinesis record holds 1 MiB, stamps included")
    ] = 65_536
    max_body_bytes: Annotated[
        int, Meta(ge=256, le=4_500_000, description="of one request; Lambda takes 6 MB, base64 included")
    ] = 1_048_576
    attempts: Annotated[int, Meta(ge=1, le=10, description="of what Kinesis did not take; the caller waits")] = 3
    retry_max_ms: Annotated[int, Meta(ge=0, description="the first wait at most; doubles (full jitter)")] = 100
    retry_after_s: Annotated[int, Meta(ge=1, description="what a caller is told when Kinesis took none")] = 1


class UserSettings(Struct, frozen=True, kw_only=True):
    """One sandbox of the function that keeps users' own attributes."""

    bubble: Annotated[str, Meta(description="import path of the bubble, such as examples.parcels.bubble")]
    tokens: TokenSettings
    origin_key: OriginKey = None
    cors_origins: Annotated[
        tuple[str, ...], Meta(description="pages of other origins that may ask, such as https://www.example.com")
    ] = ()
    user_table: Annotated[str, Meta(description="DynamoDB table of users' attributes, with the key `subject`")]
    max_bytes: Annotated[
        int, Meta(ge=64, le=300_000, description="a user's attributes as JSON; DynamoDB's item limit is 400 KB")
    ] = 16_384
    max_depth: Annotated[int, Meta(ge=1, le=32, description="of objects and lists within each other")] = 8
