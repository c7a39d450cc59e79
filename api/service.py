"""The API as an HTTP service of its own, over aiohttp, for those who do not use Lambda; and server-sent events.

The same apps, settings and token check as in Lambda: the reads, `POST /v1/events` where a stream of arrivals is named, and
`/v1/user` where a table is. Besides, `GET /v1/{collection}/changes` with
`Accept: text/event-stream` stays open and is told what changed:

    id: <cursor>              event: changes      data: {"changes": […], …}      as the plain answer
                              event: freshness    data: {"Data-As-Of": …}        when it moved
                              event: problem      data: problem details          then the stream ends

A stream begins where `Last-Event-ID` or `cursor` says, and its token is verified before every look, so it ends when the
token does. Requests and streams under way are bounded, each by a setting; who comes too many is told 429.

A load balancer in front speaks TLS; here it is plain HTTP.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated
from urllib.parse import unquote

import msgspec
from aiohttp import web
from msgspec import Meta

from api import changes, ingest_handler, user_handler
from api.answer import Answer, Refused, problem
from api.app import App
from api.cors import Cors
from api.database import Database, Read
from api.entry import Served, respond, route_of
from api.faults import finished
from api.handler import options
from api.log import REQUEST, log
from api.queries import Query, Viewers
from api.request import Request
from api.routes import EVENTS, USER
from api.settings import ApiSettings, IngestSettings, UserSettings
from api.tokens import verifier
from tidegate import health, telemetry
from tidegate.bubble import Bubble, load
from tidegate.errors import Fatal, Transient
from tidegate.settings import HealthSettings, read

EVENT_STREAM = "text/event-stream"
_PROBE = Query(changes.BEGINNING, {})
_PROBE_S = 5.0
_SHUTDOWN_S = 5.0
_LONGEST_LINE_BYTES = 200_000
"""All values that one filter takes, percent-encoded. API Gateway takes addresses of about 10,000."""


class ServiceSettings(ApiSettings, frozen=True, kw_only=True):
    """Those of the reads, and those of the service around them."""

    host: Annotated[str, Meta(description="bind address; 0.0.0.0 in a container")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535, description="0 lets the system choose")] = 8000
    connections: Annotated[
        int,
        Meta(
            ge=1,
            le=200,
            description="to PostgreSQL, each of which reads for one request at a time; and to AWS, where it is asked",
        ),
    ] = 8
    requests_most: Annotated[
        int, Meta(ge=1, le=10_000, description="under way at once, those that wait for a connection included; then 429")
    ] = 200
    streams_most: Annotated[int, Meta(ge=0, le=10_000, description="server-sent events at once; then 429")] = 200
    inbound_stream: Annotated[
        str | None, Meta(description="stream of arrivals; unset: POST /v1/events is not served. See `api.settings`")
    ] = None
    user_table: Annotated[
        str | None, Meta(description="DynamoDB table of users' attributes; unset: /v1/user is not served")
    ] = None
    body_timeout_s: Annotated[
        float, Meta(gt=0, le=60, description="the longest wait for a request's body; then 408")
    ] = 10.0
    stream_look_s: Annotated[float, Meta(gt=0, le=60, description="how often a stream looks for changes")] = 1.0
    health: HealthSettings = HealthSettings()


class Pool:
    """Some connections, each of which reads for one request at a time."""

    def __init__(self, settings: ServiceSettings, tables: Sequence[str]) -> None:
        self._settings = settings
        self._all = [Database(settings, tables) for _ in range(settings.connections)]
        # The last one given back goes out first, so that few connections do the work of quiet hours.
        self._free: asyncio.LifoQueue[Database] = asyncio.LifoQueue()
        for database in self._all:
            self._free.put_nowait(database)

    async def read(self, viewers: Viewers, query: Query, sources: Sequence[str]) -> Read:
        """Raises Transient, Rejected or Fatal; waits for a free connection no longer than for a statement."""
        try:
            async with asyncio.timeout(self._settings.statement_timeout_s):
                database = await self._free.get()
        except TimeoutError as error:
            raise Transient("all connections are in use (TIDEGATE_CONNECTIONS)", retry_after_s=1) from error
        try:
            return await database.read(viewers, query, sources)
        finally:
            self._free.put_nowait(database)

    async def close(self) -> None:
        for database in self._all:
            await database.close()


class Door(msgspec.Struct, frozen=True):
    """An address that is no read, and how large a body may come through it."""

    served: Served
    most_body_bytes: int


class Service:
    """The HTTP face of what is served: the reads, and what stands at other addresses."""

    def __init__(
        self, served: Served, doors: Mapping[str, Door], bubble: Bubble, settings: ServiceSettings, stop: asyncio.Event
    ) -> None:
        self._served = served
        self._doors = doors
        self._settings = settings
        self._stop = stop
        self._under_way = 0
        self._streams = 0
        self._follows = {f"/v1/{shape.collection}/changes" for shape in bubble.shapes}

    async def handle(self, http: web.Request) -> web.StreamResponse:
        """One request of any method and path."""
        started = time.perf_counter()
        request = request_from(http)
        if request.path in self._follows and EVENT_STREAM in request.headers.get("accept", ""):
            return await self._stream(http, request)
        if self._under_way >= self._settings.requests_most:
            answer = self._refused(request, "as many requests are under way as there may be")
        else:
            self._under_way += 1
            try:
                answer = await self._answer(http, request)
            finally:
                self._under_way -= 1
        self._note(request, answer.status, started)
        return web.Response(status=answer.status, body=answer.body.encode(), headers=dict(answer.headers))

    async def _answer(self, http: web.Request, request: Request) -> Answer:
        door = self._doors.get(request.path)
        if door is None:
            return await respond(self._served, request)
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                body = await _body(http, door.most_body_bytes)
        except (TimeoutError, ConnectionResetError):
            # Whoever went hears nothing of it, but the log does.
            detail = f"the whole body did not come within {self._settings.body_timeout_s:g} s; send it again"
            return self._refusal(request, Refused(408, "body-timeout", "Request timeout", detail))
        return await respond(door.served, msgspec.structs.replace(request, body=body))

    async def _stream(self, http: web.Request, request: Request) -> web.StreamResponse:
        started = time.perf_counter()
        if self._streams >= self._settings.streams_most:
            answer = self._refused(request, "as many streams are open as there may be")
        else:
            if last := request.headers.get("last-event-id"):
                request = msgspec.structs.replace(request, query={**request.query, "cursor": last})
            request, answer = await self._look(request)
        if answer.status not in (200, 304):
            self._note(request, answer.status, started)
            return web.Response(status=answer.status, body=answer.body.encode(), headers=dict(answer.headers))
        self._streams += 1
        telemetry.API_STREAMS.set(self._streams)
        try:
            return await self._told(http, request, answer)
        finally:
            self._streams -= 1
            telemetry.API_STREAMS.set(self._streams)
            self._note(request, 200, started)

    async def _told(self, http: web.Request, request: Request, answer: Answer) -> web.StreamResponse:
        """Tell of every look until the caller goes, the token ends, or we do."""
        kept = {name: value for name, value in answer.headers.items() if name not in _OF_ONE_LOOK}
        headers = {
            **kept,
            "Content-Type": EVENT_STREAM,
            "Cache-Control": "private, no-store",
            "X-Accel-Buffering": "no",
        }
        response = web.StreamResponse(headers=headers)
        await response.prepare(http)
        freshness: Mapping[str, str] = {}
        try:
            while True:
                text, freshness = events_of(answer, freshness)
                await response.write(text.encode())
                if answer.status not in (200, 304) or self._stop.is_set():
                    return response
                if answer.headers.get("Retry-After") != "0":
                    await self._pause()
                request, answer = await self._look(request)
        except ConnectionResetError:
            # The caller went; there is nobody to tell.
            return response

    async def _look(self, request: Request) -> tuple[Request, Answer]:
        """One look, and the request that goes on after it."""
        answer = await respond(self._served, request)
        if cursor := answer.headers.get("Next-Cursor"):
            request = msgspec.structs.replace(request, query={**request.query, "cursor": cursor})
        return request, answer

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._settings.stream_look_s):
                await self._stop.wait()
        except TimeoutError:
            return

    def _refused(self, request: Request, why: str) -> Answer:
        detail, headers = f"{why}; come back a little later", {"Retry-After": "1"}
        return self._refusal(request, Refused(429, "too-many-requests", "Too many requests", detail, headers=headers))

    def _refusal(self, request: Request, refused: Refused) -> Answer:
        return self._served.cors.shown(request, finished(problem(refused, request.request_id), request.request_id))

    def _note(self, request: Request, status: int, started: float) -> None:
        seconds = time.perf_counter() - started
        telemetry.API_REQUESTS.labels(str(status)).inc()
        telemetry.API_SECONDS.observe(seconds)
        log(
            REQUEST,
            status=status,
            route=route_of(request),
            duration_ms=round(seconds * 1000, 2),
            request_id=request.request_id,
        )


_OF_ONE_LOOK = frozenset(
    {
        "Content-Type",
        "Next-Cursor",
        "Retry-After",
        "Age",
        "Data-As-Of",
        "Data-Incomplete",
        "Data-Stale",
        "Data-Unwatermarked",
    }
)


def events_of(answer: Answer, freshness: Mapping[str, str]) -> tuple[str, Mapping[str, str]]:
    """One look as server-sent events, and the freshness that the caller knows then."""
    if answer.status not in (200, 304):
        return f"event: problem\ndata: {answer.body}\n\n", freshness
    told = []
    now = {name: value for name, value in answer.headers.items() if name.startswith("Data-")}
    if now != freshness:
        told.append(f"event: freshness\ndata: {msgspec.json.encode(now).decode()}\n\n")
    if answer.status == 200:
        told.append(f"id: {answer.headers['Next-Cursor']}\nevent: changes\ndata: {answer.body}\n\n")
    # A comment keeps what is between us from taking silence for the end.
    return "".join(told) or ": nothing changed\n\n", now


def request_from(http: web.Request) -> Request:
    """As the gateway's event would be read: repeated parameters are joined by commas."""
    query = {name: ",".join(http.query.getall(name)) for name in http.query}
    return Request(
        method=http.method,
        path=unquote(http.raw_path.partition("?")[0]),
        query=query,
        headers={name.lower(): value for name, value in http.headers.items()},
        request_id=secrets.token_hex(8),
    )


async def _body(http: web.Request, most_bytes: int) -> bytes:
    """The body; of one that is too large a byte more than may be, so that it is refused for its size."""
    body = bytearray()
    async for part in http.content.iter_chunked(65_536):
        body += part
        if len(body) > most_bytes:
            break
    return bytes(body[: most_bytes + 1])


async def run(stop: asyncio.Event) -> None:
    """The whole life of the process. Raises Fatal for wrong settings or a wrong bubble."""
    settings = read(ServiceSettings, os.environ)
    bubble = load(settings.bubble)
    readiness = health.Readiness("database")
    async with (
        health.serving(settings.health, readiness, service="api") as health_port,
        serving(settings, bubble, stop) as (port, pool),
    ):
        await _probe(pool, readiness)
        telemetry.get_logger(__name__).info(
            telemetry.API_STARTED, bubble=bubble.name, port=port, health_port=health_port
        )  # fmt: skip
        while not stop.is_set():
            try:
                async with asyncio.timeout(_PROBE_S):
                    await stop.wait()
            except TimeoutError:
                await _probe(pool, readiness)


async def _probe(pool: Pool, readiness: health.Readiness) -> None:
    try:
        await pool.read({}, _PROBE, ())
    except (Transient, Fatal) as error:
        readiness.no("database", str(error))
    else:
        readiness.yes("database")


@asynccontextmanager
async def serving(
    settings: ServiceSettings, bubble: Bubble, stop: asyncio.Event
) -> AsyncIterator[tuple[int, Pool]]:  # fmt: skip
    """Serve for the length of the block; yields the port and the connections. Raises OSError when the port is taken."""
    pool = Pool(settings, [shape.table for shape in bubble.shapes])
    app = App(bubble, pool, options(settings))
    served = Served(app, verifier(settings.tokens), pool.close, Cors(settings.cors_origins), settings.origin_key)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(pool.close)
        doors = await _doors(settings, served, stack)
        site = web.Application(client_max_size=1)
        site.router.add_route("*", "/{rest:.*}", Service(served, doors, bubble, settings, stop).handle)
        runner = web.AppRunner(
            site,
            access_log=None,
            shutdown_timeout=_SHUTDOWN_S,
            max_line_size=_LONGEST_LINE_BYTES,
            auto_decompress=False,  # as in Lambda; and a small body is never a large one
        )
        stack.push_async_callback(runner.cleanup)
        await runner.setup()
        await web.TCPSite(runner, settings.host, settings.port).start()
        yield runner.addresses[0][1], pool


async def _doors(settings: ServiceSettings, reads: Served, stack: AsyncExitStack) -> dict[str, Door]:
    """Address → what is served there besides the reads, as the environment says; one verifier, so one set of keys, for all."""
    doors = {}
    if settings.inbound_stream is not None:
        served = await ingest_handler.serve(settings.connections)
        stack.push_async_callback(served.close)
        most_bytes = read(IngestSettings, os.environ).max_body_bytes
        doors[EVENTS] = Door(msgspec.structs.replace(served, verifier=reads.verifier), most_bytes)
    if settings.user_table is not None:
        served = await user_handler.serve(settings.connections)
        stack.push_async_callback(served.close)
        most_bytes = read(UserSettings, os.environ).max_bytes
        doors[USER] = Door(msgspec.structs.replace(served, verifier=reads.verifier), most_bytes)
    return doors
