"""One Lambda function: an API Gateway event in, a proxy response out.

Who calls: API Gateway (HTTP API, payload format 2.0), one event at a time. The sandbox has one asyncio.Runner,
because connections are bound to its loop; between two requests nothing runs. What the sandbox needs is built
at the first request, so that a wrong setting is an answer and a log line instead of a crash without words.

The token is verified here, before any route is looked at, whatever the gateway in front has done; see `api.tokens`.

An error that is none of ours is a bug: it leaves the handler, Lambda logs it and the gateway answers 500.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable, Coroutine
from typing import Protocol, TypeVar

import msgspec

from api.answer import Answer, Refused, problem
from api.compact import Unidentified
from api.cors import NO_CORS, Cors
from api.faults import finished, unacceptable, unavailable
from api.log import AWAY, FATAL, NOT_BY_THE_EDGE, REQUEST, UNIDENTIFIED, VALUE_REFUSED, log
from api.request import Request, request_of
from api.tokens import Verifier
from tidegate.errors import Fatal, Rejected, Transient
from tidegate.settings import Secret

Result = TypeVar("Result")

_LONGEST_ROUTE = 100


class App(Protocol):
    """What answers requests, those without claims too. Raises Transient, Rejected and Fatal."""

    async def answer(self, request: Request) -> Answer: ...


async def nothing() -> None:
    """For what has nothing to close."""


class Served(msgspec.Struct, frozen=True):
    """What one sandbox serves, and how it is taken down."""

    app: App
    verifier: Verifier
    close: Callable[[], Coroutine[object, object, None]] = nothing
    cors: Cors = NO_CORS
    origin_key: Secret | None = None


class Function:
    """A Lambda handler. `make` builds what it serves, inside the loop in which it will be used; raises Transient or Fatal."""

    def __init__(self, make: Callable[[], Coroutine[object, object, Served]]) -> None:
        self._make = make
        self._runner: asyncio.Runner | None = None
        self._served: Served | None = None

    def __call__(self, event: object, context: object) -> dict[str, object]:
        """One API Gateway event in, one proxy response out."""
        started = time.perf_counter()
        cold = self._served is None
        request_id, route = "", ""
        try:
            request = request_of(event)
            request_id, route = request.request_id, route_of(request)
            answer = self._run(self._answer(request))
        except (Rejected, Transient, Fatal) as error:
            answer = failed(error, request_id)
        duration_ms = round((time.perf_counter() - started) * 1000, 2)
        log(REQUEST, status=answer.status, route=route, duration_ms=duration_ms, cold=cold, request_id=request_id)
        return {
            "statusCode": answer.status,
            "headers": dict(answer.headers),
            "body": answer.body,
            "isBase64Encoded": False,
        }

    def reset(self) -> None:
        """Start over, as a new sandbox would; for tests."""
        if self._runner is not None:
            if self._served is not None:
                self._run(self._served.close())
            self._runner.close()
        self._runner = self._served = None

    def _run(self, work: Coroutine[object, object, Result]) -> Result:
        if self._runner is None:
            self._runner = asyncio.Runner()
        # As `Runner.run`, but for the handling of Ctrl-C, which costs more than all that is ours of a request.
        return self._runner.get_loop().run_until_complete(work)

    async def _answer(self, request: Request) -> Answer:
        if self._served is None:
            # What fails is not kept, so the next request tries again.
            self._served = await self._make()
        return await respond(self._served, request)


async def respond(served: Served, request: Request) -> Answer:
    """The answer to one request, errors included, so that a page of another origin can read those too."""
    if not _came_by_the_edge(served.origin_key, request):
        log(NOT_BY_THE_EDGE, request_id=request.request_id)
        nothing_here = Refused(404, "no-such-collection", "No such address", "the front office has another address")
        return finished(problem(nothing_here, request.request_id), request.request_id)
    if (preflight := served.cors.preflight(request)) is not None:
        return served.cors.shown(request, finished(preflight, request.request_id))
    try:
        answer = await _answered(served, request)
    except (Rejected, Transient, Fatal) as error:
        answer = failed(error, request.request_id)
    return served.cors.shown(request, answer)


def _came_by_the_edge(key: Secret | None, request: Request) -> bool:
    """Whether the request has passed the edge, where there is one: nobody else knows the key."""
    if key is None:
        return True
    shown = request.headers.get("x-tidegate-origin", "")
    return hmac.compare_digest(shown.encode(), key.reveal().encode())


async def _answered(served: Served, request: Request) -> Answer:
    """The answer to one request, its token verified. Raises Transient, Rejected and Fatal."""
    try:
        claims = await served.verifier.claims(request.headers.get("authorization"))
        request = msgspec.structs.replace(request, claims=claims)
    except Unidentified as error:
        log(UNIDENTIFIED, reason=str(error), request_id=request.request_id)
        # A route that is open to all answers even so; the others say why this token does not count.
        request = msgspec.structs.replace(request, claims=None, unidentified=str(error))
    return await served.app.answer(request)


def failed(error: Rejected | Transient | Fatal, request_id: str) -> Answer:
    """What the caller is told, and a line in the log that says more."""
    if isinstance(error, Rejected):
        # The reason only: PostgreSQL's text repeats the value.
        log(VALUE_REFUSED, reason=error.reason, request_id=request_id)
        return unacceptable(error, request_id)
    log(AWAY if isinstance(error, Transient) else FATAL, reason=str(error), request_id=request_id)
    return unavailable(error, request_id)


def route_of(request: Request) -> str:
    """Method and collection; the key is left out of the log, and so is what no path of ours looks like."""
    route = f"{request.method} {'/'.join(request.path.split('/')[:3])}"
    return route[:_LONGEST_ROUTE].encode(errors="replace").decode()
