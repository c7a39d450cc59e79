"""A webhook's receiver: checks the signature by its own reading of the standard, and answers as a test tells it to."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
from aiohttp import web

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
NEXT_SECRET = base64.b64encode(bytes(range(32, 64))).decode()


class Told(msgspec.Struct, frozen=True):
    """One POST, as it came in."""

    id: str
    key: str
    version: int
    event: dict[str, object]


Answer = Callable[[Told], Awaitable[web.StreamResponse]]


async def accept(told: Told) -> web.StreamResponse:
    return web.Response(status=204)


@dataclass(slots=True)
class Receiver:
    """`told` is everything that came in; `done` are the ids of what was accepted, each once."""

    secret: str = SECRET
    answer: Answer = accept
    url: str = ""
    told: list[Told] = field(default_factory=list)
    done: dict[str, Told] = field(default_factory=dict)

    def versions(self, key: str) -> list[int]:
        return [told.version for told in self.told if told.key == key]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self._verify(request, body)
        assert request.headers["content-type"] == "application/cloudevents+json; charset=utf-8"
        event = msgspec.json.decode(body)
        version = int(event["tidegateversion"].split(".")[1])
        told = Told(request.headers["webhook-id"], event["subject"], version, event)
        self.told.append(told)
        answer = await self.answer(told)
        if answer.status < 300:
            self.done.setdefault(told.id, told)
        return answer

    def _verify(self, request: web.Request, body: bytes) -> None:
        """As a receiver would, with the one secret that it knows."""
        key = base64.b64decode(self.secret.removeprefix("whsec_"))
        signed = b".".join(
            [request.headers["webhook-id"].encode(), request.headers["webhook-timestamp"].encode(), body]
        )
        expected = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        offered = [part.removeprefix("v1,") for part in request.headers["webhook-signature"].split(" ")]
        if not any(hmac.compare_digest(expected, each) for each in offered):
            raise web.HTTPUnauthorized(text="who are you?")


@asynccontextmanager
async def receiving(receiver: Receiver, port: int = 0) -> AsyncIterator[None]:
    """The receiver on a port of its own, for the block."""
    app = web.Application()
    app.router.add_post("/changes", receiver.handle)
    # What a test leaves hanging is not waited for.
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/changes"
        yield
    finally:
        await runner.cleanup()
