"""Columns of values as PostgreSQL's array literals, `{1,2,null}` or `{"a","b\\"c"}`.  (pure)

A JSON array of texts and numbers is such a literal but for its brackets, and msgspec writes one in a hundredth of the
time that the driver needs to put the values on the wire one by one. The server reads what any text of a type's value
reads as: `"12.50"` is a numeric, `"2026-11-21T06:00:00Z"` a timestamptz (docs/decisions/0016-bulk-write.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

import msgspec

_encoder = msgspec.json.Encoder()


def array(values: Sequence[Any]) -> str:
    """The literal of one column. None becomes NULL."""
    text = _encoder.encode(values)[1:-1].decode()
    if "\\" in text and not _reads_the_same(text):
        text = ",".join(map(_element, values))
    return f"{{{text}}}"


def _reads_the_same(text: str) -> bool:
    """Whether all that is escaped are quotes and backslashes. To PostgreSQL `\\n` is an n."""
    return "\\" not in text.replace("\\\\", "").replace('\\"', "")


def _element(value: Any) -> str:
    if isinstance(value, Enum):
        value = value.value
    if not isinstance(value, str):
        return _encoder.encode(value).decode()
    # Line feeds and the like stand for themselves; a NUL the server refuses, as it should.
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
