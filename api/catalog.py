"""The resources of a bubble: each entity with what feeds it and what can be shown within its rows.  (pure)"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

import msgspec

from api.answer import freshness_headers
from api.selection import Join
from tidegate.bubble import Bubble, Source
from tidegate.entity import EntityShape


class Feeds(msgspec.Struct, frozen=True):
    """The sources whose rows are in an answer: those that can say how fresh they are, and the others."""

    watermarked: tuple[str, ...] = ()
    unwatermarked: tuple[str, ...] = ()
    objectives: tuple[tuple[str, float], ...] = ()

    def headers(self, as_of: Mapping[str, datetime | None], now: datetime) -> dict[str, str]:
        """How fresh the answer is; `Data-Stale` names the sources that are older than the bubble promises."""
        headers = freshness_headers(as_of, self.unwatermarked)
        stale = [name for name, most_s in self.objectives if _is_older(as_of.get(name), now, most_s)]
        return headers | ({"Data-Stale": ",".join(stale)} if stale else {})


class Collection(msgspec.Struct, frozen=True):
    """One entity as a REST resource.

    joins    embed's name → what it shows, in the order of their declaration
    sources  what its rows come from
    feeds    the same, for answers in which nothing is embedded
    """

    shape: EntityShape
    joins: Mapping[str, Join]
    sources: tuple[Source, ...]
    feeds: Feeds


def _is_older(as_of: datetime | None, now: datetime, most_s: float) -> bool:
    return as_of is None or now - as_of > timedelta(seconds=most_s)


def feeds_of(sources: Iterable[Source]) -> Feeds:
    known = sorted({source.name: source for source in sources}.values(), key=lambda source: source.name)
    return Feeds(
        tuple(source.name for source in known if source.watermark),
        tuple(source.name for source in known if not source.watermark),
        tuple(
            (source.name, source.objective_s) for source in known if source.watermark and source.objective_s is not None
        ),
    )


def collections_of(bubble: Bubble) -> dict[str, Collection]:
    """Name of the collection → its resource, in the order of the bubble's entities."""
    shapes = {shape.collection: shape for shape in bubble.shapes}
    found = {}
    for name, shape in shapes.items():
        joins = {embed.name: Join(embed, shapes[embed.collection]) for embed in shape.embeds}
        sources = bubble.sources_of(shape.name)
        found[name] = Collection(shape, joins, sources, feeds_of(sources))
    return found
