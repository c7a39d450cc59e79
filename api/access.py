"""Claims → viewers: whom the database takes the caller for.  (pure)

The gateway's JWT authorizer has verified signature, issuer, audience and expiry before the handler runs; here
its claims become the JSON that the row-level security policies read. Nothing else decides what is visible.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from tidegate.bubble import Viewer
from tidegate.entity import EVERYONE

Claims = Mapping[str, object]
"""Claim → value, as the authorizer hands them over: an HTTP API makes texts of all, lists as "[a b]"."""

_encoder = msgspec.json.Encoder()


class Unidentified(Exception):
    """The request carries no usable claims; the text is fit for the caller."""


def viewers_of(claims: Claims | None, declared: Iterable[Viewer]) -> dict[str, list[str]]:
    """Kind of viewer → its ids, sorted; every signed-in caller is also of kind `everyone`.

    A claim is one value and compared whole, unless its viewer says `many`. Then it is a list, a text of values
    with a space between, or such a text in brackets. In a text the name "evening staff-north" is not told from
    two names; Cognito admits no space in a group's name, and where an issuer does, its administrators must not.

    Raises:
        Unidentified: there are no claims, or they are those of an ID token, which says who signed in
            and is not meant for an API.
    """
    if not claims:
        raise Unidentified("send an access token: Authorization: Bearer <token>")
    if claims.get("token_use", "access") != "access":
        raise Unidentified("this is not an access token; send the access token of the same sign-in")
    found: dict[str, set[str]] = {EVERYONE: {"*"}}
    for viewer in declared:
        claim = claims.get(viewer.claim)
        for value in _values(claim) if viewer.many else _one(claim):
            if value.startswith(viewer.prefix) and _storable(identity := value[len(viewer.prefix) :]):
                found.setdefault(viewer.kind, set()).add(identity)
    return {kind: sorted(ids) for kind, ids in sorted(found.items())}


def encode_viewers(viewers: Mapping[str, list[str]]) -> str:
    """The value of the transaction-local setting `tidegate.viewers`."""
    return _encoder.encode(viewers).decode()


def _one(claim: object) -> list[str]:
    return [claim] if isinstance(claim, str) else []


def _values(claim: object) -> list[str]:
    if isinstance(claim, list | tuple):
        return [value for value in claim if isinstance(value, str)]
    if not isinstance(claim, str):
        return []
    inner = claim[1:-1] if claim.startswith("[") and claim.endswith("]") else claim
    # At plain spaces only, as they were joined: another sort of space is part of a name. A bracket that is left
    # could be the list's own or a name's, so such a value names nobody.
    return [value for value in inner.split(" ") if "[" not in value and "]" not in value]


def _storable(identity: str) -> bool:
    """PostgreSQL's jsonb refuses NUL and lone surrogates, and no row's field can hold them."""
    return bool(identity) and "\0" not in identity and not any("\ud800" <= char <= "\udfff" for char in identity)
