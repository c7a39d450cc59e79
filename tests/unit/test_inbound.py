"""POST /v1/events over a fake stream: what is taken, what is refused and how it is said."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.answer import Answer
from api.ingest import Ingest, Post
from api.request import Request
from api.settings import IngestSettings, TokenSettings
from tests.fakes.issuer import CLIENT, ISSUER, claims
from tests.integration.edge_bubble import bubble
from tidegate import inbound
from tidegate.errors import Rejected, Transient
from tidegate.inbound import Arrival, Desk, Stamp

NOW = datetime(2026, 11, 21, 6, 0, tzinfo=UTC)


SETTINGS = IngestSettings(
    bubble="b", tokens=TokenSettings(issuer=ISSUER, clients=(CLIENT,)), stream="arrivals",
    max_events=5, max_event_bytes=2_000, max_body_bytes=5_000, retry_max_ms=0,
)  # fmt: skip
JSON, ONE, MANY = (
    "application/json",
    "application/cloudevents+json",
    "application/cloudevents-batch+json; charset=utf-8",
)


class Stream:
    """A stream that takes, refuses or does not answer, as it is told call by call."""

    def __init__(self, *outcomes: list[bool] | None) -> None:
        self.outcomes = list(outcomes)
        self.calls: list[list[Post]] = []

    async def put(self, posts: Sequence[Post]) -> list[bool]:
        self.calls.append(list(posts))
        outcome = self.outcomes.pop(0) if self.outcomes else [True] * len(posts)
        if outcome is None:
            raise Transient("no answer")
        return outcome

    @property
    def events(self) -> list[Arrival]:
        return [Desk(bubble.inbound).read(post.data) for call in self.calls for post in call]


def wish(**changes: Any) -> dict[str, Any]:
    stated = {"specversion": "1.0", "id": "w1", "type": "b.wish", "source": "/page", "subject": "P1",
              "data": {"parcel": "P1", "place": "door"}, **changes}  # fmt: skip
    return {name: value for name, value in stated.items() if value is not None}


async def post(stream: Stream, body: object, media: str = JSON, **changes: Any) -> Answer:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    headers = {"content-type": media, **changes.pop("headers", {})}
    asked = Request(
        method="POST", path="/v1/events", query={}, headers=headers, request_id="r",
        claims=claims(username="customer-1001"), body=raw,
    )  # fmt: skip
    return await Ingest(bubble, stream, SETTINGS, lambda: NOW).answer(msgspec.structs.replace(asked, **changes))


def read(answer: Answer) -> Any:
    return msgspec.json.decode(answer.body)


async def test_an_event_is_stamped_with_what_the_token_says() -> None:
    stream = Stream()
    answer = await post(stream, wish(tidegateviewers='{"staff":["*"]}', tidegatereceived="2020-01-01T00:00:00Z"), ONE)
    assert (answer.status, read(answer)) == (202, {"results": [{"id": "w1", "status": "accepted"}]})
    [event] = stream.events
    assert event.source == f"urn:tidegate:client:{CLIENT}"
    assert event.subject == claims()["sub"]
    assert event.time == event.received == NOW
    assert inbound.viewers_of(event) == {"customer": ["1001"], "everyone": ["*"]}
    assert msgspec.json.decode(event.data) == {"parcel": "P1", "place": "door"}
    assert stream.calls[0][0].partition_key == event.subject
    sent = msgspec.json.decode(stream.calls[0][0].data)
    assert (sent["specversion"], sent["type"], sent["datacontenttype"]) == ("1.0", "b.wish", "application/json")


@pytest.mark.parametrize("media", [JSON, MANY])
async def test_a_batch_goes_in_one_call_and_in_order(media: str) -> None:
    stream = Stream()
    time = "2026-11-21T07:00:00+02:00"
    answer = await post(stream, [wish(), wish(id="w2", time=time), wish(id="w3", type="b.scan")], media)
    assert answer.status == 202
    assert [event.id for event in stream.events] == ["w1", "w2", "w3"]
    assert stream.events[1].time == NOW - timedelta(hours=1)
    assert len(stream.calls) == 1


async def test_an_idempotency_key_gives_ids_that_stay() -> None:
    first, second, other = Stream(), Stream(), Stream()
    for stream, key in ((first, "k-1"), (second, "k-1"), (other, "k-2")):
        answer = await post(stream, [wish(id=None), wish(id=None)], headers={"idempotency-key": key})
        assert answer.status == 202
    ids = [[event.id for event in stream.events] for stream in (first, second, other)]
    assert ids[0] == ids[1]
    assert len({*ids[0], *ids[2]}) == 4
    assert [event.identity for event in first.events] == [event.identity for event in second.events]


def test_nobody_can_take_the_id_of_somebody_else() -> None:
    desk, offered = Desk(bubble.inbound), msgspec.json.encode(wish())
    stamps = [
        Stamp(client=client, subject=subject, viewers={"customer": ["1"]}, received=NOW)
        for client, subject in (("page", "a"), ("page", "b"), ("app", "a"), ("ap", "pa"))
    ]
    assert len({desk.stamped(offered, stamp, 0).identity for stamp in stamps}) == 4


BAD: list[tuple[dict[str, Any], str, str]] = [
    (wish(specversion="0.3"), "undecodable", "specversion"),
    (wish(specversion=None), "undecodable", "specversion"),
    (wish(data=None), "undecodable", "data"),
    (wish(id=""), "undecodable", "id"),
    (wish(id="x" * 256), "undecodable", "id"),
    (wish(id=7), "undecodable", "id"),
    (wish(id=None), "no_id", "Idempotency-Key"),
    (wish(id="a\0b"), "invalid", "id"),
    (wish(time="yesterday"), "undecodable", "time"),
    (wish(time="2026-11-21T07:00:00"), "undecodable", "time"),
    (wish(time="0001-01-01T00:00:00+12:00"), "invalid", "years"),
    (wish(datacontenttype="text/xml"), "undecodable", "datacontenttype"),
    (wish(data_base64="aGk="), "undecodable", "data_base64"),
    (wish(data={"parcel": "P1"}), "invalid", "place"),
    (wish(data={"parcel": "P1", "place": "roof"}), "invalid", "place"),
    (wish(data={"parcel": "P" * 21, "place": "door"}), "invalid", "parcel"),
    (wish(data={"parcel": "P1", "place": "door", "more": 1}), "invalid", "more"),
    (wish(data={"parcel": "P\0", "place": "door"}), "invalid", "NUL"),
    (wish(data=[]), "invalid", "data"),
    (wish(filler="x" * 2_000), "too_large", "2000"),
    (wish(type="b.nothing"), "unknown_type", "b.wish"),
    *(
        (wish(type=name), "unknown_type", "no inbound event")
        for name in (
            "tidegate.parcel.upsert", "tidegate.parcel.delete", "tidegate.watermark", "tidegate.quarantine", "tidegate.claim",
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("event", "reason", "words"), BAD)
async def test_what_does_not_fit_is_named_and_nothing_is_sent(event: dict[str, Any], reason: str, words: str) -> None:
    stream = Stream()
    answer = await post(stream, [wish(id="good"), event])
    said = read(answer)
    assert (answer.status, said["type"], stream.calls) == (400, "urn:tidegate:problem:bad-event", [])
    [error] = said["errors"]
    assert (error["index"], error["reason"]) == (1, reason)
    assert words in error["detail"]


async def test_two_events_of_one_id_are_refused() -> None:
    stream = Stream()
    assert (await post(stream, [wish(), wish(data={"parcel": "P2", "place": "door"})])).status == 400
    assert stream.calls == []


async def test_who_may_send_what() -> None:
    for username, kind, status in (
        ("customer-1", "b.wish", 202),
        ("someone", "b.wish", 403),
        ("someone", "b.scan", 403),
    ):
        stream = Stream()
        answer = await post(stream, wish(type=kind), claims=claims(username=username))
        assert (answer.status, len(stream.calls)) == (status, status == 202)
    partner = claims(client_id="shop-7", username=None, sub="shop-7")
    assert (await post(Stream(), wish(type="b.scan"), claims=partner)).status == 202
    assert (await post(Stream(), wish(), claims=partner)).status == 403
    assert (await post(Stream(), wish(), claims=claims(username="customer-1", scope="x"))).status == 403
    assert (await post(Stream(), wish(), claims=None)).status == 401


@pytest.mark.parametrize(
    ("body", "media", "status"),
    [
        (b"", JSON, 400), (b"{", JSON, 400), (b"[]", JSON, 400), (b"[1]", JSON, 400), (b"null", JSON, 400),
        (b"\xff", JSON, 400), (b"[" * 4_000, JSON, 400), (b'{"a":' * 800, ONE, 400),
        (msgspec.json.encode([wish()]), ONE, 400), (msgspec.json.encode(wish()), MANY, 400),
        (msgspec.json.encode([wish(id=str(n)) for n in range(6)]), MANY, 400),
        (b" " * 5_001, JSON, 413), (msgspec.json.encode(wish()), "text/plain", 415), (b"{}", "", 415),
    ],
)  # fmt: skip
async def test_a_request_that_is_none(body: bytes, media: str, status: int) -> None:
    stream = Stream()
    assert (await post(stream, body, media)).status == status
    assert stream.calls == []


@pytest.mark.parametrize("key", ["", "x" * 256, "é", "a\nb"])
async def test_an_idempotency_key_that_is_none(key: str) -> None:
    assert (await post(Stream(), wish(), headers={"idempotency-key": key})).status == 400


async def test_other_methods_and_paths() -> None:
    answer = await post(Stream(), b"", method="GET")
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")
    assert (await post(Stream(), b"", path="/v1/events/x")).status == 404


async def test_what_kinesis_refused_is_tried_again_alone() -> None:
    stream = Stream([True, False, False], [True, False], [True])
    answer = await post(stream, [wish(), wish(id="w2"), wish(id="w3")])
    assert answer.status == 202
    assert [len(call) for call in stream.calls] == [3, 2, 1]


async def test_some_taken_and_some_not_is_told_one_by_one() -> None:
    stream = Stream([False, True], [False], [False])
    answer = await post(stream, [wish(), wish(id="w2")])
    assert (answer.status, answer.headers["Retry-After"]) == (207, "1")
    results = read(answer)["results"]
    assert [(each["id"], each["status"]) for each in results] == [("w1", "failed"), ("w2", "accepted")]
    assert "once more" in results[0]["detail"]


async def test_none_taken_is_unavailable() -> None:
    for outcomes in ([[False]] * 3, [None] * 3, [None, [False], None]):
        with pytest.raises(Transient):
            await post(Stream(*outcomes), wish())
    lost_reply = Stream(None)
    assert (await post(lost_reply, wish())).status == 202
    assert len(lost_reply.calls) == 2, "sent again with the same id, since nobody knows"
    assert len({event.identity for event in lost_reply.events}) == 1


@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["specversion", "id", "type", "data", "time", "x"]) | st.text(max_size=3), inner, max_size=5),
    max_leaves=12,
))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_no_body_makes_anything_else_than_a_problem(body: object) -> None:
    assert asyncio.run(post(Stream(), body)).status == 400


@pytest.mark.parametrize(
    "change", [{"type": "b.gone"}, {"data": {"parcel": 1}}, {"tidegateviewers": "[]"}, {"subject": None}]
)
def test_what_the_worker_reads_is_judged_again(change: dict[str, Any]) -> None:
    desk = Desk(bubble.inbound)
    stamp = Stamp(client="c", subject="s", viewers={"customer": ["1"]}, received=NOW)
    stamped = msgspec.json.decode(inbound.encode(desk.stamped(msgspec.json.encode(wish()), stamp, 0)))
    assert desk.read(msgspec.json.encode(stamped)).id == "w1"
    with pytest.raises(Rejected):
        desk.read(msgspec.json.encode({**stamped, **change}))
