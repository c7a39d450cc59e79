"""How fast one shard may be read by GetRecords: calls and bytes, by monotonic times that are passed in.  (pure)

Kinesis allows five calls a second and 2 MiB a second, for all polling consumers of a shard together; after an answer of
10 MiB it refuses calls for five seconds. Keeping to that is quicker than being refused.
"""

from __future__ import annotations

from collections import deque


class ReadPace:
    """At most `calls` in any second, and no call while more than `bytes_per_s` were answered."""

    def __init__(self, calls: int, bytes_per_s: int) -> None:
        self._starts: deque[float] = deque(maxlen=calls)
        self._bytes_per_s = bytes_per_s
        # A second's worth may be saved up; below 0 the shard is owed silence.
        self._level_bytes = float(bytes_per_s)
        self._level_at_s: float | None = None

    def delay_s(self, now_s: float) -> float:
        """How long the next call has to wait."""
        calls_s = 0.0
        if len(self._starts) == self._starts.maxlen:
            calls_s = self._starts[0] + 1.0 - now_s
        return max(0.0, calls_s, -self._filled(now_s) / self._bytes_per_s)

    def note_call(self, now_s: float) -> None:
        self._starts.append(now_s)

    def note_bytes(self, size_bytes: int, now_s: float) -> None:
        """An answer of this size came. More than a second's worth at once forfeits what was saved up."""
        level = self._filled(now_s)
        self._level_bytes = (min(level, 0.0) if size_bytes > self._bytes_per_s else level) - size_bytes
        self._level_at_s = now_s

    @property
    def last_s(self) -> float:
        """When the last call was made."""
        return self._starts[-1]

    def _filled(self, now_s: float) -> float:
        if self._level_at_s is None:
            return self._level_bytes
        filled = self._level_bytes + (now_s - self._level_at_s) * self._bytes_per_s
        return min(float(self._bytes_per_s), filled)
