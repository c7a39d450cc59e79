"""What a bubble says about the API's edge: events that may come in, and the scopes that paths need.  (pure)"""

from __future__ import annotations

import re
from collections.abc import Iterable, Set

import msgspec

from tidegate.entity import EVERYONE
from tidegate.errors import BubbleError


class Scope(msgspec.Struct, frozen=True):
    """Scopes that a token needs for a path and all below it: one of `any_of`. Scope("/v1/events", ("tidegate/events",))."""

    path: str
    any_of: tuple[str, ...]


class Inbound(msgspec.Struct, frozen=True, kw_only=True):
    """An event that browsers and other systems may send: POST /v1/events.

    event_type  its CloudEvents type; nothing under `tidegate.`, which is what back offices say
    data        what its `data` is: a Struct with typed fields and bounds (msgspec.Meta); unknown fields are refused if
                it says forbid_unknown_fields=True
    senders     the kinds of viewers who may send it; every signed-in caller unless said otherwise
    """

    event_type: str
    data: type[msgspec.Struct]
    senders: tuple[str, ...] = (EVERYONE,)


_INBOUND = re.compile(r"[a-z][a-z0-9_-]*(\.[a-z0-9_-]+)+")
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")
"""RFC 6749: printable ASCII without space, quote and backslash."""


def check_edge(inbounds: Iterable[Inbound], scopes: Iterable[Scope], kinds: Set[str]) -> None:
    """Refuse wrong declarations at start; `kinds` are those of the bubble's viewers. Raises BubbleError."""
    _check_inbound(inbounds, kinds)
    _check_scopes(scopes)


def _check_inbound(inbounds: Iterable[Inbound], kinds: Set[str]) -> None:
    types: set[str] = set()
    for inbound in inbounds:
        name = f"inbound {inbound.event_type!r}"
        if not _INBOUND.fullmatch(inbound.event_type) or len(inbound.event_type) > 100:
            raise BubbleError(f"{name}: name it in lower case with dots between, such as parcels.delivery_note")
        if inbound.event_type.startswith("tidegate."):
            raise BubbleError(f"{name}: what is under `tidegate.` comes from back offices; name it after the bubble")
        if inbound.event_type in types:
            raise BubbleError(f"{name}: the type is taken twice")
        types.add(inbound.event_type)
        if not (isinstance(inbound.data, type) and issubclass(inbound.data, msgspec.Struct)):
            raise BubbleError(f"{name}: its data must be a msgspec.Struct with typed fields")
        for kind in inbound.senders:
            if kind not in kinds:
                raise BubbleError(f"{name}: {kind!r} is no kind of viewer (known: {', '.join(sorted(kinds))})")
        if not inbound.senders:
            raise BubbleError(f"{name}: without senders nobody could send it; name some, or leave it to everyone")


def _check_scopes(scopes: Iterable[Scope]) -> None:
    for scope in scopes:
        if not f"{scope.path}/".startswith("/v1/") or scope.path.endswith("/"):
            raise BubbleError(f"Scope({scope.path!r}): name a path of the API, such as /v1 or /v1/events")
        if not scope.any_of or not all(map(_SCOPE.fullmatch, scope.any_of)):
            raise BubbleError(f"Scope({scope.path!r}): name at least one scope, each without spaces and quotes")
