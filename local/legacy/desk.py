"""One transaction's worth of work. A back office picks rows, changes them and puts them back here;
nothing is visible to anybody before `Store.commit`."""

import random
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

from local.legacy.record import Record

if TYPE_CHECKING:
    from local.legacy.store import Store

R = TypeVar("R", bound=Record)

PICK_TRIES = 8


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one row; `after` is None for a delete, `before` is None for a new row."""

    entity: str
    key: str
    before: Record | None
    after: Record | None


class Desk:
    """Reads see this desk's own changes. `now` is UTC in whole seconds, `rng` is seeded."""

    def __init__(self, store: "Store", rng: random.Random) -> None:
        self.rng = rng
        self.now: datetime = store.now()
        self.changes: list[Change] = []
        self.counters: dict[str, int] = {}
        self._store = store
        self._touched: dict[tuple[str, str], Record | None] = {}

    def find(self, kind: type[R], key: str) -> R | None:
        """The row with that key as this desk sees it, or None."""
        name = (kind.entity, key)
        if name in self._touched:
            record = self._touched[name]
            return record if isinstance(record, kind) else None
        return self._store.find(kind, key)

    def pick(self, kind: type[R], lane: str | None = None) -> R | None:
        """A random row (of that lane, see `Record.lane`), or None when none is found in a few tries."""
        for _ in range(PICK_TRIES):
            key = self._store.some_key(kind.entity, lane, self.rng)
            if key is None:
                return None
            record = self.find(kind, key)
            if record is not None and lane in (None, record.lane()):
                return record
        return None

    def put(self, record: Record) -> None:
        """Add the row, or replace the one with the same key."""
        self._note(record, record)

    def delete(self, record: Record) -> None:
        """Remove the row for good: legacy systems leave no tombstone."""
        self._note(record, None)

    def next(self, name: str) -> int:
        """The next number (from 1) of a counter that survives restarts; kept at commit."""
        value = self.counters.get(name)
        if value is None:
            value = int(self._store.note(f"counter:{name}") or 0)
        self.counters[name] = value + 1
        return value + 1

    def _note(self, record: Record, after: Record | None) -> None:
        name = (record.entity, record.key())
        before = self.find(type(record), record.key())
        self.changes.append(Change(*name, before, after))
        self._touched[name] = after
