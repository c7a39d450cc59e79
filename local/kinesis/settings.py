"""What can be set on the stand-in, and the clock it reads."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ACCOUNT_ID = "000000000000"


@dataclass(frozen=True, slots=True)
class Clock:
    """`now_ms`: wall clock, stamps records. `monotonic_s`: drives the budgets. Tests pass their own."""

    now_ms: Callable[[], int] = field(default=lambda: time.time_ns() // 1_000_000)
    monotonic_s: Callable[[], float] = field(default=time.monotonic)


@dataclass(frozen=True, slots=True)
class Settings:
    """Defaults are the service's own. `transition_s` is how long a new or resharded stream is not ACTIVE."""

    data: Path
    host: str = "127.0.0.1"
    port: int = 4567
    region: str = "us-east-1"
    enforce_limits: bool = True
    iterator_expiry_s: float = 300.0
    subscription_s: float = 300.0
    heartbeat_s: float = 5.0
    transition_s: float = 0.0
    segment_bytes: int = 64 * 1024 * 1024
