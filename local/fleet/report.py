"""The figures of one simulated fleet, how each is counted, and how a person reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Annotated

from msgspec import Meta, Struct


class Quantiles(Struct, frozen=True):
    """Seconds; the smallest value that so many percent of the cases do not exceed."""

    p50: float
    p99: float
    max: float


class Report(Struct, frozen=True, kw_only=True):
    """Everything but `real_s` follows from the arguments and the seed alone."""

    shards: int
    workers: int
    seed: int
    minutes: Annotated[float, Meta(description="virtual minutes of the active phase")]
    converged_s: Annotated[float, Meta(description="from the first start until all is worked on and nothing moves")]
    moves: Annotated[int, Meta(description="until then: takes of leases whose former holder lived")]
    moves_after_converged: Annotated[int, Meta(description="active phase: moves that no long stall or cut explains")]
    forced_moves: Annotated[int, Meta(description="active phase: losses by long stalls and cuts, and their return")]
    moves_after_kill: Annotated[int, Meta(description="as moves_after_converged, from the kill to the healing")]
    two_believers: Annotated[int, Meta(description="steps of a task while another process believed, too; whole run")]
    checkpoints_back: Annotated[int, Meta(description="writes that moved a checkpoint back; whole run")]
    unowned: Annotated[int, Meta(description="leases that not exactly one process works on after the healing")]
    left_held: Annotated[int, Meta(description="leases that still have an owner after all have stopped")]
    writes_per_lease_day: Annotated[
        float, Meta(description="write requests in the active phase, failed conditions and retries included")
    ]
    conflicts_per_lease_day: Annotated[float, Meta(description="of them, those whose condition failed")]
    reads_per_worker_s: Annotated[
        float, Meta(description="billed read units, the larger of the active phase and the whole run")
    ]
    takeover_s: Annotated[Quantiles, Meta(description="from the kill until another process's task runs")]
    killed: int
    taken_over: Annotated[int, Meta(description="leases that the killed had worked on")]
    leases_per_worker: Annotated[tuple[int, int], Meta(description="fewest and most, when converged")]
    drained_s: Annotated[float, Meta(description="from SIGTERM to all until the last one has ended")]
    virtual_s: float
    real_s: float
    faults: dict[str, int]
    failures: Annotated[tuple[str, ...], Meta(description="what went wrong, in words; the first few")]

    @property
    def is_sound(self) -> bool:
        """Whether every invariant held. All else is cost, to be judged by the reader."""
        return not (self.two_believers or self.checkpoints_back or self.unowned or self.left_held)


def quantiles(seconds: Sequence[float]) -> Quantiles:
    """Of at least one case; all zero of none."""
    ordered = sorted(seconds) or [0.0]

    def at(share: float) -> float:
        return round(ordered[max(0, ceil(share * len(ordered)) - 1)], 3)

    return Quantiles(at(0.5), at(0.99), at(1.0))


def lines(report: Report) -> Iterator[str]:
    """For people."""
    fewest, most = report.leases_per_worker
    yield f"{report.shards} leases, {report.workers} workers, seed {report.seed}"
    yield f"converged after        {report.converged_s:.1f} s, {report.moves} moves, {fewest} to {most} leases each"
    yield f"two believers          {report.two_believers}"
    yield f"moves after converged  {report.moves_after_converged} in {report.minutes:g} minutes, {report.forced_moves} forced"
    yield f"moves after the kill   {report.moves_after_kill}"
    yield f"checkpoints back       {report.checkpoints_back}"
    yield f"without owner          {report.unowned} after healing, {report.left_held} still held after the end"
    yield (
        f"writes                 {report.writes_per_lease_day:.0f} per lease and day, of them "
        f"{report.conflicts_per_lease_day:.1f} in vain"
    )
    yield f"reads                  {report.reads_per_worker_s:.1f} units per worker and second"
    takeover = report.takeover_s
    yield (
        f"take-over              {takeover.p50:.1f} s p50, {takeover.p99:.1f} s p99, {takeover.max:.1f} s at most "
        f"({report.killed} killed, {report.taken_over} leases)"
    )
    yield f"drained                in {report.drained_s:.1f} s"
    yield "faults                 " + ", ".join(f"{kind} {count}" for kind, count in report.faults.items())
    yield f"time                   {report.virtual_s:.0f} s virtual, {report.real_s:.1f} s real"
    yield from report.failures
