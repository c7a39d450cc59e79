"""The registry of problem types: what `type` in an answer of kind application/problem+json can be.  (pure)

A type is urn:tidegate:problem:<kind>. Kinds are stable: programs compare them, while titles and details are for people. The
same registry stands in docs/API.md; a test holds the two and the code together.
"""

from __future__ import annotations

from collections.abc import Mapping

PREFIX = "urn:tidegate:problem:"

READS: Mapping[str, tuple[int, str]] = {
    "unknown-parameter": (400, "the address takes no parameter of this name; `detail` lists those that it takes"),
    "bad-limit": (400, "`limit` is no number in its range"),
    "bad-cursor": (400, "the cursor was not given by this API, to this caller, for this query"),
    "bad-filter": (400, "the field has no such operator, or the value is none of its type"),
    "bad-sort": (400, "`sort` names a field that is not sorted by, one twice, or too many"),
    "bad-fields": (400, "`fields` names a field that there is not, or one twice"),
    "bad-embed": (400, "`embed` names something that is not embedded here, or one thing twice"),
    "bad-value": (400, "only the database could tell that a value is impossible"),
    "report-too-large": (400, "the report has more lines than it may have; filter it"),
    "unidentified": (401, "there is no access token, or one that does not count"),
    "insufficient-scope": (403, "the token has none of the scopes that open the address"),
    "no-such-collection": (404, "there is no such address"),
    "no-such-report": (404, "no report of this name is declared"),
    "no-such-row": (404, "there is no row of this key that the caller may see"),
    "method-not-allowed": (405, "the address does not take this method; `Allow` lists those that it takes"),
    "body-timeout": (408, "the body of the request did not come in time; only where the API is a service of its own"),
    "cursor-gone": (410, "the cursor of changes is too old, or of another database; begin anew"),
    "too-many-requests": (429, "as many requests or streams are under way as there may be; Retry-After says when"),
    "unavailable": (503, "it cannot be answered at the moment; Retry-After says when to try again"),
}  # fmt: skip
"""Kind → status and meaning, for all that reads can answer."""
