"""One side of the `api` benchmark, in a process of its own: `python -m bench._api_sides SIDE ENDPOINT EVENTS`.

    tidegate       the Lambda handler, a gateway's event in, a response out; the token is verified
    fastapi        the same of `bench._api_fastapi`
    bare-asyncpg   nothing but the driver, as one writes it by hand: a transaction, claims, the same SELECT of the rows

For each line of standard input, which is a number of requests, it prints the seconds of each of them as a JSON array.
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

from bench._api_world import CALLER, KEY, PAGE_ROWS

WARMING = 50


def requests(endpoint: str, etag: str) -> Any:
    """The event of an endpoint. Those without an ETag come from the benchmark, whose issuer signed their tokens."""
    asked = json.loads(sys.argv[3])["list" if endpoint == "list" else "get"]
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
    """As one writes it by hand: a transaction, claims for its length, the SELECT. The handler's rows, without their freshness."""
    import asyncpg  # noqa: PLC0415

    from api import queries, selection  # noqa: PLC0415
    from api.access import viewers_of  # noqa: PLC0415
    from examples.parcels.bubble import bubble  # noqa: PLC0415
    from examples.parcels.entities import Parcel  # noqa: PLC0415
    from tidegate.entity import describe  # noqa: PLC0415

    shape, viewers = describe(Parcel), viewers_of(CALLER, bubble.viewers)
    if endpoint == "list":
        query = queries.page(shape, selection.listed(shape, {}, {}), limit=PAGE_ROWS, after=None, viewers=viewers)
    else:
        query = queries.row(shape, KEY, selection.single(shape, {}, {}))
    runner = asyncio.Runner()
    connection = runner.run(asyncpg.connect(os.environ["TIDEGATE_DATABASE_URL"]))
    claims, given = json.dumps(viewers), json.dumps({**query.arguments, "viewers": viewers})

    async def ask() -> int:
        async with connection.transaction():
            await connection.execute("SELECT set_config('tidegate.viewers', $1, true)", claims)
            return len(",".join(await connection.fetchval(query.statement, given)))

    return lambda: runner.get_loop().run_until_complete(ask())


SIDES: dict[str, Callable[[str], Callable[[], int]]] = {
    "tidegate": tidegate,
    "fastapi": fastapi,
    "bare-asyncpg": bare_asyncpg,
}


def main(side: str, endpoint: str, events: str) -> None:
    # The handler logs a line for each request: it is written, but to nowhere.
    with redirect_stdout(io.StringIO()) as log:
        ask = SIDES[side](endpoint)
        for _ in range(WARMING):
            ask()
        for line in sys.stdin:
            taken: list[float] = []
            for _ in range(int(line)):
                started = time.perf_counter()
                ask()
                taken.append(time.perf_counter() - started)
                log.seek(0)
                log.truncate()
            print(json.dumps(taken), file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
