"""Who is told of a change, and under which names it waits in the outbox.  (pure)

Today a destination is declared with the entities, operations and causes that it wants. Finer rules belong here too:
everything else asks only `Routes.of`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from tidegate.bubble import Destination
from tidegate.entity import entity_name
from tidegate.event import AnyChange, Cause, EntityKey, Operation

_TOKEN = re.compile(r"[!-~]{1,200}")

_Class = tuple[str, Operation, Cause]


class Routes:
    """The destinations of a bubble, by what they want."""

    def __init__(self, destinations: Iterable[Destination], entities: Iterable[str]) -> None:
        """`entities` are the names of all the bubble's entities."""
        every = tuple(entities)
        self._wanting: dict[_Class, tuple[str, ...]] = {}
        for destination in destinations:
            names = [entity_name(entity) for entity in destination.entities] or every
            classes = (
                (name, operation, cause)
                for name in names
                for operation in destination.operations
                for cause in destination.causes
            )
            for each in dict.fromkeys(classes):
                self._wanting[each] = (*self._wanting.get(each, ()), destination.name)

    def __bool__(self) -> bool:
        """Whether any change could be wanted."""
        return bool(self._wanting)

    def of(self, event: AnyChange) -> tuple[str, ...]:
        """The names of the destinations that want this change, if it is applied."""
        return self._wanting.get((event.key.entity, event.operation, event.cause), ())


NO_ROUTES = Routes((), ())


def effect_id(event_id: str) -> str:
    """The id by which a receiver recognizes a repetition: the event's own where it fits into a header.

    Ours always do. Another writer's may be long or hold a line break.
    """
    if _TOKEN.fullmatch(event_id):
        return event_id
    return "hashed-" + hashlib.blake2b(event_id.encode(), digest_size=16).hexdigest()


def lane(key: EntityKey) -> int:
    """A number for a row, within which changes keep their order. That two rows share one is rare and harmless.

    Computed here, because PostgreSQL's own hashes may differ between its versions.
    """
    digest = hashlib.blake2b(f"{key.entity}\n{key.key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)
