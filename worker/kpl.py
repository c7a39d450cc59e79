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

from collections.abc import Iterator
from hashlib import md5
from typing import NamedTuple

MAGIC = b"\xf3\x89\x9a\xc2"
_MD5_BYTES = 16
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
    except _Malformed:
        return None


def _records(message: bytes) -> list[UserRecord]:
    keys: list[str] = []
    hashes: list[int] = []
    bodies: list[bytes] = []
    for number, value in _fields(message):
        if not isinstance(value, bytes):
            continue
        if number == 1:
            keys.append(_text(value))
        elif number == 2:
            hashes.append(_explicit_hash(_text(value)))
        elif number == 3:
            bodies.append(value)
    return [_record(body, keys, hashes) for body in bodies]


def _record(body: bytes, keys: list[str], hashes: list[int]) -> UserRecord:
    fields = dict(_fields(body))
    key_index, hash_index, data = fields.get(1), fields.get(2), fields.get(3)
    if not isinstance(key_index, int) or not isinstance(data, bytes) or key_index >= len(keys):
        raise _Malformed
    key = keys[key_index]
    # Each record has its own explicit hash key or none: never another record's.
    if hash_index is None:
        return UserRecord(key, hash_key(key), data)
    if not isinstance(hash_index, int) or hash_index >= len(hashes):
        raise _Malformed
    return UserRecord(key, hashes[hash_index], data)


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise _Malformed from error


def _explicit_hash(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 39 and int(text) < _HASH_KEYS):
        raise _Malformed
    return int(text)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of one protobuf message; unknown wire types end it."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        match tag & 7:
            case 0:
                value, at = _varint(message, at)
                yield tag >> 3, value
            case 2:
                length, at = _varint(message, at)
                yield tag >> 3, _slice(message, at, length)
                at += length
            case 1 | 5 as width:
                size = 8 if width == 1 else 4
                yield tag >> 3, _slice(message, at, size)
                at += size
            case _:
                raise _Malformed


def _slice(message: bytes, at: int, length: int) -> bytes:
    if at + length > len(message):
        raise _Malformed
    return message[at : at + length]


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise _Malformed
