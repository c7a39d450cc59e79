"""Every address of the API, and which function answers it.  (pure)

Gateways are set up from this table (`local.gateway`), and the authorization matrix of the tests goes through it, so a
new address is not reachable before it is here, and when it is, it is tested for everybody.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from tidegate.bubble import Bubble

EVENTS = "/v1/events"
USER = "/v1/user"
USER_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

Function = Literal["reads", "ingest", "user"]


class Route(msgspec.Struct, frozen=True):
    """`path` is a template as in OpenAPI; `is_open` to those without a token too."""

    method: str
    path: str
    function: Function
    is_open: bool = False


def routes_of(bubble: Bubble) -> tuple[Route, ...]:
    """Every address that the bubble's API has."""
    return tuple(_routes(bubble))


def _routes(bubble: Bubble) -> Iterator[Route]:
    yield Route("GET", "/v1/openapi.json", "reads", is_open=True)
    yield Route("GET", "/v1/docs", "reads", is_open=True)
    for shape in bubble.shapes:
        yield Route("GET", f"/v1/{shape.collection}", "reads")
        yield Route("GET", f"/v1/{shape.collection}/changes", "reads")
        yield Route("GET", f"/v1/{shape.collection}/{{{shape.key.name}}}", "reads")
    yield Route("GET", "/v1/reports", "reads")
    for report in bubble.reports:
        yield Route("GET", f"/v1/reports/{report.name}", "reads")
    if bubble.inbound:
        yield Route("POST", EVENTS, "ingest")
    for method in USER_METHODS:
        yield Route(method, USER, "user")


def gateway_routes(bubble: Bubble) -> tuple[Route, ...]:
    """The same for a gateway, which knows a wildcard: one for all reads, beside those that are open or others'."""
    rest = Route("GET", "/v1/{proxy+}", "reads")
    return (rest, *(route for route in routes_of(bubble) if route.is_open or route.function != "reads"))
