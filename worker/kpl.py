"""KPL aggregation: many user records in one Kinesis record.  (pure)

    F3 89 9A C2 | AggregatedRecord (proto2) | MD5 of the message, 16 bytes

    message AggregatedRecord { repeated string partition_key_table = 1; repeated string explicit_hash_key_table = 2;
                               repeated Record records = 3; }
    message Record { required uint64 partition_key_index = 1; optional uint64 explicit_hash_key_index = 2;
                     required bytes data = 3; repeated Tag tags = 4; }

Whatever is not exactly that is a plain record that happens to begin with the magic: it is passed on whole, and the
decoder judges it. Nothing is dropped here.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import md5
from typing import NamedTuple

MAGIC = b"\xf3\x89\x9a\xc2"
_MD5_BYTES = 16
# Tags as producers write them: the number of the field, and that it is bytes or a number.
_KEY, _HASH, _RECORD = 0x0A, 0x12, 0x1A
_KEY_INDEX, _HASH_INDEX, _DATA = 0x08, 0x10, 0x1A
_HASH_KEYS = 1 << 128


class UserRecord(NamedTuple):
    """One record inside an aggregate. `hash_key` is where it belongs: its own explicit one, else by partition key."""

    partition_key: str
    hash_key: int
    data: bytes


class _Malformed(Exception):
    """Not the message it claims to be."""


def hash_key(partition_key: str) -> int:
    """Where Kinesis puts a partition key: the MD5 of its UTF-8 bytes as a 128-bit unsigned integer."""
    return int.from_bytes(md5(partition_key.encode(), usedforsecurity=False).digest(), "big")


def split(data: bytes) -> list[UserRecord] | None:
    """The user records of an aggregate, in order; None when `data` is a plain record."""
    if not data.startswith(MAGIC) or len(data) <= len(MAGIC) + _MD5_BYTES:
        return None
    message, digest = data[len(MAGIC) : -_MD5_BYTES], data[-_MD5_BYTES:]
    if md5(message, usedforsecurity=False).digest() != digest:
        return None
    try:
        # An aggregate of nothing would vanish without a trace; as a plain record it is filed.
        return _records(message) or None
    except (_Malformed, IndexError):
        return None


def _records(message: bytes) -> list[UserRecord]:
    keys: list[bytes] = []
    hashes: list[bytes] = []
    bodies: list[bytes] = []
    ours = {_KEY: keys, _HASH: hashes, _RECORD: bodies}
    at, end = 0, len(message)
    while at < end:
        if (found := ours.get(message[at])) is None:
            number, _, at = _field(message, at)
            if number in (1, 2, 3):
                raise _Malformed
            continue
        length, at = message[at + 1], at + 2
        if length > 0x7F:
            length, at = _varint(message, at - 1)
        found.append(message[at : at + length])
        at += length
    if at > end:
        raise _Malformed
    return _told(bodies, _texts(keys), [_explicit_hash(text) for text in _texts(hashes)])


def _told(bodies: Sequence[bytes], keys: Sequence[str], hashes: Sequence[int]) -> list[UserRecord]:
    """The records, with what they point at in the tables."""
    own_hashes: dict[int, int] = {}
    records = []
    for body in bodies:
        key_index, hash_index, data = _plain_parts(body) or _parts(body)
        if key_index >= len(keys):
            raise _Malformed
        # Each record has its own explicit hash key or none: never another record's.
        if hash_index is None:
            belongs = own_hashes.get(key_index)
            if belongs is None:
                belongs = own_hashes[key_index] = hash_key(keys[key_index])
        elif hash_index < len(hashes):
            belongs = hashes[hash_index]
        else:
            raise _Malformed
        records.append(UserRecord(keys[key_index], belongs, data))
    return records


def _plain_parts(body: bytes) -> tuple[int, int | None, bytes] | None:
    """The quick way to `_parts` of a record as producers write it: the fields in their order, and no tags.

    None for any other, and IndexError for one that is cut short.
    """
    if body[0] != _KEY_INDEX:
        return None
    key_index, at = _varint(body, 1)
    hash_index = None
    if body[at] == _HASH_INDEX:
        hash_index, at = _varint(body, at + 1)
    if body[at] != _DATA:
        return None
    length, at = _varint(body, at + 1)
    return (key_index, hash_index, body[at:]) if at + length == len(body) else None


def _parts(body: bytes) -> tuple[int, int | None, bytes]:
    """Key index, hash key index if there is one, and the data."""
    fields: dict[int, int | bytes] = {}
    at = 0
    while at < len(body):
        number, value, at = _field(body, at)
        fields[number] = value
    key_index, hash_index, data = fields.get(1), fields.get(2), fields.get(3)
    if isinstance(key_index, int) and isinstance(data, bytes) and (hash_index is None or isinstance(hash_index, int)):
        return key_index, hash_index, data
    raise _Malformed


def _texts(values: Sequence[bytes]) -> list[str]:
    try:
        return [value.decode() for value in values]
    except UnicodeDecodeError as error:
        raise _Malformed from error


def _explicit_hash(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 39 and int(text) < _HASH_KEYS):
        raise _Malformed
    return int(text)


def _field(message: bytes, at: int) -> tuple[int, int | bytes, int]:
    """Number and value of the field at this place of a protobuf message, and where it ends; no groups."""
    tag, at = _varint(message, at)
    match tag & 7:
        case 0:
            value, at = _varint(message, at)
            return tag >> 3, value, at
        case 2:
            length, at = _varint(message, at)
        case 1 | 5 as width:
            length = 8 if width == 1 else 4
        case _:
            raise _Malformed
    return tag >> 3, _slice(message, at, length), at + length


def _slice(message: bytes, at: int, length: int) -> bytes:
    if at + length > len(message):
        raise _Malformed
    return message[at : at + length]


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at this place, and where it ends. IndexError where the message ends before."""
    byte = message[at]
    at += 1
    if byte < 0x80:
        return byte, at
    value, shift = byte & 0x7F, 7
    while shift < 70:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise _Malformed
