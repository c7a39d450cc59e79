"""What comes in at the edge: events that browsers and other systems send, by the types that the bubble declares.  (pure)

The API judges what is offered and stamps it; the worker reads what was stamped and files it. Both do it here, so the two
agree. What the sender says of itself counts for nothing: `source` is the client of the verified token, `subject` is
whoever signed in, and by both together with the id a repetition is known. So nobody can take an id from somebody else.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from tidegate.edge import Inbound
from tidegate.errors import Rejected

_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_ID = Annotated[str, Meta(min_length=1, max_length=255)]
_REFERENCE = Annotated[str, Meta(max_length=2_048)]
Time = Annotated[datetime, Meta(tz=True)]
"""A time with its offset from UTC."""

Viewers = dict[str, list[str]]


class Offered(Struct, frozen=True, kw_only=True, rename={"event_type": "type", "media_type": "datacontenttype"}):
    """A CloudEvent 1.0 in JSON, as senders write it; `source` and `subject` may be there and are replaced."""

    specversion: Literal["1.0"]
    event_type: str
    data: Raw
    id: _ID | None = None
    source: _REFERENCE | None = None
    subject: _REFERENCE | None = None
    time: Time | None = None
    media_type: Literal["application/json"] = "application/json"
    data_base64: UnsetType = UNSET


class Arrival(Struct, frozen=True, kw_only=True, rename={"event_type": "type"}):
    """An event as it stands in the stream of arrivals, stamped.

    id        the sender's own, or made of the request's Idempotency-Key
    source    the client that sent it, as a URN
    subject   whoever signed in there, by the issuer's name
    time      when it happened, as the sender says, else when it came
    received  when it came, by the API's clock
    viewers   whom the token named, so that a reader of the table need not know tokens
    """

    id: str
    source: str
    event_type: str
    subject: str
    time: Time
    received: Time = msgspec.field(name="tidegatereceived")
    viewers: str = msgspec.field(name="tidegateviewers")
    data: Raw
    specversion: Literal["1.0"] = "1.0"
    datacontenttype: Literal["application/json"] = "application/json"

    @property
    def identity(self) -> str:
        """By which a repetition is known: 32 hexadecimal digits."""
        hashed = hashlib.blake2b(digest_size=16)
        for part in (self.source, self.subject, self.id):
            raw = part.encode(errors="surrogatepass")
            hashed.update(b"%d:%s" % (len(raw), raw))
        return hashed.hexdigest()


class Stamp(Struct, frozen=True, kw_only=True):
    """What the API knows of a request, and every event of it gets."""

    client: str
    subject: str
    viewers: Viewers
    received: datetime
    idempotency_key: str | None = None


_offered = msgspec.json.Decoder(Offered)
_arrival = msgspec.json.Decoder(Arrival)
_viewers = msgspec.json.Decoder(Viewers)
_encoder = msgspec.json.Encoder()


class Desk:
    """Judges events by the bubble's declarations."""

    def __init__(self, declared: Iterable[Inbound]) -> None:
        self._declared: Mapping[str, Inbound] = {each.event_type: each for each in declared}
        self._data = {name: msgspec.json.Decoder(each.data) for name, each in self._declared.items()}

    @property
    def types(self) -> tuple[str, ...]:
        return tuple(self._declared)

    def stamped(self, offered: bytes, stamp: Stamp, index: int) -> Arrival:
        """The event that is put on the stream; `index` is its place in the request.

        Raises Rejected: `undecodable`, `unknown_type`, `forbidden` (not for this sender), `no_id` or `invalid`.
        """
        try:
            event = _offered.decode(offered)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Rejected("undecodable", f"this is no CloudEvent 1.0 in JSON: {error}") from error
        declared = self._judge(event.event_type, event.data)
        if not stamp.viewers.keys() & set(declared.senders):
            raise Rejected("forbidden", f"{event.event_type} may be sent by {' or '.join(declared.senders)} only")
        event_id = event.id or _made_id(stamp, index)
        if event_id is None:
            raise Rejected("no_id", "give the event an id, or the request an Idempotency-Key")
        if fault := _text_fault(event_id):
            raise Rejected("invalid", f"id: {fault}")
        time = stamp.received if event.time is None else event.time
        return Arrival(
            id=event_id,
            source=source_of(stamp.client),
            event_type=event.event_type,
            subject=stamp.subject,
            time=_in_utc(time),
            received=stamp.received,
            viewers=_encoder.encode(stamp.viewers).decode(),
            data=event.data,
        )

    def read(self, record: bytes) -> Arrival:
        """What a record of the stream of arrivals holds. Raises Rejected: `undecodable`, `unknown_type`, `invalid`."""
        try:
            event = _arrival.decode(record)
            _viewers.decode(event.viewers)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Rejected("undecodable", f"this is no event that the API stamped: {error}") from error
        self._judge(event.event_type, event.data)
        for name in ("id", "source", "subject", "viewers"):
            if fault := _text_fault(getattr(event, name)):
                raise Rejected("invalid", f"{name}: {fault}")
        for time in (event.time, event.received):
            _in_utc(time)
        return event

    def _judge(self, event_type: str, data: Raw) -> Inbound:
        """The declaration of a type, if the data fits it. Raises Rejected."""
        declared = self._declared.get(event_type)
        if declared is None:
            known = ", ".join(self._declared) or "none"
            raise Rejected(
                "unknown_type", f"there is no inbound event of the type {event_type[:100]!r}; there are: {known}"
            )
        if _NUL.search(bytes(data)):
            raise Rejected("invalid", "data: a text holds NUL, which the database cannot keep")
        try:
            self._data[event_type].decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
            raise Rejected("invalid", f"data: {error}") from error
        return declared


def encode(event: Arrival) -> bytes:
    """A record of the stream of arrivals."""
    return _encoder.encode(event)


def viewers_of(event: Arrival) -> Viewers:
    """Whom the token named."""
    return _viewers.decode(event.viewers)


def source_of(client: str) -> str:
    """The `source` of what a client sends, a URN whatever the client is called."""
    return f"urn:tidegate:client:{quote(client, safe='', errors='replace')}"


def arrival_schema(declared: Iterable[Inbound], ref_template: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON Schema of what senders offer, and those of the data that it refers to, by name."""
    declared = tuple(declared)
    made, named = msgspec.json.schema_components([each.data for each in declared], ref_template=ref_template)
    events = [_offer_schema(each, schema) for each, schema in zip(declared, made, strict=True)]
    return {"oneOf": events} if len(events) != 1 else events[0], named


def _offer_schema(inbound: Inbound, data: dict[str, Any]) -> dict[str, Any]:
    text = {"type": "string", "maxLength": 255, "minLength": 1}
    properties = {
        "specversion": {"const": "1.0"},
        "type": {"const": inbound.event_type},
        "id": {**text, "description": "Without one the request needs an Idempotency-Key."},
        "source": {"type": "string", "description": "Replaced by the client of the token."},
        "subject": {"type": "string", "description": "Replaced by the subject of the token."},
        "time": {"type": "string", "format": "date-time"},
        "datacontenttype": {"const": "application/json"},
        "data": data,
    }
    return {"type": "object", "properties": properties, "required": ["specversion", "type", "data"]}


def _made_id(stamp: Stamp, index: int) -> str | None:
    if stamp.idempotency_key is None:
        return None
    key = stamp.idempotency_key.encode(errors="surrogatepass")
    return hashlib.blake2b(b"%d:%s" % (index, key), digest_size=16).hexdigest()


def _text_fault(text: str) -> str | None:
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        return "it holds a character that the database cannot keep"
    return None


def _in_utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError as error:
        raise Rejected("invalid", "a time that in UTC is outside of the years 1 to 9999") from error
