"""`tidegate events validate FILE`: whether events are what the stream takes, judged by the worker's own code."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from tidegate import bubble as bubbles
from tidegate.bubble import Bubble
from tidegate.cli import console
from tidegate.codec import TypedChange
from tidegate.errors import Fatal, Rejected
from tidegate.inbound import Desk, Stamp

_ABOUT = """\
Check events before they are put on the stream: one event, a JSON array of them, or one a line. Those under `tidegate.` are
judged by the code with which the worker reads them, the bubble's inbound events by that with which the API does. For each
good one the partition key is printed that its record must have. The contract is in docs/EVENTS.md.
"""
_RECORD_BYTES = 1_048_576


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event: `place` counts from 1. Either a partition key or a reason."""

    place: int
    is_good: bool
    type: str = ""
    partition_key: str = ""
    reason: str = ""
    detail: str = ""


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    about = "what may be put on the streams"
    each = verbs.add_parser("events", help=about, description=about).add_subparsers(metavar="VERB", required=True)
    validate = each.add_parser("validate", help="check events before they are sent", description=_ABOUT)
    validate.add_argument("file", metavar="FILE", help="- is standard input")
    validate.add_argument("--bubble", metavar="MODULE", default=os.environ.get("TIDEGATE_BUBBLE"), help="import path")
    validate.add_argument("--json", action="store_true", help="print a JSON object for each event")
    validate.set_defaults(run=run_validate)


def run_validate(arguments: argparse.Namespace) -> int:
    """0 when all are good, 1 when one is not."""
    if not arguments.bubble:
        raise Fatal("no bubble named; pass --bubble package.module or set TIDEGATE_BUBBLE")
    judge = _Judge(bubbles.load(arguments.bubble))
    verdicts = [judge.judged(place, raw) for place, raw in enumerate(_events(_read(arguments.file)), 1)]
    for verdict in verdicts:
        print(msgspec.json.encode(verdict).decode() if arguments.json else _line(verdict))
    if not verdicts:
        raise Fatal(f"{arguments.file} holds no event")
    return 0 if all(verdict.is_good for verdict in verdicts) else 1


def _read(name: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise Fatal(f"{name} cannot be read: {error.strerror}") from error


def _events(text: bytes) -> list[bytes]:
    """The events of a file; a line that is no JSON is one too, and will be found wrong."""
    if text.lstrip().startswith(b"["):
        try:
            return [bytes(raw) for raw in msgspec.json.decode(text, type=list[msgspec.Raw])]
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Fatal(f"the file is no JSON array: {error}") from error
    try:
        return [bytes(msgspec.json.decode(text, type=msgspec.Raw))]
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return [line for line in text.splitlines() if line.strip()]


class _Typed(msgspec.Struct):
    type: str


class _Judge:
    """By the type of an event, the code that will read it."""

    def __init__(self, bubble: Bubble) -> None:
        # By name, because the kernel imports none of the programs.
        self._worker: Any = importlib.import_module("worker.decode").Decoder(bubble.entities)
        self._batch: Any = importlib.import_module("worker.batch")
        self._desk = Desk(bubble.inbound)
        self._senders = {each.event_type: each.senders[0] for each in bubble.inbound}

    def judged(self, place: int, raw: bytes) -> Verdict:
        try:
            kind = msgspec.json.decode(raw, type=_Typed).type
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return Verdict(place, False, reason="undecodable", detail=str(error))
        try:
            if len(raw) > _RECORD_BYTES:
                raise Rejected("too_large", f"{len(raw)} bytes; a record takes {_RECORD_BYTES}")
            key = self._change(raw) if kind.startswith("tidegate.") else self._arrival(kind, raw)
        except Rejected as error:
            return Verdict(place, False, kind, reason=error.reason, detail=str(error))
        return Verdict(place, True, kind, partition_key=key)

    def _change(self, raw: bytes) -> str:
        batch = self._batch
        record = batch.Record(sequence_number="1", data=raw)
        item = self._worker.decode(record)
        if isinstance(item, TypedChange):
            return str(item.key)
        if isinstance(item, batch.Mark):
            return "any, to every shard by its explicit hash key"
        if item.reason and item.stage == "decode":
            raise Rejected(item.reason, item.message)
        return "any"

    def _arrival(self, kind: str, raw: bytes) -> str:
        """As the API would, from somebody who may send it."""
        sender = {self._senders.get(kind, ""): ["1"]}
        stamp = Stamp(client="client", subject="subject", viewers=sender, received=_NOW, idempotency_key="key")
        self._desk.stamped(raw, stamp, 0)
        return "the API makes it: POST /v1/events"


_NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _line(verdict: Verdict) -> str:
    kind = console.shown(verdict.type, 60)
    if verdict.is_good:
        return f"{verdict.place}: good, {kind}; partition key: {console.shown(verdict.partition_key)}"
    return f"{verdict.place}: {verdict.reason}, {kind}: {console.shown(verdict.detail)}"
