"""Events ⇄ bytes: CloudEvents 1.0 in JSON.  (pure)

Poller and worker meet here. docs/EVENTS.md states the contract for others. A change looks so:

    {"specversion": "1.0", "id": "…", "source": "/parcels/parcels", "type": "tidegate.parcel.upsert",
     "subject": "P0001234", "time": "2026-11-21T05:55:03Z", "datacontenttype": "application/json",
     "tidegateversion": "0.1795240503000000.3.17.1", "tidegatecause": "live",
     "tidegateobserved": "2026-11-21T05:55:04Z", "data": {"number": "P0001234", …}}

CloudEvents allows extension attributes of lower-case letters and digits only; the version is its five numbers
joined by dots.
"""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import datetime
from typing import Any

import msgspec

from tidegate.errors import Rejected
from tidegate.event import Cause, ChangeEvent, EntityKey, Operation, QuarantineRecord, StreamEvent, Version, Watermark

_PREFIX = "tidegate."
_WATERMARK = "tidegate.watermark"
_QUARANTINE = "tidegate.quarantine"


class _Envelope(msgspec.Struct, kw_only=True, omit_defaults=True):
    specversion: str
    id: str
    source: str
    type: str
    time: datetime
    subject: str | None = None
    datacontenttype: str | None = None
    tidegateversion: str | None = None
    tidegatecause: Cause | None = None
    tidegateobserved: datetime | None = None
    data: dict[str, Any] | None = None


class _QuarantineData(msgspec.Struct, kw_only=True):
    """The `data` of a quarantine record; the raw row travels in base64, for it may be anything."""

    entity: str
    stage: str
    reason: str
    message: str
    raw_base64: str


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Envelope)
_VERSION = re.compile(r"[0-9]{1,19}(?:\.[0-9]{1,19}){4}")
# What a bigint column holds.
_MOST_VERSION = 2**63 - 1


def encode(event: StreamEvent) -> bytes:
    """One event as the bytes of one Kinesis record."""
    return _encoder.encode(_envelope(event))


def decode(data: bytes) -> StreamEvent:
    """The event in one record.

    Raises:
        Rejected: reason `undecodable` (not JSON, not CloudEvents 1.0) or `unknown_type`.
    """
    try:
        envelope = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # RecursionError: arrays in arrays without end are somebody's garbage, not a bug of ours.
        raise Rejected("undecodable", f"not a CloudEvent: {error}") from error
    if envelope.specversion != "1.0":
        raise Rejected("undecodable", f"CloudEvents specversion {envelope.specversion!r} is not 1.0")
    if envelope.type == _WATERMARK:
        return Watermark(event_id=envelope.id, source=envelope.source, as_of=envelope.time)
    if envelope.type == _QUARANTINE:
        return _quarantine(envelope)
    return _change(envelope)


def event_id(key: EntityKey, version: Version, operation: Operation) -> str:
    """Stable for one observed state, so that a resent event keeps its id and effects can be told apart."""
    text = f"{key}\n{encode_version(version)}\n{operation}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def encode_version(version: Version) -> str:
    return ".".join(str(part) for part in version)


def decode_version(text: str) -> Version:
    """Raises ValueError for anything but five whole numbers joined by dots, from 0 to what 63 bits hold."""
    if _VERSION.fullmatch(text):
        version = Version._make(map(int, text.split(".")))
        if max(version) <= _MOST_VERSION:
            return version
    raise ValueError(f"{text!r} is not a version: five whole numbers below 2^63 joined by dots")


def _envelope(event: StreamEvent) -> _Envelope:
    if isinstance(event, Watermark):
        return _Envelope(specversion="1.0", id=event.event_id, source=event.source, type=_WATERMARK, time=event.as_of)
    if isinstance(event, QuarantineRecord):
        return _Envelope(
            specversion="1.0", id=event.event_id, source=event.source, type=_QUARANTINE, time=event.observed_at,
            subject=event.key, datacontenttype="application/json",
            data={
                "entity": event.entity, "stage": event.stage, "reason": event.reason, "message": event.message,
                "raw_base64": base64.b64encode(event.raw).decode(),
            },
        )  # fmt: skip
    return _Envelope(
        specversion="1.0",
        id=event.event_id,
        source=event.source,
        type=f"{_PREFIX}{event.key.entity}.{event.operation}",
        time=event.occurred_at,
        subject=event.key.key,
        datacontenttype=None if event.payload is None else "application/json",
        tidegateversion=encode_version(event.version),
        tidegatecause=event.cause,
        tidegateobserved=event.observed_at,
        data=event.payload,
    )


def _change(envelope: _Envelope) -> ChangeEvent:
    prefix, _, rest = envelope.type.partition(".")
    entity, _, operation = rest.rpartition(".")
    if prefix != "tidegate" or not entity or operation not in (Operation.UPSERT, Operation.DELETE):
        raise Rejected("unknown_type", f"event type {envelope.type!r} is none of tidegate's")
    if envelope.subject is None or envelope.tidegateversion is None or envelope.tidegatecause is None:
        raise Rejected("undecodable", "a change needs subject, tidegateversion and tidegatecause")
    try:
        version = decode_version(envelope.tidegateversion)
    except ValueError as error:
        raise Rejected("undecodable", str(error)) from error
    if (envelope.data is None) != (operation == Operation.DELETE):
        raise Rejected("undecodable", f"an {operation} event {'needs' if envelope.data is None else 'has no'} data")
    return ChangeEvent(
        event_id=envelope.id,
        key=EntityKey(entity, envelope.subject),
        version=version,
        operation=Operation(operation),
        cause=envelope.tidegatecause,
        source=envelope.source,
        occurred_at=envelope.time,
        observed_at=envelope.tidegateobserved or envelope.time,
        payload=envelope.data,
    )


def _quarantine(envelope: _Envelope) -> QuarantineRecord:
    try:
        parts = msgspec.convert(envelope.data, _QuarantineData)
        raw = base64.b64decode(parts.raw_base64, validate=True)
    # msgspec.ValidationError is a ValueError, as is what base64 raises.
    except ValueError as error:
        raise Rejected("undecodable", f"a quarantine record without its parts: {error}") from error
    return QuarantineRecord(
        event_id=envelope.id,
        source=envelope.source,
        entity=parts.entity,
        stage=parts.stage,
        reason=parts.reason,
        message=parts.message,
        raw=raw,
        observed_at=envelope.time,
        key=envelope.subject,
    )
