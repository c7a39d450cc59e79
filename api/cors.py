"""Pages of other origins that may ask: the answers to their browsers.  (pure)

Tokens travel in the Authorization header and nothing is kept in cookies, so `Access-Control-Allow-Credentials` is never
sent. An origin is allowed by its full name; there is no wildcard.
"""

from __future__ import annotations

from collections.abc import Sequence

from api.answer import Answer
from api.request import Request

_READABLE = (
    "Age", "Data-As-Of", "Data-Incomplete", "Data-Stale", "Data-Unwatermarked", "ETag", "Next-Cursor", "Retry-After",
    "WWW-Authenticate", "X-Request-Id",
)  # fmt: skip
_SENDABLE = ("Authorization", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match", "Last-Event-ID")
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_PREFLIGHT_KEPT_S = 7_200


class Cors:
    """Which origins may ask. None: no header is sent, and browsers let pages of the same origin ask only."""

    def __init__(self, origins: Sequence[str] = ()) -> None:
        self._origins = frozenset(origin.rstrip("/") for origin in origins)

    def preflight(self, request: Request) -> Answer | None:
        """The answer to a browser that asks whether it may ask; None for everything else."""
        if request.method != "OPTIONS" or "access-control-request-method" not in request.headers:
            return None
        if not self._allows(request):
            return None
        headers = {
            "Access-Control-Allow-Methods": ", ".join(_METHODS),
            "Access-Control-Allow-Headers": ", ".join(_SENDABLE),
            "Access-Control-Max-Age": str(_PREFLIGHT_KEPT_S),
        }
        return Answer(status=204, headers=headers)

    def shown(self, request: Request, answer: Answer) -> Answer:
        """The answer with what lets the page read it."""
        if not self._origins:
            return answer
        varied = answer.headers.get("Vary", "")
        headers = {"Vary": f"{varied}, Origin" if varied else "Origin"}
        if self._allows(request):
            headers["Access-Control-Allow-Origin"] = request.headers["origin"]
            headers["Access-Control-Expose-Headers"] = ", ".join(_READABLE)
        return answer.with_headers(headers)

    def _allows(self, request: Request) -> bool:
        return request.headers.get("origin", "") in self._origins


NO_CORS = Cors()
