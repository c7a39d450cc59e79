"""The whole front door, with real tokens: Cognito, the gateway's JWT authorizer, the Lambda runtime, PostgreSQL."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

from local import gateway
from tests.integration.library import Library, Reply, opened

PASSWORD = "correct-horse-battery"
USERS = (
    gateway.User("reader-1", PASSWORD),
    gateway.User("reader-2", PASSWORD),
    gateway.User("[reader-1]", PASSWORD),
    gateway.User("ann", PASSWORD, ("evening", "staff-north")),
)


class Door(msgspec.Struct, frozen=True):
    """What runs: the stand-in's process id, the deployment, the database."""

    pid: int
    deployment: gateway.Deployment
    library: Library

    def token(self, username: str) -> str:
        return self.library.run(gateway.sign_in(self.deployment, username, PASSWORD)).access_token


def wait_for(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for: {what}"
        pause.wait(0.05)


def fetch(url: str, token: str | None = None, headers: Mapping[str, str] | None = None) -> Reply:
    request = urllib.request.Request(url, headers=dict(headers or {}))
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            status, body, found = answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            status, body, found = error.code, error.read(), error.headers
    return Reply(status, {name.lower(): value for name, value in found.items()}, body.decode())


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """ministack on a port of its own: address and process id."""
    place = tmp_path_factory.mktemp("ministack")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(place), "TMPDIR": str(place), "BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port),
        "LOG_LEVEL": "WARNING", "SFTP_ENABLED": "0", "IOT_MTLS_ENABLED": "0", "DOCKER_HOST": f"unix://{place}/none.sock",
    }  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ministack"], cwd=place, env=environment, stdout=log, stderr=log
        )
    try:
        wait_for(lambda: answers(f"{url}/_ministack/health"), seconds=20, what="ministack")
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(15)


def answers(url: str) -> bool:
    try:
        return fetch(url).status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def door(stand_in: tuple[str, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    url, pid = stand_in
    with opened(tmp_path_factory.mktemp("library") / "migrations") as library:
        deploy = gateway.deploy(
            endpoint_url=url,
            region="eu-central-1",
            bubble="tests.integration.library_bubble",
            database_url=library.reader_url,
            users=USERS,
            machines=[gateway.Machine("reader-2's scanner", ("reader-2",))],
        )
        yield Door(pid, library.run(deploy), library)


def test_own_rows_and_nobody_else_s(door: Door) -> None:
    loans = f"{door.deployment.api_url}/v1/loans"
    for username, visible, hidden in (("reader-1", "L2", "L3"), ("reader-2", "L3", "L1")):
        token = door.token(username)
        assert fetch(f"{loans}/{visible}", token).json["number"] == visible
        assert fetch(f"{loans}/{hidden}", token).status == 404
    shown = [item["number"] for item in fetch(f"{loans}?limit=2", door.token("ann")).json["items"]]
    assert shown == ["L1", "L2"], "groups reach the claims"


def test_a_chosen_name_opens_nobody_else_s_rows(door: Door) -> None:
    assert fetch(f"{door.deployment.api_url}/v1/loans", door.token("[reader-1]")).json["items"] == []


def test_a_machine_has_its_own_rows(door: Door) -> None:
    tokens = door.library.run(gateway.sign_in_machine(door.deployment, "reader-2's scanner"))
    page = fetch(f"{door.deployment.api_url}/v1/loans", tokens.access_token).json
    assert [item["number"] for item in page["items"]] == ["L2", "L3"]


def test_headers_and_paths_come_through(door: Door) -> None:
    url, token = f"{door.deployment.api_url}/v1/loans/L1", door.token("reader-1")
    first = fetch(url, token)
    assert first.headers["data-as-of"] == "2026-11-21T05:50:00.500000Z"
    assert first.headers["content-type"] == "application/json"
    assert fetch(url, token, {"If-None-Match": first.headers["etag"]}).status == 304
    missing = fetch(f"{door.deployment.api_url}/v1/loans/a%2Fb%25", token)
    assert (missing.status, missing.headers["content-type"]) == (404, "application/problem+json")
    cursor = fetch(f"{door.deployment.api_url}/v1/town-branches?limit=100", token).json["next_cursor"]
    rest = fetch(f"{door.deployment.api_url}/v1/town-branches?limit=100&cursor={cursor}", token).json
    assert (len(rest["items"]), rest["next_cursor"]) == (21, None)


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_no_token_or_a_forged_one_is_turned_away(door: Door) -> None:
    url = f"{door.deployment.api_url}/v1/loans"
    header, _, signature = door.token("reader-1").split(".")
    claims = msgspec.json.decode(base64.urlsafe_b64decode(door.token("reader-1").split(".")[1] + "=="))
    tampered = part({**claims, "username": "ann", "cognito:groups": ["staff-north"]})
    forged = f"{header}.{tampered}.{signature}"
    unsigned = f"{part({'alg': 'none', 'kid': 'x'})}.{tampered}."
    for token in (None, "nonsense", forged, unsigned):
        assert fetch(url, token).status == 401, token


def test_an_id_token_is_turned_away(door: Door) -> None:
    tokens = door.library.run(gateway.sign_in(door.deployment, "reader-1", PASSWORD))
    assert fetch(f"{door.deployment.api_url}/v1/loans", tokens.id_token).status == 401
    assert fetch(f"{door.deployment.api_url}/v1/loans", tokens.access_token).status == 200


def test_a_wrong_password_is_refused(door: Door) -> None:
    for username in ("reader-1", "nobody"):
        with pytest.raises(gateway.SignInRefused):
            door.library.run(gateway.sign_in(door.deployment, username, "wrong-password"))


def test_the_specification_is_open(door: Door) -> None:
    assert fetch(f"{door.deployment.api_url}/v1/openapi.json").json["openapi"].startswith("3.1")
    assert fetch(f"{door.deployment.api_url}/v1/anything").status == 401


def test_a_killed_runtime_is_replaced(door: Door) -> None:
    url, token = f"{door.deployment.api_url}/v1/loans/L1", door.token("reader-1")
    assert fetch(url, token).status == 200
    killed = gateway.runtime_pids(door.pid)
    assert killed, "the runtime can be found"
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    # One request may still meet the dying process.
    wait_for(lambda: fetch(url, token).status == 200, seconds=15, what="a new runtime")
    assert not set(gateway.runtime_pids(door.pid)) & set(killed)


def test_deploying_again_replaces_what_was_there(door: Door) -> None:
    again = door.library.run(
        gateway.deploy(
            endpoint_url=door.deployment.endpoint_url,
            region="eu-central-1",
            bubble="tests.integration.library_bubble",
            database_url=door.library.reader_url,
            users=USERS,
        )
    )
    tokens = door.library.run(gateway.sign_in(again, "reader-1", PASSWORD))
    assert fetch(f"{again.api_url}/v1/loans/L1", tokens.access_token).status == 200
    assert fetch(f"{door.deployment.api_url}/v1/openapi.json").status == 404


def test_an_api_that_cannot_start_says_so(stand_in: tuple[str, int], door: Door) -> None:
    url, _ = stand_in
    work = gateway.deploy(
        endpoint_url=url, region="eu-central-1", bubble="no_such_bubble", database_url="postgresql://h/d", users=[],
        function="broken",
    )  # fmt: skip
    with pytest.raises(gateway.DeployFailed, match="503"):
        door.library.run(work)


def test_where_the_runtime_finds_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_bubble.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    places = gateway.search_path("my_bubble").split(os.pathsep)
    assert str(tmp_path) in places
    assert any((Path(place) / "api" / "handler.py").exists() for place in places)
