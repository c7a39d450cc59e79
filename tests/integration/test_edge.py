"""Writes at the edge over the wire: the Lambda handlers, Kinesis, the worker of arrivals, DynamoDB, PostgreSQL."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import aiohttp
import msgspec
import pytest
import pytest_asyncio

from api import ingest_handler, service, user_handler
from tests.fakes import issuer
from tests.integration import edge_bubble
from tests.integration.worker_stack import Stack, query, running, wait_for
from tidegate.cli import main
from tidegate.settings import read
from tidegate.users import table_definition

pytestmark = pytest.mark.asyncio(loop_scope="module")
TABLE = "users"
ANN = {"sub": "ann-s", "username": "customer-1001"}
BEN = {"sub": "ben-s", "username": "customer-1002"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    folder: Path = tmp_path_factory.mktemp("edge")
    async with running(folder) as made:
        await made.fresh_stream("arrivals", 2)
        await made.dynamodb.create_table(**table_definition(TABLE))
        with mock.patch.dict(os.environ, environment(made)):
            yield made
            await asyncio.to_thread(ingest_handler.handler.reset)
            await asyncio.to_thread(user_handler.handler.reset)


def environment(stack: Stack) -> dict[str, str]:
    return {
        **stack.environment(), **issuer.environment(), "TIDEGATE_BUBBLE": "tests.integration.edge_bubble",
        "TIDEGATE_INBOUND_STREAM": stack.stream, "TIDEGATE_USER_TABLE": TABLE,
    }  # fmt: skip


Handler = Callable[[object, object], dict[str, object]]


async def ask(
    handler: Handler, method: str, path: str, body: object = None, claims: Mapping[str, Any] = ANN, **headers: str
) -> tuple[int, dict[str, str], Any]:
    """Through a Lambda handler, in a thread as it has a loop of its own; status, headers, JSON."""
    token = issuer.signed(issuer.claims(**claims))
    sent = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    event = {
        "version": "2.0", "rawPath": path, "headers": sent, "body": msgspec.json.encode(body).decode(),
        "requestContext": {"http": {"method": method}, "requestId": "r"},
    }  # fmt: skip
    answer: Any = await asyncio.to_thread(handler, event, None)
    text = answer["body"]
    shown = {name.lower(): value for name, value in answer["headers"].items()}
    return answer["statusCode"], shown, msgspec.json.decode(text) if text else None


def wish(number: int, **data: Any) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": f"w{number}",
        "type": "b.wish",
        "data": {"parcel": f"P{number}", "place": "door", **data},
    }


# --- events in -------------------------------------------------------------------------------------


async def filed(stack: Stack) -> list[tuple[Any, ...]]:
    return await query(
        stack, "SELECT event_id, subject, viewers::text, data ->> 'parcel' FROM tidegate.inbound ORDER BY subject, id"
    )


async def test_events_are_filed_once_whoever_repeats_them(stack: Stack) -> None:
    worker = await stack.start_worker(module="worker.inbound", TIDEGATE_BUBBLE="tests.integration.edge_bubble")
    for _ in range(2):
        status, _, said = await ask(ingest_handler.handler, "POST", "/v1/events", [wish(1), wish(2)])
        assert (status, [each["status"] for each in said["results"]]) == (202, ["accepted"] * 2)
    status, *_ = await ask(ingest_handler.handler, "POST", "/v1/events", wish(1), BEN)
    assert status == 202

    async def counted() -> bool:
        metrics = await worker.metrics()
        written = {name: value for name, value in metrics.items() if name.startswith("tidegate_records_written_total")}
        return sum(written.values()) == 5

    await wait_for(counted)
    ann, ben = '{"customer": ["1001"], "everyone": ["*"]}', '{"customer": ["1002"], "everyone": ["*"]}'
    assert await filed(stack) == [("w1", "ann-s", ann, "P1"), ("w2", "ann-s", ann, "P2"), ("w1", "ben-s", ben, "P1")]
    metrics = await worker.metrics()
    assert metrics['tidegate_records_written_total{outcome="applied"}'] == 3
    assert metrics['tidegate_records_written_total{outcome="unchanged"}'] == 2


async def test_what_cannot_be_filed_is_a_dead_letter_and_the_rest_goes_on(stack: Stack) -> None:
    await ask(ingest_handler.handler, "POST", "/v1/events", wish(1, parcel="other"))
    status, *_ = await ask(ingest_handler.handler, "POST", "/v1/events", [wish(10), {**wish(11), "type": "b.scan"}])
    assert status == 202
    # As somebody would who writes to the stream without the API; the last only PostgreSQL refuses.
    stamped = {
        "specversion": "1.0", "source": "urn:tidegate:client:x", "subject": "ann-s", "time": "2026-11-21T06:00:00Z",
        "tidegatereceived": "2026-11-21T06:00:00Z", "tidegateviewers": "{}", "datacontenttype": "application/json",
    }  # fmt: skip
    raw = [b"nonsense", msgspec.json.encode({**stamped, "id": "t1", "type": "tidegate.parcel.upsert", "data": {}})]
    deep = msgspec.json.encode({**stamped, "id": "t2", "type": "b.scan", "data": {"parcel": "P", "more": 0}})
    await stack.put([*raw, deep.replace(b'"more":0', b'"more":1e200000')])
    await ask(ingest_handler.handler, "POST", "/v1/events", wish(12))

    async def done() -> bool:
        letters = await query(stack, "SELECT count(*) FROM tidegate.dead_letter")
        return letters == [(4,)] and {"w10", "w11", "w12"} <= {row[0] for row in await filed(stack)}

    await wait_for(done)
    reasons = await query(stack, "SELECT stage, reason FROM tidegate.dead_letter ORDER BY 1, 2")
    assert reasons == [
        ("decode", "undecodable"), ("decode", "unknown_type"), ("write", "conflict"), ("write", "numeric_value_out_of_range"),
    ]  # fmt: skip
    assert ("w1", "P1") in {(row[0], row[3]) for row in await filed(stack)}, "what was filed first stands"
    assert "other" not in {row[3] for row in await filed(stack)}


async def test_arrivals_say_nothing_of_how_fresh_rows_are(stack: Stack) -> None:
    assert await query(stack, "SELECT count(*) > 0 FROM tidegate.shard") == [(True,)]
    fresh = "SELECT as_of IS NOT NULL FROM tidegate.data_as_of(ARRAY['gadgets'])"
    await query(stack, "INSERT INTO tidegate.shard (stream, shard_id) VALUES ('changes', 's')")
    await query(stack, "INSERT INTO tidegate.watermark VALUES ('changes', 's', 'gadgets', now())")
    assert await query(stack, fresh) == [(True,)]


async def test_a_stream_that_is_not_there_is_unavailable_and_said(
    stack: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    await asyncio.to_thread(ingest_handler.handler.reset)
    with mock.patch.dict(os.environ, {"TIDEGATE_INBOUND_STREAM": "none"}):
        status, headers, _ = await ask(ingest_handler.handler, "POST", "/v1/events", wish(1))
    assert (status, headers["content-type"]) == (503, "application/problem+json")
    assert '"event":"api.fatal"' in capsys.readouterr().out
    await asyncio.to_thread(ingest_handler.handler.reset)


# --- a user's own ----------------------------------------------------------------------------------

PATH = "/v1/user"


async def user(
    method: str, body: object = None, claims: Mapping[str, Any] = ANN, **headers: str
) -> tuple[int, str, Any]:
    """Status, ETag, JSON."""
    if method == "PATCH":
        headers.setdefault("content_type", "application/merge-patch+json")
    status, shown, said = await ask(user_handler.handler, method, PATH, body, claims, **headers)
    return status, shown.get("etag", ""), said


async def test_a_user_s_own_attributes_from_first_to_last(stack: Stack) -> None:
    assert (await user("GET"))[0] == 404
    status, first, said = await user("POST", {"language": "de", "news": {"mail": True, "sms": False}})
    assert (status, said["language"]) == (201, "de")
    assert (await user("POST", {}))[0] == 409
    assert await user("GET") == (200, first, said)
    assert (await user("GET", if_none_match=f"W/{first}"))[0] == 304
    status, second, said = await user("PATCH", {"news": {"sms": None, "push": True}, "language": None}, if_match=first)
    assert (status, said) == (200, {"news": {"mail": True, "push": True}})
    assert second != first
    assert (await user("PUT", {"a": 1}, if_match=first))[0] == 412
    status, third, said = await user("PUT", {"a": [1, 2.5, "é"]}, if_match=f'"x", {second}')
    assert (status, said) == (200, {"a": [1, 2.5, "é"]})
    assert (await user("DELETE", if_match=second))[0] == 412
    assert (await user("DELETE", if_match=third))[0] == 204
    assert (await user("GET"))[0] == 404
    assert (await user("PUT", {}, if_none_match="*"))[0] == 201
    assert (await user("PUT", {}, if_none_match="*"))[0] == 412
    assert (await user("DELETE", if_match="*"))[0] == 204


async def test_everybody_has_their_own(stack: Stack) -> None:
    for claims, name in ((ANN, "ann"), (BEN, "ben")):
        assert (await user("POST", {"name": name}, claims))[0] == 201
    assert [(await user("GET", claims=claims))[2]["name"] for claims in (ANN, BEN)] == ["ann", "ben"]
    _, version, _ = await user("GET", claims=ANN)
    assert (await user("PUT", {"name": "x"}, BEN, if_match=version))[0] == 412
    machine = {"sub": issuer.CLIENT, "username": None}
    assert (await user("GET", claims=machine))[0] == 403


async def test_of_many_changes_at_once_one_wins(stack: Stack) -> None:
    cas = {"sub": "cas-s", "username": "customer-3"}
    status, version, _ = await user("POST", {"n": 0}, cas)
    assert status == 201
    outcomes = [await user("PATCH", {"n": number}, cas, if_match=version) for number in range(1, 6)]
    assert [status for status, *_ in outcomes] == [200, 412, 412, 412, 412]
    assert (await user("GET", claims=cas))[2] == {"n": 1}


@pytest.mark.parametrize(
    ("method", "body", "headers", "status"),
    [
        ("PUT", {}, {}, 428), ("PATCH", {}, {}, 428), ("DELETE", None, {}, 428),
        ("PUT", {}, {"if_match": 'W/"x"'}, 412), ("PUT", {}, {"if_match": "x"}, 412),
        ("PUT", [], {"if_match": "*"}, 400), ("PUT", None, {"if_match": "*"}, 400), ("PATCH", 1, {"if_match": "*"}, 400),
        ("PUT", {}, {"if_match": "*", "content_type": "text/plain"}, 415),
        ("PATCH", {}, {"if_match": "*", "content_type": "application/json"}, 415),
        ("PUT", {"x": "x" * 17_000}, {"if_match": "*"}, 413),
        ("PATCH", {"y": "x" * 16_370}, {"if_match": "*"}, 413),
        ("PUT", {"a": [[[[[[[[1]]]]]]]]}, {"if_match": "*"}, 400),
        ("OPTIONS", None, {}, 405), ("HEAD", None, {}, 405),
    ],
)  # fmt: skip
async def test_what_is_refused(stack: Stack, method: str, body: object, headers: dict[str, str], status: int) -> None:
    dora = {"sub": "dora-s", "username": "customer-4"}
    await user("PUT", {"kept": "x" * 20}, dora, if_none_match="*")
    assert (await user(method, body, dora, **headers))[0] == status
    assert (await user("GET", claims=dora))[2] == {"kept": "x" * 20}


async def test_an_administrator_erases_a_user(stack: Stack) -> None:
    await user("PUT", {"a": 1}, {"sub": "eve-s"}, if_none_match="*")
    assert await asyncio.to_thread(user_handler.erase, {"subject": "eve-s"}, None) == {"erased": True}
    assert await asyncio.to_thread(user_handler.erase, {"subject": "eve-s"}, None) == {"erased": False}
    with pytest.raises(msgspec.ValidationError):
        await asyncio.to_thread(user_handler.erase, {"requestContext": {}}, None)
    assert (await user("GET", claims={"sub": "eve-s"}))[0] == 404


async def test_the_command_line_forgets_a_user(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    await user("PUT", {"a": 1}, {"sub": "ann-s"}, if_none_match="*")
    assert {row[1] for row in await filed(stack)} == {"ann-s", "ben-s"}
    assert await asyncio.to_thread(main, ["access", "forget", "ann-s", "--yes"]) == 0
    assert "the attributes are deleted" in capsys.readouterr().out
    assert {row[1] for row in await filed(stack)} == {"ben-s"}
    assert (await user("GET", claims={"sub": "ann-s"}))[0] == 404


# --- the same without Lambda -----------------------------------------------------------------------


@asynccontextmanager
async def served(**changed: str) -> AsyncIterator[tuple[aiohttp.ClientSession, int]]:
    """`python -m api` in this loop, on the environment of the functions; its database is not asked here."""
    environ = {**os.environ, "TIDEGATE_CURSOR_KEY": "k" * 32, "TIDEGATE_PORT": "0", **changed}
    token = issuer.signed(issuer.claims(**ANN))
    with mock.patch.dict(os.environ, environ):
        settings = read(service.ServiceSettings, environ)
        async with service.serving(settings, edge_bubble.bubble, asyncio.Event()) as (port, _):
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=headers) as session:
                yield session, port


async def test_the_service_takes_events_and_keeps_attributes(stack: Stack) -> None:
    async with served() as (session, _):
        async with session.post("/v1/events", json=[wish(70), wish(71)]) as answer:
            said = await answer.json()
            assert (answer.status, [each["status"] for each in said["results"]]) == (202, ["accepted"] * 2)
        fay = {"Authorization": f"Bearer {issuer.signed(issuer.claims(sub='fay-s', username='customer-5'))}"}
        async with session.post("/v1/user", json={"theme": "dark"}, headers=fay) as answer:
            assert (answer.status, answer.headers["Cache-Control"]) == (201, "private, no-cache")
            version = answer.headers["ETag"]
        patch = {**fay, "If-Match": version, "Content-Type": "application/merge-patch+json"}
        async with session.patch("/v1/user", data=b'{"theme": null}', headers=patch) as answer:
            assert (answer.status, await answer.json()) == (200, {})
        async with session.delete("/v1/user", headers={**fay, "If-Match": "*"}) as answer:
            assert answer.status == 204
        async with session.post("/v1/events", json=wish(72), headers={"Authorization": ""}) as answer:
            assert (answer.status, answer.content_type) == (401, "application/problem+json")
        async with session.put("/v1/events", json=wish(72)) as answer:
            assert (answer.status, answer.headers["Allow"]) == (405, "POST")


async def test_the_service_reads_no_more_of_a_body_than_may_be(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 65_536

    async with served(TIDEGATE_BODY_TIMEOUT_S="0.3") as (session, port):
        async with session.post("/v1/events", data=io.BytesIO(b" " * 1_048_577)) as answer:
            assert (answer.status, (await answer.json())["type"]) == (413, "urn:tidegate:problem:too-large")
        async with session.post("/v1/events", data=endless()) as answer:
            assert answer.status == 413
        # Small as it comes, large as it would be read: not unpacked, as in Lambda.
        packed = {"Content-Encoding": "gzip"}
        async with session.post("/v1/events", data=gzip.compress(b" " * 10**8), headers=packed) as answer:
            assert (answer.status, (await answer.json())["type"]) == (400, "urn:tidegate:problem:bad-body")
        # Who announces more than comes holds nothing up for long.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
        assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 408 ")
        writer.close()
        # And who goes in the middle is no fault of ours.
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
        await writer.drain()
        writer.close()
        async with session.post("/v1/events", json=wish(73)) as answer:
            assert answer.status == 202
    assert not [record for record in caplog.records if record.name.startswith("aiohttp")]


async def test_what_the_service_was_not_given_it_does_not_serve(stack: Stack) -> None:
    async with served(TIDEGATE_INBOUND_STREAM="", TIDEGATE_USER_TABLE="") as (session, _):
        for path in ("/v1/events", "/v1/user"):
            async with session.post(path, json=wish(80)) as answer:
                assert answer.status == 405, "as at any other address of a service that only reads"
