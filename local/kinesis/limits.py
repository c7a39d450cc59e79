"""★ The budgets of one shard. Time is passed in, in seconds of a monotonic clock.

A budget fills at its rate up to one second's worth. A write is admitted when both of its budgets can pay for it.
A read is admitted while the shard owes nothing; its size is charged afterwards, because it is not known before.
"""

from __future__ import annotations

WRITE_BYTES_PER_S = 1024 * 1024
WRITE_RECORDS_PER_S = 1000
READ_BYTES_PER_S = 2 * 1024 * 1024
READ_CALLS_PER_S = 5


class Budget:
    """`level` may fall below zero by `charge`; it then takes that long to be allowed again."""

    __slots__ = ("_at_s", "_capacity", "_level", "_rate")

    def __init__(self, rate_per_s: float) -> None:
        self._rate = rate_per_s
        self._capacity = rate_per_s
        self._level = rate_per_s
        self._at_s = 0.0

    def level(self, now_s: float) -> float:
        if now_s > self._at_s:
            self._level = min(self._capacity, self._level + (now_s - self._at_s) * self._rate)
            self._at_s = now_s
        return self._level

    def charge(self, amount: float, now_s: float) -> None:
        """More than a second's worth at once forfeits what was saved up: 10 MiB at 2 MiB/s is 5 s of silence."""
        level = self.level(now_s)
        self._level = min(level, 0.0) - amount if amount > self._capacity else level - amount

    def ready_in_s(self, now_s: float) -> float:
        """Seconds until the level is above zero again; 0 when it is."""
        level = self.level(now_s)
        return 0.0 if level > 0 else -level / self._rate


class ShardLimits:
    """The budgets that all producers and all polling consumers of one shard share."""

    __slots__ = ("_iterator_calls", "_read_bytes", "_read_calls", "_write_bytes", "_write_records")

    def __init__(self) -> None:
        self._write_bytes = Budget(WRITE_BYTES_PER_S)
        self._write_records = Budget(WRITE_RECORDS_PER_S)
        self._read_bytes = Budget(READ_BYTES_PER_S)
        self._read_calls = Budget(READ_CALLS_PER_S)
        self._iterator_calls = Budget(READ_CALLS_PER_S)

    def admit_write(self, size_bytes: int, now_s: float) -> bool:
        """Whether one record (bytes of its payload and key) may be written now; if so it is charged."""
        if self._write_records.level(now_s) < 1 or self._write_bytes.level(now_s) < size_bytes:
            return False
        self._write_records.charge(1, now_s)
        self._write_bytes.charge(size_bytes, now_s)
        return True

    def admit_read(self, now_s: float) -> bool:
        if self._read_calls.level(now_s) < 1 or self._read_bytes.level(now_s) <= 0:
            return False
        self._read_calls.charge(1, now_s)
        return True

    def charge_read(self, size_bytes: int, now_s: float) -> None:
        self._read_bytes.charge(size_bytes, now_s)

    def admit_iterator(self, now_s: float) -> bool:
        if self._iterator_calls.level(now_s) < 1:
            return False
        self._iterator_calls.charge(1, now_s)
        return True
