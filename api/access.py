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

    A claim's text is split at spaces, so a bubble must name claims that callers cannot edit themselves.

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
        for value in _values(claims.get(viewer.claim)):
            if value.startswith(viewer.prefix) and _storable(identity := value[len(viewer.prefix) :]):
                found.setdefault(viewer.kind, set()).add(identity)
    return {kind: sorted(ids) for kind, ids in sorted(found.items())}


def encode_viewers(viewers: Mapping[str, list[str]]) -> str:
    """The value of the transaction-local setting `tidegate.viewers`."""
    return _encoder.encode(viewers).decode()


def _values(claim: object) -> list[str]:
    if claim is None:
        return []
    if isinstance(claim, list | tuple):
        return [str(value) for value in claim]
    text = str(claim).strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    return text.split()


def _storable(identity: str) -> bool:
    """PostgreSQL's jsonb refuses NUL and lone surrogates, and no row's field can hold them."""
    return bool(identity) and "\0" not in identity and not any("\ud800" <= char <= "\udfff" for char in identity)
