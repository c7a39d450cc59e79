"""An issuer of access tokens, as Cognito is one: keys, a JWKS, and tokens of any claims, right and wrong."""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from joserfc import jws
from joserfc.jwk import RSAKey

ISSUER = "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_TEST"
CLIENT = "page-client"
ENDS_IN_S = 3600


def key(name: str = "key-1") -> RSAKey:
    """The issuer's key of a name; the same all day."""
    return _made(name)


@lru_cache
def _made(name: str) -> RSAKey:
    return RSAKey.generate_key(2048, {"kid": name, "use": "sig", "alg": "RS256"}, private=True, auto_kid=False)


def jwks(*names: str) -> str:
    """The public halves, as the issuer shows them."""
    return json.dumps({"keys": [key(name).as_dict(private=False) for name in names or ("key-1",)]})


def environment() -> dict[str, str]:
    """The settings of a function that takes this issuer's tokens."""
    return {"TIDEGATE_TOKENS_ISSUER": ISSUER, "TIDEGATE_TOKENS_CLIENTS": CLIENT, "TIDEGATE_TOKENS_JWKS": jwks()}


def claims(**changes: Any) -> dict[str, Any]:
    """Claims of an access token for now; None takes one away."""
    now = int(time.time())
    stated = {
        "sub": "8b0f0d0e-subject", "iss": ISSUER, "client_id": CLIENT, "token_use": "access", "scope": "openid",
        "iat": now - 10, "exp": now + ENDS_IN_S, "username": "someone", **changes,
    }  # fmt: skip
    return {name: value for name, value in stated.items() if value is not None}


def signed(payload: Mapping[str, Any] | bytes, header: Mapping[str, Any] | None = None, name: str = "key-1") -> str:
    """A token with these claims, or this very payload."""
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    protected = {"alg": "RS256", "kid": name, **(header or {})}
    registry = jws.JWSRegistry(algorithms=["RS256"], strict_check_header=False)
    return jws.serialize_compact(protected, raw, key(name), algorithms=["RS256"], registry=registry)


def part(value: object) -> str:
    """One part of a token, unsigned: JSON, or bytes as they are."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return urlsafe_b64encode(raw).rstrip(b"=").decode()
