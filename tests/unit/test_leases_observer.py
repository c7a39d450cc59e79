"""An expiry is judged by what this process saw, on its own clock."""

from __future__ import annotations

from math import inf

from tidegate.leases import SHARD_END, Lease
from tidegate.leases.observer import Observer


def test_a_counter_that_moves_is_alive_and_one_that_stands_still_keeps_its_time() -> None:
    observer = Observer("me")
    observer.look([Lease(key="a", owner="x", counter=1), Lease(key="b", owner="x", counter=1)], 0.0, ())
    sight = observer.look([Lease(key="a", owner="x", counter=2), Lease(key="b", owner="x", counter=1)], 6.0, ())
    assert [view.moved_s for view in sight.views] == [6.0, 0.0]
    assert [view.is_live(10.0, 10.0) for view in sight.views] == [True, False]
    assert (sight.oldest_s, sight.is_calm) == (0.0, True)


def test_a_new_owner_counts_as_a_move_even_with_the_same_counter() -> None:
    observer = Observer("me")
    observer.look([Lease(key="a", owner="x", counter=1)], 0.0, ())
    [view] = observer.look([Lease(key="a", owner="y", counter=1)], 9.0, ()).views
    assert view.moved_s == 9.0


def test_what_i_hold_is_live_and_what_only_bears_my_name_is_free() -> None:
    observer = Observer("me")
    mine = [Lease(key="held", owner="me", counter=1), Lease(key="named", owner="me", counter=1)]
    sight = observer.look(mine, 50.0, {"held"})
    held, named = sight.views
    assert held.is_live(50.0, 10.0)
    assert not named.is_live(50.0, 10.0)
    assert not sight.is_calm
    assert sight.oldest_s == inf
    assert observer.look(mine, 51.0, {"held", "named"}).is_calm


def test_a_request_for_a_lease_does_not_make_its_silent_holder_live_longer() -> None:
    observer = Observer("me")
    lease = Lease(key="a", owner="x", counter=1)
    observer.look([lease], 0.0, ())
    wanted = Lease(key="a", owner="y", checkpoint_owner="x", counter=1)
    [view] = observer.look([wanted], 6.0, ()).views
    assert view.moved_s == 0.0
    assert observer.glance(wanted, 7.0).is_live(9.9, 10.0)
    assert not observer.glance(wanted, 10.0).is_live(10.0, 10.0)
    handed_over = Lease(key="a", owner="y", counter=2)
    assert observer.glance(handed_over, 8.0).moved_s == 8.0


def test_what_i_asked_for_is_not_mine_yet() -> None:
    observer = Observer("me")
    wanted = Lease(key="a", owner="me", checkpoint_owner="x", counter=1)
    sight = observer.look([wanted], 5.0, ())
    assert sight.views[0].is_live(5.0, 10.0)
    assert sight.oldest_s == 5.0


def test_what_nobody_owns_is_no_calm_and_what_is_ended_is_not_shown() -> None:
    observer = Observer("me")
    sight = observer.look([Lease(key="a"), Lease(key="b", checkpoint=SHARD_END)], 5.0, ())
    assert [view.lease.key for view in sight.views] == ["a"]
    assert not sight.is_calm
    assert observer.look([Lease(key="b", checkpoint=SHARD_END)], 6.0, ()).is_calm


def test_a_look_at_a_part_keeps_what_was_seen_of_the_rest() -> None:
    observer = Observer("me")
    one, other = Lease(key="a", owner="x", counter=1), Lease(key="b", owner="x", counter=1)
    observer.look([one, other], 0.0, ())
    observer.look([one], 5.0, ())
    assert [view.moved_s for view in observer.look([one, other], 9.0, ()).views] == [0.0, 0.0]
    observer.forget_but([one])
    assert [view.moved_s for view in observer.look([one, other], 9.0, ()).views] == [0.0, 9.0]


def test_a_read_that_lags_behind_makes_no_lease_look_younger_for_long() -> None:
    observer = Observer("me")
    for now_s, counter in ((0.0, 5), (1.0, 4), (2.0, 5), (12.0, 5)):
        [view] = observer.look([Lease(key="a", owner="x", counter=counter)], now_s, ()).views
    assert view.moved_s == 2.0
