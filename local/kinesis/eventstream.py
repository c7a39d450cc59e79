"""★ Framing of `application/vnd.amazon.eventstream`.

A frame is: total length (4), length of the headers (4), CRC-32 of these eight bytes (4), headers, payload,
CRC-32 of everything before it (4); big endian. A header is: length of the name (1), name, 7 for text (1),
length of the value (2), value.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from zlib import crc32

CONTENT_TYPE = "application/vnd.amazon.eventstream"
_TEXT = 7
_OVERHEAD_BYTES = 16


def frame(headers: Mapping[str, str], payload: bytes) -> bytes:
    block = b"".join(_header(name, value) for name, value in headers.items())
    prelude = struct.pack(">II", _OVERHEAD_BYTES + len(block) + len(payload), len(block))
    head = prelude + struct.pack(">I", crc32(prelude)) + block
    return b"".join((head, payload, struct.pack(">I", crc32(payload, crc32(head)))))


def _header(name: str, value: str) -> bytes:
    raw_name, raw_value = name.encode(), value.encode()
    return struct.pack(f">B{len(raw_name)}sBH", len(raw_name), raw_name, _TEXT, len(raw_value)) + raw_value


def event(name: str, payload: bytes) -> bytes:
    """An event frame; its payload is JSON."""
    return frame(
        {":event-type": name, ":content-type": "application/json", ":message-type": "event"},
        payload,
    )


def exception(code: str, payload: bytes) -> bytes:
    """The frame that ends a stream with a modelled error."""
    return frame(
        {":exception-type": code, ":content-type": "application/json", ":message-type": "exception"},
        payload,
    )
