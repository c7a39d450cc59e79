"""Where the next request continues.  (pure)

**By time.** Rows come ordered by (time, key) from an inclusive bound on. A row that changes moves to the end, so
pages 2, 3, … shift under a reader and rows slip through. Therefore the walk asks for page 1 again and again, each
time with the bound moved to the last row's time. The bound never passes `floor(asked - safety)`: the last seconds
are read again at every poll, which heals late commits and ties; the index drops what is known. Rows dated in the
future cannot move it either. Two cases cannot move the bound, and only they use pages 2, 3, …:

* *tail*: more than a page within the last seconds. Whatever slips is seen by the next poll, whose bound is the same.
* *tie*: more rows than a page share the bound's time (a bulk load). The group is walked in rounds until two rounds
  saw the same keys in the same order: a row can only be missed when another one left the group during the round,
  and then the rounds differ. After ROUNDS of them the walk goes on and says `doubt`: a sweep decides.

A poll's `as_of` is the time the last request was *sent* minus the safety, since everything before that request's
bound was settled when an earlier request was sent; in a tail it is the bound.

**By revision.** The bound is exclusive and unique, nothing shifts. Revisions may be committed out of order within
the safety time, so the bound follows the tip only after that; the first load ends with a sweep instead.

**Full walks** are by key. Inserts make rows appear twice, which is harmless; deletions make rows slip, which the
falling total tells: such a walk proves no `as_of`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from msgspec.structs import replace

from poller.source import FullWalk, PageRef, Position, SinceRevision, SinceTime
from poller.times import floor, instant

ROUNDS = 4
_TICK = timedelta(seconds=1)


class Answer(NamedTuple):
    """What a walk needs to know of an answer.

    keys, times, revisions  of the rows, in their order; None where a row has none that can be read
    next_page  how the answer names the page after it; None at the end
    total      how many rows there are, if it says so
    asked_at   when the request was sent, or earlier, in the back office's time, aware
    served_at  when it was answered, in whole seconds, cut off
    """

    keys: Sequence[str | None]
    next_page: PageRef
    total: int | None
    asked_at: datetime
    served_at: datetime
    times: Sequence[datetime | None] = ()
    revisions: Sequence[int | None] = ()


class Step(NamedTuple):
    following: Position
    has_more: bool
    as_of: datetime | None = None
    doubt: bool = False


def after_full(at: FullWalk, answer: Answer, safety_s: float) -> Step:
    """The step after one page of a full walk."""
    asked_at = at.asked_at or answer.asked_at
    shrank = at.shrank or (at.total is not None and answer.total is not None and answer.total < at.total)
    if answer.next_page is not None:
        going_on = FullWalk(page=answer.next_page, asked_at=asked_at, total=answer.total, shrank=shrank)
        return Step(going_on, has_more=True)
    as_of = None if shrank else asked_at - timedelta(seconds=safety_s)
    return Step(FullWalk(), has_more=False, as_of=as_of)


def after_time(at: SinceTime, answer: Answer, safety_s: float, zone: ZoneInfo) -> Step:
    """The step after one page of changes by time."""
    settled = answer.asked_at - timedelta(seconds=safety_s)
    cap = floor(settled, zone)
    last = max((time for time in answer.times if time is not None), default=at.bound)
    ahead = min(max(last, at.bound), cap)
    if at.round == 0 and not at.tail:
        if answer.next_page is None:
            return Step(SinceTime(bound=max(at.bound, ahead)), has_more=False, as_of=settled)
        if ahead > at.bound:
            return Step(SinceTime(bound=ahead), has_more=True)
    if at.tail or cap <= at.bound:
        return _after_tail(at, answer, min(settled, instant(at.bound, zone)))
    return _after_tie(replace(at, round=max(at.round, 1)), answer, last, cap)


def _after_tail(at: SinceTime, answer: Answer, as_of: datetime) -> Step:
    if answer.next_page is not None:
        return Step(SinceTime(bound=at.bound, page=answer.next_page, tail=True), has_more=True)
    return Step(SinceTime(bound=at.bound), has_more=False, as_of=as_of)


def _after_tie(at: SinceTime, answer: Answer, last: datetime, cap: datetime) -> Step:
    tied = [key or "" for key, time in zip(answer.keys, answer.times, strict=True) if time is None or time <= at.bound]
    digest = hashlib.blake2b("\n".join([at.digest, *tied]).encode(), digest_size=12).hexdigest()
    if answer.next_page is not None and last <= at.bound:
        return Step(replace(at, page=answer.next_page, digest=digest), has_more=True)
    is_stable = at.round > 1 and digest == at.previous
    if not is_stable and at.round < ROUNDS:
        again = SinceTime(bound=at.bound, round=at.round + 1, previous=digest)
        return Step(again, has_more=True)
    # At the tip with nothing but ties the whole second is over, or the cap would not have passed it.
    beyond = min(last, cap) if last > at.bound else min(at.bound + _TICK, cap)
    return Step(SinceTime(bound=beyond), has_more=True, doubt=not is_stable)


def after_revision(at: SinceRevision, answer: Answer, safety_s: float) -> Step:
    """The step after one page of changes by revision."""
    asked_at = at.asked_at or answer.asked_at
    last = max((revision for revision in answer.revisions if revision is not None), default=at.at)
    if answer.next_page is not None and last > at.at:
        return Step(replace(at, at=last, asked_at=asked_at), has_more=True)
    high = max(at.at, last)
    as_of = asked_at - timedelta(seconds=safety_s)
    # More pages, but none of these rows has a higher revision: nothing can be said about the rest.
    is_stuck = answer.next_page is not None
    bound, pending, pending_at = at.bound, at.high, at.high_at
    if not at.loaded:
        bound = high
    if pending_at is not None and as_of >= pending_at:
        bound, pending, pending_at = max(bound, pending), 0, None
    if pending_at is None and high > bound:
        # Whatever has a lower revision was given it before this answer.
        pending, pending_at = high, answer.served_at + _TICK
    tip = SinceRevision(bound=bound, at=bound, high=pending, high_at=pending_at, loaded=True)
    return Step(tip, has_more=False, as_of=None if is_stuck else as_of, doubt=is_stuck)
