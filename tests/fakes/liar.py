"""A back office that does everything legacy systems do to pollers, behind the real HTTP adapter and on virtual time.

`Liar` holds the rows and lies as its `faults` say; `LiarSession` is what the adapter takes for an aiohttp session. Its
answers are bytes, so that parsing, dates, statuses, time-outs and retries are production code. Dice are seeded.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from enum import StrEnum
from typing import Any, NamedTuple, Self
from zoneinfo import ZoneInfo

import msgspec
from multidict import CIMultiDict
from yarl import URL

STAMP = "%Y-%m-%d %H:%M:%S"
SIZE = 5
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


class Fault(StrEnum):
    TIES = "ties"
    LATE = "late commits"
    SHIFT = "page shift"
    DELETE = "hard deletes"
    FUTURE = "future stamps"
    SILENT = "update without a new timestamp"
    NULL = "null cursor"
    BROKEN = "503 in the middle"
    TIMEOUT = "time-out after the work was done"
    DUPLICATE = "duplicate pages"
    AHEAD = "clock 5 minutes ahead"
    BEHIND = "clock 5 minutes behind"
    AUTUMN = "the hour that happens twice"
    SPRING = "the hour that never happens"
    EMPTIED = "an emptied table"
    TRUNCATED = "a truncated answer with status 200"
    SCHEMA = "schema drift"
    RECREATED = "a deleted key created again with a lower revision"
    RESTORED = "a table restored from yesterday's backup"
    SET_BACK = "the server's clock set back"


class Row(NamedTuple):
    """`stamp` is the office's wall clock, None in rows that have none; `revision` its counter."""

    content: int
    stamp: datetime | None
    revision: int | None


@dataclass
class Liar:
    """`now` is true time; the office's own clock is `skew` off. `is_lively`: faults of content happen by themselves."""

    rng: random.Random
    faults: frozenset[Fault]
    now: datetime = datetime(2026, 11, 21, 5, 55, tzinfo=UTC)
    zone: ZoneInfo = field(default_factory=lambda: ZoneInfo("UTC"))
    rows: dict[str, Row] = field(default_factory=dict)
    pending: list[tuple[datetime, str, Row]] = field(default_factory=list)
    skew: timedelta = timedelta()
    is_lively: bool = False
    is_honest: bool = False
    emptied_until: datetime = _LONG_AGO
    drifted_until: datetime = _LONG_AGO
    unseen: set[str] = field(default_factory=set)  # keys whose difference no poll for changes can show
    requests: int = 0
    _contents: int = 0
    _keys: int = 0
    _revision: int = 0
    _high: int = 0

    def __post_init__(self) -> None:
        if Fault.AHEAD in self.faults:
            self.skew = timedelta(minutes=5)
        elif Fault.BEHIND in self.faults:
            self.skew = timedelta(minutes=-5)
        if Fault.AUTUMN in self.faults:
            self.now, self.zone = datetime(2026, 10, 24, 23, 58, tzinfo=UTC), ZoneInfo("Europe/Zurich")
        elif Fault.SPRING in self.faults:
            self.now, self.zone = datetime(2026, 3, 29, 0, 58, tzinfo=UTC), ZoneInfo("Europe/Zurich")

    @property
    def clock(self) -> datetime:
        """What the office believes."""
        return self.now + self.skew

    def truth(self) -> dict[str, int]:
        return {key: row.content for key, row in self.rows.items()}

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        for at, key, row in sorted(self.pending, key=lambda each: each[0]):
            if at <= self.now:
                self.rows[key] = row
                self._note_drift(key)
        self.pending = [each for each in self.pending if each[0] > self.now]

    # ---------------------------------------------------------------- life

    def has(self, fault: Fault, share: float = 1.0) -> bool:
        return fault in self.faults and self.rng.random() < share

    def create(self) -> str:
        self._keys += 1
        key = f"K{self._keys:04d}"
        self.write(key)
        return key

    def write(self, key: str) -> None:
        self._contents += 1
        self._revision += 1
        stamp: datetime | None = self.clock.astimezone(self.zone).replace(tzinfo=None, microsecond=0, fold=0)
        revision: int | None = self._revision
        self.unseen.discard(key)
        if stamp is not None and self.has(Fault.FUTURE, 0.1):
            stamp += timedelta(days=400)
        if self.has(Fault.NULL, 0.15):
            stamp = revision = None
            self.unseen.add(key)
        if self._revision <= self._high:
            # After a restore; by time it shows, by revision it cannot before a sweep told that revisions fell.
            self.unseen.add(key)
        self._high = max(self._high, self._revision)
        row = Row(self._contents, stamp, revision)
        if self.has(Fault.LATE, 0.3):
            self.pending.append((self.now + timedelta(seconds=self.rng.uniform(1, 90)), key, row))
        else:
            self.pending = [each for each in self.pending if each[1] != key]
            self.rows[key] = row
            self._note_drift(key)

    def _note_drift(self, key: str) -> None:
        """What changed while nobody could read it does not change again when it can be read."""
        if self.now < self.drifted_until:
            self.unseen.add(key)

    def live(self) -> None:
        """One thing that happens."""
        keys = sorted(self.rows)
        dice = self.rng.random()
        key = self.rng.choice(keys) if keys else ""
        if dice < 0.35 or len(keys) < 10:
            self.create()
        elif dice < 0.7:
            self.write(key)
        else:
            self._misbehave(key, dice)

    def _misbehave(self, key: str, dice: float) -> None:
        deeds: list[tuple[float, Fault, Callable[[str], None]]] = [
            (0.8, Fault.DELETE, self._delete),
            (0.87, Fault.SILENT, self._edit),
            (0.93, Fault.RECREATED, self._recreate),
            (0.95, Fault.TIES, self._load_in_bulk),
        ]
        for share, fault, deed in deeds:
            if dice < share and fault in self.faults:
                deed(key)
                return
        if dice < 0.96:
            self._mishap()

    def _load_in_bulk(self, _: str) -> None:
        for _number in range(3 * SIZE if len(self.rows) < 150 else 1):
            self.create()

    def _delete(self, key: str) -> None:
        del self.rows[key]
        self.pending = [each for each in self.pending if each[1] != key]
        self.unseen.add(key)

    def _edit(self, key: str) -> None:
        self._contents += 1
        self.rows[key] = self.rows[key]._replace(content=self._contents)
        self.unseen.add(key)

    def _recreate(self, key: str) -> None:
        """Its revision begins anew; what orders changes by time sees it, what orders them by revision cannot."""
        self._delete(key)
        self.write(key)
        self.rows[key] = self.rows.get(key, Row(self._contents, None, None))._replace(revision=1)
        self.unseen.add(key)

    def _mishap(self) -> None:
        if self.has(Fault.EMPTIED, 0.5):
            self.emptied_until = self.now + timedelta(seconds=self.rng.uniform(5, 60))
        if self.has(Fault.SCHEMA, 0.5):
            self.drifted_until = self.now + timedelta(seconds=self.rng.uniform(5, 60))
        if self.has(Fault.SET_BACK, 0.5):
            self.skew -= timedelta(seconds=self.rng.choice((3, 60, 600)))
        if self.has(Fault.RESTORED, 0.5):
            # Yesterday's rows: some are older, some are gone, and the counter is what it was.
            self.pending.clear()
            for key in self.rng.sample(sorted(self.rows), len(self.rows) // 4):
                row = self.rows[key]
                if self.rng.random() < 0.3:
                    self._delete(key)
                elif row.stamp is not None and row.revision is not None:
                    self._edit(key)
                    older = row._replace(stamp=row.stamp - timedelta(days=1), revision=max(1, row.revision - 7))
                    self.rows[key] = older._replace(content=self.rows[key].content)
            self._revision = max((row.revision or 0 for row in self.rows.values()), default=0)
            self.unseen |= self.rows.keys()

    # ---------------------------------------------------------------- answers

    def listed(self, query: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """The rows that a request asks for, in the order and the page that it asks for."""
        rows = {} if self.now < self.emptied_until else self.rows
        chosen: list[tuple[str, Row]] = sorted(rows.items())
        if "key" in query:
            chosen = [(key, rows[key]) for key in query["key"] if key in rows]
        elif "since" in query:
            bound = datetime.strptime(query["since"][0], STAMP)
            after = query.get("after_key", [None])[0]
            timed = [(row.stamp, key, row) for key, row in chosen if row.stamp is not None]
            chosen = [(key, row) for stamp, key, row in sorted(timed)
                      if (stamp >= bound if after is None else (stamp, key) > (bound, after))]  # fmt: skip
        elif "rev" in query:
            at = int(query["rev"][0])
            chosen = sorted(
                ((key, row) for key, row in chosen if row.revision is not None and row.revision > at),
                key=lambda each: (each[1].revision or 0, each[0]),
            )
        elif "from" in query:
            chosen = [(key, row) for key, row in chosen if key > query["from"][0]]
        total = len(chosen)
        start = (int(query["page"][0]) - 1) * SIZE if "page" in query else int(query.get("offset", ["0"])[0])
        shown = chosen[start : start + SIZE]
        return {"rows": [self._raw(*each) for each in shown], "pages": -(-total // SIZE), "total": total}

    def _raw(self, key: str, row: Row) -> dict[str, Any]:
        content = "inhalt" if self.now < self.drifted_until else "content"
        stamp = None if row.stamp is None else row.stamp.strftime(STAMP)
        return {"key": key, content: row.content, "stamp": stamp, "rev": row.revision}


class LiarSession:
    """`get` as aiohttp's; each request takes a moment, in which life may go on."""

    def __init__(self, liar: Liar) -> None:
        self._liar = liar
        self._last = b""

    def get(self, url: str, *, params: Sequence[tuple[str, str]], **_: Any) -> _Answer:
        return _Answer(self._liar, self, URL(url).with_query(params))


class _Answer:
    def __init__(self, liar: Liar, session: LiarSession, url: URL) -> None:
        self.url = url
        self.charset = "utf-8"
        self.status = 200
        self.headers: CIMultiDict[str] = CIMultiDict()
        self.content = self
        self._liar = liar
        self._session = session
        self._body = b""

    async def __aenter__(self) -> Self:
        liar = self._liar
        liar.requests += 1
        liar.pass_time(liar.rng.choice((0.01, 0.05, 0.4)))
        if liar.is_lively and liar.has(Fault.SHIFT, 0.5):
            liar.live()
        is_lying = not liar.is_honest
        if is_lying and liar.has(Fault.TIMEOUT, 0.08):
            liar.pass_time(10)
            raise TimeoutError
        self.headers["Date"] = format_datetime(liar.clock.replace(microsecond=0), usegmt=True)
        if is_lying and liar.has(Fault.BROKEN, 0.15):
            self.status = 503
            return self
        names = dict.fromkeys(self.url.query)
        document = liar.listed({name: self.url.query.getall(name) for name in names})
        is_list = "key" not in names
        if is_lying and is_list and document["rows"] and liar.has(Fault.TRUNCATED, 0.08):
            document["rows"] = document["rows"][:-1]
        self._body = msgspec.json.encode(document)
        if is_lying and liar.has(Fault.TRUNCATED, 0.08):
            self._body = self._body[: len(self._body) // 2]
        if is_lying and self._session._last and liar.has(Fault.DUPLICATE, 0.12):
            self._body = self._session._last
        self._session._last = self._body
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def iter_chunked(self, _: int) -> AsyncIterator[bytes]:
        yield self._body
