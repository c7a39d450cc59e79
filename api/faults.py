"""What every function answers alike: the headers of all answers, and the faults that are no caller's.  (pure)"""

from __future__ import annotations

import math

from api.answer import Answer, Refused, problem
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


def finished(answer: Answer, request_id: str) -> Answer:
    """The headers that every answer carries; what an answer says itself stands."""
    return answer.with_headers({**_ALWAYS, **answer.headers, "X-Request-Id": request_id})


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
