"""The reads as a process of their own: over HTTP, with real tokens, streams, bounds, health, and an end in good order."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
import asyncpg
import msgspec
import pytest

from api import service
from tests.fakes import issuer
from tests.integration.harbour import Harbour, opened
from tests.integration.harbour_bubble import bubble
from tidegate.settings import read

ROOT = Path(__file__).parents[2]
PAGE = "https://front.example.com"


@pytest.fixture(scope="module")
def harbour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harbour]:
    with opened(tmp_path_factory.mktemp("harbour") / "migrations", count=30) as made:
        yield made


class Process(msgspec.Struct, frozen=True):
    """A running service; `log` is the file of its lines."""

    popen: subprocess.Popen[bytes]
    url: str
    health_url: str
    log: Path


@contextmanager
def process(harbour: Harbour, **environment: str) -> Iterator[Process]:
    given = {
        **harbour.environment(), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TIDEGATE_PORT": "0",
        "TIDEGATE_HEALTH_PORT": "0", "TIDEGATE_CORS_ORIGINS": PAGE, **environment,
    }  # fmt: skip
    with tempfile.NamedTemporaryFile() as log:
        popen = subprocess.Popen([sys.executable, "-m", "api"], cwd=ROOT, env=given, stdout=log, stderr=log)
        try:
            started = first_line(popen, Path(log.name))
            assert started["event"] == "api_started", started
            url, health_url = (f"http://127.0.0.1:{started[name]}" for name in ("port", "health_port"))
            yield Process(popen, url, health_url, Path(log.name))
        finally:
            popen.kill()
            popen.wait()


def first_line(popen: subprocess.Popen[bytes], log: Path) -> dict[str, object]:
    pause, deadline = threading.Event(), time.monotonic() + 30
    while b"\n" not in log.read_bytes():
        assert popen.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        pause.wait(0.02)
    line: dict[str, object] = json.loads(log.read_bytes().splitlines()[0])
    return line


@pytest.fixture(scope="module")
def running(harbour: Harbour) -> Iterator[Process]:
    with process(harbour) as started:
        yield started


def token(username: str = "owner-o1") -> str:
    return issuer.signed(issuer.claims(username=username))


def fetch(
    url: str, headers: Mapping[str, str] | None = None, method: str = "GET"
) -> tuple[int, dict[str, str], str]:  # fmt: skip
    request = urllib.request.Request(url, headers=dict(headers or {}), method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            found = answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            found = error.code, error.headers, error.read()
    return found[0], {name.lower(): value for name, value in found[1].items()}, found[2].decode()


def test_rows_over_http_with_a_verified_token(running: Process) -> None:
    status, headers, text = fetch(f"{running.url}/v1/ships?limit=2&flag=ch", {"Authorization": f"Bearer {token()}"})
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert len(json.loads(text)["items"]) == 2
    known = {"Authorization": f"Bearer {token()}", "If-None-Match": headers["etag"]}
    assert fetch(f"{running.url}/v1/ships?limit=2&flag=ch", known)[0] == 304
    assert fetch(f"{running.url}/v1/ships")[0] == 401
    assert fetch(f"{running.url}/v1/ships", {"Authorization": f"Bearer {token()}x"})[0] == 401
    assert fetch(f"{running.url}/v1/ships/a%2Fb", {"Authorization": f"Bearer {token()}"})[0] == 404
    repeated = f"{running.url}/v1/ships?flag.in=ch&flag.in=fr&limit=200&fields=flag"
    shown = json.loads(fetch(repeated, {"Authorization": f"Bearer {token()}"})[2])["items"]
    assert {ship["flag"] for ship in shown} == {"ch", "fr"}


def test_every_answer_has_the_headers_of_a_safe_one(running: Process) -> None:
    for path in ("/v1/ships", "/v1/nothing", "/v1/openapi.json"):
        headers = fetch(f"{running.url}{path}")[1]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["cache-control"] == "private, no-cache"
        assert len(headers["x-request-id"]) == 16


def test_the_page_for_people_loads_nothing(running: Process) -> None:
    status, headers, text = fetch(f"{running.url}/v1/docs")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "style-src 'sha256-" in headers["content-security-policy"]
    assert "/v1/ships/changes" in text
    assert not any(word in text for word in ("<script", "<link", "src=", "http://", "https://", "@import"))


def test_a_page_of_an_allowed_origin_may_ask(running: Process) -> None:
    asking = {"Origin": PAGE, "Access-Control-Request-Method": "GET"}
    status, headers, _ = fetch(f"{running.url}/v1/ships", asking, "OPTIONS")
    assert (status, headers["access-control-allow-origin"]) == (204, PAGE)
    assert "Authorization" in headers["access-control-allow-headers"]
    for path in ("/v1/ships", "/v1/openapi.json"):
        headers = fetch(f"{running.url}{path}", {"Origin": PAGE})[1]
        assert headers["access-control-allow-origin"] == PAGE, "problems too"
        assert "Data-As-Of" in headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in headers
        assert headers["vary"].endswith("Origin")
    for origin in ("https://evil.example.com", "null", f"{PAGE}.evil.com"):
        status, headers, _ = fetch(f"{running.url}/v1/ships", {**asking, "Origin": origin}, "OPTIONS")
        assert (status, "access-control-allow-origin" in headers) == (405, False)
        assert "access-control-allow-origin" not in fetch(f"{running.url}/v1/ships", {"Origin": origin})[1]


def test_health_and_metrics(running: Process) -> None:
    assert fetch(f"{running.health_url}/livez")[0] == 200
    assert json.loads(fetch(f"{running.health_url}/readyz")[2]) == {"ready": True, "reasons": {}}
    assert "tidegate_api_requests_total" in fetch(f"{running.health_url}/metrics")[2]


def test_sigterm_ends_it_in_good_order_and_it_has_logged_every_request(harbour: Harbour) -> None:
    with process(harbour) as started:
        assert fetch(f"{started.url}/v1/ships/secret-key", {"Authorization": f"Bearer {token()}"})[0] == 404
        started.popen.send_signal(signal.SIGTERM)
        assert started.popen.wait(timeout=20) == 0
        output = started.log.read_text()
    lines = [json.loads(line) for line in output.splitlines()]
    [request] = [line for line in lines if line["event"] == "api.request"]
    assert (request["status"], request["route"]) == (404, "GET /v1/ships")
    assert len(request["request_id"]) == 16
    assert "secret-key" not in output
    assert lines[-1]["event"] == "process_stopped"


def test_wrong_settings_are_one_clear_line(harbour: Harbour) -> None:
    environment = {
        **harbour.environment(),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "TIDEGATE_CURSOR_KEY": "x",
        "TIDEGATE_PORT": "0",
        "TIDEGATE_HEALTH_PORT": "0",
    }
    ended = subprocess.run(
        [sys.executable, "-m", "api"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert ended.returncode == 1
    assert "TIDEGATE_CURSOR_KEY: a cursor key has at least 32 bytes" in ended.stdout


# --- streams and bounds, in this process -----------------------------------------------------------


@asynccontextmanager
async def serving(harbour: Harbour, **changes: str) -> AsyncIterator[tuple[aiohttp.ClientSession, asyncio.Event]]:
    environment = {**harbour.environment(), "TIDEGATE_PORT": "0", "TIDEGATE_STREAM_LOOK_S": "0.05", **changes}
    settings, stop = read(service.ServiceSettings, environment), asyncio.Event()
    async with (
        service.serving(settings, bubble, stop) as (port, _),
        aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {token()}"}) as session,
    ):
        yield session, stop


class Event(msgspec.Struct, frozen=True):
    """One server-sent event."""

    event: str
    data: dict[str, object]
    id: str = ""


async def next_event(stream: aiohttp.ClientResponse) -> Event:
    fields: dict[str, str] = {}
    async for line in stream.content:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name:
            fields[name] = value
        elif "event" in fields:
            return Event(fields["event"], msgspec.json.decode(fields["data"]), fields.get("id", ""))
        else:
            fields = {}
    raise EOFError


STREAM = {"Accept": "text/event-stream"}


def test_a_stream_tells_of_changes_and_goes_on_where_it_broke_off(harbour: Harbour) -> None:
    harbour.execute("UPDATE ships SET owner = 'o1', name = 'before' WHERE imo = 'imo0001'")

    async def play() -> None:
        async with serving(harbour) as (session, stop):
            async with session.get("/v1/ships/changes", headers=STREAM) as stream:
                assert stream.content_type == "text/event-stream"
                assert (await next_event(stream)).data == {
                    "Data-As-Of": "2026-11-21T05:55:00Z",
                    "Data-Stale": "register",
                }
                begun = await next_event(stream)
                assert (begun.event, begun.data["changes"]) == ("changes", [])
                await execute(harbour, "UPDATE ships SET name = 'one' WHERE imo = 'imo0001'")
                told = await next_event(stream)
                assert str(told.data["changes"]).count("'one'") == 1
            await execute(harbour, "UPDATE ships SET owner = 'o2', agent = NULL WHERE imo = 'imo0001'")
            async with session.get("/v1/ships/changes", headers={**STREAM, "Last-Event-ID": told.id}) as stream:
                await next_event(stream)
                assert (await next_event(stream)).data["changes"] == [{"change": "removed", "key": "imo0001"}]
                stop.set()
                with pytest.raises(EOFError):
                    await next_event(stream)

    harbour.run(play())


def test_a_stream_that_may_not_begin_is_an_answer_and_one_that_may_not_go_on_says_why(harbour: Harbour) -> None:
    async def play() -> None:
        async with serving(harbour, TIDEGATE_STREAMS_MOST="1", TIDEGATE_TOKENS_LEEWAY_S="4") as (session, _):
            async with session.get("/v1/ships/changes?cursor=forged", headers=STREAM) as refused:
                assert (refused.status, refused.content_type) == (400, "application/problem+json")
            # It has ended; only the leeway lets it in, for so long.
            short = issuer.signed(issuer.claims(username="owner-o1", exp=int(time.time())))
            headers = {**STREAM, "Authorization": f"Bearer {short}"}
            async with session.get("/v1/ships/changes", headers=headers) as stream:
                assert [(await next_event(stream)).event for _ in range(2)] == ["freshness", "changes"]
                async with session.get("/v1/ships/changes", headers=STREAM) as second:
                    assert (second.status, second.headers["Retry-After"]) == (429, "1")
                problem = await next_event(stream)
                assert (problem.event, problem.data["status"]) == ("problem", 401)
                with pytest.raises(EOFError):
                    await next_event(stream)

    harbour.run(play())


def test_who_comes_too_many_is_told_when_to_come_again(harbour: Harbour) -> None:
    async def play() -> list[tuple[int, str | None]]:
        async with serving(harbour, TIDEGATE_REQUESTS_MOST="4", TIDEGATE_CONNECTIONS="2") as (session, _):

            async def one() -> tuple[int, str | None]:
                async with session.get("/v1/ships?embed=visits") as answer:
                    if answer.status == 429:
                        assert (await answer.json(content_type=None))[
                            "type"
                        ] == "urn:tidegate:problem:too-many-requests"
                    return answer.status, answer.headers.get("Retry-After")

            return await asyncio.gather(*(one() for _ in range(40)))

    answers = harbour.run(play())
    assert set(answers) == {(200, None), (429, "1")}
    assert answers.count((200, None)) >= 4


async def execute(harbour: Harbour, statement: str) -> None:
    connection = await asyncpg.connect(harbour.postgres.dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
