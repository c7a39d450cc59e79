"""Cursors: where to go on, opaque and signed.  (pure)

A cursor is base64url of a MAC of 16 bytes (keyed BLAKE2b, RFC 7693) and of JSON: a digest of the query that it belongs to,
and a position. The MAC covers the caller too, so a cursor is worth nothing to anybody else, or altered by one bit.
What it holds is no secret from its caller: the values of rows that the caller has been shown.

Two keys make a rotation: set the new one as TIDEGATE_CURSOR_KEY and the old one as TIDEGATE_CURSOR_KEY_BEFORE; when the
pages of yesterday are read, take the old one away. The first signs, both are accepted.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

import msgspec

from api.filters import Value

Position = list[Value | None]
"""The values of the order's fields in the last row shown; or what else tells where to go on."""

LONGEST = 8_000
"""Characters; a gateway takes addresses of about 10,000."""

SHORTEST_KEY = 32
_MAC_BYTES = 16
_AGAIN = "start again without a cursor"
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(tuple[str, Position])


class Cursors:
    """Seals positions and opens them again."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        """The first key signs; all are accepted. Raises ValueError for a key that is too short, and for none."""
        if not keys or any(len(key) < SHORTEST_KEY for key in keys):
            raise ValueError(f"a cursor key has at least {SHORTEST_KEY} bytes; make one with `openssl rand -base64 32`")
        # As long as BLAKE2b takes a key to be, however long these are.
        self._keys = tuple(hashlib.blake2b(key).digest() for key in keys)

    def seal(self, caller: str, query: str, position: Position) -> str:
        """`query` says what is asked, of which resource; `caller` who asks."""
        payload = _encoder.encode((_digest(query), position))
        return _encoded(_mac(self._keys[0], caller, payload) + payload)

    def open(self, caller: str, query: str, cursor: str) -> Position:
        """The position. Raises ValueError, with a text for the caller."""
        try:
            raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"the cursor is not one that this API gave; {_AGAIN}") from error
        mac, payload = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        # One spelling for each cursor: the last letter of base64 has bits to spare.
        genuine = len(cursor) <= LONGEST and _encoded(raw) == cursor
        if not genuine or not any(hmac.compare_digest(mac, _mac(key, caller, payload)) for key in self._keys):
            raise ValueError(f"the cursor is not one that this API gave to this caller; {_AGAIN}")
        digest, position = _decoder.decode(payload)
        if digest != _digest(query):
            raise ValueError(f"the cursor belongs to another query; ask as before, or {_AGAIN}")
        return position


def _mac(key: bytes, caller: str, payload: bytes) -> bytes:
    # The caller's length first: nothing can move between the two.
    who = caller.encode(errors="surrogatepass")
    return hashlib.blake2b(len(who).to_bytes(8, "big") + who + payload, digest_size=_MAC_BYTES, key=key).digest()


def _digest(query: str) -> str:
    return hashlib.blake2b(query.encode(errors="surrogatepass"), digest_size=6).hexdigest()


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
