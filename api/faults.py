"""What every function answers alike: what is refused, the headers of all answers, the faults that are no caller's.  (pure)"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from api.answer import Answer, Refused, problem
from api.request import Request
from tidegate.errors import Fatal, Rejected, Transient

FATAL_RETRY_AFTER_S = 30

_ALWAYS = {
    "Cache-Control": "private, no-cache",
    "Vary": "Authorization",
    # Computed now, unless the answer says otherwise.
    "Age": "0",
    # What is answered is data: nothing that a browser should guess at, run, frame, or tell others the address of.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
}


async def answered(request: Request, route: Callable[[Request], Awaitable[Answer]]) -> Answer:
    """What `route` answers, or why it refuses to, with the headers of all answers."""
    try:
        answer = await route(request)
    except Refused as refused:
        answer = problem(refused, request.request_id)
    return finished(answer, request.request_id)


def at(request: Request, path: str, methods: Sequence[str]) -> None:
    """Raises Refused unless the request is for this address, by one of these methods."""
    if request.path != path:
        raise Refused(404, "no-such-collection", "No such address", f"there is {path}")
    if request.method not in methods:
        allowed = ", ".join(methods)
        detail = f"{path} takes {allowed}"
        raise Refused(405, "method-not-allowed", "Method not allowed", detail, headers={"Allow": allowed})


def finished(answer: Answer, request_id: str) -> Answer:
    """The headers that every answer carries; what an answer says itself stands."""
    return msgspec.structs.replace(answer, headers={**_ALWAYS, **answer.headers, "X-Request-Id": request_id})


def unavailable(error: Transient | Fatal, request_id: str) -> Answer:
    """503 with Retry-After; what exactly is wrong is for the log, not for the caller."""
    retry_after_s = FATAL_RETRY_AFTER_S
    if isinstance(error, Transient):
        retry_after_s = max(1, math.ceil(error.retry_after_s or 1))
    detail = "this cannot be answered at the moment; nothing is lost, try again"
    headers = {"Retry-After": str(retry_after_s)}
    refused = Refused(503, "unavailable", "Service unavailable", detail, headers=headers)
    return finished(problem(refused, request_id), request_id)


def unacceptable(error: Rejected, request_id: str) -> Answer:
    """400 for a value that only the database knew to be impossible."""
    detail = f"a value of this request cannot be looked up ({error.reason}); check the key or the cursor"
    refused = Refused(400, "bad-value", "Bad value", detail)
    return finished(problem(refused, request_id), request_id)
