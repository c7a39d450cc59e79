"""The lease tools at work: read, watch, plan, write, and say what became of each item.

What is written is decided in `leases_plan`, from items alone. Before anything is written the leases concerned are
watched: one whose counter moves is held by a live process, and then nothing is written at all, unless --force says so.
A process that is taken for dead by mistake (its renewals failed while we watched) learns of the write at its next
renewal and stops, as it does when its lease is stolen.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from tidegate import aws
from tidegate.cli import leases_plan, leases_show
from tidegate.cli.leases_plan import Plan, Targets
from tidegate.cli.leases_table import LeaseTable, Stream
from tidegate.errors import Fatal
from tidegate.leases.items import Item
from tidegate.leases.lease import Checkpoint
from tidegate.settings import PREFIX, AwsSettings, LeaseSettings, StreamSettings, read

# A live worker writes its leases all the time, so a forced write may need more than one try.
_FORCED_TRIES = 5


class ToolSettings(Struct, frozen=True, kw_only=True):
    """What the programs are told, too: the same variables."""

    lease_table: str | None = None
    poller_lease_table: str | None = None
    stream: Annotated[str | None, Meta(extra={"env": f"{PREFIX}_STREAM"})] = None
    leases: LeaseSettings = LeaseSettings()
    aws: AwsSettings = AwsSettings()


class Tools:
    """One table for the length of a verb, and the stream for those that need it."""

    def __init__(self, arguments: argparse.Namespace, settings: ToolSettings, table: LeaseTable) -> None:
        self.arguments = arguments
        self.settings = settings
        self.table = table

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[Stream]:
        """Raises Fatal when none is named."""
        name = self.arguments.stream or self.settings.stream
        if not name:
            raise Fatal(f"no stream named; pass --stream NAME or set {PREFIX}_STREAM")
        try:
            settings = StreamSettings(id=name)
        except ValueError as error:
            raise Fatal(str(error)) from error
        async with aws.client("kinesis", self.settings.aws) as client:
            yield Stream(client, settings)

    @property
    def watch_s(self) -> float:
        """Longer than one renewal, ours or the Kinesis Client Library's (3.3 s)."""
        given: float | None = self.arguments.watch_s
        return self.settings.leases.renew_interval_s * 1.5 if given is None else given


def _run(arguments: argparse.Namespace, verb: Callable[[Tools], Coroutine[None, None, int]]) -> int:
    if arguments.region:
        # Where AWS is, every client of this process reads from the environment.
        os.environ["AWS_REGION"] = arguments.region
    settings = read(ToolSettings, os.environ)
    variable = f"{PREFIX}_POLLER_LEASE_TABLE" if arguments.poller else f"{PREFIX}_LEASE_TABLE"
    name = arguments.table or (settings.poller_lease_table if arguments.poller else settings.lease_table)
    if not name:
        raise Fatal(f"no lease table named; pass --table NAME or set {variable}")

    async def run() -> int:
        async with aws.client("dynamodb", settings.aws) as client:
            return await verb(Tools(arguments, settings, LeaseTable(client, name)))

    return asyncio.run(run())


def _say(text: str) -> None:
    """Progress, for whoever waits at a terminal; a pipe gets results only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- verbs that read


def run_list(arguments: argparse.Namespace) -> int:
    return _run(arguments, _list)


async def _list(tools: Tools) -> int:
    loop = asyncio.get_running_loop()
    watch = await tools.table.watch(None, tools.watch_s, _say)
    _say("")
    items = await tools.table.items()
    leases = leases_plan.leases_in(items)
    watch.look(leases, loop.time())
    # One look tells nothing about time.
    ages = {key: watch.age(key, loop.time()) for key in leases} if tools.watch_s > 0 else {}
    lags: dict[str, int] = {}
    if tools.arguments.lag:
        async with tools.stream() as stream:
            listed = await stream.shard_ids()
            lags = await stream.lags_ms(
                {key: lease.checkpoint for key, lease in leases.items() if key in listed and not lease.is_ended}
            )
    rows = leases_show.rows(items, ages, watch.live(), lags)
    rest = leases_show.others(items)
    if tools.arguments.json:
        answer = {"table": tools.table.name, "leases": rows, "other_items": rest}
        print(msgspec.json.encode(answer).decode())
    else:
        print("\n".join(leases_show.table(rows, rest)))
    return 0


def run_show(arguments: argparse.Namespace) -> int:
    return _run(arguments, _show)


async def _show(tools: Tools) -> int:
    found = {leases_plan.key_in(item): item for item in await tools.table.items()}
    if unknown := [key for key in tools.arguments.keys if key not in found]:
        raise Fatal(f"there is no item {', '.join(map(repr, unknown))} in {tools.table.name}")
    for key in tools.arguments.keys:
        lines = [leases_show.line_of(found[key])] if tools.arguments.json else leases_show.whole(found[key])
        print("\n".join(lines))
    return 0


def run_export(arguments: argparse.Namespace) -> int:
    return _run(arguments, _export)


async def _export(tools: Tools) -> int:
    items = sorted(await tools.table.items(), key=leases_plan.key_in)
    text = "".join(f"{leases_show.line_of(item)}\n" for item in items)
    path: Path | None = tools.arguments.file
    if path is None:
        print(text, end="")
        return 0
    try:
        await asyncio.to_thread(path.write_text, text, encoding="utf-8")
    except OSError as error:
        raise Fatal(f"could not write {path}: {error.strerror}") from error
    print(f"wrote {len(items)} items to {path}")
    return 0


# ---------------------------------------------------------------- verbs that write


Decide = Callable[[Sequence[Item]], Plan]


def run_release(arguments: argparse.Namespace) -> int:
    return _run_on_chosen(arguments, leases_plan.release)


def run_hand_back(arguments: argparse.Namespace) -> int:
    return _run_on_chosen(arguments, leases_plan.hand_back)


def run_reset(arguments: argparse.Namespace) -> int:
    code = _run_on_chosen(arguments, leases_plan.reset)
    if not (code or arguments.dry_run or arguments.poller):
        print(
            "Workers make these leases anew. The database keeps its own positions: if the stream itself was created anew, "
            "stop the workers and, as the owner of the database, DELETE FROM tidegate.shard WHERE stream = '…';"
        )
    return code


def _run_on_chosen(arguments: argparse.Namespace, plan: Callable[[Sequence[Item], Sequence[str]], Plan]) -> int:
    _check_chosen(arguments)
    return _run(arguments, lambda tools: _carry_out(tools, lambda items: plan(items, _chosen(arguments, items))))


def run_rewind(arguments: argparse.Namespace) -> int:
    _check_chosen(arguments)
    if arguments.poller:
        raise Fatal(
            "a source's place is its cursor, not its lease, so there is nothing to rewind in the pollers' table; "
            f"to have a source published again, start its poller with {PREFIX}_REPUBLISH"
        )
    target = _target(arguments)
    if isinstance(target, Checkpoint) and target.is_number and len(arguments.keys) != 1:
        arguments.usage_error("a position belongs to one shard: name exactly one KEY with it")
    if isinstance(target, datetime) and target > datetime.now(UTC):
        arguments.usage_error(f"{target} is in the future")
    return _run(arguments, _rewind)


def _target(arguments: argparse.Namespace) -> Checkpoint | datetime:
    if isinstance(arguments.to, datetime):
        return arguments.to
    position, _, sub = arguments.to.partition(".")
    return Checkpoint(position, int(sub or 0))


async def _rewind(tools: Tools) -> int:
    targets = await _targets(tools)
    forgotten: list[str] = []

    def decide(items: Sequence[Item]) -> Plan:
        plan = leases_plan.rewind(items, targets)
        forgotten[:] = leases_plan.forgotten(items, [write.key for write in plan.writes])
        return plan

    code = await _carry_out(tools, decide)
    if forgotten and not code:
        shards = ", ".join(f"'{key}'" for key in forgotten)
        print(
            "The database knows that finished shards have ended, and workers pass them by until it forgets that: with the "
            "workers stopped, as the owner of the database, "
            f"DELETE FROM tidegate.shard WHERE stream = '…' AND shard_id IN ({shards});",
            file=sys.stderr,
        )
    return code


async def _targets(tools: Tools) -> Targets:
    """Where each chosen lease shall go. The stream is asked for a time, and whether it still has finished shards."""
    arguments = tools.arguments
    items = await tools.table.items()
    leases = leases_plan.leases_in(items)
    keys = _chosen(arguments, items)
    target = _target(arguments)
    of: Mapping[str, Checkpoint | None]
    if isinstance(target, Checkpoint):
        of = dict.fromkeys(keys, target)
        if not any(leases[key].is_ended for key in keys):
            return Targets(of=of, forward=arguments.forward)
        async with tools.stream() as stream:
            return Targets(of=of, listed=await stream.shard_ids(), forward=arguments.forward)
    async with tools.stream() as stream:
        listed = await stream.shard_ids()
        of = {key: await _place(stream, key, target) if key in listed else None for key in keys}
    return Targets(of=of, listed=listed, forward=arguments.forward)


async def _place(stream: Stream, key: str, time: datetime) -> Checkpoint | None:
    _say(f"looking for {time} in {key}")
    place = await stream.place_of(key, time)
    _say("")
    return place


def run_import(arguments: argparse.Namespace) -> int:
    path: Path = arguments.file
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Fatal(f"could not read {path}: {error}") from error
    wanted = leases_show.items_of(text)
    if not wanted:
        raise Fatal(f"{path} holds no items")
    force: bool = arguments.force
    return _run(
        arguments, lambda tools: _carry_out(tools, lambda items: leases_plan.restore(items, wanted, force=force))
    )


def _check_chosen(arguments: argparse.Namespace) -> None:
    ways = (bool(arguments.keys), arguments.owner is not None, arguments.all)
    if sum(ways) != 1:
        arguments.usage_error("name leases by KEY, or by --owner, or pass --all: one of the three")


def _chosen(arguments: argparse.Namespace, items: Sequence[Item]) -> list[str]:
    return leases_plan.chosen(leases_plan.leases_in(items), arguments.keys, arguments.owner)


async def _carry_out(tools: Tools, decide: Decide) -> int:
    """Plan, make sure that nobody works on what will be written, write, and say what became of each item."""
    arguments = tools.arguments
    plan = decide(await tools.table.items())
    for key, why in plan.left:
        print(f"left {key}: {why}")
    if not arguments.force:
        await _refuse_live(tools, plan)
        # What is planned now is written now: the watch took its time.
        plan = decide(await tools.table.items()) if plan.writes else plan
    if arguments.dry_run:
        for write in plan.writes:
            print(f"would write {write.key}: {write.what}")
        return 0
    lost: set[str] = set()
    for tries_left in reversed(range(_FORCED_TRIES if arguments.force else 1)):
        lost = set()
        for write in plan.writes:
            if await tools.table.write(write):
                print(f"wrote {write.key}: {write.what}")
            else:
                lost.add(write.key)
        if not (lost and tries_left):
            break
        plan = _only(decide(await tools.table.items()), lost)
    for key in sorted(lost):
        print(f"not written {key}: it changed at the same moment; look at it and try again", file=sys.stderr)
    return 1 if lost else 0


def _only(plan: Plan, keys: set[str]) -> Plan:
    return Plan(tuple(write for write in plan.writes if write.key in keys))


async def _refuse_live(tools: Tools, plan: Plan) -> None:
    """Raises Fatal, before anything is written, when somebody works on one of the leases."""
    holders = {write.key: write.holder for write in plan.writes if write.holder is not None}
    if not holders:
        return
    watch = await tools.table.watch(holders.keys(), tools.watch_s, _say)
    _say("")
    live = sorted(watch.live() & holders.keys())
    if live:
        owners = ", ".join(f"{key} by {holders[key]}" for key in live)
        raise Fatal(
            f"nothing was written: {len(live)} leases are held by live workers ({owners}); stop them, or pass --force"
        )


VERBS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "list": run_list,
    "show": run_show,
    "export": run_export,
    "release": run_release,
    "hand-back": run_hand_back,
    "reset": run_reset,
    "rewind": run_rewind,
    "import": run_import,
}
