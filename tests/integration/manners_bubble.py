"""Three sources of one back office that bears little: what the test of manners runs."""

from __future__ import annotations

import os

from tidegate.bubble import Bubble, Env, Hours, Office, PageNumber, RawRow, Rest, Source
from tidegate.entity import EVERYONE, Entity, Meta, Reader

REQUESTS_PER_S = 10
# For those tests only that say what time it is.
_QUIET = os.environ.get("SHY_QUIET")
_OFFICE = Office(
    name="shy", requests_per_s=REQUESTS_PER_S, concurrency=2, failures=1000,
    hours=Hours(zone="Europe/Zurich", quiet=(_QUIET,)) if _QUIET else None,
)  # fmt: skip


class Ant(Entity):
    meta = Meta(collection="ants", key="key", readers=(Reader(EVERYONE),))
    key: str


class Bee(Entity):
    meta = Meta(collection="bees", key="key", readers=(Reader(EVERYONE),))
    key: str


class Cat(Entity):
    meta = Meta(collection="cats", key="key", readers=(Reader(EVERYONE),))
    key: str


def _source(name: str, entity: type[Entity]) -> Source:
    def translate(row: RawRow) -> Entity:
        return entity(key=row["key"])

    return Source(
        name=name, entity=entity, translate=translate, poll_interval_s=0.01, sweep_interval_s=0.01,
        feed=Rest(
            url=Env("SHY_URL"), path=f"/{name}", rows="rows", key="key", office=_OFFICE,
            paging=PageNumber(param="page", pages="pages"),
        ),
    )  # fmt: skip


bubble = Bubble(
    name="manners",
    entities=(Ant, Bee, Cat),
    sources=(_source("ants", Ant), _source("bees", Bee), _source("cats", Cat)),
)
