"""Claim checks: a record too large for the stream is kept elsewhere, and the stream carries a reference to it.  (pure)

    {"type": "tidegate.claim", "specversion": "1.0", "id": "<digest>", "source": "tidegate",
     "subject": "parcel:P1", "dataref": "claims/<digest>"}

The object holds the bytes that would have been the record, whole. Its name is their digest, so that writing it twice
is once and a reader sees whether it got what was put. The reference is relative: the reader knows the bucket, and is
never sent elsewhere by what a record says.
"""

from __future__ import annotations

import hashlib
import re

import msgspec

TYPE = "tidegate.claim"
_MARK = b'{"type":"tidegate.claim"'
_PREFIX = "claims/"
_NAME = re.compile(r"claims/[0-9a-f]{64}")


class _Reference(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    specversion: str
    id: str
    source: str
    subject: str
    dataref: str


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Reference)


def name_of(data: bytes) -> str:
    """What the object with these bytes is called."""
    return _PREFIX + hashlib.blake2b(data, digest_size=32).hexdigest()


def encode(subject: str, data: bytes) -> bytes:
    """The record that stands for `data` in the stream."""
    name = name_of(data)
    reference = _Reference(
        type=TYPE,
        specversion="1.0",
        id=name.removeprefix(_PREFIX),
        source="tidegate",
        subject=subject,
        dataref=name,
    )
    return _encoder.encode(reference)


def is_claim(record: bytes) -> bool:
    """Whether a record is a reference, by its beginning: `encode` writes the type first."""
    return record.startswith(_MARK)


def name_in(record: bytes) -> str | None:
    """The object that a record refers to; None when it is no reference, or refers to something else than a claim."""
    if not is_claim(record):
        return None
    try:
        name = _decoder.decode(record).dataref
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return name if _NAME.fullmatch(name) else None
