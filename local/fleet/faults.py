"""What goes wrong in a simulated fleet: how often, for how long, when, and to whom. Seeded.

Calls to the table: a request gets lost, its reply gets lost, either comes late (the caller has given up long before),
or the table is throttled. Whole processes: one stands still, or is cut off the network. Both come in two lengths:
*short* is meant to be survived, *long* is beyond every patience, so that others must take the leases over.

Clocks run fast or slow all the time, in every phase.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, NamedTuple

from msgspec import Meta, Struct

Range = tuple[float, float]


class Faults(Struct, frozen=True, kw_only=True):
    """Rates and lengths. A short fault plus a whole renewal interval must stay below the patience."""

    lost_request: Annotated[float, Meta(description="share of calls")] = 0.001
    lost_reply: Annotated[float, Meta(description="share of calls")] = 0.001
    late_request: Annotated[float, Meta(description="share of calls")] = 0.0005
    late_reply: Annotated[float, Meta(description="share of calls")] = 0.0005
    late_s: Annotated[Range, Meta(description="how much later")] = (0.5, 20.0)
    throttle_every_s: Annotated[float, Meta(description="mean time between two throttled spells of the table")] = 60.0
    throttle_s: Annotated[Range, Meta(description="how long one lasts")] = (0.5, 2.0)
    throttle_share: Annotated[float, Meta(description="share of the calls refused meanwhile")] = 0.3
    short_per_worker_hour: Annotated[float, Meta(description="short stalls, and as many short cuts")] = 4.0
    short_s: Annotated[Range, Meta(description="how long one lasts")] = (0.3, 3.0)
    long_per_worker_hour: Annotated[float, Meta(description="long stalls, and as many long cuts")] = 0.3
    long_s: Annotated[Range, Meta(description="how long one lasts; more than the expiry")] = (12.0, 30.0)
    drift: Annotated[Range, Meta(description="clocks run this share fast or slow")] = (0.001, 0.01)


class Trouble(NamedTuple):
    """One fault of a whole process, in true seconds."""

    kind: str  # short_stall, long_stall, short_cut, long_cut
    worker: int
    begins_s: float
    lasts_s: float

    @property
    def ends_s(self) -> float:
        return self.begins_s + self.lasts_s


def was_away(plan: Iterable[Trouble], since_s: float, until_s: float, longer_than_s: float) -> bool:
    """Whether a worker with these troubles was in one so long at any time between the two."""
    return any(
        trouble.lasts_s > longer_than_s and trouble.begins_s < until_s and trouble.ends_s > since_s for trouble in plan
    )


# Between two troubles of one worker: it must have come to rest before the next.
_REST_S = 45.0
_DRAWS = 50


def troubles(faults: Faults, workers: int, begins_s: float, ends_s: float, seed: int) -> list[Trouble]:
    """Stalls and cuts of a phase, in the order of time; at least one of each kind that fits into it."""
    draw = random.Random(seed)
    hours = workers * (ends_s - begins_s) / 3600
    plan: list[Trouble] = []
    left = {
        f"{length}_{kind}": (max(1, round(rate * hours)) if rate else 0, lasts)
        for length, rate, lasts in (
            ("long", faults.long_per_worker_hour, faults.long_s),
            ("short", faults.short_per_worker_hour, faults.short_s),
        )
        for kind in ("stall", "cut")
    }
    for number in range(max(count for count, _ in left.values())):
        for kind, (count, lasts) in left.items():
            if number < count:
                plan.extend(_place(plan, kind, lasts, workers, (begins_s, ends_s), draw))
    return sorted(plan, key=lambda trouble: (trouble.begins_s, trouble.worker))


def _place(
    plan: Sequence[Trouble], kind: str, lasts: Range, workers: int, phase: Range, draw: random.Random
) -> list[Trouble]:
    """One more trouble, at a time when its worker is at rest; none if there is no such time."""
    for _ in range(_DRAWS):
        lasts_s = draw.uniform(*lasts)
        new = Trouble(kind, draw.randrange(workers), draw.uniform(phase[0], max(phase[0], phase[1] - lasts_s)), lasts_s)
        if all(_apart(new, other) for other in plan if other.worker == new.worker):
            return [new]
    return []


def _apart(one: Trouble, other: Trouble) -> bool:
    return one.begins_s > other.ends_s + _REST_S or other.begins_s > one.ends_s + _REST_S


class Weather:
    """What happens to one call to the table, drawn call by call, while the faults are on."""

    def __init__(self, faults: Faults, seed: int) -> None:
        self.injected: Counter[str] = Counter()
        self.is_on = False
        self._faults = faults
        self._draw = random.Random(seed)
        self._spells = random.Random(seed + 1)
        self._spell_begins_s = self._spell_ends_s = 0.0
        edges = (faults.lost_request, faults.lost_reply, faults.late_request, faults.late_reply)
        self._any = sum(edges)
        self._edges = [
            (sum(edges[: index + 1]), kind)
            for index, kind in enumerate(("lost_request", "lost_reply", "late_request", "late_reply"))
        ]

    def set(self, is_on: bool, now_s: float) -> None:
        self.is_on = is_on
        self._next_spell(now_s)

    def of_call(self) -> str | None:
        """The fault of one call, if any."""
        if not self.is_on:
            return None
        value = self._draw.random()
        if value >= self._any:
            return None
        kind = next(kind for edge, kind in self._edges if value < edge)
        self.injected[kind] += 1
        return kind

    def late_s(self) -> float:
        return self._draw.uniform(*self._faults.late_s)

    def is_throttled(self, now_s: float) -> bool:
        """Whether the table refuses the call that arrives now."""
        if not self.is_on or now_s < self._spell_begins_s:
            return False
        if now_s >= self._spell_ends_s:
            self._next_spell(now_s)
            return False
        refused = self._spells.random() < self._faults.throttle_share
        self.injected["throttled"] += refused
        return refused

    def _next_spell(self, now_s: float) -> None:
        self._spell_begins_s = now_s + self._spells.expovariate(1 / self._faults.throttle_every_s)
        self._spell_ends_s = self._spell_begins_s + self._spells.uniform(*self._faults.throttle_s)
