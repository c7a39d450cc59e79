"""What the server gives out for the next call: shard iterators and paging tokens. They hold all that is needed."""

from __future__ import annotations

import base64
import binascii
from typing import TypeVar

import msgspec

from local.kinesis.errors import Refused, invalid_argument


class Token(msgspec.Struct, array_like=True, tag=True):
    """`issued_ms` is the wall clock at which it was given out; it outlives a restart of the server."""

    issued_ms: int


class ShardIterator(Token, tag="iterator"):
    """`created_ms` tells a stream from a deleted one of the same name."""

    stream_name: str
    created_ms: int
    shard_id: str
    position: int


class ShardsPage(Token, tag="shards"):
    """The next page of a ListShards call: the filter it began with and the last shard that was shown."""

    stream_name: str
    filter_type: str
    timestamp_ms: int | None
    after_shard_id: str


class ConsumersPage(Token, tag="consumers"):
    stream_name: str
    after_name: str


class StreamsPage(Token, tag="streams"):
    after_name: str


T = TypeVar("T", bound=Token)


def write(token: Token) -> str:
    return base64.b64encode(msgspec.json.encode(token)).decode()


def _read(text: str, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(base64.b64decode(text, validate=True), type=kind)
    except (binascii.Error, ValueError, msgspec.DecodeError):
        return None


def read_page(text: str, kind: type[T], now_ms: int, expiry_s: float) -> T:
    """Raises Refused: ExpiredNextTokenException, or InvalidArgumentException for a foreign token."""
    token = _read(text, kind)
    if token is None:
        raise invalid_argument("The NextToken is not one of this operation.")
    if now_ms - token.issued_ms > expiry_s * 1000:
        raise Refused("ExpiredNextTokenException", "The token is too old; begin again without it.")
    return token


def read_iterator(text: str, now_ms: int, expiry_s: float) -> ShardIterator:
    """Raises Refused: ExpiredIteratorException, or InvalidArgumentException for what is not an iterator."""
    token = _read(text, ShardIterator)
    if token is None:
        raise invalid_argument("Invalid ShardIterator.")
    expiry_ms = round(expiry_s * 1000)
    if now_ms - token.issued_ms > expiry_ms:
        raise Refused(
            "ExpiredIteratorException",
            f"Iterator expired. The iterator was created at time {token.issued_ms} while right now it is {now_ms}"
            f" which is further in the future than the tolerated delay of {expiry_ms} milliseconds.",
        )
    return token
