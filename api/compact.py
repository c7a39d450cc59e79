"""What a token says, read strictly, and whether its claims are meant for us.  (pure)

The signature is `api.tokens`' affair; it comes between the two halves of this module. `parsed` looks at the form before
any key is asked for, so what is not plainly a compact JWS of RS256 costs nothing and reaches no cryptography. `judged`
looks at the claims of a token whose signature held.

Strict means: one spelling. Base64url that decodes but is not what its bytes encode to, a JSON object with a name twice, a
header that brings its own key or wants an extension understood: each could be read in two ways by two programs, of
which the gateway in front is one. No issuer writes such tokens.
"""

from __future__ import annotations

import binascii
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

ALGORITHM = "RS256"

Claims = Mapping[str, object]
"""Claim → JSON value, as the issuer signed it."""

_KID = re.compile(r"[\x21-\x7e]{1,256}")
_FOREIGN = frozenset({"crit", "jku", "jwk", "x5u", "x5c", "b64", "zip", "enc", "epk", "p2s", "p2c"})
"""Header fields that bring a key along, or change what is signed or how."""

_LONGEST_CLAIMS_TIME_S = 2**53


class Unidentified(Exception):
    """The request carries no usable token; the text is fit for the caller."""


class Expectation(msgspec.Struct, frozen=True, kw_only=True, cache_hash=True):
    """Whose tokens count, and which of them.

    issuer    the `iss` claim, whole
    clients   the clients that a token may have been given to
    uses      Cognito's `token_use` values that are let in; empty for issuers that have no such claim, which name the
              audience in `aud`
    leeway_s  by how much two clocks may differ
    """

    issuer: str
    clients: frozenset[str]
    uses: frozenset[str]
    leeway_s: float


class Judged(msgspec.Struct, frozen=True):
    """The claims of a token that is meant for us, and in which span of Unix time it counts, our clock's error included."""

    claims: Claims
    begins_s: float
    ends_s: float

    def at(self, now_s: float) -> Claims:
        """The claims. Raises Unidentified: expired, or not valid yet."""
        if self.ends_s <= now_s:
            raise Unidentified("the token has expired; sign in again")
        if self.begins_s > now_s:
            raise Unidentified("the token is not valid yet")
        return self.claims


class Compact(msgspec.Struct, frozen=True):
    """A token by its form: `kid` names the key that should have signed it. Nothing of it is believed yet."""

    text: str
    kid: str


def bearer(header: str | None, most_bytes: int) -> str | None:
    """The token of an Authorization header, None without one. Raises Unidentified."""
    if header is None:
        return None
    scheme, _, rest = header.strip(" ").partition(" ")
    token = rest.lstrip(" ")
    # Two headers reach us as one with a comma in it.
    if scheme.lower() != "bearer" or "," in token or token.split() != [token]:
        raise Unidentified("the Authorization header is not: Bearer <token>, once")
    if len(token) > most_bytes:
        raise Unidentified(f"the token is longer than {most_bytes} bytes")
    return token


@lru_cache(maxsize=64)
def parsed(token: str) -> Compact:
    """The token's form. A page sends the same one again and again, so the last are kept.

    Raises Unidentified for all but a compact JWS of RS256 that names its key.
    """
    parts = token.split(".")
    if len(parts) != 3 or not all(parts):
        raise Unidentified("the token is no signed JWT of three parts")
    header, claims, signature = parts
    read = _object(_decoded(header), "header")
    for text in (claims, signature):
        _decoded(text)
    if read.get("alg") != ALGORITHM:
        raise Unidentified(f"the token is not signed with {ALGORITHM}")
    if brought := sorted(_FOREIGN & read.keys()):
        raise Unidentified(f"the token's header has {', '.join(brought)}, which this API does not take")
    if not isinstance(kid := read.get("kid"), str) or not _KID.fullmatch(kid):
        raise Unidentified("the token's header names no key")
    kind = read.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower().removeprefix("application/") not in ("jwt", "at+jwt"):
        raise Unidentified("the token is no JWT")
    return Compact(token, kid)


def claims_of(payload: bytes) -> Claims:
    """The claims, which must be one JSON object with each name once. Raises Unidentified."""
    return _object(payload, "payload")


def judged(claims: Claims, expected: Expectation) -> Judged:
    """The claims, if they are meant for us.

    In an ID token of Cognito the user's name gets the name that it has in an access token, so that a bubble declares it once.

    Raises:
        Unidentified: another issuer, client or use; without an end, or with a time that is none.
    """
    if claims.get("iss") != expected.issuer:
        raise Unidentified("the token is of another issuer")
    ends_s, begins_s, issued_s = (_time(claims, name) for name in ("exp", "nbf", "iat"))
    if ends_s is None:
        raise Unidentified("the token has no end")
    if not isinstance(subject := claims.get("sub"), str) or not subject:
        raise Unidentified("the token names no subject")
    use = claims.get("token_use")
    if expected.uses and not (isinstance(use, str) and use in expected.uses):
        wanted = " or ".join(sorted(expected.uses))
        raise Unidentified(f"this is not an {wanted} token; send the {wanted} token of the same sign-in")
    if expected.uses and use == "access":
        audience: object = claims.get("client_id")
        # Cognito's access tokens name a client. An audience, where one has it, is a resource: it makes no client ours.
        is_ours = isinstance(audience, str) and audience in expected.clients
    else:
        is_ours = not expected.clients.isdisjoint(_texts(claims.get("aud")))
    if not is_ours:
        raise Unidentified("the token was given to a client that this API does not know")
    if use == "id" and "username" not in claims and isinstance(name := claims.get("cognito:username"), str):
        claims = {**claims, "username": name}
    leeway_s = expected.leeway_s
    return Judged(claims, max(begins_s or 0, issued_s or 0) - leeway_s, ends_s + leeway_s)


def client_of(claims: Claims) -> str:
    """The client that the token was given to: `client_id`, else `azp`, else the audience. "" when it names none."""
    for name in ("client_id", "azp"):
        if isinstance(value := claims.get(name), str) and value:
            return value
    return next(iter(_texts(claims.get("aud"))), "")


def scopes_of(claims: Claims) -> frozenset[str]:
    """The scopes: `scope` is a text with spaces between, some issuers write a list or call it `scp`."""
    found: list[str] = []
    for name in ("scope", "scp"):
        value = claims.get(name)
        found += value.split(" ") if isinstance(value, str) else _texts(value)
    return frozenset(filter(None, found))


def _time(claims: Claims, name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    # True is an int of Python's; a time beyond this is none.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LONGEST_CLAIMS_TIME_S:
        raise Unidentified(f"the token's {name} is no time")
    return float(value)


def _texts(value: object) -> Sequence[str]:
    if isinstance(value, str):
        return [value]
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _decoded(text: str) -> bytes:
    """Raises Unidentified unless the text is how base64url writes its bytes: no padding, no idle bits, no other sign."""
    try:
        raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise Unidentified("the token is not base64url") from error
    if urlsafe_b64encode(raw).rstrip(b"=") != text.encode(errors="replace"):
        raise Unidentified("the token is not base64url as it is written")
    return raw


def _object(raw: bytes, what: str) -> dict[str, Any]:
    """A JSON object in which no name stands twice, at any depth. Raises Unidentified."""
    try:
        # msgspec lets the last of two equal names win, silently.
        read = json.loads(raw.decode(), object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Unidentified(f"the token's {what} is no JSON that can be read in one way only") from error
    if not isinstance(read, dict):
        raise Unidentified(f"the token's {what} is no JSON object")
    return read


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) < len(pairs):
        raise ValueError("a name stands twice")
    return read


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON")
