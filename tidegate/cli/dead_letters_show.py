"""The verbs `dead-letters list`, `show` and `drop`, and how letters look to a person."""

from __future__ import annotations

import argparse
import asyncio
import base64
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from tidegate import letters
from tidegate.cli.console import confirm, database, shown, who
from tidegate.codec import encode_version
from tidegate.errors import Fatal
from tidegate.letter import LetterKind
from tidegate.letters import Group, Letter, Selection

_CELL_CHARACTERS = 40
_MESSAGE_CHARACTERS = 160
_HEX_BYTES = 16

_REMEDIES = {
    LetterKind.EVENT: "replay it once the cause is mended, edit it, or drop it",
    LetterKind.ROW: (
        "its poller could not translate this row, so it cannot be replayed as it is: mend the translator, raise the "
        "source's `translation` and deploy, then the next sweep sends the row again; or edit it into the entity's fields"
    ),
    LetterKind.GAP: "records are lost: republish every source (TIDEGATE_REPUBLISH), then drop this letter",
}


def selection(arguments: argparse.Namespace) -> Selection:
    """The letters that the arguments name."""
    return Selection(
        ids=tuple(arguments.ids),
        groups=tuple(arguments.group),
        entity=arguments.entity,
        key=arguments.key,
        source=arguments.source,
        stage=arguments.stage,
        reason=arguments.reason,
        since=arguments.since,
        until=arguments.until,
        parked=True if getattr(arguments, "parked", False) else None,
        resolved=getattr(arguments, "resolved", False),
    )


def narrowed(arguments: argparse.Namespace) -> Selection:
    """The same for a verb that writes. Raises Fatal when nothing is chosen and --all is not said, or both are.

    Parked letters are left out unless they are named: nothing is wrong with them, and whoever closes what they wait
    for wants them to follow.
    """
    chosen = selection(arguments)
    if chosen.parked is None and not (chosen.ids or chosen.groups or chosen.reason):
        chosen = replace(chosen, parked=False)
    if chosen.is_everything and not arguments.all:
        raise Fatal("which letters? Give numbers, --group or another choice, or --all for every open one")
    if arguments.all and not chosen.is_everything:
        raise Fatal("--all means every open letter; leave it out, or the rest of the choice")
    return chosen


def answer(value: object) -> str:
    """One JSON object."""
    return msgspec.json.encode(value).decode()


def run_list(arguments: argparse.Namespace) -> int:
    chosen = selection(arguments)
    if arguments.each:
        found, behind, total = asyncio.run(_find(chosen, arguments.limit))
        lines = each_lines(found, behind)
        items = [{**summary(letter), "waiting": behind.get(letter.id, 0)} for letter in found]
    else:
        grouped, total = asyncio.run(_groups(chosen, arguments.limit))
        lines, items = group_lines(grouped), [msgspec.to_builtins(group) for group in grouped]
    if arguments.json:
        print(answer({"letters": total, "each" if arguments.each else "groups": items}))
        return 0
    print("\n".join(lines))
    what = "letters" if arguments.resolved else "open letters"
    covered = len(items) if arguments.each else sum(item["letters"] for item in items)
    rest = f"; {total - covered} more are not shown, raise --limit" if covered < total else ""
    print(f"{total} {what}{rest}", file=sys.stderr)
    return 0


def run_show(arguments: argparse.Namespace) -> int:
    letter, behind, before = asyncio.run(_get(arguments.id))
    if arguments.json:
        print(answer({**whole(letter), "waiting": behind, "waits_for": before}))
    else:
        print("\n".join(letter_lines(letter, behind, before)))
    return 0


def run_drop(arguments: argparse.Namespace) -> int:
    dropped = asyncio.run(_drop(narrowed(arguments), arguments))
    if arguments.json:
        print(answer({"dropped": 0 if arguments.dry_run else dropped, "would_drop": dropped}))
    else:
        print(f"{'would drop' if arguments.dry_run else 'dropped'} {dropped} letters")
    return 0


async def _groups(chosen: Selection, limit: int) -> tuple[list[Group], int]:
    async with database() as opened, opened.transaction("read the dead letters") as connection:
        return await letters.groups(connection, chosen, limit), (await letters.count(connection, chosen))[0]


async def _find(chosen: Selection, limit: int) -> tuple[list[Letter], dict[int, int], int]:
    async with database() as opened, opened.transaction("read the dead letters") as connection:
        found = await letters.find(connection, chosen, limit)
        return found, await letters.waiting(connection, found), (await letters.count(connection, chosen))[0]


async def _get(number: int) -> tuple[Letter, int, list[int]]:
    """The letter, how many wait for it, and which ones it waits for."""
    async with database() as opened, opened.transaction("read a dead letter") as connection:
        letter = await letters.get(connection, number)
        before = await letters.holding(connection, letter) if letter.state == "parked" else []
        return letter, (await letters.waiting(connection, [letter])).get(number, 0), before


async def _drop(chosen: Selection, arguments: argparse.Namespace) -> int:
    async with database() as opened:
        async with opened.transaction("count the dead letters") as connection:
            await letters.check_ids(connection, chosen.ids)
            count, newest = await letters.count(connection, chosen)
        if arguments.dry_run or not count:
            return count
        if count > 1:
            confirm(f"Drop {count} dead letters, so that nobody replays them?", yes=arguments.yes)
        async with opened.transaction("drop dead letters") as connection:
            return await letters.drop(connection, chosen, await who(connection), newest)


def group_lines(groups: Sequence[Group]) -> Iterator[str]:
    """A table of groups; the number of an example leads to `show`."""
    head = ("GROUP", "LETTERS", "REPLAYED", "WAITING", "FIRST", "LAST", "STAGE", "REASON", "ENTITY", "EXAMPLE")
    rows = [
        (group.fingerprint, str(group.letters), str(group.replayed or ""), str(group.waiting or ""),
         _short(group.first_seen_at), _short(group.last_seen_at), _stage(group.stage, group.kind), group.reason,
         group.entity or "", f"{group.example}: {_line(group.message)}")
        for group in groups
    ]  # fmt: skip
    return _table(head, rows)


def each_lines(found: Iterable[Letter], behind: Mapping[int, int]) -> Iterator[str]:
    """A table of letters; `behind` is how many changes wait for each."""
    head = ("ID", "STATE", "TRIES", "WAITING", "LAST", "STAGE", "REASON", "ENTITY", "KEY", "MESSAGE")
    rows = [
        (str(letter.id), letter.state + (" (edited)" if letter.edited_at else ""), str(letter.attempts),
         str(behind.get(letter.id, "")), _short(letter.last_seen_at), _stage(letter.stage, letter.kind), letter.reason,
         letter.entity or "", letter.key or "", _line(letter.message))
        for letter in found
    ]  # fmt: skip
    return _table(head, rows)


def _stage(stage: str, kind: LetterKind) -> str:
    # A row of the poller's has to be told at a glance: it is no record that could be replayed.
    return f"{stage} (raw row)" if kind is LetterKind.ROW else stage


def _line(message: str) -> str:
    return shown(message.partition("\n")[0], _MESSAGE_CHARACTERS)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    safe = [head, *((*(shown(cell, _CELL_CHARACTERS) for cell in row[:-1]), row[-1]) for row in rows)]
    widths = [max(len(row[at]) for row in safe) for at in range(len(head))]
    for row in safe:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def letter_lines(letter: Letter, behind: int = 0, before: Sequence[int] = ()) -> Iterator[str]:
    """Everything about one letter, with what can be done. `behind` wait for it, and it waits for those in `before`."""
    for name, value in summary(letter).items():
        if value not in (None, ""):
            yield f"{name.ljust(16)}{shown(str(value))}"
    if behind:
        yield f"{'waiting'.ljust(16)}{behind} later changes of its key follow when it is closed, in their order"
    if letter.resolved_at is None:
        yield f"{'remedy'.ljust(16)}{_remedy(letter, behind, before)}"
    if letter.kind is not LetterKind.GAP:
        yield from ("", f"payload, {len(letter.payload)} bytes, {letter.kind}:", *payload_lines(letter.payload))
    if letter.edited_payload is not None:
        yield from ("", f"edited record, {len(letter.edited_payload)} bytes:", *payload_lines(letter.edited_payload))


def _remedy(letter: Letter, behind: int, before: Sequence[int]) -> str:
    if letter.parked_at is not None:
        first = f"close {', '.join(map(str, before))} first" if before else "a worker is about to write it"
        return f"none is needed, it follows by itself: {first}"
    if letter.edited_at:
        return "replay it as it was edited"
    if behind and letter.kind is LetterKind.ROW:
        return f"{_REMEDIES[letter.kind]}. The row that is sent again waits behind this letter: drop it then"
    return _REMEDIES[letter.kind]


def summary(letter: Letter) -> dict[str, Any]:
    """All but the payloads, as JSON values."""
    named = {name: getattr(letter, name) for name in Letter.__struct_fields__ if not name.endswith("payload")}
    named["version"] = None if letter.version is None else encode_version(letter.version)
    # 56 digits, which no JSON reader keeps as a number.
    named["sequence_number"] = str(letter.sequence_number)
    return {"id": named.pop("id"), "state": letter.state, **msgspec.to_builtins(named)}


def whole(letter: Letter) -> dict[str, Any]:
    """Everything, for --json; a payload is JSON where it is that, else text, else base64."""
    edited = {} if letter.edited_payload is None else _payload("edited_payload", letter.edited_payload)
    return {**summary(letter), **_payload("payload", letter.payload), **edited}


def _payload(name: str, payload: bytes) -> dict[str, Any]:
    if _pretty(payload) is not None:
        return {name: msgspec.Raw(payload)}
    try:
        return {f"{name}_text": payload.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(payload).decode()}


def payload_lines(payload: bytes) -> Iterator[str]:
    """JSON indented, other text with escapes, anything else as a table of hexadecimal bytes."""
    pretty = _pretty(payload)
    try:
        text = payload.decode() if pretty is None else pretty
    except UnicodeDecodeError:
        for at in range(0, len(payload), _HEX_BYTES):
            part = payload[at : at + _HEX_BYTES]
            printed = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
            yield f"{at:08x}  {part.hex(' ').ljust(3 * _HEX_BYTES)} {printed}"
    else:
        yield from (shown(line) for line in text.split("\n"))


def _pretty(payload: bytes) -> str | None:
    """The payload as indented JSON; None when it is no JSON text."""
    try:
        # Formatting alone lets wrong UTF-8 pass.
        payload.decode()
        return msgspec.json.format(payload, indent=2).decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _short(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


VERBS = {"list": run_list, "show": run_show, "drop": run_drop}
