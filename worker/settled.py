"""Dead letters that the table is past already when they are filed: late records, and what another release could read.  (pure)

A failure that is not newer than its row misses nothing, so it is closed in the transaction that files it. What the rows
hold is asked for, and given to `statements.RESOLVE` as if it had been written just now.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tidegate.columns import TYPES
from tidegate.entity import EntityShape
from tidegate.event import EntityKey, Version
from tidegate.tables import VERSION_COLUMNS
from worker.batch import DeadLetter, typed_key
from worker.statements import version_text


def failed(letters: Iterable[DeadLetter]) -> list[EntityKey]:
    """The rows that failed changes are of."""
    named = (each for each in letters if each.version is not None and not each.is_parked)
    return [EntityKey(each.entity, each.key) for each in named if each.entity is not None and each.key is not None]


class Settled:
    """One entity. `stored` answers the versions of the keys in $1, as far as there are rows."""

    def __init__(self, shape: EntityShape) -> None:
        self._shape = shape
        columns = ", ".join(f'"{name}"' for name in (shape.key.name, *VERSION_COLUMNS))
        self.stored = (
            f'SELECT {columns} FROM "{shape.table}" WHERE "{shape.key.name}" = ANY ($1::{TYPES[shape.key.kind]}[])'
        )

    def keys_of(self, names: Iterable[EntityKey]) -> list[Any]:
        """The keys of this entity, as their column has them; without those that no row can have."""
        keys = (self._key_of(text) for entity, text in set(names) if entity == self._shape.name)
        return sorted(key for key in keys if key is not None)

    def resolving(self, rows: Iterable[Sequence[Any]]) -> list[list[Any]]:
        """The arguments of RESOLVE after the stream, from rows of `stored`. What has no version stays as it is."""
        found = list(rows)
        return [
            [self._shape.name] * len(found),
            [str(key) for key, *_ in found],
            [version_text(Version._make(version)) for _, *version in found],
            [None] * len(found),
            [0] * len(found),
            [0] * len(found),
            [True] * len(found),
        ]

    def _key_of(self, text: str) -> Any:
        try:
            key = typed_key(self._shape.key.kind, text)
        except ValueError:
            return None
        if str(key) != text or "\0" in text or (isinstance(key, int) and not -(2**63) <= key < 2**63):
            return None
        return key
