"""Many records at once: each becomes what it would have become alone, and what the careful way makes of it."""

from __future__ import annotations

import enum
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate import codec
from tidegate.codec import TypedChange
from tidegate.entity import EVERYONE, Entity, Meta, Reader
from tidegate.event import ChangeEvent
from worker.batch import Change, DeadLetter, Item, Mark, Record
from worker.decode import Decoder


class Colour(enum.Enum):
    RED = "red"


class Box(Entity):
    meta = Meta(collection="boxes", key="number", readers=(Reader(EVERYONE),))
    number: int
    name: str
    kind: Literal["a", "b"] | None
    colour: Colour
    price: Decimal | None
    weight: float
    packed_on: date
    packed_at: datetime | None


class Label(Entity):
    meta = Meta(collection="labels", key="id", readers=(Reader(EVERYONE),))
    id: UUID
    price: Decimal


class Note(Entity):
    meta = Meta(collection="notes", key="text", readers=(Reader(EVERYONE),))
    text: str
    written_at: datetime


DECODER = Decoder((Box, Label, Note))
TIME = "2026-11-21T05:55:03Z"
IDENTITY = "7f1c3f0e-9d3b-4a52-8f7e-0a4d3c1b2a10"
ENVELOPE: dict[str, Any] = {
    "specversion": "1.0", "id": "e", "source": "boxes", "subject": "5", "time": TIME, "tidegateversion": "0.1.2.3.4",
    "tidegatecause": "live", "tidegateobserved": TIME,
}  # fmt: skip
BOX = {
    "number": 5, "name": "n", "kind": "a", "colour": "red", "price": "1.20", "weight": 1, "packed_on": "2026-11-21",
    "packed_at": TIME,
}  # fmt: skip
GOOD = [
    ENVELOPE | {"type": "tidegate.box.upsert", "datacontenttype": "application/json", "data": BOX},
    ENVELOPE | {"type": "tidegate.label.upsert", "subject": IDENTITY, "data": {"id": IDENTITY, "price": 1.10}},
    ENVELOPE | {"type": "tidegate.note.upsert", "subject": "5", "data": {"text": "5", "written_at": TIME}},
    ENVELOPE | {"type": "tidegate.box.delete"},
    ENVELOPE | {"type": "tidegate.label.delete", "subject": IDENTITY, "data": None},
    ENVELOPE | {"type": "tidegate.watermark"},
    ENVELOPE
    | {"type": "tidegate.quarantine", "data": dict.fromkeys(("entity", "stage", "reason", "message"), "x") | {"raw_base64": ""}},
]  # fmt: skip

odd_texts = st.sampled_from(
    ["", "\0", "05", "5 ", "٥", "NaN", "-Infinity", "1e131072", "1e-16384", "0E-20000", "9" * 400, "1_0", "red", "a",
     IDENTITY.upper(),
     "2026-11-21", "2026-11-21T00:00:00", "2026-11-21T00:00:00+14:00", "0001-01-01T00:00:00+14:00", "0.1.2.3.9223372036854775807",
     "0.1.2.3.9223372036854775808", "0.1.2.3", "0.1.2.3.04", "0.1.2.3.4\n", "0.1,2.3.4", "0],[0", "1.0",
     "tidegate.box.upsert", "live"]
)  # fmt: skip
odd_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5) | odd_texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


@st.composite
def events(draw: st.DrawFn) -> bytes:
    """A good event of some kind, with here and there something odd in it."""
    event = dict(draw(st.sampled_from(GOOD)))
    event |= draw(st.dictionaries(st.sampled_from([*event, "extra"]), odd_values, max_size=1))
    data = event.get("data")
    if isinstance(data, dict) and data:
        event["data"] = data | draw(st.dictionaries(st.sampled_from([*data, "more"]), odd_values, max_size=1))
    return msgspec.json.encode(event)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """An event's bytes, with something cut out, put in, or said twice."""
    whole = draw(events())
    start, end = sorted((draw(st.integers(0, len(whole))), draw(st.integers(0, len(whole)))))
    pieces = [
        b"",
        b"\n",
        b"\xff",
        b"\xed\xa0\x80",
        b'"',
        b"}\n{",
        b"},{",
        b"[",
        b"[" * 5_000,
        b'"subject":"6",',
        b'"data":{},',
        whole,
    ]
    piece = draw(st.sampled_from(pieces))
    return draw(st.sampled_from([whole[:start] + piece + whole[end:], whole[:start] + piece + whole[start:]]))


payloads = st.sampled_from(GOOD).map(msgspec.json.encode) | events() | damaged() | st.binary(max_size=9)


def shown(item: Item) -> tuple[Any, ...]:
    """All that the worker asks of an item."""
    if not isinstance(item, TypedChange):
        return (type(item), item)
    event, change = item, Change(Record("1", b""), item)
    return (
        type(event), change.key, change.values, event.event_id, event.key, event.version, type(event.version),
        event.operation, event.cause, event.source, event.occurred_at, event.observed_at,
    )  # fmt: skip


def records(bodies: list[bytes]) -> list[Record]:
    return [Record(str(10 + number), body) for number, body in enumerate(bodies)]


# Numbers that JSON can write and Python's float, int or str() cannot take.
HUGE = ("1e999", "-1E400", "9" * 5_000, "-" + "9" * 4_301, "1e99999999999999999999", "9" * 400 + ".5", '[{"a":1e999}]')


@pytest.mark.parametrize("number", HUGE, ids=lambda text: text[:9])
def test_a_number_beyond_all_bounds_in_a_field_that_nobody_knows_is_nobodys_fault(number: str) -> None:
    for place in (b'"more":%s,"text"', b'"text":"6","more":%s,"text"'):
        known = msgspec.json.encode(GOOD[2])
        record = Record("1", known.replace(b'"text"', place % number.encode(), 1))
        assert isinstance(DECODER.decode(record), TypedChange)
        assert shown(DECODER._carefully(record)) == shown(DECODER.decode(record))
        event = codec.decode(record.data)
        assert isinstance(event, ChangeEvent)
        assert b'"more":%s' % number.encode() in codec.encode(event), "and it stays what it was"


@pytest.mark.parametrize("number", HUGE, ids=lambda text: text[:9])
def test_a_number_beyond_all_bounds_in_a_field_is_the_fields_fault(number: str) -> None:
    for faulty in (GOOD[0] | {"data": BOX | {"weight": 0}}, GOOD[1] | {"data": {"id": IDENTITY, "price": 0}}):
        body = msgspec.json.encode(faulty)
        name = b'"price":' if b'"price":' in body else b'"weight":'
        record = Record("1", body.replace(name + b"0", name + number.encode()))
        item = DECODER._carefully(record)
        assert shown(DECODER.decode(record)) == shown(item)
        if isinstance(item, DeadLetter):
            assert (item.reason, item.key is None) == ("invalid", False)


@given(st.lists(payloads, max_size=12))
def test_what_a_record_becomes_does_not_depend_on_its_neighbours(bodies: list[bytes]) -> None:
    given_records = records(bodies)
    together = [shown(item) for item in DECODER.decode_all(given_records)]
    assert together == [shown(DECODER.decode(record)) for record in given_records]
    # The careful way is the definition; the quick one may only say the same sooner.
    assert together == [shown(DECODER._carefully(record)) for record in given_records]


def test_the_quick_way_takes_everything_that_is_good() -> None:
    found = DECODER._quickly(records([msgspec.json.encode(each) for each in GOOD]))
    assert found is not None
    assert [isinstance(item, TypedChange) for item in found] == [True] * 5 + [False] * 2
    assert [type(item) for item in found[5:]] == [Mark, DeadLetter]
    [box, label, note] = [Change(Record("1", b""), item) for item in found[:3] if isinstance(item, TypedChange)]
    assert box.values is not None
    assert (box.values[:4], box.values[5]) == ((5, "n", "a", "red"), 1.0)
    assert (box.key, label.key, note.key) == (5, UUID(IDENTITY), "5")
    assert isinstance(label.event.data, Label)
    assert str(label.event.data.price) == "1.10" or label.event.data.price == Decimal("1.1")


@pytest.mark.parametrize("count", [1, 499, 500, 501, 1_203])
def test_one_bad_record_among_many_stands_alone(count: int) -> None:
    good = msgspec.json.encode(GOOD[0])
    bodies = [good] * count + [b"poison"] + [good] * count
    found = DECODER.decode_all(records(bodies))
    assert len(found) == len(bodies)
    assert [number for number, item in enumerate(found) if not isinstance(item, TypedChange)] == [count]
    [letter] = [item for item in found if isinstance(item, DeadLetter)]
    assert letter.position.sequence == 10 + count


@pytest.mark.parametrize(
    "bodies",
    [
        # Each pair, joined by a line feed or a comma, would be one good event; a third would make the number right again.
        [b'{"a":[1', b",2]}"],
        [b'{"a":[{}', b"{}]}"],
        [b'{"a":"}', b'{"}'],
        [b'{"a":{}', b"}"],
        [b"{}\n{}", b""],
        [b"", b"{}\n{}"],
    ],
)
def test_no_record_borrows_a_part_of_its_neighbour(bodies: list[bytes]) -> None:
    good = msgspec.json.encode(GOOD[2])
    halves = [good[:-1] + b',"extra":' + bodies[0][5:], bodies[1]]
    for each in ([good, *bodies, good], [*halves, good], [good, b"%b\n%b" % (good, good), *halves]):
        found = [shown(item) for item in DECODER.decode_all(records(each))]
        assert found == [shown(DECODER.decode(record)) for record in records(each)]
        assert [kind for kind, *_ in found].count(DeadLetter) == len(each) - each.count(good)


@pytest.mark.parametrize("place", ["data", "extra"])
@pytest.mark.parametrize("text", [b"\xff", b"\xed\xa0\x80", "\u00e9\u20ac".encode()])
def test_the_quick_way_reads_no_text_that_is_none_also_where_nobody_asks_for_it(place: str, text: bytes) -> None:
    whole = GOOD[0] | {place: BOX | {"unknown": "HERE"}}
    [record] = records([msgspec.json.encode(whole).replace(b"HERE", text)])
    assert shown(DECODER.decode(record)) == shown(DECODER._carefully(record))
    assert isinstance(DECODER.decode(record), TypedChange if text.decode(errors="ignore") else DeadLetter)


def test_a_long_record_does_not_hide_a_decimal_without_end() -> None:
    data = {"id": IDENTITY, "price": "0." + "0" * 7_000 + "1" * 10_000}
    long = msgspec.json.encode(GOOD[1] | {"data": data})
    assert len(data["price"]) > 16_384
    [item] = DECODER.decode_all(records([long]))
    assert isinstance(item, DeadLetter)
    assert "more digits" in item.message


@given(
    st.lists(
        st.sampled_from(
            ["0.1.2.3.4", "9223372036854775807.0.0.0.0", "1.2.3", "0],[0.1.2.3.4", "1.2.3.4.5.6", " 1.2.3.4.5"]
        ),
        max_size=4,
    )
)
def test_versions_are_read_as_they_stand_or_not_at_all(texts: list[str]) -> None:
    decoder = codec.TypedDecoder((Note,))
    bodies = [msgspec.json.encode(GOOD[2] | {"tidegateversion": text}) for text in texts]
    found = decoder.decode(bodies)
    if found is not None and texts:
        assert [codec.encode_version(event.version) for event in found.events if event is not None] == texts
    else:
        assert not texts or any(text.count(".") != 4 or not text.replace(".", "").isdigit() for text in texts)
