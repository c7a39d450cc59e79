"""A sweep: a walk over every key, which finds deletions and whatever polling for changes cannot see.

One `step` is one request's worth, so that polls for changes wait no longer than that. The phases:

    walk      every page; rows that are new or changed are published
    confirm   keys that the walk should have shown and did not: asked for by name, since a row can slip a walk
    bury      tombstones for those that are gone

A deletion is believed when a keyed re-read does not show the key *and* shows another one that the walk just saw
(the canary; where a request takes one key, it is asked for right after it), or the file that is the whole truth lacks
it, or, for want of both, when a second walk lacks it too. A walk that showed no key at all deletes nothing, and more
deletions than the limit stop the burying, not the polling, until a person confirms. A tombstone that is unsure was
proven before; it is published again whatever else is in doubt.

How far the walk has come is remembered now and then, with who was shown (`Standing`): whoever takes the source next goes
on from there. Rows are known there by their numbers in a snapshot of the index, so the two are written together, and only
together are they worth anything. What was walked before is as of the walk's beginning, which is why that time is kept.
"""

from __future__ import annotations

import zlib
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum, auto
from itertools import islice

import msgspec

from poller.ahead import Ahead
from poller.changes import Changes, Sight
from poller.index import Roll
from poller.snapshot import NAMELESS, State, deletion_limit
from poller.source import FullWalk, Page, SinceRevision
from poller.term import Term
from tidegate import telemetry
from tidegate.event import Cause, Operation

_SLICE = 2_000
"""Rows judged and committed at once: a page of a million rows must not block the event loop."""
_CANARIES = 10


class _Phase(Enum):
    WALK = auto()
    CONFIRM = auto()
    BURY = auto()
    DONE = auto()


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How far a walk has come, over the snapshot of that name, whose `known` rows are `called` (packed) or not."""

    snapshot: str
    position: FullWalk
    called: bytes
    known: int
    rows: int
    named: int
    suspects: tuple[str, ...]
    newest: int | None
    began_at: int | None


def stood(kept: bytes, term: Term) -> Standing | None:
    """What was remembered, if it is of the snapshot that the term began with."""
    try:
        standing = msgspec.msgpack.decode(kept, type=Standing)
    except msgspec.MsgspecError:
        # Nothing, or of another release: the walk begins anew.
        return None
    return standing if standing.snapshot == term.cursor.snapshot and standing.known <= term.index.rows else None


class Sweep:
    """`suspects` are the keys that the walk before this one lacked, for sources without a keyed re-read.

    After the last step: `as_of` as in `Page`, `missing` the next sweep's suspects, `is_held` whether deletions were
    stopped, `is_ignored` whether a re-read proved nothing, `is_idle` whether there was nothing new to walk, `drift` what
    it found by kind, `newest` the highest revision, and `began_at` where polling by revision was when it began.
    """

    def __init__(
        self, term: Term, cause: Cause, suspects: frozenset[str] = frozenset(), *, allowed: bool = False
    ) -> None:
        self.cause = cause
        self.roll = Roll(term.index)
        self.as_of: datetime | None = None
        self.missing: frozenset[str] = frozenset()
        self.mark = term.progress.mark
        self.is_held = False
        self.is_ignored = False
        self.is_idle = False
        self.rows = 0
        self.deleted = 0
        self.published = 0
        self.nominated_count = 0
        self.drift: Counter[str] = Counter()
        self.newest: int | None = None
        live = term.progress.live
        self.began_at = live.bound if isinstance(live, SinceRevision) else None
        self._term = term
        self._ahead = Ahead(term)
        self._is_paced = term.reading.source.sweep_requests_per_s is not None
        self._suspects = suspects
        self._allowed = allowed
        self._phase = _Phase.WALK
        self._position = FullWalk()
        self._first_read: int | None = None
        self._nominated: deque[str] = deque()
        self._gone: dict[str, Sight] = {}
        self._named = 0
        self._canaries: deque[str] = deque(maxlen=_CANARIES)
        self._limit = 0
        self._log = telemetry.get_logger("poller.sweep")

    def standing(self) -> Standing | None:
        """What is worth remembering, right after the index was written; None outside of a walk.

        A file in hand is this process's own, and whoever comes next reads it from its beginning.
        """
        term = self._term
        if self._phase is not _Phase.WALK or not self.rows or term.index.has_dropped or term.source.absence_decides:
            return None
        called = zlib.compress(self.roll.first(term.index.rows), 1)
        return Standing(
            snapshot=term.cursor.snapshot, position=self._position, called=called, known=term.index.rows,
            rows=self.rows, named=self._named, suspects=tuple(self._suspects), newest=self.newest,
            began_at=self.began_at,
        )  # fmt: skip

    def resume(self, standing: Standing) -> None:
        """Go on where another one stood. Rows that the snapshot lacks came later, and were shown to get here."""
        rows = self._term.index.rows
        later = bytes([1]) * max(0, rows - standing.known)
        self.roll = Roll(self._term.index, zlib.decompress(standing.called) + later)
        self._position = standing.position
        self.rows, self._named = standing.rows, standing.named
        self.newest, self.began_at = standing.newest, standing.began_at
        self._suspects = frozenset(standing.suspects)
        # Earlier than any request of this term.
        self._first_read = 0

    async def step(self) -> bool:
        """One request's worth of work; True when the sweep is complete. Raises as `Source.fetch` and `Term.commit`."""
        match self._phase:
            case _Phase.WALK:
                await self._walk()
            case _Phase.CONFIRM:
                await self._confirm()
            case _Phase.BURY:
                await self._bury()
            case _Phase.DONE:
                pass
        return self._phase is _Phase.DONE

    async def _walk(self) -> None:
        term = self._term
        read, page = await self._ahead.fetch(self._position, term.progress.mark)
        self._first_read = read if self._first_read is None else self._first_read
        if page.unchanged:
            self.is_idle = True
            self._phase = _Phase.DONE
            return
        sight = term.sight(read, page, self.cause)
        async with self._ahead.asking(page.following if page.has_more and not self._is_paced else None):
            await self._take(page, sight)

    async def _take(self, page: Page, sight: Sight) -> None:
        term = self._term
        for at in range(0, len(page.rows), _SLICE):
            changes = await term.settle(page.rows[at : at + _SLICE], sight)
            await self._commit(changes)
            self.roll.call(changes.seen)
            named = [name for name in changes.seen if not name.startswith(NAMELESS)]
            self._named += len(named)
            self._canaries.extend(islice((key for key in named if term.index.is_living(key)), 2))
        self.rows += len(page.rows)
        self.newest = max((each for each in (self.newest, page.newest) if each is not None), default=None)
        # `following` is durable nowhere: a sweep that is cut off begins anew.
        self._position = page.following if isinstance(page.following, FullWalk) else FullWalk()
        if not page.has_more:
            self.as_of, self.mark = page.as_of, page.mark
            self._nominate(sight)

    def _nominate(self, last: Sight) -> None:
        term = self._term
        if not self._named and not self._allowed and term.index.live_count():
            # An empty walk proves that something is wrong, not that all is gone.
            self._gone = {key: last for key in self.roll.missing() if not term.index.is_living(key)}
            self.nominated_count = term.index.live_count()
            self._hold(self.nominated_count)
            return
        missing = list(self.roll.missing())
        term.index.drop([key for key in missing if key.startswith(NAMELESS)])
        missing = [key for key in missing if not key.startswith(NAMELESS)]
        living = [key for key in missing if term.index.is_living(key)]
        self._gone = {key: last for key in missing if not term.index.is_living(key)}
        self.nominated_count = len(living)
        self._limit = deletion_limit(
            term.index.live_count(), term.settings.mass_deletion_rows, term.settings.mass_deletion_percent
        )
        if living and term.source.reread_size > 0:
            self._nominated.extend(living)
            self._phase = _Phase.CONFIRM
        elif term.source.absence_decides:
            self._gone |= dict.fromkeys(living, last)
            self._judge_mass()
        elif self.as_of is None:
            # Rows moved while it walked: what it lacks it may have missed.
            self.missing = self._suspects
            self._judge_mass()
        else:
            first = last._replace(read=last.read if self._first_read is None else self._first_read)
            self._gone |= {key: first for key in living if key in self._suspects}
            self.missing = frozenset(living) - self._gone.keys()
            self._judge_mass()

    async def _confirm(self) -> None:
        """One batch of keys by name, with one among them that must come back."""
        term = self._term
        canary = self._canaries[0] if self._canaries else None
        if canary is None and not (self._allowed and not self._named):
            # When the walk was empty, there is a person's word in its place.
            self._ignore("no key that the walk just showed is left to ask for")
            return
        size = term.source.reread_size
        batch = list(islice(self._nominated, size - 1 if canary is not None and size > 1 else size))
        changes = term.changes()
        answer = await self._ask(batch, canary, changes)
        if answer is None:
            self.is_ignored = True
            self._spare()
            return
        sight, found = answer
        if canary is not None and canary not in found:
            await self._commit(changes)
            self._canaries.popleft()
            if not self._canaries:
                self._ignore("it lacks keys that the walk just showed")
            return
        absent = {key: sight for key in batch if key not in found}
        if self.nominated_count <= self._limit or self._allowed:
            self._bury_in(changes, absent)
        else:
            self._gone |= absent
        await self._commit(changes)
        for _ in batch:
            self._nominated.popleft()
        if not self._nominated:
            self._judge_mass()

    async def _ask(self, batch: Sequence[str], canary: str | None, changes: Changes) -> tuple[Sight, set[str]] | None:
        """As `Term.reread`, the canary included: in a second request where one takes a single key."""
        term = self._term
        if canary is None:
            return await term.reread(batch, self.cause, changes)
        if term.source.reread_size > 1:
            return await term.reread([*batch, canary], self.cause, changes)
        answer = await term.reread(batch, self.cause, changes)
        proof = None if answer is None else await term.reread([canary], self.cause, changes)
        return None if answer is None or proof is None else (answer[0], answer[1] | proof[1])

    def _judge_mass(self) -> None:
        dying = [key for key in self._gone if self._term.index.is_living(key)]
        if len(dying) > self._limit and not self._allowed:
            if not self._term.source.reread_size:
                # They stay suspects, or every other walk would find nothing to hold.
                self.missing |= frozenset(dying)
            self._hold(len(dying))
            return
        self._phase = _Phase.BURY if self._gone else _Phase.DONE

    def _hold(self, gone: int) -> None:
        self.is_held = True
        self._log.error(telemetry.POLLER_DELETIONS_STOPPED, source=self._term.name, gone=gone, limit=self._limit)
        self._spare()

    def _ignore(self, reason: str) -> None:
        self.is_ignored = True
        self._log.error(telemetry.POLLER_REREAD_IGNORED, source=self._term.name, reason=reason)
        self._spare()

    def _spare(self) -> None:
        """Bury no living row in this sweep."""
        self._gone = {key: sight for key, sight in self._gone.items() if not self._term.index.is_living(key)}
        self._phase = _Phase.BURY if self._gone else _Phase.DONE

    async def _bury(self) -> None:
        changes = self._term.changes()
        batch: Sequence[str] = list(self._gone)[: self._term.settings.tombstones]
        self._bury_in(changes, {key: self._gone[key] for key in batch})
        await self._commit(changes)
        for key in batch:
            del self._gone[key]
        if not self._gone:
            self._phase = _Phase.DONE

    def _bury_in(self, changes: Changes, absent: Mapping[str, Sight]) -> None:
        for key, sight in absent.items():
            changes.bury(key, sight)

    async def _commit(self, changes: Changes) -> None:
        found = self._drift(changes) if self.cause is Cause.SWEEP else {}
        await self._term.commit(changes, self._term.progress)
        self.deleted += changes.counts[Operation.DELETE]
        self.published += len(changes.records)
        for kind, count in found.items():
            self.drift[kind] += count
            telemetry.POLLER_DRIFT.labels(self._term.name, kind).inc(count)

    def _drift(self, changes: Changes) -> Counter[str]:
        """What polls for changes have not shown, by what it is. Rows that are only unsure are none of it."""
        index, kinds = self._term.index, Counter[str]()
        for key, entry in changes.entries.items():
            before = index.get(key)
            if before is not None and before.unsure:
                continue
            if entry.state is State.GONE:
                kinds["deleted"] += 1
            elif before is None or before.state is State.GONE:
                kinds["missed"] += 1
            elif before.fingerprint != entry.fingerprint:
                kinds["changed"] += 1
        return kinds
