"""POST /v1/events: events of the types that the bubble declares, one or a batch, onto a stream of their own.

    {"specversion": "1.0", "id": …, "type": …, "data": {…}}      application/cloudevents+json or application/json
    [{…}, {…}]                                                   application/cloudevents-batch+json or application/json

A request is judged whole: one event that does not fit, and none is sent, with each fault named by its place. 202 says that
Kinesis has all of them; 207 that it has some, with the outcome of each; 503 that it has none. Whoever sends the
same events once more does no harm, for they are known by their ids, or by the request's Idempotency-Key. The back office
has them when the worker has filed them, not when this answers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

import msgspec

from api.access import Caller, identified
from api.answer import Answer, Refused
from api.faults import answered, at
from api.request import Request
from api.routes import EVENTS as PATH
from api.settings import IngestSettings
from tidegate.bubble import Bubble
from tidegate.errors import Rejected, Transient
from tidegate.inbound import Arrival, Desk, Stamp, encode

_SINGLE = ("application/cloudevents+json",)
_BATCH = ("application/cloudevents-batch+json",)
_EITHER = ("application/json",)
_LONGEST_KEY = 255
_ERRORS_SHOWN = 20

_raw_batch = msgspec.json.Decoder(list[msgspec.Raw])
_raw = msgspec.json.Decoder(msgspec.Raw)
_encoder = msgspec.json.Encoder()


class Post(msgspec.Struct, frozen=True):
    """One record: its partition key, and its bytes."""

    partition_key: str
    data: bytes


class Arrivals(Protocol):
    """The stream of arrivals. `api.ingest_handler` has the adapter."""

    async def put(self, posts: Sequence[Post]) -> list[bool]:
        """Whether the stream has each of them. Raises Transient when nothing was answered, or Fatal."""
        ...


class _Result(msgspec.Struct, frozen=True, omit_defaults=True):
    id: str
    status: str
    detail: str | None = None


class Ingest:
    """The one route. `clock` is the time in UTC."""

    def __init__(
        self, bubble: Bubble, arrivals: Arrivals, settings: IngestSettings, clock: Callable[[], datetime]
    ) -> None:
        self._bubble = bubble
        self._desk = Desk(bubble.inbound)
        self._arrivals = arrivals
        self._settings = settings
        self._clock = clock

    async def answer(self, request: Request) -> Answer:
        """Raises Transient or Fatal when the stream cannot be written to at all."""
        return await answered(request, self._routed)

    async def _routed(self, request: Request) -> Answer:
        at(request, PATH, ("POST",))
        caller = identified(request, self._bubble)
        events = self._judged(request, caller)
        return self._told(events, await self._sent(events))

    def _judged(self, request: Request, caller: Caller) -> list[Arrival]:
        """The request's events, stamped. Raises Refused."""
        stamp = Stamp(
            client=caller.client, subject=caller.subject, viewers=caller.viewers, received=self._clock(),
            idempotency_key=_idempotency_key(request),
        )  # fmt: skip
        events, errors, reasons = [], [], set()
        for index, offered in enumerate(self._offered(request)):
            try:
                events.append(self._stamped(bytes(offered), stamp, index))
            except Rejected as rejected:
                reasons.add(rejected.reason)
                errors.append({"index": index, "reason": rejected.reason, "detail": str(rejected)[:500]})
        if not errors and len({event.id for event in events}) < len(events):
            reasons.add("invalid")
            errors.append({"index": len(events) - 1, "reason": "invalid", "detail": "two events have the same id"})
        if errors:
            detail = f"{len(errors)} of the events cannot be taken, so none was; first: {errors[0]['detail']}"
            shown = tuple(errors[:_ERRORS_SHOWN])
            if reasons == {"forbidden"}:
                raise Refused(403, "forbidden-event", "Forbidden", detail, errors=shown)
            raise Refused(400, "bad-event", "Bad event", detail, errors=shown)
        return events

    def _stamped(self, offered: bytes, stamp: Stamp, index: int) -> Arrival:
        most = self._settings.max_event_bytes
        if len(offered) > most:
            raise Rejected("too_large", f"the event is larger than {most} bytes")
        return self._desk.stamped(offered, stamp, index)

    def _offered(self, request: Request) -> Sequence[msgspec.Raw]:
        settings = self._settings
        if len(request.body) > settings.max_body_bytes:
            detail = f"the request is larger than {settings.max_body_bytes} bytes; send fewer events at a time"
            raise Refused(413, "too-large", "Content too large", detail)
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media not in (*_SINGLE, *_BATCH, *_EITHER):
            detail = f"send {', '.join((*_SINGLE, *_BATCH, *_EITHER))}"
            raise Refused(415, "bad-media-type", "Unsupported media type", detail, headers={"Accept-Post": detail[5:]})
        is_batch = media in _BATCH or (media in _EITHER and request.body.lstrip(b" \t\r\n").startswith(b"["))
        try:
            offered = _raw_batch.decode(request.body) if is_batch else [_raw.decode(request.body)]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            wanted = "a JSON array of events" if is_batch else "one event in JSON"
            raise Refused(400, "bad-body", "Bad body", f"the body is not {wanted}: {error}") from error
        if not 1 <= len(offered) <= settings.max_events:
            detail = f"the batch has {len(offered)} events; it must be 1 to {settings.max_events}"
            raise Refused(400, "bad-batch", "Bad batch", detail)
        return offered

    async def _sent(self, events: Sequence[Arrival]) -> list[bool]:
        """Whether Kinesis has each event, after a few tries of those that it refused."""
        posts = [Post(event.subject[:256], encode(event)) for event in events]
        has = [False] * len(posts)
        settings = self._settings
        for attempt in range(settings.attempts):
            waiting = [place for place, done in enumerate(has) if not done]
            try:
                outcomes = await self._arrivals.put([posts[place] for place in waiting])
            except Transient:
                # Whether it has them is not known; once more does no harm.
                if attempt + 1 == settings.attempts and not any(has):
                    raise
                outcomes = [False] * len(waiting)
            for place, done in zip(waiting, outcomes, strict=True):
                has[place] = done
            if all(has):
                break
            if attempt + 1 < settings.attempts:
                await asyncio.sleep(random.uniform(0, settings.retry_max_ms / 1000 * 2**attempt))
        return has

    def _told(self, events: Sequence[Arrival], has: Sequence[bool]) -> Answer:
        if not any(has):
            raise Transient("the stream of arrivals refuses records", retry_after_s=self._settings.retry_after_s)
        again = "the stream did not take it; send it once more, with the same id"
        results = [
            _Result(event.id, "accepted") if done else _Result(event.id, "failed", again)
            for event, done in zip(events, has, strict=True)
        ]
        headers = {"Content-Type": "application/json"}
        if not all(has):
            headers["Retry-After"] = str(self._settings.retry_after_s)
        body = _encoder.encode({"results": results}).decode()
        return Answer(status=202 if all(has) else 207, body=body, headers=headers)


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not (1 <= len(key) <= _LONGEST_KEY and key.isascii() and key.isprintable()):
        detail = f"Idempotency-Key is 1 to {_LONGEST_KEY} printable signs of ASCII, such as a UUID"
        raise Refused(400, "bad-idempotency-key", "Bad Idempotency-Key", detail)
    return key
