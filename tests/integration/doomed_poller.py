"""Pollers that end themselves by SIGKILL at one step of their work. The production code has no hook for it.

    stdin    a line of JSON for each poller: its environment and its doom
    stdout   two lines for each: its process id, and how it ended (as `subprocess` says: -9 for SIGKILL)

Each poller is a process of its own, forked from this one, which imports everything once: half a second for each of many.
A doom is a chain of steps, "confirm > put", and a side: the process ends at the first `put` after a `confirm`, `before` it,
`after` it, or `amid`, with half of the records of that call taken by Kinesis. `lose` breaks the poller on purpose: what it
publishes goes nowhere.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NoReturn

import poller.publisher
from poller.__main__ import main
from poller.archive import S3Archive
from poller.cursor_store import DynamoCursorStore
from poller.drop_bucket import DropBucket
from poller.index_store import S3IndexStore
from poller.ledger import TableLedger
from poller.publisher import KinesisPublisher
from poller.rest import RestSource
from poller.signals import TableSignals
from poller.sweep import Sweep
from tidegate import aws

Call = Callable[..., Awaitable[Any]]

STEPS: Mapping[str, tuple[Any, str]] = {
    "open": (DynamoCursorStore, "open"),
    "load": (S3IndexStore, "load"),
    "request": (RestSource, "fetch"),
    "keyed": (RestSource, "reread"),
    "list": (DropBucket, "look"),
    "bring": (DropBucket, "fetch"),
    "journal": (S3IndexStore, "append"),
    "archive": (S3Archive, "write"),
    "publish": (KinesisPublisher, "publish"),
    "put": (poller.publisher, "put_records"),
    "cursor": (DynamoCursorStore, "advance"),
    "watermark": (KinesisPublisher, "watermark"),
    "ledger": (TableLedger, "write"),
    "walk": (Sweep, "_walk"),
    "confirm": (Sweep, "_confirm"),
    "bury": (Sweep, "_bury"),
    "strangers": (S3IndexStore, "strangers"),
    "snapshot": (S3IndexStore, "write_snapshot"),
    "object": (S3IndexStore, "_write"),
    "clean": (S3IndexStore, "clean_up"),
    "standing": (S3IndexStore, "save_sweep"),
    "tell": (TableSignals, "tell"),
    "say": (TableSignals, "say"),
    "shape": (TableSignals, "keep"),
}


class Doom:
    """`steps` are still to come, the last of them is the one at which the process ends."""

    def __init__(self, chain: str, side: str) -> None:
        self._steps = [step.strip() for step in chain.split(">")] if chain else []
        self.side = side
        unknown = set(self._steps) - STEPS.keys()
        if unknown or side not in ("before", "amid", "after"):
            raise ValueError(f"no such doom: {chain!r} {side!r}")

    def is_here(self, step: str) -> bool:
        """A step begins; whether it is the one."""
        if not self._steps or self._steps[0] != step:
            return False
        if len(self._steps) == 1:
            return True
        del self._steps[0]
        return False


def end() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("nobody survives that")


def doomed(step: str, call: Call, doom: Doom) -> Call:
    async def watched(*arguments: Any, **named: Any) -> Any:
        # One record has no middle.
        is_whole = doom.side == "amid" and step == "put" and len(arguments[2]) < 2
        if is_whole or not doom.is_here(step):
            return await call(*arguments, **named)
        if doom.side == "amid":
            client, target, entries = arguments
            await call(client, target, entries[: len(entries) // 2])
        elif doom.side == "after":
            await call(*arguments, **named)
        end()

    return watched


async def nowhere(*_: object) -> None:
    """In place of `publish`."""


def live(environment: Mapping[str, str], chain: str, side: str, *, lose: bool) -> NoReturn:
    """Be a poller, in a process that has just been forked."""
    os.environ |= environment
    log = os.open(environment["POLLER_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    if lose:
        KinesisPublisher.publish = nowhere  # type: ignore[method-assign,assignment]
    doom = Doom(chain, side)
    for step, (owner, name) in STEPS.items():
        setattr(owner, name, doomed(step, getattr(owner, name), doom))
    code = main([])
    sys.stdout.flush()
    os._exit(code)


async def warm() -> None:
    """Read AWS' service models, which each process would read anew."""
    for service in ("dynamodb", "s3", "kinesis"):
        async with aws.client(service):
            pass


def serve(orders: Iterable[str]) -> None:
    asyncio.run(warm())
    for line in orders:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            live(order["environment"], order["chain"], order["side"], lose=order["lose"])
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve(sys.stdin)
