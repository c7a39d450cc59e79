"""KPL aggregates: taken apart exactly, and never at the cost of a record."""

from __future__ import annotations

from hashlib import md5

from hypothesis import given
from hypothesis import strategies as st

from worker import kpl


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def framed(message: bytes) -> bytes:
    return kpl.MAGIC + message + md5(message).digest()


def aggregate(records: list[tuple[str, int | None, bytes]]) -> bytes:
    """What a KPL producer would send; an independent encoder, straight from the message's definition."""
    keys = list(dict.fromkeys(key for key, _, _ in records))
    hashes = list(dict.fromkeys(each for _, each, _ in records if each is not None))
    message = b"".join(field(1, key.encode()) for key in keys)
    message += b"".join(field(2, str(each).encode()) for each in hashes)
    for key, explicit, body in records:
        record = field(1, keys.index(key))
        record += b"" if explicit is None else field(2, hashes.index(explicit))
        record += field(3, body) + field(4, field(1, b"tag"))
        message += field(3, record)
    return framed(message)


user_records = st.lists(
    st.tuples(
        st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable()),
        st.none() | st.integers(0, 2**128 - 1),
        st.binary(max_size=300),
    ),
    min_size=1,
    max_size=20,
)


@given(user_records)
def test_every_user_record_comes_back_with_its_own_keys(records: list[tuple[str, int | None, bytes]]) -> None:
    expected = [
        kpl.UserRecord(key, kpl.hash_key(key) if explicit is None else explicit, body)
        for key, explicit, body in records
    ]
    assert kpl.split(aggregate(records)) == expected


@given(user_records, st.data())
def test_a_damaged_aggregate_is_a_plain_record(
    records: list[tuple[str, int | None, bytes]], data: st.DataObject
) -> None:
    whole = bytearray(aggregate(records))
    at = data.draw(st.integers(len(kpl.MAGIC), len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    assert kpl.split(bytes(whole)) is None


@given(st.binary(max_size=200))
def test_any_message_under_a_good_checksum_is_taken_apart_or_left_whole(message: bytes) -> None:
    found = kpl.split(framed(message))
    assert found is None or found


def test_what_points_outside_the_tables_is_left_whole() -> None:
    key = field(1, b"k")
    for record in (
        field(1, 1) + field(3, b"x"),  # a partition key that is not there
        field(1, 0) + field(2, 0) + field(3, b"x"),  # a hash key that is not there
        field(1, 0),  # nothing in it
        field(3, b"x"),  # no key
    ):
        assert kpl.split(framed(key + field(3, record))) is None
    assert kpl.split(framed(key + field(2, b"-1") + field(3, field(1, 0) + field(3, b"x")))) is None
    assert kpl.split(framed(key)) is None, "an aggregate of nothing must not vanish"


def test_the_bytes_of_a_real_producer() -> None:
    # From the format's public description: table ["a"], one record, index 0, payload "hello".
    message = bytes.fromhex("0a01611a0908001a0568656c6c6f")
    assert kpl.split(framed(message)) == [kpl.UserRecord("a", int(md5(b"a").hexdigest(), 16), b"hello")]


def test_plain_records_are_plain() -> None:
    for plain in (b"", b"{}", kpl.MAGIC, kpl.MAGIC + b"short", b"x" * 100):
        assert kpl.split(plain) is None
