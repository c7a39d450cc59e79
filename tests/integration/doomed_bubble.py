"""One source of each kind, all of them quick: what pollers that are killed work on."""

from __future__ import annotations

import os
from zoneinfo import ZoneInfo

from msgspec.structs import replace

from tests.fakes import liar_world
from tidegate.bubble import Bubble, CsvDrop, Env, Office, RawRow, Rest, Source, Stated
from tidegate.entity import EVERYONE, Entity, Meta, Reader

# A poller that was killed keeps its share of the budget for some seconds, so each has one of its own.
_OFFICE = Office(name=os.environ["LIAR_OFFICE"], requests_per_s=1000, failures=1000)


class Extracted(Entity):
    """A row of a full extract."""

    meta = Meta(collection="extracted", key="key", readers=(Reader(EVERYONE),))
    key: str
    content: int


class Changed(Entity):
    """A row of a file of changes."""

    meta = Meta(collection="changed", key="key", readers=(Reader(EVERYONE),))
    key: str
    content: int


def extracted(row: RawRow) -> Extracted:
    return Extracted(key=row["key"], content=int(row["content"]))


def changed(row: RawRow) -> Changed:
    return Changed(key=row["key"], content=int(row["content"]))


def _asked() -> Source:
    made = liar_world.declared("time", ZoneInfo("UTC"), reread=True)
    assert isinstance(made.feed, Rest)
    feed = replace(made.feed, office=_OFFICE)
    return replace(made, feed=feed, poll_interval_s=0.05, sweep_interval_s=0.2, safety_s=0.5)


_DROPS = CsvDrop(
    bucket=Env("DROPS_BUCKET"), prefix="extracts/x-", key="key", stated=Stated(pattern=r"x-(\d{8})", format="%Y%m%d")
)

bubble = Bubble(
    name="doomed",
    entities=(liar_world.Timed, Extracted, Changed),
    sources=(
        _asked(),
        Source(name="extracts", entity=Extracted, translate=extracted, poll_interval_s=0.05, feed=_DROPS),
        Source(
            name="changes", entity=Changed, translate=changed, poll_interval_s=0.05,
            feed=replace(_DROPS, prefix="changes/x-", holds="changes"),
        ),
    ),
)  # fmt: skip
