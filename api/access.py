"""Claims → viewers: whom the database takes the caller for.  (pure)

The handler has verified the token (`api.tokens`) after API Gateway did; here its claims become the JSON that the row-level
security policies read. Nothing else decides which rows are visible. Which routes are open to a token's scopes is
decided here too; `Bubble.scopes` declares it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from api.answer import Refused
from api.compact import Claims, client_of, scopes_of
from api.request import Request
from tidegate.bubble import Bubble, Viewer
from tidegate.entity import EVERYONE

__all__ = ["Caller", "Claims", "admit", "encode_viewers", "identified", "viewers_of"]

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_encoder = msgspec.json.Encoder()


class Caller(msgspec.Struct, frozen=True):
    """Who asks: the kinds of viewers that the token names, with their ids, and its claims."""

    viewers: dict[str, list[str]]
    claims: Claims

    @property
    def subject(self) -> str:
        """The issuer's own name of whoever signed in; it is never given to another."""
        return str(self.claims["sub"])

    @property
    def client(self) -> str:
        """The client that the token was given to."""
        return client_of(self.claims)

    @property
    def is_machine(self) -> bool:
        """Whether nobody signed in: a program's own token is of itself."""
        return self.subject == self.client


def identified(request: Request, bubble: Bubble) -> Caller:
    """Who asks, if they may use this route at all. Raises Refused, 401 or 403."""
    if request.claims is None:
        why = request.unidentified
        challenge = 'Bearer error="invalid_token"' if why else "Bearer"
        detail = why or "send an access token: Authorization: Bearer <token>"
        raise Refused(401, "unidentified", "Unauthorized", detail, headers={"WWW-Authenticate": challenge})
    admit(request.claims, bubble, request.path)
    return Caller(viewers_of(request.claims, bubble.viewers), request.claims)


def admit(claims: Claims, bubble: Bubble, path: str) -> None:
    """Raises Refused unless these claims have the scopes that open the path."""
    for scope in bubble.scopes_of(path):
        if scopes_of(claims).isdisjoint(scope.any_of):
            wanted = " ".join(scope.any_of)
            challenge = f'Bearer error="insufficient_scope", scope="{wanted}"'
            detail = f"the token has none of the scopes that open {scope.path}: {wanted}"
            headers = {"WWW-Authenticate": challenge}
            raise Refused(403, "insufficient-scope", "Forbidden", detail, headers=headers)


def viewers_of(claims: Claims, declared: Iterable[Viewer]) -> dict[str, list[str]]:
    """Kind of viewer → its ids, sorted; every signed-in caller is also of kind `everyone`.

    A claim is one value and compared whole, unless its viewer says `many`: then it is a list, or a text of values with a
    space between, as `scope` is. A list's values are compared whole, spaces and all.
    """
    found: dict[str, set[str]] = {EVERYONE: {"*"}}
    for viewer in declared:
        if (claim := claims.get(viewer.claim)) is None:
            continue
        for value in _values(claim) if viewer.many else _one(claim):
            if value.startswith(viewer.prefix) and _storable(identity := value[len(viewer.prefix) :]):
                found.setdefault(viewer.kind, set()).add(identity)
    return {kind: sorted(ids) for kind, ids in sorted(found.items())}


def encode_viewers(viewers: Mapping[str, Sequence[str]]) -> str:
    """The same for the same viewers: what is bound to a caller, or remembered for one, is bound to this."""
    return _encoder.encode(viewers).decode()


def _one(claim: object) -> list[str]:
    return [claim] if isinstance(claim, str) else []


def _values(claim: object) -> list[str]:
    if isinstance(claim, list | tuple):
        return [value for value in claim if isinstance(value, str)]
    return claim.split(" ") if isinstance(claim, str) else []


def _storable(identity: str) -> bool:
    """PostgreSQL's jsonb refuses NUL and lone surrogates, and no row's field can hold them."""
    return bool(identity) and _UNSTORABLE.search(identity) is None
