"""The Lambda entry point: `api.handler.handler`.

Who calls: API Gateway (HTTP API, payload format 2.0), one event at a time. The sandbox has one asyncio.Runner,
because the connection is bound to its loop; between two requests nothing runs. What the sandbox needs is built
at the first request, so that a wrong setting is an answer and a log line instead of a crash without words.

An error that is none of ours is a bug: it leaves the handler, Lambda logs it and the gateway answers 500.
"""

from __future__ import annotations

import asyncio
import os
import time
from functools import lru_cache

from api.answer import Answer
from api.app import App, unacceptable, unavailable
from api.database import Database
from api.log import AWAY, FATAL, REQUEST, VALUE_REFUSED, log
from api.request import Request, request_of
from api.settings import ApiSettings
from tidegate.bubble import load
from tidegate.errors import Fatal, Rejected, Transient
from tidegate.settings import read

_LONGEST_ROUTE = 100


class Sandbox:
    """What lives as long as the Lambda sandbox: loop, connection, route table."""

    def __init__(self, settings: ApiSettings) -> None:
        bubble = load(settings.bubble)
        self._database = Database(settings, [shape.table for shape in bubble.shapes])
        self._app = App(bubble, self._database)
        self._runner = asyncio.Runner()

    def answer(self, request: Request) -> Answer:
        """Raises Transient, Rejected and Fatal."""
        return self._runner.run(self._app.answer(request))

    def close(self) -> None:
        self._runner.run(self._database.close())
        self._runner.close()


@lru_cache(maxsize=1)
def _sandbox() -> Sandbox:
    # What fails is not kept, so the next request tries again.
    return Sandbox(read(ApiSettings, os.environ))


def handler(event: object, context: object) -> dict[str, object]:
    """One API Gateway event in, one proxy response out."""
    started = time.perf_counter()
    cold = _sandbox.cache_info().currsize == 0
    request_id, route = "", ""
    try:
        request = request_of(event)
        request_id, route = request.request_id, _route(request)
        answer = _sandbox().answer(request)
    except Rejected as error:
        # The reason only: PostgreSQL's text repeats the value.
        log(VALUE_REFUSED, reason=error.reason, request_id=request_id)
        answer = unacceptable(error, request_id)
    except Transient as error:
        log(AWAY, reason=str(error), request_id=request_id)
        answer = unavailable(error, request_id)
    except Fatal as error:
        log(FATAL, reason=str(error), request_id=request_id)
        answer = unavailable(error, request_id)
    duration_ms = round((time.perf_counter() - started) * 1000, 2)
    log(REQUEST, status=answer.status, route=route, duration_ms=duration_ms, cold=cold, request_id=request_id)
    return {
        "statusCode": answer.status,
        "headers": dict(answer.headers),
        "body": answer.body,
        "isBase64Encoded": False,
    }


def reset() -> None:
    """Start over, as a new sandbox would; for tests."""
    if _sandbox.cache_info().currsize:
        _sandbox().close()
        _sandbox.cache_clear()


def _route(request: Request) -> str:
    """Method and collection; the key is left out of the log, and so is what no path of ours looks like."""
    route = f"{request.method} {'/'.join(request.path.split('/')[:3])}"
    return route[:_LONGEST_ROUTE].encode(errors="replace").decode()
