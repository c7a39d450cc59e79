"""A back office as cheap as can be, in a process of its own: rows by number, over HTTP.

python -m bench._office ROWS      prints its port, serves until its input ends

/rows?after=K00000004999&size=5000     rows after a key, all of them in the end
/by-key?key=…&key=…                    rows by key
/pages?page=1&size=1000                {"rows": […], "pages": 60}, prepared once
/change?every=5000                     from now on every so many rows is gone, and the one after it is another one
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

STAMP = "2026-11-21T05:55:00Z"


def key_of(number: int) -> str:
    return f"K{number:011d}"


def row(number: int, content: str = "as it was") -> str:
    """One row as JSON, about 250 bytes."""
    return (
        f'{{"number":"{key_of(number)}","revision":{number + 1},"status":"in_transit","sender":"S{number % 9973}",'
        f'"recipient":"R{number % 7919}","weight_kg":"{number % 30}.{number % 10}","shipping_cost":"{number % 50}.90",'
        f'"express":{"true" if number % 7 == 0 else "false"},"note":"{content}","changed_at":"{STAMP}"}}'
    )


@contextmanager
def serving(rows: int) -> Iterator[str]:
    """Its address, while the block runs."""
    command = [sys.executable, "-m", "bench._office", str(rows)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        # Leaving the block closes its input, which ends it.


class Office:
    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._every = 0
        self._prepared: dict[tuple[int, int], bytes] = {}

    def _one(self, number: int) -> str | None:
        if self._every and number % self._every == 0:
            return None
        return row(number, "corrected" if self._every and number % self._every == 1 else "as it was")

    async def after(self, request: web.Request) -> web.Response:
        start = int(request.query["after"][1:]) + 1 if "after" in request.query else 0
        wanted = range(start, min(self._rows, start + int(request.query["size"])))
        return _answer([text for number in wanted if (text := self._one(number)) is not None])

    async def by_key(self, request: web.Request) -> web.Response:
        numbers = [int(key[1:]) for key in request.query.getall("key")]
        return _answer([text for number in numbers if (text := self._one(number)) is not None])

    async def pages(self, request: web.Request) -> web.Response:
        page, size = int(request.query["page"]), int(request.query["size"])
        if (page, size) not in self._prepared:
            rows = ",".join(row(number) for number in range((page - 1) * size, min(self._rows, page * size)))
            body = f'{{"rows":[{rows}],"pages":{-(-self._rows // size)},"total":{self._rows}}}'
            self._prepared[page, size] = body.encode()
        return web.Response(body=self._prepared[page, size], content_type="application/json")

    async def change(self, request: web.Request) -> web.Response:
        self._every = int(request.query["every"])
        return web.Response()


def _answer(rows: list[str]) -> web.Response:
    return web.Response(body=f'{{"rows":[{",".join(rows)}]}}'.encode(), content_type="application/json")


async def _serve(rows: int) -> None:
    office = Office(rows)
    app = web.Application()
    app.router.add_get("/rows", office.after)
    app.router.add_get("/by-key", office.by_key)
    app.router.add_get("/pages", office.pages)
    app.router.add_get("/change", office.change)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
