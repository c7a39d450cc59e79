"""Records → changes, watermarks or dead letters; whatever comes, nothing is raised."""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate import codec
from tidegate.codec import TypedChange
from tidegate.entity import EVERYONE, Entity, Meta, Reader
from tidegate.event import Cause, ChangeEvent, EntityKey, Operation, QuarantineRecord, Version, Watermark
from tidegate.letter import LetterKind
from worker.batch import Change, DeadLetter, Item, Mark, Position, Record
from worker.decode import Decoder

NOW = datetime(2026, 11, 21, tzinfo=UTC)
HERE = Position(7, 0)


class Size(enum.Enum):
    SMALL = "S"


class Box(Entity):
    meta = Meta(collection="boxes", key="number", readers=(Reader(EVERYONE),))
    number: int
    size: Size
    price: Decimal
    packed_at: datetime | None


class Label(Entity):
    meta = Meta(collection="labels", key="id", readers=(Reader(EVERYONE),))
    id: UUID


DECODER = Decoder((Box, Label))
GOOD: dict[str, Any] = {"number": 5, "size": "S", "price": "1.20", "packed_at": "2026-11-21T00:00:00Z"}


UNUSABLE_TIMES = [b"2026-11-21T00:00:00", b"0001-01-01T00:00:00+14:00", b"9999-12-31T23:59:59-14:00"]
QUARANTINED = QuarantineRecord(
    event_id="q", source="boxes", entity="box", stage="translate", reason="invalid", message="why",
    raw=b"\xff\x00 raw row", observed_at=NOW, key="5",
)  # fmt: skip


def event(
    payload: dict[str, Any] | None, key: str = "5", entity: str = "box", occurred_at: datetime = NOW
) -> ChangeEvent:
    operation = Operation.DELETE if payload is None else Operation.UPSERT
    return ChangeEvent(
        event_id="e1", key=EntityKey(entity, key), version=Version(0, 1, 1, 1, 1), operation=operation, cause=Cause.LIVE,
        source="boxes", occurred_at=occurred_at, observed_at=NOW, payload=payload,
    )  # fmt: skip


def decode(given_event: ChangeEvent | Watermark | QuarantineRecord) -> Item | Change:
    return read(codec.encode(given_event))


def read(data: bytes, decoder: Decoder = DECODER) -> Item | Change:
    """The item; a change with the record it stood in."""
    record = Record("7", data)
    item = decoder.decode(record)
    return Change(record, item) if isinstance(item, TypedChange) else item


def test_a_payload_becomes_typed_values_in_the_order_of_the_fields() -> None:
    found = decode(event(GOOD))
    assert isinstance(found, Change)
    assert found.key == 5
    assert found.values == (5, "S", Decimal("1.20"), NOW)
    assert type(found.values[1]) is str


def test_a_deletion_has_its_typed_key_only() -> None:
    found = decode(event(None))
    assert isinstance(found, Change)
    assert (found.key, found.values) == (5, None)
    identity = "7f1c3f0e-9d3b-4a52-8f7e-0a4d3c1b2a10"
    found = decode(event(None, key=identity, entity="label"))
    assert isinstance(found, Change)
    assert found.key == UUID(identity)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (event({**GOOD, "number": "five"}), "Expected `int`"),
        (event({**GOOD, "size": "XL"}), "Invalid enum value"),
        (event({**GOOD, "packed_at": "2026-11-21T00:00:00"}), "without offset"),
        (event({**GOOD, "price": "1e131072"}), "more digits"),
        (event({**GOOD, "price": "1e-16384"}), "more digits"),
        (event({**GOOD, "price": "NaN"}), "no number"),
        (event({**GOOD, "number": 6}), "is not the key"),
        (event(GOOD, key="05"), "is not the key"),
        (event(None, key="05"), "not written as"),
        (event(None, key="x"), "no integer key"),
        (
            event({"id": "7F1C3F0E-9D3B-4A52-8F7E-0A4D3C1B2A10"}, "7F1C3F0E-9D3B-4A52-8F7E-0A4D3C1B2A10", "label"),
            "is not",
        ),
    ],
)
def test_what_is_not_the_entity_is_a_dead_letter_that_names_the_event(bad: ChangeEvent, words: str) -> None:
    found = decode(bad)
    assert isinstance(found, DeadLetter)
    assert (found.stage, found.reason, found.position) == ("decode", "invalid", HERE)
    assert (found.entity, found.key, found.source, found.event_id) == (*bad.key, "boxes", "e1")
    assert words in found.message
    assert found.payload == codec.encode(bad)


def _without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


class Scale(Entity):
    meta = Meta(collection="scales", key="id", readers=(Reader(EVERYONE),))
    id: str
    ratio: float


READ_AS = [
    ({**GOOD, "more": 1}, (5, "S", Decimal("1.20"), datetime(2026, 11, 21, tzinfo=UTC))),
    (_without("packed_at"), (5, "S", Decimal("1.20"), None)),
    ({**GOOD, "price": 3}, (5, "S", Decimal(3), datetime(2026, 11, 21, tzinfo=UTC))),
    ({**GOOD, "price": 1.5}, (5, "S", Decimal("1.5"), datetime(2026, 11, 21, tzinfo=UTC))),
]


@pytest.mark.parametrize(
    ("payload", "values"), READ_AS, ids=["unknown field", "missing optional", "whole number", "float"]
)
def test_events_of_another_release_are_read_as_far_as_they_can_be(
    payload: dict[str, Any], values: tuple[object, ...]
) -> None:
    found = decode(event(payload))
    assert isinstance(found, Change)
    assert found.values == values
    assert found.data == codec.encode(event(payload)), "what a destination is told is what was sent"


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (_without("price"), "missing required field `price`"),
        ({**GOOD, "size": "XXL"}, "Invalid enum value 'XXL'"),
        ({**GOOD, "size": None}, "got `null`"),
        ({**GOOD, "number": "5"}, "Expected `int`, got `str`"),
        ({**GOOD, "number": 5.5}, "Expected `int`, got `float`"),
    ],
    ids=["missing required", "choice of a newer release", "optional by now", "decimal by now", "float by now"],
)
def test_events_of_another_release_that_cannot_be_read_are_dead_letters(payload: dict[str, Any], words: str) -> None:
    found = decode(event(payload))
    assert isinstance(found, DeadLetter)
    assert (found.stage, found.reason) == ("decode", "invalid")
    assert words in found.message


@pytest.mark.parametrize(("sent", "value"), [(1.5, 1.5), (2, 2.0), ("1.5", None)])
def test_a_float_is_read_from_numbers_and_not_from_decimals(sent: object, value: float | None) -> None:
    data = codec.encode(event({"id": "a", "ratio": sent}, "a", "scale"))
    found = read(data, Decoder((Scale,)))
    if value is None:
        assert isinstance(found, DeadLetter)
    else:
        assert isinstance(found, Change)
        assert found.values == ("a", value)


@pytest.mark.parametrize("name", [each for each in msgspec.json.decode(codec.encode(event(GOOD))) if each != "data"])
def test_which_attributes_of_the_envelope_may_be_missing(name: str) -> None:
    whole = msgspec.json.decode(codec.encode(event(GOOD)))
    found = read(msgspec.json.encode({key: value for key, value in whole.items() if key != name}))
    if name in ("datacontenttype", "tidegateobserved"):
        assert isinstance(found, Change)
        assert found.event.observed_at == NOW
    else:
        assert isinstance(found, DeadLetter)
        assert found.reason == "undecodable"
    assert isinstance(read(msgspec.json.encode({**whole, "more": "of somebody's"})), Change)


def test_an_entity_the_bubble_does_not_know_is_filed() -> None:
    found = decode(event(GOOD, entity="crate"))
    assert isinstance(found, DeadLetter)
    assert found.reason == "unknown_entity"


@pytest.mark.parametrize("name", [b"time", b"tidegateobserved"])
@pytest.mark.parametrize("time", UNUSABLE_TIMES)
def test_an_event_time_that_no_database_can_hold_is_filed(name: bytes, time: bytes) -> None:
    text = codec.encode(event(GOOD)).replace(b'"%s":"2026-11-21T00:00:00Z"' % name, b'"%s":"%s"' % (name, time))
    found = read(text)
    assert isinstance(found, DeadLetter)
    assert (found.reason, found.source, found.version) == ("invalid", "boxes", (0, 1, 1, 1, 1))
    assert time in found.payload


@pytest.mark.parametrize("time", UNUSABLE_TIMES)
def test_a_watermark_or_quarantine_time_that_no_database_can_hold_stops_nothing(time: bytes) -> None:
    now = b"2026-11-21T00:00:00Z"
    mark = codec.encode(Watermark(event_id="w", source="boxes", as_of=NOW))
    found = read(mark.replace(now, time))
    assert isinstance(found, DeadLetter)
    assert (found.reason, found.source) == ("invalid", "boxes")
    found = read(codec.encode(QUARANTINED).replace(now, time))
    assert isinstance(found, DeadLetter)
    assert (found.payload, found.observed_at) == (QUARANTINED.raw, None)


def test_watermarks_pass_unless_the_database_would_choke_on_them() -> None:
    good = Watermark(event_id="w", source="boxes", as_of=NOW)
    assert decode(good) == Mark(HERE, good)
    for bad in (
        msgspec.structs.replace(good, source="a\0b"),
        msgspec.structs.replace(good, source="a" * 600),
        msgspec.structs.replace(good, as_of=datetime(2026, 11, 21)),
    ):
        assert isinstance(decode(bad), DeadLetter)


def test_a_quarantine_record_is_filed_with_its_raw_bytes() -> None:
    raw = QUARANTINED.raw
    found = decode(QUARANTINED)
    assert found == DeadLetter(
        position=HERE, stage="translate", reason="invalid", message="why", payload=raw, entity="box", key="5",
        source="boxes", event_id="q", observed_at=NOW, kind=LetterKind.ROW,
    )  # fmt: skip


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=100) | json_values.map(msgspec.json.encode))
def test_any_bytes_are_filed_whole(data: bytes) -> None:
    found = read(data)
    assert isinstance(found, DeadLetter)
    assert found.payload == data


@given(st.dictionaries(st.sampled_from(list(GOOD)), json_values))
def test_any_payload_is_a_change_or_a_dead_letter(changed: dict[str, Any]) -> None:
    found = decode(event({**GOOD, **changed}))
    assert isinstance(found, Change | DeadLetter)
