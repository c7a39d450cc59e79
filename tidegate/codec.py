"""Events ⇄ bytes: CloudEvents 1.0 in JSON.  (pure)

Poller and worker meet here. docs/EVENTS.md states the contract for others. A change looks so:

    {"type": "tidegate.parcel.upsert", "specversion": "1.0", "id": "…", "source": "parcels",
     "subject": "P0001234", "time": "2026-11-21T05:55:03Z", "tidegateversion": "0.1795240503000000.3.17.1",
     "tidegatecause": "live", "tidegateobserved": "2026-11-21T05:55:04Z", "data": {"number": "P0001234", …}}

CloudEvents allows extension attributes of lower-case letters and digits only; the version is its five numbers
joined by dots. The type comes first, because that is quickest to read; any order is understood.

There are two ways to read. `decode` takes one record of any kind and says what is wrong with it. `TypedDecoder` takes
many at once, straight into the entities, and says nothing but "all are good" or "not all are". And two to write: `encode`
takes any event, `encode_upserts` the many that one answer of a back office makes.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import repeat
from operator import itemgetter
from typing import Any, ClassVar, Literal, NamedTuple, Union, cast

import msgspec
from msgspec import field
from msgspec.structs import force_setattr

from tidegate import claim
from tidegate.entity import Entity, EntityShape, describe, tolerant
from tidegate.errors import Rejected
from tidegate.event import Cause, ChangeEvent, EntityKey, Operation, QuarantineRecord, StreamEvent, Version, Watermark

_PREFIX = "tidegate."
_WATERMARK = "tidegate.watermark"
_QUARANTINE = "tidegate.quarantine"


class _Envelope(msgspec.Struct, kw_only=True, omit_defaults=True):
    type: str
    specversion: str
    id: str
    source: str
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
_parts = msgspec.json.Decoder(dict[str, msgspec.Raw])
_OPERATIONS = {operation.value: operation for operation in Operation}
_VERSION = re.compile(r"[0-9]{1,19}(?:\.[0-9]{1,19}){4}")
# What a bigint column holds.
_MOST_VERSION = 2**63 - 1
_DOTTED = bytes.maketrans(b",", b".")


def encode(event: StreamEvent) -> bytes:
    """One event as the bytes of one Kinesis record."""
    return _encoder.encode(_envelope(event))


class Upserts(NamedTuple):
    """The upserts that one answer of a back office makes: a column for each of ChangeEvent's fields that differ in them.

    `payloads` are JSON objects already; `versions` may be plain tuples of a Version's numbers.
    """

    keys: Sequence[str]
    versions: Sequence[tuple[int, int, int, int, int]]
    causes: Sequence[Cause]
    occurred_at: Sequence[datetime]
    payloads: Sequence[bytes]


def encode_upserts(entity: str, source: str, observed_at: datetime, upserts: Upserts) -> list[bytes]:
    """What `encode` makes of each, under the id that `event_id` gives it. Raises ValueError for columns of unequal length."""
    head = b'{"type":%b,"specversion":"1.0","id":"' % _encoder.encode(f"{_PREFIX}{entity}.{Operation.UPSERT}")
    from_ = b'","source":%b,"time":' % _encoder.encode(source)
    observed = b',"tidegateobserved":%b,"data":' % _encoder.encode(observed_at)
    versions = _version_texts(upserts.versions)
    ids = _event_ids(entity, upserts.keys, versions, Operation.UPSERT)
    times, subjects, causes = _texts(upserts.occurred_at), _texts(upserts.keys), _texts(upserts.causes)
    return [
        b"".join(
            (
                head, identity, from_, time, b',"subject":', subject, b',"tidegateversion":"', version,
                b'","tidegatecause":', cause, observed, payload, b"}",
            )
        )
        for identity, time, subject, version, cause, payload in zip(
            ids, times, subjects, versions, causes, upserts.payloads, strict=True
        )
    ]  # fmt: skip


def _texts(values: Iterable[object]) -> list[bytes]:
    """The JSON of each value."""
    # JSON has no line feed inside of a text.
    return _encoder.encode_lines(values).split(b"\n")[:-1]


def decode(data: bytes) -> StreamEvent:
    """The event in one record.

    Raises:
        Rejected: reason `undecodable` (not JSON, not CloudEvents 1.0), `unknown_type`, or `claim_unresolved` (a reference
            to a record that is kept elsewhere, see `tidegate.claim`).
    """
    if claim.is_claim(data):
        raise Rejected(
            "claim_unresolved",
            "the record is a reference to an S3 object that was not read, or is not there; give the workers the pollers' "
            "TIDEGATE_CLAIM_BUCKET, then replay this letter",
        )
    try:
        _check_text(data)
        envelope = _read(data)
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


def _read(data: bytes) -> _Envelope:
    """Raises msgspec.DecodeError. Numbers that Python has no value for are for the entity's types to judge, if anybody."""
    try:
        return _decoder.decode(data)
    except msgspec.ValidationError:
        parts: dict[str, Any] = _parts.decode(data)
        payload = bytes(parts.get("data", b""))
        if not payload.startswith(b"{"):
            raise
        envelope = _decoder.decode(_encoder.encode(parts | {"data": None}))
        envelope.data = {name: _value(text) for name, text in _parts.decode(payload).items()}
        return envelope


def _value(text: msgspec.Raw) -> Any:
    """What the JSON text says; the text itself where it holds a number such as 1e999, for it is encoded as it stood."""
    try:
        return msgspec.json.decode(text)
    except msgspec.ValidationError:
        return text.copy()


def _check_text(data: bytes) -> None:
    """Raises UnicodeDecodeError for what is not UTF-8, and so not JSON: msgspec looks only at fields that it is asked for."""
    if not data.isascii():
        data.decode()


def event_id(key: EntityKey, version: Version, operation: Operation) -> str:
    """Stable for one observed state, so that a resent event keeps its id and effects can be told apart."""
    [found] = _event_ids(key.entity, [key.key], _version_texts([version]), operation)
    return found.decode()


def _event_ids(entity: str, keys: Iterable[str], versions: Iterable[bytes], operation: Operation) -> Iterator[bytes]:
    begun, end = hashlib.blake2b(f"{entity}:".encode(), digest_size=16), f"\n{operation}".encode()
    for key, version in zip(keys, versions, strict=True):
        # A copy is quicker to have than a new one.
        digest = begun.copy()
        digest.update(b"%b\n%b%b" % (key.encode(), version, end))
        yield digest.hexdigest().encode()


def encode_version(version: Version) -> str:
    [text] = _version_texts([version])
    return text.decode()


def _version_texts(versions: Iterable[tuple[int, int, int, int, int]]) -> list[bytes]:
    # As JSON a version is a list of its numbers.
    return _encoder.encode_lines(versions).translate(_DOTTED, b"[]").split(b"\n")[:-1]


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
            subject=event.key,
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
        tidegateversion=encode_version(event.version),
        tidegatecause=event.cause,
        tidegateobserved=event.observed_at,
        data=event.payload,
    )


def _change(envelope: _Envelope) -> ChangeEvent:
    prefix, _, rest = envelope.type.partition(".")
    entity, _, name = rest.rpartition(".")
    operation = _OPERATIONS.get(name)
    if prefix != "tidegate" or not entity or operation is None:
        raise Rejected("unknown_type", f"event type {envelope.type!r} is none of tidegate's")
    if envelope.subject is None or envelope.tidegateversion is None or envelope.tidegatecause is None:
        raise Rejected("undecodable", "a change needs subject, tidegateversion and tidegatecause")
    try:
        version = decode_version(envelope.tidegateversion)
    except ValueError as error:
        raise Rejected("undecodable", str(error)) from error
    if (envelope.data is None) != (operation is Operation.DELETE):
        raise Rejected("undecodable", f"an {operation} event {'needs' if envelope.data is None else 'has no'} data")
    return ChangeEvent(
        event_id=envelope.id,
        key=EntityKey(entity, envelope.subject),
        version=version,
        operation=operation,
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


class TypedChange(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type"):
    """A change read by TypedDecoder: all that a ChangeEvent is, with the entity itself for a payload.

    `data` is None for a deletion. The garbage collector need not look at it: nothing in it can refer back.
    """

    shape: ClassVar[EntityShape]
    operation: ClassVar[Operation]

    specversion: Literal["1.0"]
    event_id: str = field(name="id")
    source: str
    occurred_at: datetime = field(name="time")
    subject: str
    datacontenttype: Literal["application/json"] | None = None
    version: Version = field(name="tidegateversion")
    cause: Cause = field(name="tidegatecause")
    observed_at: datetime = field(name="tidegateobserved")
    data: Entity | None = None

    @property
    def key(self) -> EntityKey:
        return EntityKey(self.shape.name, self.subject)


class TypedChanges(NamedTuple):
    """What some records hold, in their order, None in the place of a watermark or a quarantine record; `others` counts those.

    `alike` has the changes of each kind.
    """

    events: list[TypedChange | None]
    alike: Mapping[type[TypedChange], Sequence[TypedChange]]
    others: int


class _Watermark(msgspec.Struct, gc=False, tag_field="type", tag=_WATERMARK):
    pass


class _Quarantine(msgspec.Struct, gc=False, tag_field="type", tag=_QUARANTINE):
    pass


_versions = msgspec.json.Decoder(list[Version])
_BETWEEN = "],["
_DOTS_TO_COMMAS = bytes.maketrans(b".", b",")
_first, _last = itemgetter(0), itemgetter(-1)
_BRACES = ({ord("{")}, {ord("}")})


class TypedDecoder:
    """Reads many records of known entities in a few steps, none of which is taken record by record in Python."""

    def __init__(self, entities: Iterable[type[Entity]]) -> None:
        self._types = {
            (describe(cls).name, operation): _typed(cls, operation) for cls in entities for operation in Operation
        }
        every = (_Watermark, _Quarantine, *self._types.values())
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Union[every])  # noqa: UP007  (made at run time)

    def decode(self, records: Sequence[bytes]) -> TypedChanges | None:
        """What is in the records.

        Answers None, instead of raising, when any of the records is not plainly good: not an event, of another entity,
        or merely unusual. `decode` one by one then says which and why.
        """
        if not _are_objects(records):
            return None
        lines = b"\n".join(records)
        try:
            _check_text(lines)
            events = self._decoder.decode_lines(lines)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if len(events) != len(records):
            return None
        found = _told_apart(events)
        return found if all(map(_settle_versions, found.alike.values())) else None

    def typed(self, event: ChangeEvent, data: Entity | None) -> TypedChange:
        """The same as TypedChange. Raises KeyError for an entity that the decoder does not know."""
        return self._types[event.key.entity, event.operation](
            specversion="1.0",
            event_id=event.event_id,
            source=event.source,
            occurred_at=event.occurred_at,
            subject=event.key.key,
            version=event.version,
            cause=event.cause,
            observed_at=event.observed_at,
            data=data,
        )


def _told_apart(events: list[Any]) -> TypedChanges:
    kinds: set[type] = set(map(type, events))
    if len(kinds) == 1 and issubclass(kind := kinds.pop(), TypedChange):
        return TypedChanges(events, {kind: events}, 0)
    changes = [event if isinstance(event, TypedChange) else None for event in events]
    alike: dict[type[TypedChange], list[TypedChange]] = {}
    for change in filter(None, changes):
        alike.setdefault(type(change), []).append(change)
    return TypedChanges(changes, alike, changes.count(None))


def _typed(cls: type[Entity], operation: Operation) -> type[TypedChange]:
    """The struct of one entity's upserts or deletions, told from the others by its type."""
    shape = describe(cls)
    is_upsert = operation is Operation.UPSERT
    made = msgspec.defstruct(
        f"{cls.__name__}{operation.title()}",
        # On the wire a version is a text; `_settle_versions` puts the numbers in its place.
        [
            ("version", str, field(name="tidegateversion")),
            ("data", tolerant(cls)) if is_upsert else ("data", None, None),
        ],
        bases=(TypedChange,),
        namespace={"shape": shape, "operation": operation},
        tag=f"{_PREFIX}{shape.name}.{operation}",
        frozen=True,
        gc=False,
        kw_only=True,
    )
    assert issubclass(made, TypedChange)
    return made


def _are_objects(records: Sequence[bytes]) -> bool:
    """Whether each begins with { and ends with }.

    Then no record can lend a part of itself to the next, as `{"a": [1` and `2]}` would: after a closing brace and a line
    feed JSON allows no opening one inside of anything, and no line feed inside of a text.
    """
    try:
        return (set(map(_first, records)), set(map(_last, records))) == _BRACES
    except IndexError:
        return False


def _settle_versions(changes: Sequence[TypedChange]) -> bool:
    """Replace the texts of the versions by their numbers, all at once; False when one is not written as ours are."""
    # The type says Version; until here each is the text that stood on the wire.
    joined = _BETWEEN.join(cast("list[str]", [change.version for change in changes])).encode()
    # Nothing but digits and dots between the joints, so what JSON reads is one list of numbers for each text.
    if joined.translate(None, b"0123456789.") != _BETWEEN.encode() * (len(changes) - 1):
        return False
    try:
        numbers = _versions.decode(b"[[%b]]" % joined.translate(_DOTS_TO_COMMAS))
    except msgspec.DecodeError:
        return False
    deque(map(force_setattr, changes, repeat("version"), numbers), maxlen=0)
    return True
