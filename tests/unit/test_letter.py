"""What makes two filings one letter, and which letters belong together."""

from __future__ import annotations

import asyncio
from collections import deque

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.integration.worker_rows import NOW, change, gadget, watermark
from tidegate import codec
from tidegate.event import Cause, Version
from tidegate.letter import LetterKind, event_identity, fingerprint, place_identity, row_identity
from tidegate.replay import Pace

EVENT = change("A", 3, gadget("A"))


def identity(**changed: object) -> str | None:
    return event_identity(codec.encode(msgspec.structs.replace(EVENT, **changed)))


def test_an_event_that_is_published_again_is_the_same_letter() -> None:
    assert identity() == identity(cause=Cause.BACKFILL, observed_at=NOW.replace(year=2025), occurred_at=NOW)


@pytest.mark.parametrize(
    "changed",
    [
        {"event_id": "other"},
        {"source": "other"},
        {"key": EVENT.key._replace(key="B")},
        {"key": EVENT.key._replace(entity="counter")},
        {"version": Version(0, 3, 1, 2, 1)},
        {"payload": gadget("A", pieces=4)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_another_event_is_another_letter(changed: dict[str, object]) -> None:
    assert identity(**changed) != identity()


def test_watermarks_differ_by_their_time() -> None:
    marks = [codec.encode(msgspec.structs.replace(watermark(NOW), as_of=NOW.replace(day=day))) for day in (1, 2)]
    assert event_identity(marks[0]) != event_identity(marks[1])


@pytest.mark.parametrize("record", [b"", b"garbage", b"\xff", b"[1]", b'{"id": 1}', b"[" * 100_000], ids=range(6))
def test_what_names_no_event_goes_by_its_place(record: bytes) -> None:
    assert event_identity(record) is None
    assert place_identity(LetterKind.EVENT, "s", 1, 0) != place_identity(LetterKind.EVENT, "s", 1, 1)


names = st.tuples(*[st.text() | st.none()] * 4)
Names = tuple[str | None, str | None, str | None, str | None]


@given(names, names)
def test_parts_do_not_run_into_each_other(one: Names, other: Names) -> None:
    assert (row_identity(*one, b"raw") == row_identity(*other, b"raw")) == (one == other)


SAME = [
    ("gadget: Expected `int`, got `str` - at `$.items[3].pieces`", "gadget: Expected `int`, got `str` - at `$.items[17].pieces`"),
    ("the subject 'A1' is not the key 'B\\'2'", "the subject 'Q' is not the key ''"),
    ("untranslatable: ValueError: time data '2024' does not match", "untranslatable: ValueError: time data 'x y' does not match"),
    ("violates check \"small\"\nDETAIL:  Failing row contains (Jane)", "violates check \"small\"\nDETAIL:  (Joe)"),
    ('invalid input syntax for type uuid: "abc"', 'invalid input syntax for type uuid: "d"'),
    ("no row 7f1c3f0e-9d3b-4a52-8f7e-0a4d3c1b2a10 at 12.5", "no row 0a1c3f0e-9d3b-4a52-8f7e-0a4d3c1b2a11 at 3"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), SAME, ids=range(len(SAME)))
def test_values_do_not_tell_groups_apart(one: str, other: str) -> None:
    assert fingerprint("write", "invalid", "gadget", one) == fingerprint("write", "invalid", "gadget", other)


def test_what_was_broken_tells_groups_apart() -> None:
    parts = [
        ("write", "check_violation", "gadget", 'violates check constraint "small"'),
        ("write", "check_violation", "gadget", 'violates check constraint "large"'),
        ("write", "check_violation", "counter", 'violates check constraint "small"'),
        ("decode", "check_violation", "gadget", 'violates check constraint "small"'),
        ("write", "invalid", "gadget", 'violates check constraint "small"'),
        ("write", "invalid", None, "Expected `int`, got `str` - at `$.pieces`"),
        ("write", "invalid", None, "Expected `int`, got `str` - at `$.price`"),
    ]
    assert len({fingerprint(*each) for each in parts}) == len(parts)


def test_fingerprints_are_the_same_in_every_release() -> None:
    assert fingerprint("decode", "invalid", "gadget", "Expected `int`, got 'x'") == "0166fa3a3a002d8c"


@pytest.mark.looptime
async def test_a_replay_never_sends_more_than_its_rate() -> None:
    loop, sent = asyncio.get_running_loop(), deque[tuple[float, int]]()
    began_s = loop.time()
    pace = Pace(50.0)
    for size in [12, 7, 12, 5] * 30:
        await pace.wait(size)
        sent.append((loop.time() - began_s, size))
        # What it takes to send counts as waiting, too.
        await asyncio.sleep(0.05)
    total = sum(size for _, size in sent)
    assert sent[-1][0] == pytest.approx((total - sent[-1][1]) / 50, abs=0.3), "and is not slower either"
    while sent:
        start_s, _ = sent[0]
        within = [(at_s, size) for at_s, size in sent if at_s < start_s + 1]
        assert sum(size for _, size in within) <= 50 + 12, "in any second: the rate, and what was begun before it ended"
        sent.popleft()


@pytest.mark.looptime
async def test_a_pause_of_ours_is_not_made_up_for() -> None:
    loop = asyncio.get_running_loop()
    pace = Pace(10.0)
    await pace.wait(10)
    await asyncio.sleep(60)
    began_s = loop.time()
    for _ in range(3):
        await pace.wait(10)
    assert loop.time() - began_s == pytest.approx(2.0)
