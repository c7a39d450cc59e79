"""The manners of a legacy API: a key, a request budget, a slow answer now and then, closed at night.

Order of the checks: outage, API key (401), nightly batch (503), request budget (429), slow answer.
`patient=True` (--no-manners) leaves only the outage and the API key.
"""

import asyncio
import hmac
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from datetime import time as time_of_day
from zoneinfo import ZoneInfo

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MINUTES_A_DAY = 24 * 60


@dataclass(frozen=True, slots=True)
class Night:
    """The nightly batch window in local time; may run over midnight; the end is not part of it."""

    start: time_of_day
    end: time_of_day

    @classmethod
    def parse(cls, text: str) -> "Night":
        """Read `01:30-02:15`. Raises ValueError."""
        try:
            start, end = (time_of_day.fromisoformat(part) for part in text.split("-"))
        except ValueError:
            raise ValueError(f"not a nightly window hh:mm-hh:mm: {text}") from None
        return cls(start, end)

    def minutes_left(self, now: time_of_day) -> int:
        """Minutes until the batch ends, 0 when it is not running."""
        start, end, at = (moment.hour * 60 + moment.minute for moment in (self.start, self.end, now))
        length = (end - start) % MINUTES_A_DAY
        since = (at - start) % MINUTES_A_DAY
        return max(0, length - since)


@dataclass(frozen=True, slots=True)
class Rules:
    """Settings of the manners; `slow_share` is the part of all requests that gets a slow answer."""

    requests_per_s: float = 25.0
    slow_share: float = 0.004
    slow_most_s: float = 1.5
    night: Night | None = None
    patient: bool = False


class Budget:
    """A token bucket that holds one second's worth of requests. `clock` is monotonic, in seconds."""

    def __init__(self, requests_per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = requests_per_s
        self._most = max(1.0, requests_per_s)
        self._tokens = self._most
        self._clock = clock
        self._at = clock()

    def take(self) -> float:
        """0.0 when the request is within the budget, else how many seconds to wait."""
        now = self._clock()
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate


@dataclass(slots=True)
class Tally:
    """How the legacy API answered since the process started; live counters of the screen."""

    served: int = 0
    unauthorized: int = 0
    throttled: int = 0
    unavailable: int = 0
    slow: int = 0


@dataclass(slots=True)
class Manners:
    """Stands before every legacy route. `refusal(status, text)` writes an error in the office's dialect."""

    rules: Rules
    api_key: str
    key_in: Callable[[web.Request], str]
    refusal: Callable[[int, str], bytes]
    zone: ZoneInfo
    rng: random.Random = field(default_factory=random.Random)
    outage: bool = False
    tally: Tally = field(default_factory=Tally)
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    _budget: Budget = field(init=False)

    def __post_init__(self) -> None:
        self._budget = Budget(self.rules.requests_per_s)

    def before(self, handler: Handler) -> Handler:
        """The handler, asked only when the request passes."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            refused = self._refuse(request)
            if refused is not None:
                return refused
            if not self.rules.patient and self.rng.random() < self.rules.slow_share:
                self.tally.slow += 1
                await asyncio.sleep(self.rng.uniform(self.rules.slow_most_s / 3, self.rules.slow_most_s))
            self.tally.served += 1
            return await handler(request)

        return guarded

    def _refuse(self, request: web.Request) -> web.Response | None:
        if self.outage:
            return self._out(request)
        # Compared as bytes: a key with odd characters is wrong, not an error.
        if not hmac.compare_digest(self.key_in(request).encode(), self.api_key.encode()):
            self.tally.unauthorized += 1
            return self._answer(401, "API key missing or wrong")
        if self.rules.patient:
            return None
        left_min = self._night_minutes()
        if left_min:
            self.tally.unavailable += 1
            return self._answer(503, "nightly batch is running", retry_after_s=min(left_min * 60, 300))
        wait_s = self._budget.take()
        if wait_s:
            self.tally.throttled += 1
            return self._answer(429, "too many requests", retry_after_s=math.ceil(wait_s))
        return None

    def _out(self, request: web.Request) -> web.Response:
        self.tally.unavailable += 1
        # Every fourth request just loses its connection, as with a machine that is going down.
        if not self.rules.patient and self.tally.unavailable % 4 == 0 and request.transport is not None:
            request.transport.abort()
        return self._answer(503, "out of service")

    def _night_minutes(self) -> int:
        if self.rules.night is None:
            return 0
        return self.rules.night.minutes_left(self.now().astimezone(self.zone).time())

    def _answer(self, status: int, text: str, retry_after_s: int | None = None) -> web.Response:
        headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
        body = self.refusal(status, text)
        return web.Response(status=status, body=body, headers=headers, content_type="application/json")
