"""What the projection should be, in plain values: a back office that tells versions, and a table that takes them.

The model handles one key after the other and no statement, savepoint or round: it says what the rules come to. Of the
versions of a key in one batch the newest that the database takes is written. The older ones are written before it
where a destination wants one of the key's changes, and are passed over (coalesced) where none does.

With strict order a change waits while an open letter of its key is older, and follows when none is any more.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from tests.integration.worker_rows import NOW, gadget
from tidegate import codec
from tidegate.event import Cause, ChangeEvent, EntityKey, Operation, Version
from worker.ports import WriteResult
from worker.routes import Routes

TOO_MANY = 1_000
"""What a CHECK of the table refuses: so many pieces."""


class Fault(Enum):
    """What is wrong with a record, and where that is found out."""

    UNDECODABLE = "decode"  # no event at all
    MISMATCH = "decode, of the entity"  # an event, but no such entity
    NUL = "write, by the server's parser"
    RANGE = "write, by the driver"
    CHECK = "write, by a constraint"

    @property
    def is_decoded(self) -> bool:
        return self not in (Fault.UNDECODABLE, Fault.MISMATCH)


class Put(NamedTuple):
    """A record on the stream. `event` is None when it is none at all."""

    data: bytes
    event: ChangeEvent | None
    fault: Fault | None = None
    pieces: int | None = None


@dataclass
class Office:
    """One row of the back office, as its poller sees it: how the versions of a key come about."""

    key: str
    generation: int = 0
    revision: int = 10
    pieces: int | None = None
    is_known: bool = False
    last: Version | None = None


@dataclass
class Poller:
    """Numbers its reads, and starts a new epoch when it starts anew."""

    epoch: int = 1
    translation: int = 1
    reads: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def change(self, office: Office, *, cause: Cause = Cause.LIVE, epoch: int | None = None) -> Put:
        """What a new read of the row tells."""
        epoch = self.epoch if epoch is None else epoch
        version = Version(office.generation, office.revision, epoch, next(self.reads), self.translation)
        if epoch == self.epoch:
            office.last = version
        return _put(office.key, version, office.pieces, cause)

    def poison(self, office: Office, fault: Fault) -> Put:
        """A new state of the row that nobody can take."""
        office.revision += 1
        if fault is Fault.UNDECODABLE:
            return Put(f"not an event: {office.key} {next(self.reads)}".encode(), None, fault)
        version = Version(office.generation, office.revision, self.epoch, next(self.reads), self.translation)
        return _put(office.key, version, TOO_MANY if fault is Fault.CHECK else 5, Cause.LIVE, fault)

    def translate_again(self, office: Office, pieces: int) -> Put | None:
        """The last answer about the row once more, by a newer translator; None when there was none."""
        if office.last is None or office.pieces is None:
            return None
        office.pieces = pieces
        office.last = office.last._replace(translation=self.translation)
        return _put(office.key, office.last, pieces, Cause.RETRANSLATE)


_BROKEN: dict[Fault, dict[str, object]] = {
    Fault.MISMATCH: {"colour": "a colour that the entity does not know"},
    Fault.NUL: {"name": "a\0b"},
    Fault.RANGE: {"pieces": 2**63},
    Fault.CHECK: {},
}


def _put(key: str, version: Version, pieces: int | None, cause: Cause, fault: Fault | None = None) -> Put:
    operation = Operation.DELETE if pieces is None else Operation.UPSERT
    name = EntityKey("gadget", key)
    payload = None if pieces is None else gadget(key, pieces=pieces)
    if payload is not None and fault is not None:
        payload.update(_BROKEN[fault])
    event = ChangeEvent(
        event_id=codec.event_id(name, version, operation), key=name, version=version, operation=operation,
        cause=cause, source="gadgets", occurred_at=NOW, observed_at=NOW, payload=payload,
    )  # fmt: skip
    return Put(codec.encode(event), event, fault, pieces)


class Row(NamedTuple):
    """What the table holds of a key. Without pieces it is a tombstone."""

    version: Version
    pieces: int | None


@dataclass
class Letter:
    """A dead letter: how often it was met, why it is closed (None: it is open), and whether it only waits."""

    key: str | None
    version: Version | None
    attempts: int = 0
    resolution: str | None = None
    is_parked: bool = False

    @property
    def is_open(self) -> bool:
        return self.resolution is None


@dataclass
class Model:
    """Everything that the database should hold. `position` is that of the stream, 0 before anything is written.

    is_strict   whether the table has its CHECK; without it what was refused is good
    is_ordered  whether the entity asks for strict order per key
    is_replay   whether all that came since the lease was taken was there
    """

    routes: Routes
    is_ordered: bool = False
    rows: dict[str, Row] = field(default_factory=dict)
    letters: dict[str, Letter] = field(default_factory=dict)
    told: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    position: int = 0
    counter: int = 0
    is_strict: bool = True
    is_replay: bool = False
    puts: dict[str, Put] = field(default_factory=dict)

    def _refuses(self, put: Put) -> bool:
        return put.fault is not None and (put.fault is not Fault.CHECK or self.is_strict)

    def looks(self, puts: Sequence[Put]) -> bool:
        """Whether the table is asked first if it has all of a batch."""
        return self.is_replay and all(put.fault is None or put.fault.is_decoded for put in puts)

    def _passes_by(self, puts: Sequence[Put]) -> WriteResult | None:
        """What a batch of a replay comes to whose newest versions the table has, or is past."""
        if not self.looks(puts):
            return None
        newest = {key: max(_event(put).version for put in puts if _event(put).key.key == key) for key in _keys(puts)}
        self.is_replay = not any(letter.is_open and letter.key for letter in self.letters.values()) and all(
            key in self.rows and version <= self.rows[key].version for key, version in newest.items()
        )
        if not self.is_replay:
            return None
        same = sum(version == self.rows[key].version for key, version in newest.items())
        return WriteResult(unchanged=same, stale=len(newest) - same, coalesced=len(puts) - len(newest))

    def write(self, first: int, puts: Sequence[Put]) -> WriteResult:
        """One batch, whose first record stands at `first`; each further one at the next place."""
        if passed := self._passes_by(puts):
            self.position = max(self.position, first + len(puts) - 1)
            return passed
        counts: Counter[str] = Counter()
        touched: list[tuple[str, Version, bool]] = []
        by_key: dict[str, list[Put]] = defaultdict(list)
        for place, put in enumerate(puts, first):
            if put.fault is not None and not put.fault.is_decoded:
                self._file(put, counts, place)
            elif put.event is not None:
                by_key[put.event.key.key].append(put)
        if self.is_ordered:
            self._settle(puts)
        for key, arrived in by_key.items():
            of_key = self._in_order(key, arrived, counts) if self.is_ordered else arrived
            is_whole = self.is_ordered or any(self.routes.of(_event(put)) for put in of_key)
            if newest := self._write_key(key, of_key, counts, is_whole=is_whole):
                touched.append((key, newest, self.rows[key].version > newest))
        for key, newest, is_stale in touched:
            self._resolve(key, newest, is_stale)
        self._settle(puts)
        self.position = max(self.position, first + len(puts) - 1)
        return WriteResult(**counts)

    def _in_order(self, key: str, puts: Sequence[Put], counts: Counter[str]) -> list[Put]:
        """What must not wait; the others are parked."""
        held = [each.version for each in self.letters.values() if each.key == key and each.is_open and each.version]
        passing = [put for put in puts if not held or _event(put).version <= min(held)]
        # They are written one after the other, up to the first that is refused.
        failing = [_event(put).version for put in passing if self._refuses(put)]
        passing = [put for put in passing if not failing or _event(put).version <= min(failing)]
        for put in puts:
            if put not in passing:
                self._file(put, counts, is_parked=True)
        return passing

    def drain(self) -> None:
        """What waits for nothing is tried, by rising version, up to what fails."""
        for key in sorted({letter.key for letter in self.letters.values() if letter.key}):
            newest: Version | None = None
            mine = [(each.version, name) for name, each in self.letters.items() if each.key == key and each.is_open]
            for version, name in sorted(mine):
                letter, put = self.letters[name], self.puts[name]
                if not letter.is_parked:
                    break
                if self._refuses(put):
                    self._file(put, Counter())
                    self._settle([put])
                    break
                self._take(key, put, is_newest=True)
                newest = version
            if newest is not None:
                self._resolve(key, newest, is_stale=self.rows[key].version > newest)

    def _write_key(self, key: str, puts: Sequence[Put], counts: Counter[str], *, is_whole: bool) -> Version | None:
        """The newest version that the database takes, whether the row is newer or not; None when it takes none."""
        known = {_event(put).version: put for put in puts}
        arrived = Counter(_event(put).version for put in puts)
        newest = max((version for version, put in known.items() if not self._refuses(put)), default=None)
        for version, put in sorted(known.items(), key=lambda each: each[0]):
            repeated = arrived[version]
            if newest is None or version > newest:
                # All that is newer than what is taken was tried, one after the other.
                for _ in range(repeated):
                    self._file(put, counts)
                continue
            counts["coalesced"] += repeated - 1
            if version != newest and not is_whole:
                counts["coalesced"] += 1
            elif self._refuses(put):
                self._file(put, counts)
            else:
                counts[self._take(key, put, is_newest=version == newest)] += 1
        return newest

    def _take(self, key: str, put: Put, *, is_newest: bool) -> str:
        event, stored = _event(put), self.rows.get(key)
        if stored is not None and event.version <= stored.version:
            if not is_newest:
                return "coalesced"
            return "unchanged" if event.version == stored.version else "stale"
        self.rows[key] = Row(event.version, put.pieces)
        if stored is not None and stored.pieces == put.pieces:
            return "unchanged"
        for name in self.routes.of(event):
            self.told[name, key].append(event.event_id)
        return "applied"

    def _file(self, put: Put, counts: Counter[str], place: int = 0, *, is_parked: bool = False) -> None:
        counts["parked" if is_parked else "rejected"] += 1
        # What names no event is known by its place in the stream.
        name = f"at {place}" if put.event is None else put.event.event_id
        key, version = (None, None) if put.event is None else (put.event.key.key, put.event.version)
        letter = self.letters.setdefault(name, Letter(key, version))
        letter.attempts += 1
        letter.is_parked = is_parked
        self.puts[name] = put

    def _settle(self, puts: Sequence[Put]) -> None:
        """What the row is past already when it is filed is closed at once."""
        for put in puts:
            letter = self.letters.get(put.event.event_id) if put.event is not None else None
            if letter is not None and letter.key in self.rows and self._refuses(put) and not letter.is_parked:
                self._resolve(letter.key, self.rows[letter.key].version, is_stale=False)

    def _resolve(self, key: str, version: Version, is_stale: bool) -> None:
        for letter in self.letters.values():
            if letter.key == key and letter.resolution is None and letter.version and letter.version <= version:
                letter.resolution = "written" if letter.version == version and not is_stale else "superseded"


def _keys(puts: Sequence[Put]) -> set[str]:
    return {_event(put).key.key for put in puts}


def _event(put: Put) -> ChangeEvent:
    assert put.event is not None
    return put.event
