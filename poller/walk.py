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

A bound that lies ahead of the back office's clock was set before that clock was set back: the walk returns to the
clock and says `doubt`. By how much less than BACK_S a clock may be off is covered by the overlap (`poller.overlap`).

**By time and key.** As by time, but a page is asked for by its predecessor's last row, so that nothing can shift and
ties are nothing special. The next poll starts from there, or from `floor(asked - safety)` if that is earlier.

**By revision.** The bound is exclusive and unique, nothing shifts. Revisions may be committed out of order within
the safety time, so the bound follows the tip only after that; the first load ends with a sweep instead.

**Full walks** are by key. Inserts make rows appear twice, which is harmless; deletions make rows slip, which the
falling total tells: such a walk proves no `as_of`. Where rows are counted, each page begins with the last row of the
one before, and tells that they moved if it does not. A page that repeats the one before is no page.

**By token.** Where it goes on is the back office's secret, and its promise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from msgspec.structs import replace

from poller.source import FullWalk, ParentRow, Position, SinceKeyset, SinceRevision, SinceTime, SinceToken
from poller.times import SECOND, floor, instant
from tidegate.errors import Transient
from tidegate.feeds import PageRef

ROUNDS = 4
BACK_S = 5.0
_UNNOTICED = timedelta(minutes=5)
"""How long a clock may have been set back before a poll notices: changes of that time lie before its new time."""
_TICK = timedelta(seconds=1)


class Answer(NamedTuple):
    """What a walk needs to know of an answer.

    keys, times, revisions  of the rows, in their order; None where a row has none that can be read
    next_page  how the answer names the page after it; None at the end
    total      how many rows there are, if it says so
    asked_at   when the request was sent, or earlier, in the back office's time, aware
    served_at  when it was answered, in whole seconds, cut off
    moved      this page does not begin where the one before ended
    """

    keys: Sequence[str | None]
    next_page: PageRef
    total: int | None
    asked_at: datetime
    served_at: datetime
    times: Sequence[datetime | None] = ()
    revisions: Sequence[int | None] = ()
    moved: bool = False


class Step(NamedTuple):
    following: Position
    has_more: bool
    as_of: datetime | None = None
    doubt: bool = False


def after_full(at: FullWalk, answer: Answer, safety_s: float) -> Step:
    """The step after one page of a full walk. Raises Transient when it is the page before once more."""
    asked_at = at.asked_at or answer.asked_at
    edge = _digest(answer.keys) if answer.keys else ""
    if edge and edge == at.edge:
        raise Transient("its answer repeats the page before")
    shrank = at.shrank or (at.total is not None and answer.total is not None and answer.total < at.total)
    shrank = shrank or answer.moved
    if answer.next_page is not None:
        last = answer.keys[-1] if answer.keys else at.last
        going_on = FullWalk(
            page=answer.next_page, asked_at=asked_at, total=answer.total, shrank=shrank, edge=edge, last=last
        )
        return Step(going_on, has_more=True)
    as_of = None if shrank else asked_at - timedelta(seconds=safety_s)
    return Step(FullWalk(), has_more=False, as_of=as_of)


def after_parents(at: FullWalk, parents: Sequence[ParentRow], answer: Answer, safety_s: float) -> Step:
    """The step after a page of parents, of which none is left to ask for."""
    step = after_full(FullWalk(asked_at=at.asked_at, shrank=at.shrank), answer, safety_s)
    if not parents and answer.next_page is None:
        return step
    following = FullWalk(
        asked_at=at.asked_at or answer.asked_at,
        shrank=at.shrank or answer.moved,
        parents=tuple(parents),
        parent_page=answer.next_page,
        has_parents=answer.next_page is not None,
    )
    return Step(following, has_more=True)


def after_children(at: FullWalk, answer: Answer, safety_s: float) -> Step:
    """The step after a page of the first parent's children."""
    step = after_full(at, answer, safety_s)
    going_on = step.following
    if step.has_more and isinstance(going_on, FullWalk):
        kept = replace(going_on, parents=at.parents, parent_page=at.parent_page, has_parents=at.has_parents)
        return Step(kept, has_more=True)
    rest = at.parents[1:]
    if not rest and not at.has_parents:
        return step
    following = FullWalk(
        asked_at=at.asked_at, shrank=step.as_of is None, parents=rest, parent_page=at.parent_page,
        has_parents=at.has_parents,
    )  # fmt: skip
    return Step(following, has_more=True)


def after_time(at: SinceTime, answer: Answer, safety_s: float, zone: ZoneInfo, grain: timedelta = SECOND) -> Step:
    """The step after one page of changes by time. `grain` as in `times.grain`."""
    settled = answer.asked_at - timedelta(seconds=safety_s)
    cap = floor(settled, zone, grain)
    if _is_set_back(at.bound, answer, zone):
        return Step(SinceTime(bound=floor(settled - _UNNOTICED, zone, grain)), has_more=True, doubt=True)
    last = max((time for time in answer.times if time is not None), default=at.bound)
    ahead = min(max(last, at.bound), cap)
    if at.round == 0 and not at.tail:
        if answer.next_page is None:
            # Rows from before the bound are the answer to another question: nobody knows what this one's is.
            is_other = any(time is not None and time < at.bound for time in answer.times)
            return Step(SinceTime(bound=max(at.bound, ahead)), has_more=False, as_of=None if is_other else settled)
        if ahead > at.bound:
            return Step(SinceTime(bound=ahead), has_more=True)
    if at.tail or cap <= at.bound:
        return _after_tail(at, answer, min(settled, instant(at.bound, zone)))
    return _after_tie(replace(at, round=max(at.round, 1)), answer, last, cap, grain)


def _after_tail(at: SinceTime, answer: Answer, as_of: datetime) -> Step:
    if answer.next_page is not None:
        return Step(SinceTime(bound=at.bound, page=answer.next_page, tail=True), has_more=True)
    return Step(SinceTime(bound=at.bound), has_more=False, as_of=as_of)


def _after_tie(at: SinceTime, answer: Answer, last: datetime, cap: datetime, grain: timedelta) -> Step:
    tied = [key for key, time in zip(answer.keys, answer.times, strict=True) if time is None or time <= at.bound]
    digest = _digest([at.digest, *tied])
    if answer.next_page is not None and last <= at.bound:
        return Step(replace(at, page=answer.next_page, digest=digest), has_more=True)
    is_stable = at.round > 1 and digest == at.previous
    if not is_stable and at.round < ROUNDS:
        again = SinceTime(bound=at.bound, round=at.round + 1, previous=digest)
        return Step(again, has_more=True)
    # At the tip with nothing but ties the whole second is over, or the cap would not have passed it.
    beyond = min(last, cap) if last > at.bound else min(at.bound + grain, cap)
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


def after_keyset(at: SinceKeyset, answer: Answer, safety_s: float, zone: ZoneInfo, grain: timedelta = SECOND) -> Step:
    """The step after one page of changes by time and key. `grain` as in `times.grain`."""
    asked_at = at.asked_at or answer.asked_at
    settled = asked_at - timedelta(seconds=safety_s)
    cap = floor(settled, zone, grain)
    if _is_set_back(at.bound, answer, zone):
        return Step(SinceKeyset(bound=floor(settled - _UNNOTICED, zone, grain)), has_more=True, doubt=True)
    here = (at.bound, at.key) if at.at is None else (at.at, at.at_key)
    shown = [(time, key) for time, key in zip(answer.times, answer.keys, strict=True) if time is not None and key]
    last = shown[-1] if shown else here
    # Whether keys are ordered as text or as numbers is not ours to know.
    if last != here and last[0] >= here[0]:
        return Step(replace(at, at=last[0], at_key=last[1], asked_at=asked_at), has_more=True)
    bound, key = max((at.bound, at.key), min(here, (cap, "")))
    # Rows, but none beyond the last one: this is not what was asked for.
    is_stuck = bool(answer.keys)
    as_of = None if is_stuck else settled
    return Step(SinceKeyset(bound=bound, key=key), has_more=False, as_of=as_of, doubt=is_stuck)


def after_token(at: SinceToken, answer: Answer, safety_s: float, *, has_more: bool) -> Step:
    """The step after one page of changes by token. Raises Transient when the token does not lead on."""
    asked_at = at.asked_at or answer.asked_at
    token = at.token if answer.next_page is None else str(answer.next_page)
    if not has_more:
        return Step(SinceToken(token=token), has_more=False, as_of=asked_at - timedelta(seconds=safety_s))
    if token == at.token:
        raise Transient("its answer says that there is more, under the same token")
    return Step(SinceToken(token=token, asked_at=asked_at), has_more=True)


def _is_set_back(bound: datetime, answer: Answer, zone: ZoneInfo) -> bool:
    """Whether the bound is ahead of the clock that it was taken from."""
    wall = answer.served_at.astimezone(zone).replace(tzinfo=None, fold=0)
    return bound > wall + timedelta(seconds=BACK_S)


def _digest(keys: Sequence[str | None]) -> str:
    return hashlib.blake2b("\n".join(key or "" for key in keys).encode(), digest_size=12).hexdigest()
