"""Legacy renderings: local times around the changes of the clocks, decimals, bounds."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local.legacy.dialect import (
    BadQuery,
    comma,
    local_floor,
    local_text,
    offset_floor,
    offset_text,
    swiss_date,
    unambiguous,
    whole,
)

ZURICH = ZoneInfo("Europe/Zurich")
MOMENTS = st.integers(1_700_000_000, 1_900_000_000).map(lambda second: datetime.fromtimestamp(second, UTC))
# The nights in which the clocks change, where the mistakes are.
CLOCK_NIGHTS = st.tuples(st.sampled_from((1774746000, 1792890000)), st.integers(-9000, 9000)).map(
    lambda pair: datetime.fromtimestamp(sum(pair), UTC)
)


def test_local_times_have_no_zone_and_follow_the_summer() -> None:
    assert local_text(datetime(2026, 11, 21, 5, 55, 3, tzinfo=UTC), ZURICH) == "2026-11-21 06:55:03"
    assert local_text(datetime(2026, 7, 1, 5, 0, tzinfo=UTC), ZURICH) == "2026-07-01 07:00:00"
    assert offset_text(datetime(2026, 7, 1, 5, 0, tzinfo=UTC), ZURICH) == "2026-07-01T07:00:00+02:00"
    # 00:30 and 01:30 UTC are both 02:30 when summer time ends.
    assert local_text(datetime(2026, 10, 25, 0, 30, tzinfo=UTC), ZURICH) == "2026-10-25 02:30:00"
    assert local_text(datetime(2026, 10, 25, 1, 30, tzinfo=UTC), ZURICH) == "2026-10-25 02:30:00"


@given(MOMENTS | CLOCK_NIGHTS)
def test_a_rendered_time_used_as_bound_never_lies_after_the_moment(at: datetime) -> None:
    floor = local_floor(local_text(at, ZURICH), ZURICH)
    assert floor <= at.timestamp() <= floor + 3600
    assert offset_floor(offset_text(at, ZURICH)) == at.timestamp()


@given(MOMENTS | CLOCK_NIGHTS, st.integers(0, 7200))
def test_local_arithmetic_across_a_clock_change_still_gives_a_lower_bound(at: datetime, overlap_s: int) -> None:
    local = datetime.strptime(local_text(at, ZURICH), "%Y-%m-%d %H:%M:%S") - timedelta(seconds=overlap_s)
    assert local_floor(f"{local:%Y-%m-%d %H:%M:%S}", ZURICH) <= at.timestamp()


@given(MOMENTS | CLOCK_NIGHTS)
def test_unambiguous_times_read_back_exactly(at: datetime) -> None:
    chosen = unambiguous(at, ZURICH)
    assert local_floor(local_text(chosen, ZURICH), ZURICH) == chosen.timestamp()
    assert timedelta(0) <= at - chosen <= timedelta(hours=2)


@pytest.mark.parametrize("text", ["", "2026-11-21", "2026-11-21T06:55:03", "2026-11-21 06:55:03+01:00", "x"])
def test_a_malformed_local_bound_is_refused(text: str) -> None:
    with pytest.raises(BadQuery):
        local_floor(text, ZURICH)


def test_offset_bounds() -> None:
    # A plus sign that was not escaped arrives as a space.
    assert offset_floor("2026-11-21T06:55:03 01:00") == offset_floor("2026-11-21T05:55:03+00:00")
    assert offset_floor("2026-11-21T05:55:03Z") == offset_floor("2026-11-21T06:55:03+01:00")
    for text in ("2026-11-21T06:55:03", "soon", ""):
        with pytest.raises(BadQuery):
            offset_floor(text)


def test_decimals_keep_their_places() -> None:
    assert comma(Decimal("12.50")) == "12,50"
    assert comma(Decimal("0.850")) == "0,850"
    assert comma(Decimal("0.0000001")) == "0,0000001"
    assert comma(-80.6195833) == "-80,6195833"


def test_dates() -> None:
    assert swiss_date(date(2026, 11, 1)) == "01.11.2026"
    assert swiss_date(None) == ""


def test_whole_numbers_within_bounds() -> None:
    assert whole({}, "n", 7, 1, 9) == 7
    assert whole({"n": "9"}, "n", 7, 1, 9) == 9
    for text in ("0", "10", "-1", "1.5", "abc", "٣", "9" * 30):
        with pytest.raises(BadQuery):
            whole({"n": text}, "n", 7, 1, 9)
