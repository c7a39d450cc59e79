"""The front-office page of the embedded stack: static files, sign-in and the API under one origin.

    GET  /            the page, from web/front
    GET  /demo.json   who can sign in, with their generated passwords, and the back offices' screens
    POST /sign-in     {"username", "password"} → {"access_token", "expires_in"}; 401 for wrong ones
    *    /v1/…        handed to the API gateway as it is

On AWS the page is a static site, sign-in is the user pool's own, and the API has its own address. Sign-in by
password through this server exists for the embedded stack only, and it listens on 127.0.0.1 only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
from aiohttp import web
from yarl import URL

from local import gateway, paths

_CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SECURITY = {
    "Content-Security-Policy": _CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_PASSED_ON = ("Authorization", "If-None-Match", "If-Match", "Accept", "Content-Type", "Idempotency-Key")
_HANDED_BACK = (
    "Content-Type", "ETag", "Cache-Control", "Data-As-Of", "Data-Incomplete", "Data-Unwatermarked",
    "WWW-Authenticate", "X-Request-Id", "Retry-After", "Next-Cursor", "Data-Stale", "Age", "Content-Security-Policy",
)  # fmt: skip
# The system's own table of types differs from machine to machine.
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_API_S = 15.0
_LARGEST_BODY_BYTES = 10_000

_HOSTS = frozenset({"127.0.0.1", "localhost"})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
SignIn = Callable[[str, str], Awaitable[gateway.Tokens]]


class Person(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who can sign in."""

    username: str
    password: str
    title: str


class Link(msgspec.Struct, frozen=True, kw_only=True):
    title: str
    url: str


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What `/demo.json` says."""

    title: str
    users: list[Person]
    back_offices: list[Link]


class Served:
    """How many answers of the API this server has handed on."""

    def __init__(self) -> None:
        self.answers = 0


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """What the page server needs. `api_url`: the gateway's address, without a slash at its end."""

    api_url: str
    about: About
    sign_in: SignIn
    served: Served


class _Credentials(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    username: str
    password: str


@asynccontextmanager
async def serving(site: Site, port: int) -> AsyncIterator[str]:
    """Serve the page on 127.0.0.1; yields its address."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_API_S)) as session:
        app = web.Application(client_max_size=_LARGEST_BODY_BYTES, middlewares=[_own_host_only])
        app.on_response_prepare.append(_secure)
        server = _Pages(site, session)
        app.router.add_get("/demo.json", server.about)
        app.router.add_post("/sign-in", server.sign_in)
        app.router.add_route("*", "/v1/{rest:.*}", server.api)
        for file in sorted(paths.web("front").iterdir()):
            if file.is_file():
                app.router.add_get("/" if file.name == "index.html" else f"/{file.name}", _file(file))
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            tcp = web.TCPSite(runner, "127.0.0.1", port)
            await tcp.start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


class _Pages:
    def __init__(self, site: Site, session: aiohttp.ClientSession) -> None:
        self._site = site
        self._session = session

    async def about(self, request: web.Request) -> web.Response:
        return _json(self._site.about)

    async def sign_in(self, request: web.Request) -> web.Response:
        # A page of another origin cannot send this type without asking first, and is not answered then.
        if request.content_type != "application/json":
            return _json({"error": "send JSON"}, 415)
        try:
            credentials = msgspec.json.decode(await request.read(), type=_Credentials)
        except ValueError as error:
            return _json({"error": str(error)}, 400)
        try:
            tokens = await self._site.sign_in(credentials.username, credentials.password)
        except gateway.SignInRefused:
            return _json({"error": "user name or password is wrong"}, 401)
        return _json({"access_token": tokens.access_token, "expires_in": tokens.expires_in})

    async def api(self, request: web.Request) -> web.Response:
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        # As it came: `%2F` in a key must not become a slash.
        address = URL(f"{self._site.api_url}{request.raw_path}", encoded=True)
        try:
            sent = await request.read() or None
            async with self._session.request(request.method, address, headers=headers, data=sent) as answer:
                body = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            return _json({"title": "The API does not answer", "detail": str(error)}, 502)
        self._site.served.answers += 1
        kept = {name: answer.headers[name] for name in _HANDED_BACK if name in answer.headers}
        return web.Response(status=answer.status, body=body, headers=kept)


@web.middleware
async def _own_host_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse other host names: a page of the web could give this address a name of its own and read the passwords."""
    if request.url.host not in _HOSTS:
        return _json({"error": f"ask for {' or '.join(sorted(_HOSTS))}"}, 421)
    return await handler(request)


async def _secure(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in _SECURITY.items():
        # The API's page for people has a policy of its own.
        response.headers.setdefault(name, value)


def _file(file: Path) -> Handler:
    headers = {"Cache-Control": "no-cache", "Content-Type": _TYPES[file.suffix]}

    async def serve(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(file, headers=headers)

    return serve


def _json(answer: object, status: int = 200) -> web.Response:
    headers = {"Cache-Control": "no-store"}
    return web.Response(
        status=status, body=msgspec.json.encode(answer), content_type="application/json", headers=headers
    )
