"""What the verb erase does and says."""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar

from msgspec import Struct

from tidegate import aws
from tidegate import bubble as bubbles
from tidegate.aws.streams import retention_hours
from tidegate.bubble import Bubble
from tidegate.cli.console import confirm, database, shown, who
from tidegate.cli.dead_letters_show import answer
from tidegate.erasure import Erased, Erasure, Reference, shape_of
from tidegate.errors import Fatal, TidegateError, Transient

Result = TypeVar("Result")

_TRIES = 5
_WAIT_S = 1.0

ROWS = {
    "content": "its content is removed; the tombstone stays",
    "tombstone": "was deleted already; the tombstone stays and lets nothing in",
    "none": "was not there; a tombstone keeps it out",
    "erased": "was erased already",
}


class Stream(Struct, frozen=True, kw_only=True):
    """Until when the stream may hold events of the key; None with why nobody can say."""

    name: str
    until: datetime | None
    unknown: str = ""


class Report(Struct, frozen=True, kw_only=True):
    """Everything that the verb has to say."""

    erased: Erased
    streams: list[Stream]
    related: list[Reference]
    dry_run: bool


def run_erase(arguments: argparse.Namespace) -> int:
    if not arguments.bubble:
        raise Fatal("no bubble named; pass --bubble package.module or set TIDEGATE_BUBBLE")
    bubble = bubbles.load(arguments.bubble)
    if arguments.undo:
        return asyncio.run(_undo(arguments, bubble))
    report = asyncio.run(_erase(arguments, bubble))
    print(answer(report) if arguments.json else "\n".join(lines(report, looked=arguments.related)))
    return 0


async def _erase(arguments: argparse.Namespace, bubble: Bubble) -> Report:
    shape = shape_of(bubble.shapes, arguments.entity)
    async with database() as opened:
        erasure = Erasure(opened, shape, arguments.key)
        erased = await erasure.look()
        if not arguments.dry_run:
            confirm(f"Erase {erased.entity} {shown(erased.key)} for good?", yes=arguments.yes)
            async with opened.transaction("ask who is asking") as connection:
                by = await who(connection)
            erased = await _patiently(partial(erasure.erase, by))
        return Report(
            erased=erased,
            streams=[await _stream(name) for name in await erasure.streams()],
            related=await erasure.references(bubble.shapes, look=arguments.related),
            dry_run=arguments.dry_run,
        )


async def _undo(arguments: argparse.Namespace, bubble: Bubble) -> int:
    shape = shape_of(bubble.shapes, arguments.entity)
    async with database() as opened:
        erasure = Erasure(opened, shape, arguments.key)
        found = await erasure.look()
        undone = found.since is not None
        if undone and not arguments.dry_run:
            confirm(f"Let {found.entity} {shown(found.key)} in again?", yes=arguments.yes)
            async with opened.transaction("ask who is asking") as connection:
                by = await who(connection)
            undone = await _patiently(partial(erasure.undo, by))
    if arguments.json:
        print(answer({"entity": shape.name, "key": arguments.key, "undone": undone, "dry_run": arguments.dry_run}))
        return 0
    name = f"{shape.name} {shown(arguments.key)}"
    if not undone:
        print(f"{name} is not erased; nothing to undo")
        return 0
    print(f"{name} {'would be' if arguments.dry_run else 'is'} let in again: its next change brings it back;")
    print("to bring it back unchanged, start the poller once with TIDEGATE_REPUBLISH=<source>")
    return 0


async def _patiently(step: Callable[[], Awaitable[Result]]) -> Result:
    """Do it again when a worker was in the way: where two lock each other out, the database chooses one to begin anew."""
    for _ in range(_TRIES - 1):
        try:
            return await step()
        except Transient:
            await asyncio.sleep(random.uniform(0, _WAIT_S))
    return await step()


async def _stream(name: str) -> Stream:
    try:
        async with aws.client("kinesis") as client:
            hours = await retention_hours(client, name)
    except TidegateError as error:
        # The row is erased; what is not known is only until when to wait.
        return Stream(name=name, until=None, unknown=str(error))
    return Stream(name=name, until=datetime.now(UTC) + timedelta(hours=hours))


def lines(report: Report, *, looked: bool) -> Iterator[str]:
    """The report for a person: what was done, then what this command cannot reach."""
    erased = report.erased
    would = "would be " if report.dry_run else ""
    yield f"{erased.entity} {shown(erased.key)}: {'nothing was changed. ' if report.dry_run else ''}The row {ROWS[erased.row]}"
    yield f"  dead letters  {erased.dead_letters} {would}removed"
    yield f"  outbox        {erased.outbox} {would}removed"
    yield "  its key stays in the tombstone, which is what keeps it out"
    yield "Still there:"
    for stream in report.streams:
        until = "nobody knows until when" if stream.until is None else f"until {stream.until:%Y-%m-%d %H:%MZ}"
        why = f" ({shown(stream.unknown, 200)})" if stream.unknown else ", when its retention ends"
        yield f"  the stream {stream.name}: {until}{why}; workers let none of it in"
    yield "  the poller's index in S3: its key, and eight bytes of a hash of its row, no content"
    yield "  the back office: delete it there, too; until then its poller sends it and the workers ignore it"
    yield "  backups and logs of the database, until they expire; the pages on disk until vacuum"
    yield "  the pollers' claim bucket, if there is one: records too large for the stream, until its lifecycle removes them"
    yield "  the note by which its readers learn that it is gone: its key and who could see it, for some days"
    yield "  archives: tidegate keeps none"
    if erased.mentions:
        numbers = ", ".join(map(str, erased.mentions))
        yield f"  dead letters without a key that mention it: {numbers}; see `tidegate dead-letters show`"
    for each in report.related:
        rows = "may name it" if each.rows is None else f"{each.rows} rows name it"
        yield f"  {each.entity}.{each.field}: {rows}"
    if not looked:
        yield "  rows of other entities were not looked through; --related does, and names the fields"
