"""An expiry is judged by what this process saw, on its own clock."""

from __future__ import annotations

from tidegate.leases import Lease
from tidegate.leases.observer import Observer


def test_a_counter_that_moves_is_alive_and_one_that_stands_still_keeps_its_time() -> None:
    observer = Observer("me", expiry_s=10)
    observer.look([Lease(key="a", owner="x", counter=1), Lease(key="b", owner="x", counter=1)], 0.0, ())
    views = observer.look([Lease(key="a", owner="x", counter=2), Lease(key="b", owner="x", counter=1)], 6.0, ())
    assert [view.moved_s for view in views] == [6.0, 0.0]
    assert [view.is_live(10.0, 10.0) for view in views] == [True, False]
    assert observer.next_expiry_s(6.0, ()) == 10.0


def test_a_new_owner_counts_as_a_move_even_with_the_same_counter() -> None:
    observer = Observer("me", expiry_s=10)
    observer.look([Lease(key="a", owner="x", counter=1)], 0.0, ())
    [view] = observer.look([Lease(key="a", owner="y", counter=1)], 9.0, ())
    assert view.moved_s == 9.0


def test_what_i_hold_is_live_and_what_only_bears_my_name_is_free() -> None:
    observer = Observer("me", expiry_s=10)
    mine = [Lease(key="held", owner="me", counter=1), Lease(key="named", owner="me", counter=1)]
    held, named = observer.look(mine, 50.0, {"held"})
    assert held.is_live(50.0, 10.0)
    assert not named.is_live(50.0, 10.0)
    assert observer.next_expiry_s(50.0, {"held", "named"}) == float("inf")


def test_a_request_for_a_lease_does_not_make_its_silent_holder_live_longer() -> None:
    observer = Observer("me", expiry_s=10)
    lease = Lease(key="a", owner="x", counter=1)
    observer.look([lease], 0.0, ())
    wanted = Lease(key="a", owner="y", checkpoint_owner="x", counter=1)
    [view] = observer.look([wanted], 6.0, ())
    assert view.moved_s == 0.0
    assert observer.glance(wanted, 7.0).is_live(9.9, 10.0)
    assert not observer.glance(wanted, 10.0).is_live(10.0, 10.0)
    handed_over = Lease(key="a", owner="y", counter=2)
    assert observer.glance(handed_over, 8.0).moved_s == 8.0


def test_what_i_asked_for_is_not_mine_yet() -> None:
    observer = Observer("me", expiry_s=10)
    wanted = Lease(key="a", owner="me", checkpoint_owner="x", counter=1)
    [view] = observer.look([wanted], 5.0, ())
    assert view.is_live(5.0, 10.0)
    assert observer.next_expiry_s(5.0, ()) == 15.0
