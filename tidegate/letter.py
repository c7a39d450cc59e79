"""A dead letter: what it holds, what makes two of them the same, and which belong together.  (pure)

`identity` says that two filings are one letter: the event that was put on the stream once more, by a person or by its
poller, and the batch that was read twice. Its parts are what the record says; only what names no event goes by its
place in the stream. `fingerprint` says that two letters failed for one reason, so that a person sees five groups
instead of five thousand letters.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from enum import StrEnum

import msgspec


class LetterKind(StrEnum):
    """What the payload is.

    event  the whole record, as it stood in the stream; can be replayed
    row    a row of the back office that its poller could not translate; only a person can make an event of it
    gap    nothing: records were trimmed from the stream before they were read
    """

    EVENT = "event"
    ROW = "row"
    GAP = "gap"


class Resolution(StrEnum):
    """Why a letter is closed.

    written     the row holds exactly the version of the letter
    superseded  the row holds a newer one
    dropped     a person said that it is not needed
    """

    WRITTEN = "written"
    SUPERSEDED = "superseded"
    DROPPED = "dropped"


class _Named(msgspec.Struct):
    """What tells one event from another; times and causes differ where one event is published twice."""

    id: str
    source: str
    type: str
    subject: str | None = None
    tidegateversion: str | None = None
    time: msgspec.Raw = msgspec.Raw()
    data: msgspec.Raw = msgspec.Raw()


_named = msgspec.json.Decoder(_Named)


def event_identity(record: bytes) -> str | None:
    """The identity of a letter that holds a whole record; None when the record names no event."""
    try:
        named = _named.decode(record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    # What has no version, such as a watermark, is told apart by its time.
    rest = named.time if named.tidegateversion is None else b""
    names = (named.id, named.source, named.type, named.subject, named.tidegateversion)
    return _digest(LetterKind.EVENT, *names, bytes(rest), bytes(named.data))


def row_identity(source: str | None, entity: str | None, key: str | None, event_id: str | None, raw: bytes) -> str:
    """The identity of a letter that holds a raw row; its event's id stands for the row's content and translation."""
    return _digest(LetterKind.ROW, source, entity, key, event_id, raw)


def place_identity(kind: LetterKind, shard_id: str, sequence: int, sub: int) -> str:
    """The identity of what names nothing: a gap, after this place, or a record that is no event, at it."""
    return _digest(kind, shard_id, str(sequence), str(sub))


def _digest(kind: LetterKind, *parts: str | bytes | None) -> str:
    hashed = hashlib.blake2b(kind.encode(), digest_size=16)
    for part in parts:
        # Surrogates are no UTF-8, yet JSON can spell them.
        raw = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        hashed.update(b"-" if raw is None else b"%d:%s" % (len(raw), raw))
    return hashed.hexdigest()


def storable(text: str, characters: int) -> str:
    """The text as a column of names has it: PostgreSQL's text refuses NUL, and indexes bound the length."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")[:characters]


NAME_CHARACTERS = 512
"""Names stand in indexes of several columns, whose entries hold about 2,700 bytes. Real ones are far shorter."""


_VALUES: Iterable[tuple[re.Pattern[str], str]] = (
    # PostgreSQL quotes names and values alike; the names say which rule was broken and stay.
    (re.compile(r'\b((?:constraint|relation|column|table|type|index) "[^"]*")|(?<!\w)"(?:\\.|[^"\\])*"'), r"\1"),
    (re.compile(r"(?<!\w)'(?:\\.|[^'\\])*'"), "…"),
    (re.compile(r"\)=\([^)]*\)"), ")=(…)"),
    (re.compile(r"\b(?=[0-9a-fA-F-]*[0-9])[0-9a-fA-F]{6,}(?:-[0-9a-fA-F]+)*\b"), "#"),
    (re.compile(r"[0-9]+(?:[.:,T-][0-9]+)*"), "#"),
)


def masked(message: str) -> str:
    """The message's first line without the values of the row at hand. What PostgreSQL adds below is all values."""
    line = message.partition("\n")[0]
    for pattern, mask in _VALUES:
        line = pattern.sub(mask, line)
    return line


def fingerprint(stage: str, reason: str, entity: str | None, message: str) -> str:
    """Sixteen hexadecimal digits that letters share when they failed for the same reason."""
    text = "\n".join((stage, reason, entity or "", masked(message)))
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()
