"""The verb `dead-letters edit`: a person mends what could not be handled.

What is edited is the row's data, as JSON; with --whole, or where the record is no event, the record around it. The
worker's own decoder judges the result, so that what is kept here will be read there. Id, source, key and version stay:
by them the replay takes the failed record's place and nothing else's.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from tidegate import bubble as bubbles
from tidegate import codec, letters
from tidegate.bubble import Bubble
from tidegate.cli.console import database, shown, who
from tidegate.cli.dead_letters_show import answer
from tidegate.database import Connection, Database
from tidegate.entity import EntityShape, Kind
from tidegate.errors import Fatal, Rejected
from tidegate.event import Cause, ChangeEvent, EntityKey, Operation, Version
from tidegate.letter import LetterKind, event_identity
from tidegate.letters import Letter
from tidegate.tables import VERSION_COLUMNS

_MOST_RECORD_BYTES = 1_000_000
"""Kinesis takes 1 MiB with the partition key."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NOTHING = Version(0, 0, 0, 0, 0)


class Draft(NamedTuple):
    """What a person edits, and how the edited text becomes an event. `assemble` raises Rejected."""

    payload: bytes
    assemble: Callable[[bytes], ChangeEvent]


def run_edit(arguments: argparse.Namespace) -> int:
    if not arguments.bubble:
        raise Fatal("no bubble named; pass --bubble package.module or set TIDEGATE_BUBBLE: its entity judges the edit")
    return asyncio.run(_edit(arguments, bubbles.load(arguments.bubble)))


async def _edit(arguments: argparse.Namespace, bubble: Bubble) -> int:
    async with database() as opened:
        async with opened.transaction("read a dead letter") as connection:
            letter = await letters.get(connection, arguments.id)
        draft = draft_of(letter, bubble, whole=arguments.whole)
        text, kept = await asyncio.to_thread(_edited_text, draft.payload, arguments.file)
        try:
            record, event = await _judge(opened, letter, bubble, draft.assemble(text))
        except Rejected as error:
            kept_at = f"; your text is kept in {kept}: mend it and pass it as --file" if kept else ""
            raise Fatal(f"dead letter {letter.id}: {shown(str(error))}{kept_at}") from error
        if not arguments.dry_run:
            async with opened.transaction("keep an edit") as connection:
                identity = event_identity(record) or ""
                await letters.edit(connection, letter.id, record, event, identity, await who(connection))
    _report(arguments, letter, event, kept)
    return 0


def _report(arguments: argparse.Namespace, letter: Letter, event: ChangeEvent, kept: Path | None) -> None:
    if kept is not None:
        kept.unlink(missing_ok=True)
    version = codec.encode_version(event.version)
    if arguments.json:
        key = event.key._asdict()
        print(answer({"id": letter.id, "edited": not arguments.dry_run, **key, "version": version}))
        return
    print(f"{'would keep' if arguments.dry_run else 'kept'} the edit of {event.key} at version {version}")
    if not arguments.dry_run:
        print(f"send it with: tidegate dead-letters replay {letter.id}")


def draft_of(letter: Letter, bubble: Bubble, *, whole: bool) -> Draft:
    """What is edited of this letter. Raises Fatal for a letter that holds nothing to edit, or is resolved."""
    if letter.resolved_at is not None:
        raise Fatal(f"dead letter {letter.id} is resolved; there is nothing to mend")
    if letter.kind is LetterKind.GAP:
        raise Fatal(f"dead letter {letter.id} is a gap: it holds no record that could be edited")
    record = letter.record
    if record is None:
        event = _row_event(letter, bubble)
        return Draft(letter.payload, lambda text: replace(event, payload=_fields(text)))
    known = _event(record)
    if whole or known is None:
        return Draft(record, lambda text: _same(_decoded(text), known))
    if known.payload is None:
        raise Fatal(f"dead letter {letter.id} is a deletion, which has no data; --whole edits the record, or drop it")
    return Draft(msgspec.json.encode(known.payload), lambda text: replace(known, payload=_fields(text)))


def _row_event(letter: Letter, bubble: Bubble) -> ChangeEvent:
    """The event that a raw row becomes once a person has translated it; its version follows when its data is known."""
    shapes = [shape for shape in bubble.shapes if shape.name == letter.entity]
    if not shapes:
        raise Fatal(f"dead letter {letter.id}: the bubble {bubble.name!r} has no entity {letter.entity!r}")
    seen_at = letter.observed_at or letter.first_seen_at
    return ChangeEvent(
        event_id=letter.event_id or f"dead-letter-{letter.id}",
        key=EntityKey(shapes[0].name, letter.key or ""),
        version=_NOTHING,
        operation=Operation.UPSERT,
        # A person's translation is nothing that happened in the back office.
        cause=Cause.RETRANSLATE,
        source=letter.source or "",
        occurred_at=seen_at,
        observed_at=seen_at,
        payload={},
    )


async def _judge(opened: Database, letter: Letter, bubble: Bubble, event: ChangeEvent) -> tuple[bytes, ChangeEvent]:
    """The record to replay. Raises Rejected when the worker would refuse it."""
    shape = next((each for each in bubble.shapes if each.name == event.key.entity), None)
    if shape is None:
        raise Rejected("unknown_entity", f"the bubble {bubble.name!r} has no entity {event.key.entity!r}")
    if letter.kind is LetterKind.ROW:
        if not event.key.key:
            named = (event.payload or {}).get(shape.key.name)
            event = replace(event, key=EntityKey(shape.name, str(named)))
        values, key = _decode(bubble, event)
        async with opened.transaction("read the row's version") as connection:
            stored = await stored_version(connection, shape, key)
        event = replace(event, version=version_after(stored, _source_version(shape, values)))
    _decode(bubble, event)
    record = codec.encode(event)
    if len(record) > _MOST_RECORD_BYTES:
        raise Rejected("too_large", f"the record has {len(record)} bytes, Kinesis takes {_MOST_RECORD_BYTES}")
    return record, event


def _decode(bubble: Bubble, event: ChangeEvent) -> tuple[Sequence[Any], Any]:
    """The typed fields and the typed key, as the worker will see them. Raises Rejected."""
    # By name, because the kernel imports none of the programs.
    decode, batch = importlib.import_module("worker.decode"), importlib.import_module("worker.batch")
    record = batch.Record("0", codec.encode(event))
    item = decode.Decoder(bubble.entities).decode(record)
    if isinstance(item, batch.DeadLetter):
        raise Rejected(item.reason, item.message)
    # The decoder lets pass what a newer release may have written; a person who mistyped a name should know.
    shape = next(each for each in bubble.shapes if each.name == event.key.entity)
    if unknown := sorted(set(event.payload or {}) - {field.name for field in shape.fields}):
        raise Rejected("unknown_field", f"{shape.name} has no field {', '.join(unknown)}")
    change = batch.Change(record, item)
    return change.values or (), change.key


async def stored_version(connection: Connection, shape: EntityShape, key: Any) -> Version | None:
    """What the table holds of the key; None: nothing yet."""
    columns = ", ".join(f'"{name}"' for name in VERSION_COLUMNS)
    row = await connection.fetchrow(f'SELECT {columns} FROM "{shape.table}" WHERE "{shape.key.name}" = $1', key)
    return None if row is None else Version._make(row)


def version_after(stored: Version | None, source_version: int) -> Version:
    """A version for a row that nobody gave one: after what the table holds, before whatever the poller reads next.

    A poller's next reading has a greater source version, or the same one and a later observation, which is compared
    before the translation that is raised here. Raises Rejected when the row was erased.
    """
    if stored is None:
        return Version(0, source_version, 0, 0, 1)
    if stored.generation == 2**63 - 1:
        raise Rejected("erased", "the row was erased and stays out; see `tidegate erase --undo`")
    if source_version > stored.source_version:
        return stored._replace(source_version=source_version)
    return stored._replace(translation=stored.translation + 1)


def _source_version(shape: EntityShape, values: Sequence[Any]) -> int:
    if shape.version is None:
        return 0
    value: Any = values[shape.fields.index(shape.version)]
    version: int = (value - _EPOCH) // timedelta(microseconds=1) if shape.version.kind is Kind.TIMESTAMP else value
    return max(0, version)


def _event(record: bytes) -> ChangeEvent | None:
    try:
        event = codec.decode(record)
    except Rejected:
        return None
    return event if isinstance(event, ChangeEvent) else None


def _decoded(text: bytes) -> ChangeEvent:
    event = codec.decode(text)
    if not isinstance(event, ChangeEvent):
        raise Rejected("no_change", "the record is no change of a row")
    return event


def _same(event: ChangeEvent, known: ChangeEvent | None) -> ChangeEvent:
    """The edited event. Raises Rejected when it would be another one than the letter's."""
    for name in ("event_id", "source", "key", "version") if known is not None else ():
        before, after = getattr(known, name), getattr(event, name)
        if before != after:
            raise Rejected("another_event", f"the {name} must stay {before}, not become {after}")
    return event


def _fields(text: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected("undecodable", f"the data must be one JSON object: {error}") from error


def _text(payload: bytes) -> str:
    """JSON indented for the editor, other text as it is. Raises Fatal for what is no text."""
    try:
        return msgspec.json.format(payload.decode().encode(), indent=2).decode() + "\n"
    except (msgspec.DecodeError, RecursionError):
        return payload.decode()
    except UnicodeDecodeError:
        raise Fatal("the payload is no text; write the whole record into a file and pass it as --file") from None


def _edited_text(payload: bytes, source: Path | None) -> tuple[bytes, Path | None]:
    """What the person made of the payload, and the file that holds it if we made that."""
    if source is not None:
        try:
            return (sys.stdin.buffer.read() if str(source) == "-" else source.read_bytes()), None
        except OSError as error:
            raise Fatal(f"--file {source}: {error.strerror}") from error
    text = _text(payload)
    with tempfile.NamedTemporaryFile("w", prefix="tidegate-", suffix=".json", delete=False, encoding="utf-8") as file:
        file.write(text)
    path = Path(file.name)
    command = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    try:
        # The person's own editor, by the person's own setting.
        ended = subprocess.run([*command, str(path)], check=False)  # noqa: S603
    except OSError as error:
        path.unlink()
        raise Fatal(f"$EDITOR is {command[0]!r}, which does not start: {error.strerror}; or pass --file") from error
    edited = path.read_bytes()
    if ended.returncode != 0 or edited == text.encode():
        path.unlink()
        raise Fatal(f"{command[0]} ended with {ended.returncode}, and nothing was changed")
    return edited, path


VERBS = {"edit": run_edit}
