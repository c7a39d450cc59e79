"""Records that could not be handled: filed whole, in the transaction that passes them by; and the breaker.

Filing is what lets the rest go on. The breaker is what stops a bad release from filing everything: too large a
share of rejections ends the process, before their positions are checkpointed, so that the repaired release reads
them again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from tidegate.database import Connection
from tidegate.errors import Fatal
from tidegate.letter import (
    NAME_CHARACTERS,
    LetterKind,
    event_identity,
    fingerprint,
    place_identity,
    row_identity,
    storable,
)
from worker import statements
from worker.batch import DeadLetter
from worker.settings import RejectSettings

_MESSAGE_CHARACTERS = 2_000
_WORD_CHARACTERS = 100


async def file(connection: Connection, stream: str, shard_id: str, letters: Sequence[DeadLetter]) -> None:
    """Write the letters; one that was filed before counts another attempt, wherever it stood then.

    What is of a key that was erased is not filed at all.
    """
    if not letters:
        return
    await connection.execute(
        statements.FILE,
        stream,
        shard_id,
        [letter.position.sequence for letter in letters],
        [letter.position.sub for letter in letters],
        [storable(letter.stage, _WORD_CHARACTERS) for letter in letters],
        [storable(letter.reason, _WORD_CHARACTERS) for letter in letters],
        [storable(letter.message, _MESSAGE_CHARACTERS) for letter in letters],
        [_name(letter.entity, _WORD_CHARACTERS) for letter in letters],
        [_name(letter.key) for letter in letters],
        [_name(letter.source) for letter in letters],
        [_name(letter.event_id) for letter in letters],
        [letter.payload for letter in letters],
        [statements.version_text(letter.version) if letter.version else None for letter in letters],
        [letter.observed_at for letter in letters],
        [letter.kind for letter in letters],
        [_identity(shard_id, letter) for letter in letters],
        [fingerprint(letter.stage, letter.reason, letter.entity, letter.message) for letter in letters],
        [letter.is_parked for letter in letters],
    )


def _identity(shard_id: str, letter: DeadLetter) -> str:
    if letter.kind is LetterKind.ROW:
        return row_identity(letter.source, letter.entity, letter.key, letter.event_id, letter.payload)
    named = event_identity(letter.payload) if letter.kind is LetterKind.EVENT else None
    return named or place_identity(letter.kind, shard_id, *letter.position)


def _name(text: str | None, characters: int = NAME_CHARACTERS) -> str | None:
    # The payload keeps the record as it was.
    return None if text is None else storable(text, characters)


class Breaker:
    """Counts the share of rejected records over a sliding window. Times are monotonic seconds, passed in."""

    def __init__(self, settings: RejectSettings) -> None:
        self._settings = settings
        self._counts: deque[tuple[float, int, int]] = deque()
        self._delivered = 0
        self._rejected = 0

    def note(self, delivered: int, rejected: int, now_s: float) -> None:
        """Count records. Raises Fatal when too many of those in the window were rejected."""
        self._counts.append((now_s, delivered, rejected))
        self._delivered += delivered
        self._rejected += rejected
        while self._counts[0][0] < now_s - self._settings.window_s:
            _, old_delivered, old_rejected = self._counts.popleft()
            self._delivered -= old_delivered
            self._rejected -= old_rejected
        too_many = self._rejected >= self._settings.minimum
        if too_many and self._rejected > self._settings.share * self._delivered:
            raise Fatal(
                f"{self._rejected} of {self._delivered} records within {self._settings.window_s:g} s were rejected; the "
                "reasons stand in tidegate.dead_letter. Deploy a release that can read them, or raise "
                "TIDEGATE_REJECT_SHARE for a while"
            )
