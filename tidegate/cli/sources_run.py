"""The source tools at work: they read and write the source table, and follow what pollers make of it."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import importlib
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from tidegate import aws, bubble
from tidegate.bubble import Bubble, CsvDrop, Source
from tidegate.cli import sources_show
from tidegate.cli.console import confirm
from tidegate.cli.sources_show import View
from tidegate.entity import describe
from tidegate.errors import Fatal
from tidegate.settings import AwsSettings, read
from tidegate.signals import CONTROL, SIGNAL, STATE, Control, Signal, Standing, State, Verb
from tidegate.source_table import Item, SourceTable

_LOOK_S = 0.5
_TRIES = 5


class ToolSettings(Struct, frozen=True, kw_only=True):
    """What the pollers are told, too: the same variables."""

    source_table: Annotated[str, Meta(description="as the pollers'")] = "tidegate-sources"
    aws: AwsSettings = AwsSettings()


class Tools:
    """The table for the length of a verb, and the bubble's sources."""

    def __init__(self, arguments: argparse.Namespace, loaded: Bubble, table: SourceTable) -> None:
        self.arguments = arguments
        self.bubble = loaded
        self.table = table

    def source(self, name: str) -> Source:
        """Raises Fatal for a name that the bubble does not have."""
        return named(self.bubble, name)

    async def control(self, name: str, change: Callable[[Control], Control]) -> Control:
        """Raises Fatal when others change it all the time."""
        for _ in range(_TRIES):
            item = await self.table.get(name, CONTROL)
            control = change(_read(item, Control) or Control())
            if await self.table.put(name, CONTROL, control, item.revision):
                return control
        raise Fatal(f"source {name!r}: others are changing it at this moment; try again")

    async def view(self, source: Source, files: int = 0) -> View:
        state = _read(await self.table.get(source.name, STATE), State)
        asked = await self.table.items(source.name, "ask#")
        signals = [each.read(Signal) for each in asked if each.name.startswith(SIGNAL)]
        control = next((each.read(Control) for each in asked if each.name == CONTROL), Control())
        entries: list[dict[str, Any]] = []
        if isinstance(source.feed, CsvDrop):
            entries = [each.read(dict[str, Any]) for each in await self.table.items(source.name, "file#")]
            entries.sort(key=lambda entry: str(entry["at"]), reverse=True)
        return View(
            name=source.name,
            entity=describe(source.entity).name,
            feed="CSV files" if isinstance(source.feed, CsvDrop) else "REST",
            state=state,
            control=control,
            signals=tuple(signals),
            files=tuple(entries[:files] if files else entries),
        )


def _read(item: Item, kind: type[Any]) -> Any:
    return None if item.revision == 0 else item.read(kind)


def named(loaded: Bubble, name: str) -> Source:
    """Raises Fatal, with the nearest name, for one that the bubble does not have."""
    sources = {source.name: source for source in loaded.sources}
    if name in sources:
        return sources[name]
    near = get_close_matches(name, sources, n=2, cutoff=0.5)
    meant = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise Fatal(f"there is no source {name!r}. {meant}The bubble {loaded.name!r} has {', '.join(sorted(sources))}")


def _load(arguments: argparse.Namespace) -> Bubble:
    if not arguments.bubble:
        raise Fatal("no bubble named; pass --bubble package.module or set TIDEGATE_BUBBLE")
    return bubble.load(arguments.bubble)


def _run(arguments: argparse.Namespace, verb: Callable[[Tools], Coroutine[None, None, int]]) -> int:
    if arguments.region:
        # Where AWS is, every client of this process reads from the environment.
        os.environ["AWS_REGION"] = arguments.region
    loaded = _load(arguments)
    # Before anything is asked of AWS: a wrong name is a person's mistake.
    for name in [*getattr(arguments, "names", ()), *([arguments.name] if hasattr(arguments, "name") else ())]:
        named(loaded, name)
    settings = read(ToolSettings, os.environ)

    async def run() -> int:
        async with aws.client("dynamodb", settings.aws) as client:
            table = SourceTable(client, arguments.table or settings.source_table)
            await table.ensure()
            return await verb(Tools(arguments, loaded, table))

    return asyncio.run(run())


def _print(text: Mapping[str, Any] | list[Any] | Struct) -> None:
    print(msgspec.json.encode(text).decode())


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container may run under a number that has no name.
        return f"user {os.getuid()}"


# ---------------------------------------------------------------- looking


def run_list(arguments: argparse.Namespace) -> int:
    return _run(arguments, _list)


async def _list(tools: Tools) -> int:
    views = [await tools.view(source) for source in tools.bubble.sources]
    if tools.arguments.json:
        _print({"table": tools.table.name, "sources": views})
    else:
        print("\n".join(sources_show.table(views, datetime.now(UTC))))
    return 0


def run_show(arguments: argparse.Namespace) -> int:
    return _run(arguments, _show)


async def _show(tools: Tools) -> int:
    view = await tools.view(tools.source(tools.arguments.name), tools.arguments.files)
    if tools.arguments.json:
        _print(view)
    else:
        print("\n".join(sources_show.whole(view, datetime.now(UTC))))
    return 0


# ---------------------------------------------------------------- pausing


def run_pause(arguments: argparse.Namespace) -> int:
    def paused(control: Control) -> Control:
        return replace(control, paused=True, by=_who(), at=datetime.now(UTC), reason=arguments.reason)

    return _run(arguments, lambda tools: _control(tools, paused, "paused"))


def run_resume(arguments: argparse.Namespace) -> int:
    def resumed(control: Control) -> Control:
        accepted = control.accepted + arguments.accept_shape
        return replace(control, paused=False, by=_who(), at=datetime.now(UTC), reason="", accepted=accepted)

    return _run(arguments, lambda tools: _control(tools, resumed, "resumed"))


async def _control(tools: Tools, change: Callable[[Control], Control], done: str) -> int:
    for name in tools.arguments.names or [source.name for source in tools.bubble.sources]:
        control = await tools.control(name, change)
        state = _read(await tools.table.get(name, STATE), State)
        silent = " (no poller works on it now)" if sources_show.is_silent(state, datetime.now(UTC)) else ""
        if tools.arguments.json:
            _print({"source": name, "control": msgspec.to_builtins(control)})
        else:
            print(f"{name} is {done}; its poller heeds that within seconds{silent}")
    return 0


# ---------------------------------------------------------------- errands


def run_errand(verb: Verb, arguments: argparse.Namespace) -> int:
    if arguments.allow_mass_deletion:
        confirm(f"Shall every row that {arguments.name!r} does not show be deleted?", yes=arguments.yes)
    return _run(arguments, lambda tools: _errand(tools, verb))


async def _errand(tools: Tools, verb: Verb) -> int:
    arguments = tools.arguments
    signal = await _ask(tools, verb)
    if arguments.no_wait:
        _tell(signal, arguments.json)
        return 0
    state = _read(await tools.table.get(arguments.name, STATE), State)
    control = _read(await tools.table.get(arguments.name, CONTROL), Control) or Control()
    if reason := sources_show.in_the_way(verb, arguments.name, state, control, datetime.now(UTC)):
        print(reason, file=sys.stderr)
    try:
        signal = await _followed(tools, signal)
    except asyncio.CancelledError:
        # Ctrl-C ends the showing only, which somebody may not expect.
        print(f"{verb} goes on without you; to look: tidegate sources show {arguments.name}", file=sys.stderr)
        raise
    _tell(signal, arguments.json)
    return 0 if signal.standing is Standing.DONE else 1


async def _followed(tools: Tools, signal: Signal) -> Signal:
    """Show its progress until it is over."""
    try:
        while not signal.is_over:
            _say(sources_show.progress(signal))
            await asyncio.sleep(_LOOK_S)
            item = await tools.table.get(tools.arguments.name, SIGNAL + signal.id)
            signal = _read(item, Signal) or signal
    finally:
        _say("")
    return signal


async def _ask(tools: Tools, verb: Verb) -> Signal:
    arguments = tools.arguments
    for _ in range(_TRIES):
        now = datetime.now(UTC)
        signal = Signal(
            id=f"{now:%Y%m%dT%H%M%S.%f}Z",
            verb=verb,
            asked_at=now,
            by=_who(),
            since=arguments.since,
            until=arguments.until,
            keys=tuple(arguments.key),
            again=arguments.again,
            allow=arguments.allow_mass_deletion,
        )
        if await tools.table.put(arguments.name, SIGNAL + signal.id, signal, 0):
            return signal
    raise Fatal(f"source {arguments.name!r}: others are asking at this moment; try again")


def _tell(signal: Signal, as_json: bool) -> None:
    if as_json:
        _print(signal)
    else:
        print(sources_show.progress(signal))


def _say(text: str) -> None:
    """Progress, for whoever waits at a terminal; a pipe gets results only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- trying


def run_try(arguments: argparse.Namespace) -> int:
    if arguments.region:
        os.environ["AWS_REGION"] = arguments.region
    source = named(_load(arguments), arguments.name)
    # By name, because the kernel imports none of the programs.
    trial = importlib.import_module("poller.trial")
    trials: list[dict[str, Any]] = asyncio.run(trial.run(source, arguments.limit, arguments.key, os.environ))
    if arguments.json:
        _print({"source": source.name, "rows": trials})
    elif trials:
        print("\n".join(sources_show.tried(trials)))
    elif arguments.key:
        raise Fatal(f"source {source.name!r} shows no row with the key {' or '.join(map(repr, arguments.key))}")
    else:
        print(f"{source.name} shows no rows", file=sys.stderr)
    return 1 if any(each["error"] for each in trials) else 0


VERBS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "list": run_list,
    "show": run_show,
    "pause": run_pause,
    "resume": run_resume,
    "try": run_try,
    **{verb.value: partial(run_errand, verb) for verb in Verb},
}
