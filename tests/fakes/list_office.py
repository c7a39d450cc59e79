"""A back office in memory that does what hurts: second precision, ties, late commits, rows that shift while paged.

It orders by its wall clock, like the real ones, so in the autumn hour its order goes back by an hour. Time is the
test's own; nothing here waits.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from poller.walk import Answer
from tidegate.feeds import PageRef


class Row(NamedTuple):
    """`changed_at` is when it really changed; `stamp` what the back office writes down: wall clock, whole seconds."""

    key: str
    content: int
    changed_at: datetime
    stamp: datetime


@dataclass
class ListOffice:
    """`pending` are changes that are stamped but not committed yet."""

    rng: random.Random
    now: datetime
    safety_s: float = 2.0
    size: int = 3
    zone: ZoneInfo = field(default_factory=lambda: ZoneInfo("UTC"))
    rows: dict[str, Row] = field(default_factory=dict)
    pending: list[tuple[datetime, Row]] = field(default_factory=list)
    _contents: int = 0
    _keys: int = 0

    def write(self, key: str, *, late_s: float = 0.0, ahead: timedelta = timedelta()) -> None:
        """Change or create a row; it shows after `late_s`. `ahead` dates it in the future."""
        self._contents += 1
        stamp = (self.now + ahead).astimezone(self.zone).replace(tzinfo=None, microsecond=0)
        row = Row(key, self._contents, self.now, stamp)
        self.pending.append((self.now + timedelta(seconds=late_s), row))
        self._commit()

    def create(self, **how: float) -> str:
        self._keys += 1
        key = f"K{self._keys:04d}"
        self.write(key, **how)  # type: ignore[arg-type]
        return key

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self._commit()

    def live(self, changes: int) -> None:
        """Some random changes, some of them committed late."""
        for _ in range(changes):
            late_s = self.rng.choice((0.0, 0.0, self.rng.uniform(0, self.safety_s * 0.99)))
            dice = self.rng.random()
            keys = sorted(self.rows)
            if dice < 0.3 or not keys:
                self.create(late_s=late_s)
            elif dice < 0.85:
                self.write(self.rng.choice(keys), late_s=late_s)
            else:
                self.rows.pop(self.rng.choice(keys))
            self.pass_time(self.rng.choice((0.0, 0.0, 0.01, 0.3)))

    def ask(self, bound: datetime | None, page: PageRef) -> tuple[list[Row], Answer]:
        """One request by time (inclusive), or for everything by key; it takes a moment, and life goes on meanwhile."""
        sent = self.now
        self.pass_time(self.rng.choice((0.001, 0.05, 0.4)))
        if bound is None:
            listed = sorted(self.rows.values())
        else:
            listed = sorted((r for r in self.rows.values() if r.stamp >= bound), key=lambda r: (r.stamp, r.key))
        self.pass_time(self.rng.choice((0.0, 0.01)))
        number = 1 if page is None else int(page)
        rows = listed[(number - 1) * self.size : number * self.size]
        following = number + 1 if number * self.size < len(listed) else None
        # The Date header has whole seconds; what is subtracted is how long the request took.
        asked_at = self.now.replace(microsecond=0) - (self.now - sent)
        served_at = self.now.replace(microsecond=0)
        answer = Answer([r.key for r in rows], following, len(listed), asked_at, served_at, [r.stamp for r in rows])
        return rows, answer

    def _commit(self) -> None:
        due = sorted((entry for entry in self.pending if entry[0] <= self.now), key=lambda entry: entry[0])
        self.pending = [entry for entry in self.pending if entry[0] > self.now]
        for _, row in due:
            self.rows[row.key] = row


def start(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
