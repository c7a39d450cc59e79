"""What tests of the operator's verbs share: the command line in a thread, and a whole worker in this process."""

from __future__ import annotations

import asyncio
import io
import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, redirect_stderr, redirect_stdout
from typing import Any, NamedTuple

import structlog

from tests.integration.worker_stack import Stack, query, wait_for
from tidegate.cli import main
from worker import app


class Said(NamedTuple):
    """What a verb said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


async def cli(*arguments: object) -> Said:
    """One run of `tidegate …`; it has an event loop of its own, so it needs a thread of its own."""
    out, err = io.StringIO(), io.StringIO()

    def run() -> int:
        with redirect_stdout(out), redirect_stderr(err):
            return main([str(each) for each in arguments])

    code = await asyncio.to_thread(run)
    return Said(code, out.getvalue(), err.getvalue())


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """These variables, for the block; log lines go nowhere, for the verbs' output is looked at."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    try:
        yield
    finally:
        structlog.reset_defaults()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@asynccontextmanager
async def working(**settings: str) -> AsyncIterator[asyncio.Task[None]]:
    """A worker, whole, as a task of this process; `settings` are variables beside those that are set."""
    stop = asyncio.Event()
    with environment({"TIDEGATE_HEALTH_PORT": "0", **settings}):
        task = asyncio.create_task(app.run(stop))
        try:
            yield task
        finally:
            stop.set()
            if not task.done():
                async with asyncio.timeout(20):
                    await task


async def letter_of(stack: Stack, key: str) -> int:
    """The number of the only letter of this key, once it is filed."""

    async def is_filed() -> bool:
        return bool(await query(stack, "SELECT id FROM tidegate.dead_letter WHERE key = $1", key))

    await wait_for(is_filed)
    [(number,)] = await query(stack, "SELECT id FROM tidegate.dead_letter WHERE key = $1", key)
    return int(number)


async def until_closed(stack: Stack, *numbers: int) -> list[str]:
    """Wait until none of the letters is open; answers why each is closed, in the order of their numbers."""

    async def are_closed() -> bool:
        text = "SELECT count(*) FROM tidegate.dead_letter WHERE id = ANY ($1::bigint[]) AND resolved_at IS NULL"
        return await query(stack, text, list(numbers)) == [(0,)]

    await wait_for(are_closed)
    text = "SELECT resolution FROM tidegate.dead_letter WHERE id = ANY ($1::bigint[]) ORDER BY id"
    return [resolution for (resolution,) in await query(stack, text, list(numbers))]
