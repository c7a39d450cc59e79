"""One side of the `api` benchmark, in a process of its own: `python -m bench._api_sides SIDE ENDPOINT REQUESTS EVENTS`.

    tidegate       the Lambda handler, a gateway's event in, a response out; the token is verified
    fastapi        the same of `bench._api_fastapi`
    bare-asyncpg   nothing but the driver: the same call of tidegate.read as the handler's, and its rows joined to a body

Prints one JSON object: seconds of each request.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

WARMING = 50


def requests(endpoint: str, etag: str) -> Any:
    """The event of an endpoint. Those without an ETag come from the benchmark, whose issuer signed their tokens."""
    asked = json.loads(sys.argv[4])["list" if endpoint == "list" else "get"]
    if endpoint == "not-modified":
        asked["headers"]["if-none-match"] = etag
    return asked


def of_handler(handler: Callable[[Any, Any], Any], endpoint: str) -> Callable[[], int]:
    """A Lambda handler's request; answers the size of the body."""
    first = handler(requests("get", ""), None)
    if first["statusCode"] != 200:
        raise SystemExit(f"the first request was answered {first}")
    headers = {name.lower(): value for name, value in first["headers"].items()}
    asked = requests(endpoint, headers["etag"])
    expected = 304 if endpoint == "not-modified" else 200

    def ask() -> int:
        answer = handler(asked, None)
        if answer["statusCode"] != expected:
            raise SystemExit(f"{endpoint} was answered {answer}")
        return len(answer["body"])

    return ask


def tidegate(endpoint: str) -> Callable[[], int]:
    from api.handler import handler  # noqa: PLC0415

    return of_handler(handler, endpoint)


def fastapi(endpoint: str) -> Callable[[], int]:
    asyncio.set_event_loop(asyncio.new_event_loop())
    from bench._api_fastapi import handler  # noqa: PLC0415

    return of_handler(handler, endpoint)


def bare_asyncpg(endpoint: str) -> Callable[[], int]:
    """The handler's own statement, heard on its way to the database, and nothing around it."""
    import asyncpg  # noqa: PLC0415

    from api.handler import handler  # noqa: PLC0415

    heard: list[tuple[Any, ...]] = []
    fetchrow = asyncpg.Connection.fetchrow

    async def hear(self: Any, query: str, *arguments: Any, **options: Any) -> Any:
        heard.append((query, *arguments))
        return await fetchrow(self, query, *arguments, **options)

    asyncpg.Connection.fetchrow = hear
    of_handler(handler, endpoint)()
    asyncpg.Connection.fetchrow = fetchrow
    handler.reset()
    query, *arguments = heard[-1]
    runner = asyncio.Runner()
    connection = runner.run(asyncpg.connect(os.environ["TIDEGATE_DATABASE_URL"]))

    async def ask() -> int:
        found = await connection.fetchrow(query, *arguments)
        return len(",".join(found["items"]))

    return lambda: runner.get_loop().run_until_complete(ask())


SIDES: dict[str, Callable[[str], Callable[[], int]]] = {
    "tidegate": tidegate,
    "fastapi": fastapi,
    "bare-asyncpg": bare_asyncpg,
}


def main(side: str, endpoint: str, count: str, events: str) -> None:
    taken: list[float] = []
    # The handler logs a line for each request: it is written, but to nowhere.
    with redirect_stdout(io.StringIO()) as log:
        ask = SIDES[side](endpoint)
        for _ in range(WARMING):
            ask()
        for _ in range(int(count)):
            started = time.perf_counter()
            size = ask()
            taken.append(time.perf_counter() - started)
            log.seek(0)
            log.truncate()
    print(json.dumps({"seconds": taken, "body_bytes": size}))


if __name__ == "__main__":
    main(*sys.argv[1:])
