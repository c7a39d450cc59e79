"""What is encoded comes back; what is not ours is rejected with a reason."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate import codec
from tidegate.errors import Rejected
from tidegate.event import Cause, ChangeEvent, EntityKey, Operation, QuarantineRecord, StreamEvent, Version, Watermark

times = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
texts = st.text(max_size=20)
names = st.from_regex(r"\A[a-z][a-z_]{0,10}\Z")
numbers = st.integers(0, 2**62)
versions = st.builds(Version, numbers, numbers, numbers, numbers, numbers)
payloads = st.dictionaries(texts, st.none() | st.booleans() | numbers | texts, max_size=5)

changes = st.builds(
    ChangeEvent,
    event_id=texts,
    key=st.builds(EntityKey, names, texts),
    version=versions,
    operation=st.just(Operation.UPSERT),
    cause=st.sampled_from(Cause),
    source=texts,
    occurred_at=times,
    observed_at=times,
    payload=payloads,
)
deletions = changes.map(lambda event: msgspec.structs.replace(event, operation=Operation.DELETE, payload=None))
watermarks = st.builds(Watermark, event_id=texts, source=texts, as_of=times)
quarantines = st.builds(
    QuarantineRecord,
    event_id=texts,
    source=texts,
    entity=texts,
    stage=texts,
    reason=texts,
    message=texts,
    raw=st.binary(max_size=50),
    observed_at=times,
    key=st.none() | texts,
)


@given(changes | deletions | watermarks | quarantines)
def test_events_survive_the_wire(event: StreamEvent) -> None:
    assert codec.decode(codec.encode(event)) == event


@given(st.lists(changes, min_size=1, max_size=4))
def test_upserts_of_one_answer_are_written_as_each_alone(events: list[ChangeEvent]) -> None:
    first = events[0]
    expected, rows = [], []
    for event in events:
        assert event.payload is not None
        key = EntityKey(first.key.entity, event.key.key)
        identity = codec.event_id(key, event.version, Operation.UPSERT)
        alone = msgspec.structs.replace(
            event, event_id=identity, key=key, source=first.source, observed_at=first.observed_at
        )
        expected.append(codec.encode(alone))
        rows.append((key.key, event.version, event.cause, event.occurred_at, msgspec.json.encode(event.payload)))
    upserts = codec.Upserts(*zip(*rows, strict=True))
    assert codec.encode_upserts(first.key.entity, first.source, first.observed_at, upserts) == expected


@given(versions, versions)
def test_versions_keep_their_order(one: Version, other: Version) -> None:
    decoded = [codec.decode_version(codec.encode_version(version)) for version in (one, other)]
    assert (decoded[0] < decoded[1]) == (one < other)


GOOD: dict[str, Any] = {
    "specversion": "1.0", "id": "1", "source": "s", "type": "tidegate.thing.upsert", "subject": "7",
    "time": "2026-01-01T00:00:00Z", "tidegateversion": "0.1.2.3.4", "tidegatecause": "live", "data": {"a": 1},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"specversion": "0.3"}, "undecodable"),
        ({"type": "com.example.thing"}, "unknown_type"),
        ({"type": "tidegate.thing.replace"}, "unknown_type"),
        ({"type": "tidegate..upsert"}, "unknown_type"),
        ({"subject": None}, "undecodable"),
        ({"tidegateversion": "0.1.2.3"}, "undecodable"),
        ({"tidegateversion": "0.1.2.3.-4"}, "undecodable"),
        ({"tidegateversion": "0.1.2.3.9223372036854775808"}, "undecodable"),
        ({"tidegateversion": "0.1.2.3.4\n"}, "undecodable"),
        ({"tidegateversion": "0.1.2.3.٤"}, "undecodable"),
        ({"tidegatecause": "rumour"}, "undecodable"),
        ({"data": None}, "undecodable"),
        ({"type": "tidegate.thing.delete"}, "undecodable"),
        ({"type": "tidegate.quarantine"}, "undecodable"),
        ({"time": "yesterday"}, "undecodable"),
    ],
)
def test_what_is_not_an_event_is_rejected(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(Rejected) as caught:
        codec.decode(msgspec.json.encode(GOOD | change))
    assert caught.value.reason == reason


@pytest.mark.parametrize("name", ["entity", "stage", "reason", "message", "raw_base64"])
@pytest.mark.parametrize("value", [None, 5, [], {"a": 1}, "a\u00e9"])
def test_a_quarantine_record_has_texts_for_its_parts(name: str, value: Any) -> None:
    parts = {"entity": "thing", "stage": "translate", "reason": "invalid", "message": "why", "raw_base64": "aGk="}
    record = msgspec.json.encode(GOOD | {"type": "tidegate.quarantine", "data": parts | {name: value}})
    if isinstance(value, str) and name != "raw_base64":
        assert isinstance(codec.decode(record), QuarantineRecord)
        return
    with pytest.raises(Rejected) as caught:
        codec.decode(record)
    assert caught.value.reason == "undecodable"


@pytest.mark.parametrize("place", ["data", "other"])
def test_arrays_in_arrays_without_end_are_rejected(place: str) -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    record = msgspec.json.encode(GOOD | {place: {"a": "HERE"}}).replace(b'"HERE"', deep)
    with pytest.raises(Rejected) as caught:
        codec.decode(record)
    assert caught.value.reason == "undecodable"


@pytest.mark.parametrize("place", ["data", "other"])
@pytest.mark.parametrize("ill", [b"\xff", b"\xed\xa0\x80"])
def test_what_is_not_utf_8_is_rejected_also_where_nobody_reads_it(place: str, ill: bytes) -> None:
    """Else a destination would be sent what no JSON parser takes."""
    record = msgspec.json.encode(GOOD | {place: GOOD["data"] | {"unknown": "HERE"}}).replace(b"HERE", ill)
    with pytest.raises(Rejected) as caught:
        codec.decode(record)
    assert caught.value.reason == "undecodable"


@given(st.binary(max_size=60))
def test_bytes_are_rejected_and_never_crash(data: bytes) -> None:
    with pytest.raises(Rejected):
        codec.decode(data)


def test_the_good_one_is_good() -> None:
    event = codec.decode(msgspec.json.encode(GOOD))
    assert isinstance(event, ChangeEvent)
    assert event.key == EntityKey("thing", "7")
    assert event.version == (0, 1, 2, 3, 4)
