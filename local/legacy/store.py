"""The back office's own database: one sqlite file with rows, change log, counters.

A commit writes the changed rows and their change-log rows in one transaction, so a change is never
visible without its log row, and both survive SIGKILL. The seed is the state before change number 1
and has no log rows. One process writes; reads of the legacy API see committed rows only.
"""

import random
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from local.legacy.desk import Change, Desk
from local.legacy.record import Record, Stamp, Viewer

R = TypeVar("R", bound=Record)
Order = Literal["key", "number", "version", "recent"]

LOG_ROWS = 500_000
"""The change log keeps this many rows at least; older ones are dropped now and then."""

_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS rows (
    entity TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, record BLOB NOT NULL, clean BLOB NOT NULL,
    PRIMARY KEY (entity, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS rows_version ON rows (entity, version, key);
CREATE TABLE IF NOT EXISTS changes (
    no INTEGER PRIMARY KEY, entity TEXT NOT NULL, key TEXT NOT NULL, operation TEXT NOT NULL,
    committed_at_ms INTEGER NOT NULL, row BLOB);
CREATE TABLE IF NOT EXISTS removed (entity TEXT, key TEXT, record BLOB, PRIMARY KEY (entity, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
_ORDER_BY: dict[Order, str] = {
    "key": "key",
    "number": "CAST(key AS INTEGER), key",
    "version": "version, key",
    "recent": "version DESC, key",
}


class LogRow(msgspec.Struct, frozen=True):
    """One change: `row` is the clean row after it, None after a delete."""

    no: int
    entity: str
    key: str
    operation: Literal["upsert", "delete"]
    committed_at_ms: int
    row: msgspec.Raw | None


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class KeyBag:
    """Keys to pick from at random, each step in constant time."""

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._at: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> str:
        return self._keys[index]

    def add(self, key: str) -> None:
        if key not in self._at:
            self._at[key] = len(self._keys)
            self._keys.append(key)

    def discard(self, key: str) -> None:
        index = self._at.pop(key, None)
        if index is None:
            return
        last = self._keys.pop()
        if last != key:
            self._keys[index] = last
            self._at[last] = index


class Store:
    """Rows of one back office in `folder`/legacy.sqlite3; `clock_ms` is the wall clock."""

    def __init__(
        self, folder: Path, records: Sequence[type[Record]], clock_ms: Callable[[], int] = wall_clock_ms
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.clock_ms = clock_ms
        self.records = {kind.entity: kind for kind in records}
        self.after_commit: list[Callable[[frozenset[str]], None]] = []
        self._path = folder / "legacy.sqlite3"
        self._db = sqlite3.connect(self._path, isolation_level=None)
        self._db.executescript(_SCHEMA)
        self._decoders = {kind: msgspec.json.Decoder(kind) for kind in records}
        self._bags: dict[str, dict[str, KeyBag]] = {kind.entity: {} for kind in records}
        self.last_change = self._number("SELECT coalesce(max(no), 0) FROM changes")
        self.revision = int(self.note("revision") or 0)
        for kind in records:
            self._fill_bags(kind)

    def close(self) -> None:
        self._db.close()

    def now(self) -> datetime:
        """UTC in whole seconds: all that a legacy timestamp can say."""
        return datetime.fromtimestamp(self.clock_ms() // 1000, UTC)

    # --- reading -------------------------------------------------------------------------------

    def find(self, kind: type[R], key: str) -> R | None:
        row = self._db.execute("SELECT record FROM rows WHERE entity = ? AND key = ?", (kind.entity, key)).fetchone()
        return self._decode(kind, row[0]) if row else None

    def named(self, kind: type[R], keys: Iterable[str]) -> list[R]:
        """Those of the rows that exist, in the order asked, each once."""
        found = (self.find(kind, key) for key in dict.fromkeys(keys))
        return [record for record in found if record is not None]

    def count(self, kind: type[Record], since: int | None = None, like: str = "%") -> int:
        """How many rows have a version >= `since` and a key LIKE `like` (escape character: backslash)."""
        where, values = _where(kind, since, like)
        return self._number(f"SELECT count(*) FROM rows WHERE {where}", values)

    def page(
        self, kind: type[R], order: Order, offset: int, limit: int, since: int | None = None, like: str = "%"
    ) -> list[R]:
        """A page by its offset; bounds as in `count`."""
        where, values = _where(kind, since, like)
        sql = f"SELECT record FROM rows WHERE {where} ORDER BY {_ORDER_BY[order]} LIMIT ? OFFSET ?"
        return [self._decode(kind, row[0]) for row in self._db.execute(sql, (*values, limit, offset))]

    def after_key(self, kind: type[R], key: str, limit: int) -> list[R]:
        sql = "SELECT record FROM rows WHERE entity = ? AND key > ? ORDER BY key LIMIT ?"
        return [self._decode(kind, row[0]) for row in self._db.execute(sql, (kind.entity, key, limit))]

    def after_version(self, kind: type[R], version: int, limit: int) -> list[R]:
        sql = "SELECT record FROM rows WHERE entity = ? AND version > ? ORDER BY version, key LIMIT ?"
        return [self._decode(kind, row[0]) for row in self._db.execute(sql, (kind.entity, version, limit))]

    def changes(self, after: int, limit: int) -> list[LogRow]:
        sql = "SELECT no, entity, key, operation, committed_at_ms, row FROM changes WHERE no > ? ORDER BY no LIMIT ?"
        return [
            LogRow(no, entity, key, operation, at_ms, None if row is None else msgspec.Raw(row))
            for no, entity, key, operation, at_ms, row in self._db.execute(sql, (after, limit))
        ]

    def truth(self, kind: type[Record], viewer: Viewer | None) -> Iterator[bytes]:
        """The clean rows as lines `{"key":…,"row":…}` by key, from one snapshot; may run in any thread."""
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        decoder = msgspec.json.Decoder(kind)
        try:
            for key, record, clean in db.execute(
                "SELECT key, record, clean FROM rows WHERE entity = ? ORDER BY key", (kind.entity,)
            ):
                if viewer is None or decoder.decode(record).seen_by(viewer):
                    yield b'{"key":' + msgspec.json.encode(key) + b',"row":' + clean + b"}\n"
        finally:
            db.close()

    def note(self, name: str) -> str | None:
        row = self._db.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def last_change_of(self, entity: str) -> int:
        """The number of the entity's last change in the log, 0 for none."""
        return self._number("SELECT coalesce(max(no), 0) FROM changes WHERE entity = ?", (entity,))

    def last_removed(self, kind: type[R], key: str) -> R | None:
        sql = "SELECT record FROM removed WHERE entity = ? AND key = ?"
        row = self._db.execute(sql, (kind.entity, key)).fetchone()
        return self._decode(kind, row[0]) if row else None

    def some_key(self, entity: str, lane: str | None, rng: random.Random) -> str | None:
        """A random committed key of that lane (None: of any), or None when there is none."""
        lanes = self._bags[entity]
        bags = list(lanes.values()) if lane is None else [lanes[lane]] if lane in lanes else []
        total = sum(len(bag) for bag in bags)
        if total == 0:
            return None
        index = rng.randrange(total)
        for bag in bags:
            if index < len(bag):
                return bag[index]
            index -= len(bag)
        return None

    # --- writing -------------------------------------------------------------------------------

    def set_note(self, name: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))

    def seed(self, kind: type[Record], records: Iterable[Record], desk: Desk) -> None:
        """Load the rows that are there before the first change. All or nothing; once per entity."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", (_columns(record) for record in records))
            highest = self._number("SELECT coalesce(max(version), 0) FROM rows WHERE entity = ?", (kind.entity,))
            if "changed_at" not in kind.__struct_fields__:
                self.revision = max(self.revision, highest)
            self._write_notes(desk)
            self.set_note(f"seeded:{kind.entity}", "1")
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._fill_bags(kind)

    def is_seeded(self, kind: type[Record]) -> bool:
        return self.note(f"seeded:{kind.entity}") is not None

    def commit(self, desk: Desk) -> int:
        """Make the desk's changes visible, all at once; answers the number of the last change."""
        if not desk.changes:
            return self.last_change
        before = (self.revision, self.last_change)
        self._db.execute("BEGIN IMMEDIATE")
        try:
            settled = self._write(desk)
            self._write_notes(desk)
            if self.last_change // 10_000 > before[1] // 10_000:
                self._db.execute("DELETE FROM changes WHERE no <= ?", (self.last_change - LOG_ROWS,))
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            self.revision, self.last_change = before
            raise
        for change in settled:
            self._settle(change)
        touched = frozenset(change.entity for change in settled)
        for told in self.after_commit:
            told(touched)
        return self.last_change

    def _write(self, desk: Desk) -> list[Change]:
        # The clock is read here, after the work and right before the writes: this is the commit's time.
        at_ms = self.clock_ms()
        at = datetime.fromtimestamp(at_ms // 1000, UTC)
        newest: dict[tuple[str, str], Record | None] = {}
        settled: list[Change] = []
        log: list[tuple[int, str, str, str, int, bytes | None]] = []
        for change in desk.changes:
            self.revision += 1
            self.last_change += 1
            name = (change.entity, change.key)
            before = newest.get(name, change.before)
            after = change.after.stamped(Stamp(at, self.revision), before) if change.after else None
            newest[name] = after
            settled.append(Change(change.entity, change.key, before, after))
            clean = msgspec.json.encode(after.truth()) if after else None
            log.append((self.last_change, *name, "upsert" if after else "delete", at_ms, clean))
        kept = [_columns(record) for record in newest.values() if record is not None]
        gone = [name for name, record in newest.items() if record is None]
        self._db.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?)", kept)
        self._db.executemany(
            "INSERT OR REPLACE INTO removed SELECT entity, key, record FROM rows WHERE entity = ? AND key = ?", gone
        )
        self._db.executemany("DELETE FROM rows WHERE entity = ? AND key = ?", gone)
        self._db.executemany("INSERT INTO changes VALUES (?, ?, ?, ?, ?, ?)", log)
        return settled

    def _write_notes(self, desk: Desk) -> None:
        self.set_note("revision", str(self.revision))
        for name, value in desk.counters.items():
            self.set_note(f"counter:{name}", str(value))

    def _settle(self, change: Change) -> None:
        lanes = self._bags[change.entity]
        if change.before is not None:
            lanes.setdefault(change.before.lane(), KeyBag()).discard(change.key)
        if change.after is not None:
            lanes.setdefault(change.after.lane(), KeyBag()).add(change.key)

    def _fill_bags(self, kind: type[Record]) -> None:
        lanes: dict[str, KeyBag] = {}
        for key, record in self._db.execute(
            "SELECT key, record FROM rows WHERE entity = ? ORDER BY key", (kind.entity,)
        ):
            lanes.setdefault(self._decode(kind, record).lane(), KeyBag()).add(key)
        self._bags[kind.entity] = lanes

    def _decode(self, kind: type[R], record: bytes) -> R:
        decoded = self._decoders[kind].decode(record)
        assert isinstance(decoded, kind)
        return decoded

    def _number(self, sql: str, values: Sequence[str | int] = ()) -> int:
        return int(self._db.execute(sql, values).fetchone()[0])


def _columns(record: Record) -> tuple[str, str, int, bytes, bytes]:
    clean = msgspec.json.encode(record.truth())
    return record.entity, record.key(), record.version(), msgspec.json.encode(record), clean


def _where(kind: type[Record], since: int | None, like: str) -> tuple[str, list[str | int]]:
    where = "entity = ?"
    values: list[str | int] = [kind.entity]
    if since is not None:
        where += " AND version >= ?"
        values.append(since)
    if like != "%":
        where += " AND key LIKE ? ESCAPE '\\'"
        values.append(like)
    return where, values
