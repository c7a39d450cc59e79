"""What to do next, and how long to wait for it.  (pure)

One source does one thing at a time. A poll that is due goes first; a sweep gets one page between two polls, even
when polls take longer than their interval, so that neither can starve the other.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    POLL = "poll"
    SWEEP = "sweep"
    WAIT = "wait"


class Agenda(NamedTuple):
    """Times are the caller's monotonic seconds.

    poll_at     when the next request for changes is due; None: the source has none to ask for
    sweep_at    when the next sweep may begin, or go on
    swept_last  the step before this one belonged to the sweep
    in_poll     a poll is under way and has more pages: it is not torn apart
    """

    poll_at: float | None
    sweep_at: float
    swept_last: bool = True
    in_poll: bool = False


class Next(NamedTuple):
    kind: Kind
    wait_s: float = 0.0


def next_step(agenda: Agenda, now: float) -> Next:
    """The one thing to do now, or how long there is nothing to do."""
    sweep_due = now >= agenda.sweep_at
    if agenda.poll_at is None:
        return Next(Kind.SWEEP) if sweep_due else Next(Kind.WAIT, agenda.sweep_at - now)
    poll_due = now >= agenda.poll_at
    if sweep_due and not agenda.in_poll and not (poll_due and agenda.swept_last):
        return Next(Kind.SWEEP)
    if poll_due:
        return Next(Kind.POLL)
    return Next(Kind.WAIT, min(agenda.poll_at, agenda.sweep_at) - now)


def paced_s(interval_s: float, most_s: float | None, quiet: int) -> float:
    """The pause between two polls: the interval while changes come, half as long again after each quiet poll."""
    return interval_s if most_s is None else min(max(interval_s, most_s), interval_s * 1.5 ** min(quiet, 60))


def back_off_s(attempt: int, retry_after_s: float | None, base_s: float, most_s: float, dice: float) -> float:
    """How long to wait after failure number `attempt` (from 1). `dice` is from 0 to 1: full jitter.

    The other side's own wish is waited out before the jitter, up to ten times our longest wait.
    """
    jittered = min(most_s, base_s * 2.0 ** min(attempt - 1, 30)) * dice
    if retry_after_s is None:
        return jittered
    return min(max(0.0, retry_after_s), 10 * most_s) + jittered
