"""Walks over a list that moves while it is read: nothing that changed before `as_of` was left out."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from hypothesis import given, settings
from hypothesis import strategies as st

from poller.source import FullWalk, SinceRevision, SinceTime
from poller.times import OLDEST
from poller.walk import ROUNDS, Answer, Step, after_full, after_revision, after_time
from tests.fakes.list_office import ListOffice, start

ZURICH = ZoneInfo("Europe/Zurich")
QUIET = start("2026-11-21T05:55:00")
AUTUMN = start("2026-10-24T23:59:50")
"""Ten seconds before 02:00 local time, an hour and ten seconds before the clock goes back."""
MOST_REQUESTS = 3_000


class Walker:
    """Polls an office by time and remembers what it saw."""

    def __init__(self, office: ListOffice) -> None:
        self.office = office
        self.position = SinceTime(bound=OLDEST)
        self.seen: dict[str, set[int]] = {}
        self.doubt = False
        self.requests = 0

    def request(self) -> Step:
        rows, answer = self.office.ask(self.position.bound, self.position.page)
        for row in rows:
            self.seen.setdefault(row.key, set()).add(row.content)
        step = after_time(self.position, answer, self.office.safety_s, self.office.zone)
        assert isinstance(step.following, SinceTime)
        assert step.following.bound >= self.position.bound, "the bound never goes back"
        self.position = step.following
        self.doubt |= step.doubt
        self.requests += 1
        assert self.requests < MOST_REQUESTS, "the walk does not come to an end"
        return step

    def poll(self, changes: int = 0) -> datetime | None:
        """To the tip, while so many changes happen between two requests."""
        while (step := self.request()).has_more:
            self.office.live(self.office.rng.randint(0, changes))
        return step.as_of

    def unseen(self, before: datetime) -> list[str]:
        """Rows whose present state is older than `before` and was never shown."""
        return [
            row.key
            for row in self.office.rows.values()
            if row.changed_at < before and row.content not in self.seen.get(row.key, ())
        ]


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(3, 6), tie=st.integers(0, 15))
def test_everything_before_as_of_was_shown(seed: int, size: int, tie: int) -> None:
    office = ListOffice(random.Random(seed), QUIET, size=size)
    for _ in range(tie):
        office.create()
    walker = Walker(office)
    for _ in range(6):
        as_of = walker.poll(changes=1)
        if as_of is not None and not walker.doubt:
            assert walker.unseen(as_of) == []
        office.live(office.rng.randint(0, 4))
        office.pass_time(office.rng.choice((0.1, 1.0, 5.0)))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), hours_of_life=st.integers(1, 30))
def test_the_hour_that_happens_twice_loses_nothing(seed: int, hours_of_life: int) -> None:
    office = ListOffice(random.Random(seed), AUTUMN, zone=ZURICH, size=4)
    walker = Walker(office)
    for _ in range(hours_of_life):
        office.live(office.rng.randint(0, 3))
        office.pass_time(office.rng.choice((1.0, 200.0, 600.0)))
        as_of = walker.poll()
        if as_of is not None and not walker.doubt:
            assert walker.unseen(as_of) == []
    office.pass_time(3 * 3600)
    walker.poll()
    assert walker.doubt or walker.unseen(office.now) == []


def test_the_same_autumn_without_the_floor_would_lose_rows() -> None:
    """The test above can fail: a bound that trusts the clock passes rows that are dated an hour earlier."""
    office = ListOffice(random.Random(1), AUTUMN + timedelta(minutes=50), zone=ZURICH)
    office.create()
    office.pass_time(5)
    trusting = SinceTime(bound=office.rows["K0001"].stamp)
    office.pass_time(15 * 60)
    late = office.create()
    rows, _ = office.ask(trusting.bound, None)
    assert late not in {row.key for row in rows}


def test_a_row_dated_in_the_future_does_not_hide_later_changes() -> None:
    office = ListOffice(random.Random(2), QUIET)
    office.write("FUTURE", ahead=timedelta(days=400))
    walker = Walker(office)
    walker.poll()
    for _ in range(5):
        office.pass_time(10)
        key = office.create()
        walker.poll()
        assert key in walker.seen


def test_a_bulk_load_under_one_second_is_walked_until_two_rounds_agree() -> None:
    office = ListOffice(random.Random(3), QUIET)
    for _ in range(10):
        office.create()
    office.pass_time(60)
    walker = Walker(office)
    walker.poll()
    assert len(walker.seen) == 10
    assert not walker.doubt
    # The group is over: the next poll does not read it again.
    walker.requests = 0
    walker.poll()
    assert walker.requests == 1


def test_a_tie_group_that_never_holds_still_ends_in_doubt() -> None:
    office = ListOffice(random.Random(4), QUIET)
    keys = [office.create() for _ in range(40)]
    office.pass_time(60)
    walker = Walker(office)
    while not walker.doubt:
        walker.request()
        if walker.position.round and walker.position.page is not None and keys:
            office.write(keys.pop())
            office.pass_time(0.1)
    assert walker.requests <= ROUNDS * 15


def test_a_tail_of_several_pages_proves_no_more_than_its_bound() -> None:
    bound = QUIET.replace(tzinfo=None)
    at = SinceTime(bound=bound, page=2, tail=True)
    asked_at = QUIET + timedelta(seconds=10)
    answer = Answer(["a"], None, None, asked_at, asked_at, [bound + timedelta(seconds=1)])
    assert after_time(at, answer, 2.0, ZoneInfo("UTC")) == Step(SinceTime(bound=bound), has_more=False, as_of=QUIET)


def test_a_full_walk_during_which_rows_went_away_proves_nothing() -> None:
    at = FullWalk()
    first = after_full(at, Answer(["a", "b"], 2, 5, QUIET, QUIET), 2.0)
    assert isinstance(first.following, FullWalk)
    shrunk = after_full(first.following, Answer(["d"], None, 4, QUIET, QUIET), 2.0)
    assert shrunk == Step(FullWalk(), has_more=False, as_of=None)
    grown = after_full(first.following, Answer(["c"], None, 6, QUIET + timedelta(seconds=9), QUIET), 2.0)
    assert grown.as_of == QUIET - timedelta(seconds=2)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 4))
def test_revisions_that_are_committed_out_of_order_are_seen(seed: int, size: int) -> None:
    rng = random.Random(seed)
    now, safety_s = QUIET, 2.0
    writes: list[tuple[int, datetime, datetime]] = []  # revision, when it changed, when it shows
    seen: set[int] = set()
    at = SinceRevision()
    first_high = -1
    for _ in range(60):
        for _ in range(rng.randint(0, 3)):
            now += timedelta(seconds=rng.choice((0.0, 0.2)))
            writes.append((len(writes) + 1, now, now + timedelta(seconds=rng.uniform(0, safety_s * 0.99))))
        now += timedelta(seconds=rng.choice((0.1, 1.0)))
        shown = sorted(r for r, _, visible in writes if visible <= now and r > at.at)
        page = shown[:size]
        following = "token" if len(shown) > size else None
        answer = Answer([str(r) for r in page], following, None, now, now, revisions=list(page))
        seen.update(page)
        is_first = not at.loaded
        step = after_revision(at, answer, safety_s)
        assert isinstance(step.following, SinceRevision)
        at = step.following
        # During the first load a late commit may slip; the sweep that ends the load is there for it.
        if step.as_of is not None and not is_first:
            as_of = step.as_of
            late_at_load = {r for r, changed, _ in writes if changed < as_of and r not in seen}
            assert all(r <= first_high for r in late_at_load), (late_at_load, first_high)
        elif step.as_of is not None:
            first_high = at.bound
