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


def test_however_a_record_is_written_it_is_the_same() -> None:
    keys = [f"key {number}" for number in range(20_000)]
    table = b"".join(field(1, key.encode()) for key in keys) + field(2, b"7")
    for number in (0, 127, 128, 16_383, 16_384):
        for body in (b"", b"x" * 127, b"x" * 128, b"x" * 70_000):
            key, explicit, data = field(1, number), field(2, 0), field(3, body)
            for record in (key + explicit + data, data + explicit + key, key + data + explicit):
                assert kpl.split(framed(table + field(3, record))) == [kpl.UserRecord(keys[number], 7, body)]
            unknown = field(9, b"?") + field(10, 300) + varint(11 << 3 | 5) + bytes(4) + varint(12 << 3 | 1) + bytes(8)
            for record in (unknown + key + data, key + unknown + data, key + data + unknown):
                expected = kpl.UserRecord(keys[number], kpl.hash_key(keys[number]), body)
                assert kpl.split(framed(unknown + table + field(3, record) + unknown)) == [expected]


def test_a_tag_that_nobody_writes_so_leaves_it_whole_and_loses_no_record() -> None:
    record = field(1, 0) + field(3, b"x")
    message = field(1, b"k") + field(3, record)
    assert kpl.split(framed(message)) is not None
    long_tag = bytes([0x80 | 3 << 3 | 2, 0])
    assert kpl.split(framed(message + long_tag + varint(len(record)) + record)) is None
    assert kpl.split(framed(message + varint(3 << 3) + varint(1))) is None, "a number where a record belongs"


@given(user_records, st.data())
def test_a_message_that_is_cut_short_is_left_whole(
    records: list[tuple[str, int | None, bytes]], data: st.DataObject
) -> None:
    """Its checksum is good, so only the parser can tell."""
    message = aggregate(records)[len(kpl.MAGIC) : -16]
    found = kpl.split(framed(message[: data.draw(st.integers(0, len(message) - 1))]))
    whole = kpl.split(framed(message))
    assert whole is not None
    # At the end of a record it is a shorter aggregate.
    assert found is None or found == whole[: len(found)]


def test_the_bytes_of_a_real_producer() -> None:
    # From the format's public description: table ["a"], one record, index 0, payload "hello".
    message = bytes.fromhex("0a01611a0908001a0568656c6c6f")
    assert kpl.split(framed(message)) == [kpl.UserRecord("a", int(md5(b"a").hexdigest(), 16), b"hello")]


def test_plain_records_are_plain() -> None:
    for plain in (b"", b"{}", kpl.MAGIC, kpl.MAGIC + b"short", b"x" * 100):
        assert kpl.split(plain) is None
