"""KPL aggregation: many user records in one Kinesis record.  (pure)

    F3 89 9A C2 | AggregatedRecord (proto2) | MD5 of the message, 16 bytes

    message AggregatedRecord { repeated string partition_key_table = 1; repeated string explicit_hash_key_table = 2;
                               repeated Record records = 3; }
    message Record { required uint64 partition_key_index = 1; optional uint64 explicit_hash_key_index = 2;
                     required bytes data = 3; repeated Tag tags = 4; }

A user record is told by its partition key alone: an explicit hash key belongs to the aggregate as a whole, and brings
it to a shard. So all user records of one aggregate must belong to one shard; `Aggregate` does not look, its caller does.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import md5

_MAGIC = b"\xf3\x89\x9a\xc2"
_FRAME_BYTES = len(_MAGIC) + 16
_NO_KEY = md5(usedforsecurity=False)
_KEY, _RECORD, _INDEX, _DATA = b"\x0a", b"\x1a", b"\x08", b"\x1a"


def hash_of(partition_key: bytes) -> bytes:
    """Where Kinesis puts a partition key, of its UTF-8 bytes: 128 bits, big-endian, so that they compare as numbers do."""
    [found] = hashes_of([partition_key])
    return found


def hashes_of(partition_keys: Iterable[bytes]) -> list[bytes]:
    """Where Kinesis puts each."""
    found = []
    for key in partition_keys:
        # A copy is quicker to have than a new one.
        digest = _NO_KEY.copy()
        digest.update(key)
        found.append(digest.digest())
    return found


def varint(number: int) -> bytes:
    """A whole number from 0 as protobuf writes it: seven bits a byte, the lowest first."""
    if number < 0x80:
        return _SHORT[number]
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


_SHORT = [bytes([number]) for number in range(0x80)]


class Aggregate:
    """One record in the making. `size_bytes` is what it has come to, frame included."""

    __slots__ = ("_keys", "_records", "size_bytes")

    def __init__(self) -> None:
        self._keys: list[bytes] = []
        self._records: list[bytes] = []
        self.size_bytes = _FRAME_BYTES

    def __len__(self) -> int:
        return len(self._records)

    def add(self, partition_key: bytes, data: bytes) -> None:
        """One more user record, after those before it."""
        key = b"%b%b%b" % (_KEY, varint(len(partition_key)), partition_key)
        body = b"%b%b%b%b" % (_INDEX, varint(len(self._records)), _DATA, varint(len(data)))
        record = b"%b%b%b%b" % (_RECORD, varint(len(body) + len(data)), body, data)
        self._keys.append(key)
        self._records.append(record)
        self.size_bytes += len(key) + len(record)

    def encode(self) -> bytes:
        """The bytes of the Kinesis record."""
        message = b"".join(self._keys) + b"".join(self._records)
        return b"%b%b%b" % (_MAGIC, message, md5(message, usedforsecurity=False).digest())


def most_added(partition_key: bytes, data: bytes) -> int:
    """Bytes by which an aggregate grows at most with this user record."""
    return len(partition_key) + len(data) + 2 * 6 + 2 * 6
