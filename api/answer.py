"""What goes back: status, headers, body; problem details and conditional requests.  (pure)"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec

PROBLEM_TYPE = "application/problem+json"
JSON_TYPE = "application/json"
HTML_TYPE = "text/html; charset=utf-8"

_encoder = msgspec.json.Encoder()


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    status: int
    body: str = ""
    headers: Mapping[str, str] = {}

    def with_headers(self, headers: Mapping[str, str]) -> Answer:
        return msgspec.structs.replace(self, headers={**self.headers, **headers}) if headers else self


def freshness_headers(as_of: Mapping[str, datetime | None], unwatermarked: Sequence[str]) -> dict[str, str]:
    """How fresh an entity's rows are.

    as_of          source → its oldest watermark over the shards; None while a shard has none, or rows of it are known
                   to be missing (an open dead letter, a gap). `Data-As-Of` is the oldest; `Data-Incomplete` names
                   the sources without one instead
    unwatermarked  sources that cannot say; they neither hold back nor freshen, `Data-Unwatermarked` names them
    """
    headers: dict[str, str] = {}
    known = [time for time in as_of.values() if time is not None]
    unknown = sorted(source for source, time in as_of.items() if time is None)
    if unknown:
        headers["Data-Incomplete"] = ",".join(unknown)
    elif known:
        headers["Data-As-Of"] = rfc3339(min(known))
    if unwatermarked:
        headers["Data-Unwatermarked"] = ",".join(unwatermarked)
    return headers


def as_of_then(headers: Mapping[str, str], as_of: str | None) -> dict[str, str]:
    """The same headers with another `Data-As-Of`, none if it is not known, where there was one."""
    kept = {name: value for name, value in headers.items() if name != "Data-As-Of"}
    return kept | {"Data-As-Of": as_of} if as_of is not None and "Data-As-Of" in headers else kept


def rfc3339(time: datetime) -> str:
    """UTC with `Z`, the same form as in the bodies."""
    encoded: str = msgspec.to_builtins(time.astimezone(UTC))
    return encoded


def etag_of(body: str) -> str:
    """A strong entity tag: equal bytes, equal tag, whoever made them."""
    return f'"{hashlib.blake2b(body.encode(), digest_size=16).hexdigest()}"'


def representation(body: str, if_none_match: str | None) -> Answer:
    """200 with its ETag, or 304 without a body when the caller has exactly this."""
    etag = etag_of(body)
    if if_none_match is not None and _matches(if_none_match, etag):
        return Answer(status=304, headers={"ETag": etag})
    return Answer(status=200, body=body, headers={"Content-Type": JSON_TYPE, "ETag": etag})


def _matches(if_none_match: str, etag: str) -> bool:
    """RFC 9110: the weak comparison, as a proxy that compresses weakens the tag."""
    tags = [tag.strip() for tag in if_none_match.split(",")]
    return "*" in tags or any(tag.removeprefix("W/") == etag for tag in tags)


class Where(msgspec.Struct, frozen=True, rename={"place": "in"}):
    """Which part of the request is wrong: `place` is path or query."""

    place: str
    name: str


class Refused(Exception):
    """The request gets problem details instead of what it asked for.

    kind     the stable word that programs compare
    where    which part of the request is wrong, if one is
    headers  what the answer carries besides
    errors   where several things are wrong: each of them
    """

    def __init__(
        self, status: int, kind: str, title: str, detail: str, *,
        where: Where | None = None, headers: Mapping[str, str] | None = None, errors: Sequence[Mapping[str, object]] = (),
    ) -> None:  # fmt: skip
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.title = title
        self.where = where
        self.headers = headers or {}
        self.errors = tuple(errors)


class _Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    type: str
    title: str
    status: int
    detail: str
    where: Where | None = None
    errors: tuple[Mapping[str, object], ...] = ()
    request_id: str = ""


def problem(refused: Refused, request_id: str) -> Answer:
    """RFC 9457 problem details."""
    shown = _Problem(
        type=f"urn:tidegate:problem:{refused.kind}",
        title=refused.title,
        status=refused.status,
        detail=str(refused),
        where=refused.where,
        errors=refused.errors,
        request_id=request_id,
    )
    return Answer(
        status=refused.status,
        body=_encoder.encode(shown).decode(),
        headers={"Content-Type": PROBLEM_TYPE, **refused.headers},
    )
