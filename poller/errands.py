"""What a person may ask of a source beside live polling, a request's worth at a time.

    backfill     the back office is asked once more for what changed in a time
    resync       it is asked for some keys, and what it says is published whatever is known
    retranslate  the archive is read, and rows whose translation is older are published by the one of now

All three publish by the index, as polling does: what is known is not published twice, unless that was asked for. None of
them moves the cursor of live polling. `step` answers the signal as it stands then; it is over when its standing says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import Protocol
from zoneinfo import ZoneInfo

import msgspec
from msgspec.structs import replace

from poller.archive import Archive
from poller.changes import Sight
from poller.snapshot import fingerprint
from poller.source import Live, Position, SinceKeyset, SinceRevision, SinceTime
from poller.term import Term
from poller.translate import raw_key
from tidegate.errors import Rejected
from tidegate.event import Cause
from tidegate.feeds import ByKeyset, ByRevision, ByTime, RawRow, Rest
from tidegate.signals import Signal, Standing, Verb

_ROWS_AT_ONCE = 500
_KEYS_AT_ONCE = 50


class Errand(Protocol):
    async def step(self) -> Signal:
        """Do one request's worth. Raises Transient: the same again later; Superseded, Fatal."""
        ...


def errand(term: Term, signal: Signal, archive: Archive | None) -> Errand:
    """Raises Rejected when this source cannot do it, with a text for the person who asked."""
    match signal.verb:
        case Verb.BACKFILL:
            return _Backfill(term, signal)
        case Verb.RESYNC:
            return _Resync(term, signal)
        case Verb.RETRANSLATE:
            if archive is None:
                raise Rejected("not_possible", "no raw rows are archived; set TIDEGATE_ARCHIVE_BUCKET for the pollers")
            return _Retranslate(term, signal, archive)
        case Verb.SWEEP:
            raise ValueError("a sweep is the loop's own work")


def over(signal: Signal, note: str = "") -> Signal:
    return replace(signal, standing=Standing.DONE, place="", note=note)


def _doubt(term: Term, rows: Sequence[RawRow], done: set[str]) -> None:
    """Let the rows be published whatever is known of them, under the version that they have; once, as `done` says."""
    keys = {raw_key(row, term.reading.key_path) for row in rows} - done
    entries = {key: term.index.get(key) for key in keys if key is not None}
    done.update(entries)
    term.index.apply({key: replace(entry, unsure=True) for key, entry in entries.items() if entry is not None})


# ---------------------------------------------------------------- backfill

_position = msgspec.json.Decoder(Live)


class _Backfill:
    def __init__(self, term: Term, signal: Signal) -> None:
        self._term = term
        self._signal = replace(signal, standing=Standing.RUNNING)
        self._done: set[str] = set()
        self._rule = _rule(term)
        self._until = None if signal.until is None else _bound(self._rule, signal.until, "--until")
        self._at: Position = _position.decode(signal.place) if signal.place else self._start(signal)

    def _start(self, signal: Signal) -> Live:
        if signal.since is None:
            raise Rejected("not_possible", "a backfill needs --since")
        bound = _bound(self._rule, signal.since, "--since")
        if isinstance(bound, int):
            return SinceRevision(bound=bound, at=bound)
        return SinceKeyset(bound=bound) if isinstance(self._rule, ByKeyset) else SinceTime(bound=bound)

    async def step(self) -> Signal:
        term, signal = self._term, self._signal
        read, page = await term.fetch(self._at, urgent=False)
        if signal.again:
            _doubt(term, page.rows, self._done)
        changes = await term.settle(page.rows, term.sight(read, page, Cause.BACKFILL))
        await term.commit(changes, term.progress)
        self._at = page.following
        place = msgspec.json.encode(self._at).decode()
        self._signal = signal = replace(
            signal, place=place, rows=signal.rows + len(page.rows), published=signal.published + len(changes.records)
        )
        return over(signal) if not page.has_more or self._is_beyond() else signal

    def _is_beyond(self) -> bool:
        match self._at, self._until:
            case SinceRevision(at=at), int() as until:
                return at > until
            case SinceTime(bound=bound), datetime() as until:
                return bound > until
            case SinceKeyset(bound=bound, at=at), datetime() as until:
                return (at or bound) > until
        return False


def _rule(term: Term) -> ByTime | ByKeyset | ByRevision:
    feed = term.reading.source.feed
    rule = feed.changes if isinstance(feed, Rest) else None
    if isinstance(rule, ByTime | ByKeyset | ByRevision):
        return rule
    raise Rejected(
        "not_possible",
        "this source cannot be asked for what changed in a time; `tidegate sources sweep` compares every row",
    )


def _bound(rule: ByTime | ByKeyset | ByRevision, text: str, name: str) -> int | datetime:
    """The bound in the back office's own terms: a revision, or its wall clock time without zone."""
    if isinstance(rule, ByRevision):
        if not (text.isascii() and text.isdigit()):
            raise Rejected(
                "not_possible", f"{name} is {text!r}, but this source counts in revisions: give a whole number"
            )
        return int(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise Rejected("not_possible", f"{name} is {text!r}; give a time, such as 2026-11-21T06:00:00+01:00") from None
    return at if at.tzinfo is None else at.astimezone(ZoneInfo(rule.zone)).replace(tzinfo=None)


# ---------------------------------------------------------------- resync


class _Resync:
    """One key beside those that were asked for must come back, or the answer proves nothing about the absent."""

    def __init__(self, term: Term, signal: Signal) -> None:
        if term.source.reread_size == 0:
            raise Rejected(
                "not_possible", "this source cannot be asked by key; `tidegate sources sweep` compares every row"
            )
        self._term = term
        self._signal = replace(signal, standing=Standing.RUNNING)
        self._left = list(signal.keys[int(signal.place or 0) :])

    async def step(self) -> Signal:
        term, signal = self._term, self._signal
        size = max(1, min(term.source.reread_size - 1, _KEYS_AT_ONCE))
        keys, canary = self._left[:size], self._canary()
        changes = term.changes()
        known = {key: term.index.get(key) for key in keys}
        term.index.apply({key: replace(entry, unsure=True) for key, entry in known.items() if entry is not None})
        together = canary is not None and term.source.reread_size > 1
        answer = await term.reread([*keys, canary] if together and canary else keys, Cause.SWEEP, changes)
        if answer is None:
            return replace(signal, standing=Standing.FAILED, note="the answer shows keys that nobody asked for")
        sight, found = answer
        proves = canary is not None and canary in found
        if canary is not None and not together and not set(keys) <= found:
            proof = await term.reread([canary], Cause.SWEEP, changes)
            proves = proof is not None and canary in proof[1]
        absent = [key for key in keys if key not in found]
        if proves:
            for key in absent:
                changes.bury(key, sight)
        await term.commit(changes, term.progress)
        self._left = self._left[size:]
        note = signal.note
        if absent and not proves:
            note = f"not shown, and not deleted, since no other key was shown either: {', '.join(absent)[:500]}"
        done = len(signal.keys) - len(self._left)
        self._signal = replace(
            signal, place=str(done), rows=done, published=signal.published + len(changes.records), note=note
        )
        return over(self._signal, note) if not self._left else self._signal

    def _canary(self) -> str | None:
        asked = set(self._signal.keys)
        index = self._term.index
        return next((key for key in index.entries() if key not in asked and index.is_living(key)), None)


# ---------------------------------------------------------------- retranslate


class _Retranslate:
    """The archive object by object; of each row only what the index still knows as the newest is looked at."""

    def __init__(self, term: Term, signal: Signal, archive: Archive) -> None:
        self._term = term
        self._signal = replace(signal, standing=Standing.RUNNING)
        self._archive = archive
        self._since = None if signal.since is None else _day(signal.since)
        self._names: list[str] | None = None

    async def step(self) -> Signal:
        term, signal = self._term, self._signal
        if self._names is None:
            names = await self._archive.names(term.name, self._since)
            self._names = [name for name in names if name > signal.place]
        if not self._names:
            return over(signal, self._rest())
        name = self._names[0]
        rows = await self._archive.read(name)
        # It shows no newer state than its index entry does, so the request number is the one that follows.
        read, at = term.local_read()
        sight = Sight(term.cursor.epoch, read, Cause.RETRANSLATE, at, keyed=True)
        published = 0
        current = [row for row in rows if self._is_current(row)]
        for start in range(0, len(current), _ROWS_AT_ONCE):
            changes = term.changes()
            changes.see(current[start : start + _ROWS_AT_ONCE], sight)
            await term.commit(changes, term.progress)
            published += len(changes.records)
        del self._names[0]
        self._signal = replace(signal, place=name, rows=signal.rows + len(rows), published=signal.published + published)
        return self._signal

    def _is_current(self, row: RawRow) -> bool:
        key = raw_key(row, self._term.reading.key_path)
        entry = None if key is None else self._term.index.get(key)
        if entry is None or entry.translation >= self._term.reading.source.translation:
            return False
        return entry.fingerprint == fingerprint(row)

    def _rest(self) -> str:
        behind = self._term.index.behind(self._term.reading.source.translation)
        if not behind:
            return ""
        return f"{behind} rows of an older translation are not in the archive; a sweep translates them anew"


def _day(text: str) -> date:
    try:
        return datetime.fromisoformat(text).date()
    except ValueError:
        raise Rejected("not_possible", f"--since is {text!r}; give a day, such as 2026-11-21") from None
