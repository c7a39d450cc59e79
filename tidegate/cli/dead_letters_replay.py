"""The verb `dead-letters replay`."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from tidegate import aws, letters
from tidegate.cli.console import database
from tidegate.cli.dead_letters_show import answer, narrowed
from tidegate.errors import Fatal
from tidegate.replay import Record, Replay, Replayed

_EXAMPLES = 5


def run_replay(arguments: argparse.Namespace) -> int:
    done = asyncio.run(_replay(arguments))
    skipped = sum(len(ids) for ids in done.skipped.values())
    if arguments.json:
        by_reason = [{"why": why, "ids": ids} for why, ids in done.skipped.items()]
        print(
            answer({"replayed": 0 if arguments.dry_run else done.sent, "would_replay": done.sent, "skipped": by_reason})
        )
    else:
        print(f"{'would replay' if arguments.dry_run else 'replayed'} {done.sent} letters, skipped {skipped}")
        for why, ids in done.skipped.items():
            more = f" and {len(ids) - _EXAMPLES} more" if len(ids) > _EXAMPLES else ""
            print(f"  {', '.join(map(str, ids[:_EXAMPLES]))}{more}: {why}", file=sys.stderr)
        if done.sent and not arguments.dry_run:
            print("the workers resolve them as their rows land; `dead-letters list` shows what failed again")
    # Whoever names a letter that cannot be replayed should notice, also in a script.
    return 1 if arguments.ids and skipped else 0


async def _replay(arguments: argparse.Namespace) -> Replayed:
    chosen = narrowed(arguments)
    if arguments.ids:
        # Who names a letter that is resolved is told so.
        chosen = replace(chosen, resolved=True)
    async with database() as opened:
        async with opened.transaction("look for the dead letters") as connection:
            await letters.check_ids(connection, chosen.ids)
        if arguments.dry_run:
            return await Replay(opened, _nowhere, arguments.per_second).run(chosen, dry_run=True)
        async with aws.client("kinesis") as kinesis:
            return await Replay(opened, _Streams(kinesis).publish, arguments.per_second).run(chosen)


async def _nowhere(stream: str, records: Sequence[Record]) -> None:
    raise Fatal(f"{len(records)} records must not be sent to {stream} in a dry run")


class _Streams:
    """The poller's own publisher, one for each stream: all acknowledged, or an error."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._publishers: dict[str, Any] = {}

    async def publish(self, stream: str, records: Sequence[Record]) -> None:
        if stream not in self._publishers:
            # By name, because the kernel imports none of the programs.
            publisher, settings = (importlib.import_module(name) for name in ("poller.publisher", "poller.settings"))
            self._publishers[stream] = publisher.KinesisPublisher(self._client, stream, settings.PublishSettings())
        await self._publishers[stream].publish(records)


VERBS = {"replay": run_replay}
