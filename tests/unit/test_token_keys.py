"""The issuer's keys: fetched when they are needed, seldom otherwise, and over a real socket."""

from __future__ import annotations

import asyncio
import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from api.compact import Unidentified
from api.settings import TokenSettings
from api.tokens import HttpKeys, Keys, Verifier
from tests.fakes.issuer import CLIENT, ISSUER, claims, jwks, signed
from tidegate.errors import Transient

SETTINGS = TokenSettings(
    issuer=ISSUER, clients=(CLIENT,), refetch_s=60, keys_max_age_s=3_600, keys_stale_s=86_400, fetch_timeout_s=0.5
)


class Issuer:
    """Answers with `document`, or does not; counts. The time is its own."""

    def __init__(self, document: str) -> None:
        self.document: str | None = document
        self.asked = 0
        self.now_s = 1_000.0
        self.keys = Keys(SETTINGS, self.fetch, lambda: self.now_s)

    async def fetch(self) -> bytes:
        self.asked += 1
        await asyncio.sleep(0)
        if self.document is None:
            raise Transient("away")
        return self.document.encode()

    async def knows(self, kid: str) -> bool:
        try:
            return await self.keys.key(kid) is not None
        except Unidentified:
            return False


async def test_keys_are_fetched_once_whoever_asks() -> None:
    issuer = Issuer(jwks("key-1", "key-2"))
    assert await asyncio.gather(*(issuer.knows(kid) for kid in ("key-1", "key-2") * 20)) == [True] * 40
    assert issuer.asked == 1


async def test_a_new_key_is_found_and_made_up_names_make_no_traffic() -> None:
    issuer = Issuer(jwks("key-1"))
    assert await issuer.knows("key-1")
    issuer.document = jwks("key-2")
    assert not await issuer.knows("key-2"), "asked a moment ago"
    issuer.now_s += 60
    assert await issuer.knows("key-2")
    assert not await issuer.knows("key-1"), "it was withdrawn"
    asked = issuer.asked
    assert [await issuer.knows(f"made-up-{number}") for number in range(200)] == [False] * 200
    assert issuer.asked == asked
    issuer.now_s += 60
    assert [await issuer.knows(f"made-up-{number}") for number in range(200)] == [False] * 200
    assert issuer.asked == asked + 1


async def test_a_withdrawn_key_lives_no_longer_than_the_keys_age() -> None:
    issuer = Issuer(jwks("key-1"))
    assert await issuer.knows("key-1")
    issuer.document = jwks("key-2")
    issuer.now_s += 3_599
    assert await issuer.knows("key-1")
    issuer.now_s += 1
    assert not await issuer.knows("key-1")


async def test_while_the_issuer_is_away_known_keys_count_for_a_day() -> None:
    issuer = Issuer(jwks("key-1"))
    assert await issuer.knows("key-1")
    issuer.document = None
    issuer.now_s += 3_600
    assert await issuer.knows("key-1")
    asked = issuer.asked
    assert await issuer.knows("key-1")
    assert issuer.asked == asked, "and he is left alone for a while"
    issuer.now_s += 86_400
    with pytest.raises(Transient, match="away"):
        await issuer.knows("key-1")


async def test_nobody_is_let_in_before_there_are_keys_and_soon_after() -> None:
    issuer = Issuer(jwks("key-1"))
    issuer.document = None
    for _ in range(50):
        with pytest.raises(Transient):
            await issuer.knows("key-1")
    assert issuer.asked == 1
    issuer.document = jwks("key-1")
    issuer.now_s += 2
    assert await issuer.knows("key-1")


# --- over HTTP -------------------------------------------------------------------------------------

Reply = tuple[int, dict[str, str], bytes]


@pytest.fixture
def site() -> Iterator[Callable[[Reply], str]]:
    """Serves one answer on a port of its own; returns the address."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def serve(reply: Reply) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, headers, body = reply
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        return f"http://127.0.0.1:{server.server_address[1]}/pool/keys.json?v=1"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def over(url: str) -> Verifier:
    stated = msgspec.structs.replace(SETTINGS, jwks_url=url)
    return Verifier(stated, Keys(stated, HttpKeys(stated).fetch))


async def test_the_keys_come_over_http(site: Callable[[Reply], str]) -> None:
    verifier = over(site((200, {}, jwks().encode())))
    found = await verifier.claims(f"Bearer {signed(claims())}")
    assert found is not None
    assert found["iss"] == ISSUER


@pytest.mark.parametrize(
    "reply",
    [
        (500, {}, b"{}"),
        (200, {}, b"<html>"),
        (200, {}, b'{"keys": 1}'),
        (200, {}, b" " * 300_000),
        (302, {"Location": "http://127.0.0.1:1/"}, b""),
        (200, {"Content-Length": "900"}, b"{"),
    ],
    ids=["500", "html", "no list", "too much", "elsewhere", "cut"],
)
async def test_an_answer_that_is_none_lets_nobody_in(site: Callable[[Reply], str], reply: Reply) -> None:
    with pytest.raises(Transient):
        await over(site(reply)).claims(f"Bearer {signed(claims())}")


async def test_an_issuer_that_is_not_there_or_says_nothing(unused_tcp_port: int) -> None:
    with pytest.raises(Transient):
        await over(f"http://127.0.0.1:{unused_tcp_port}/").claims(f"Bearer {signed(claims())}")
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(Transient):
        await over(f"http://127.0.0.1:{silent.getsockname()[1]}/").claims(f"Bearer {signed(claims())}")
