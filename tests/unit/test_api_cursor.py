"""Cursors: what was sealed opens again for the same caller and query, and nothing else ever does."""

from __future__ import annotations

import base64
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.cursor import Cursors, Position

OLD, NEW = b"o" * 32, b"n" * 32
CURSORS = Cursors([NEW])
# A position is JSON of PostgreSQL's: what is no finite number is a text in it.
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.none() | st.text() | NUMBERS | st.booleans()


@settings(deadline=None)
@given(position=st.lists(VALUES, max_size=4), caller=st.text(), query=st.text())
def test_a_position_comes_back(position: Position, caller: str, query: str) -> None:
    try:
        cursor = CURSORS.seal(caller, query, position)
    except UnicodeEncodeError:
        # No position has a lone surrogate: PostgreSQL cannot hold one.
        return
    assert CURSORS.open(caller, query, cursor) == position
    assert cursor == CURSORS.seal(caller, query, position), "so that the ETag of a page does not change by itself"
    assert cursor.replace("-", "").replace("_", "").isalnum()


@pytest.mark.parametrize("other", [("ann ", "q"), ("an", "nq"), ("", "annq"), ("bob", "q")])
def test_a_cursor_is_worth_nothing_to_another_caller(other: tuple[str, str]) -> None:
    cursor = CURSORS.seal("ann", "q", ["k"])
    with pytest.raises(ValueError, match="not one that this API gave"):
        CURSORS.open(*other, cursor)


def test_a_cursor_of_another_query_is_told_from_a_forged_one() -> None:
    with pytest.raises(ValueError, match="belongs to another query"):
        CURSORS.open("ann", "loans of june", CURSORS.seal("ann", "loans of may", ["k"]))


def test_keys_are_rotated_by_a_second_one() -> None:
    before = Cursors([OLD]).seal("ann", "q", [1])
    both = Cursors([NEW, OLD])
    assert both.open("ann", "q", before) == [1]
    assert CURSORS.open("ann", "q", both.seal("ann", "q", [2])) == [2], "the first key signs"
    with pytest.raises(ValueError, match="not one that this API gave"):
        CURSORS.open("ann", "q", before)


@pytest.mark.parametrize("keys", [[], [b""], [b"k" * 31], [NEW, b"short"]])
def test_a_key_must_be_long(keys: list[bytes]) -> None:
    with pytest.raises(ValueError, match="at least 32 bytes"):
        Cursors(keys)


def forgeries(genuine: str, count: int, seed: int) -> list[str]:
    """Cursors that were never given, most of them one step away from one that was."""
    chance = random.Random(seed)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    raw = base64.urlsafe_b64decode(genuine + "=" * (-len(genuine) % 4))
    payload = raw[16:]
    made: list[str] = []
    while len(made) < count:
        place = chance.randrange(len(genuine))
        flipped = bytearray(raw)
        flipped[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        position = msgspec.json.encode([payload[2:14].decode(), [chance.choice(["k", 0, None, "imo9999"])]])
        other_key = Cursors([chance.randbytes(32)]).seal("ann", "q", ["k"])
        made += [
            genuine[:place] + chance.choice(letters) + genuine[place + 1 :],
            genuine[:place],
            genuine[place:],
            genuine + chance.choice(letters),
            genuine + "=" * chance.randrange(1, 4),
            encoded(bytes(flipped)),
            encoded(raw[:16] + position),
            encoded(chance.randbytes(16) + payload),
            encoded(payload + raw[:16]),
            encoded(chance.randbytes(chance.randrange(200))),
            "".join(chance.choices(letters + "\u00e9\0\ud800 +/%", k=chance.randrange(40))),
            other_key,
            encoded(raw[:16] + b"[" * chance.randrange(1, 5000)),
        ]
    return [forged for forged in made if forged != genuine]


def encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def test_no_forged_cursor_opens() -> None:
    genuine = CURSORS.seal("ann", "q", ["a key", 12.5, None])
    made = forgeries(genuine, 3_000, seed=5)
    for forged in made:
        with pytest.raises(ValueError, match=r"cursor"):
            CURSORS.open("ann", "q", forged)
    # Bits that base64 does not use: the same bytes in another spelling are refused too.
    tail = genuine[:-1] + chr(ord(genuine[-1]) + 1)
    if base64.urlsafe_b64decode(tail + "==") == base64.urlsafe_b64decode(genuine + "=="):
        assert tail in made or not _opens(tail)


def _opens(cursor: str) -> bool:
    try:
        CURSORS.open("ann", "q", cursor)
    except ValueError:
        return False
    return True


def test_an_endless_cursor_is_refused() -> None:
    with pytest.raises(ValueError, match="cursor"):
        CURSORS.open("ann", "q", "A" * 100_000)
