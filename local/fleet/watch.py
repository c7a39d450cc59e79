"""Who works on what, watched from outside: believers, moves, take-overs, checkpoints. The strict part of the simulation.

*Believing.* A process believes in a lease while its task runs and its hold is valid by its own clock. That is checked
whenever a task begins and at every step of every task: another process that believes at that instant counts. A belief
begins with a task and lasts without a gap, so two that overlap are seen when the later one begins.

*Moves.* The holder of a lease is the process whose take was the last to succeed. A lease *moves* when another process
takes it while the former holder lives. Each move has a reason:

- *forced*: the former holder stood still or was cut off for longer than the patience, during the last expiry before
  the take; or the lease goes to such a process, in return for one it lost that way (one for one, and not more).
- *unexplained*: everything else, lost requests, short stalls, throttling, noise and drift included. None of them is
  an excuse.

What a dead process had held is *taken over*, which is no move.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

from tidegate.leases import Hold, Lease

# Of each kind of finding so many are kept in words.
_TRACES = 20


class Worker(Protocol):
    """What must be known of a process to judge a move."""

    @property
    def name(self) -> str: ...
    @property
    def is_dead(self) -> bool: ...
    def clock_s(self) -> float: ...
    def was_away(self, since_s: float, until_s: float, longer_than_s: float) -> bool: ...


class Work:
    """One task of one process under one lease."""

    __slots__ = ("began_s", "hold", "worker")

    def __init__(self, worker: Worker, hold: Hold, began_s: float) -> None:
        self.worker = worker
        self.hold = hold
        self.began_s = began_s

    def is_believed(self) -> bool:
        return not self.worker.is_dead and self.hold.is_valid(self.worker.clock_s())


class Watch:
    """Sees every task begin, step and end, and every write to the table."""

    def __init__(self, now_s: Callable[[], float], leases: int, *, expiry_s: float, patience_s: float) -> None:
        self.is_converged = False  # from then on every unexplained move is kept in words
        self.two_believers = 0
        self.checkpoints_back = 0
        self.first_takes = 0
        self.moves: Counter[str] = Counter()  # "forced", "unexplained"
        self.changed_s = 0.0  # when a task began last
        self.takeovers_s: list[float] = []
        self.traces: list[str] = []
        self._now_s = now_s
        self._leases = leases
        self._expiry_s = expiry_s
        self._patience_s = patience_s
        self._workers: dict[str, Worker] = {}
        self._working: dict[str, list[Work]] = {}
        self._holder: dict[str, Worker] = {}
        self._owed: Counter[str] = Counter()  # by worker: leases that it lost by force and has not got back
        self._orphans: dict[str, float] = {}  # by lease: when the process that worked on it was killed

    def join(self, worker: Worker) -> None:
        self._workers[worker.name] = worker

    # ------------------------------------------------------------------ tasks

    def began(self, worker: Worker, hold: Hold) -> Work:
        work = Work(worker, hold, self._now_s())
        self.changed_s = work.began_s
        self._working.setdefault(hold.key, []).append(work)
        self.stepped(work)
        killed_s = self._orphans.pop(hold.key, None)
        if killed_s is not None:
            self.takeovers_s.append(work.began_s - killed_s)
        return work

    def stepped(self, work: Work) -> None:
        """A task does something to the outside world: nobody else may believe that it may, too."""
        believers = self._working[work.hold.key]
        if len(believers) == 1:
            return
        for other in believers:
            if other is not work and other.is_believed():
                self.two_believers += 1
                self._trace(f"{work.worker.name} and {other.worker.name} both work on {work.hold.key}")

    def ended(self, work: Work) -> None:
        """Its task has returned. A dead process's task has ended long before."""
        if not work.worker.is_dead:
            self._end(work)

    def _end(self, work: Work) -> None:
        works = self._working[work.hold.key]
        works.remove(work)
        if not works:
            del self._working[work.hold.key]

    def killed(self, worker: Worker) -> None:
        """A process is dead: what it worked on waits for another."""
        for key, works in list(self._working.items()):
            for work in works:
                if work.worker is worker:
                    self._orphans[key] = self._now_s()
                    self._end(work)

    @property
    def worked_on(self) -> int:
        """Leases that somebody's task runs for."""
        return len(self._working)

    def is_full(self) -> bool:
        return self.worked_on == self._leases

    def believed(self) -> int:
        """Leases that exactly one process believes in, and works on."""
        return sum(sum(work.is_believed() for work in works) == 1 for works in self._working.values())

    def loads(self) -> Counter[str]:
        """Leases worked on, by worker."""
        return Counter(work.worker.name for works in self._working.values() for work in works)

    # ------------------------------------------------------------------ the table

    def written(self, before: Lease, after: Lease) -> None:
        """One write was done: `before` is what the table held."""
        if after.checkpoint is not before.checkpoint and after.checkpoint < before.checkpoint:
            self.checkpoints_back += 1
            self._trace(f"{after.key}: the checkpoint fell from {before.checkpoint} to {after.checkpoint}")
        if after.epoch > before.epoch and after.owner is not None:
            self._taken(before, self._workers[after.owner])

    def _taken(self, before: Lease, taker: Worker) -> None:
        holder = self._holder.get(before.key)
        self._holder[before.key] = taker
        now_s = self._now_s()
        if holder is None:
            self.first_takes += 1
            return
        if holder is taker or holder.is_dead:
            return
        if holder.was_away(now_s - self._expiry_s, now_s, self._patience_s):
            self._owed[holder.name] += 1
            self.moves["forced"] += 1
        elif self._owed[taker.name] > 0:
            self._owed[taker.name] -= 1
            self.moves["forced"] += 1
        else:
            self.moves["unexplained"] += 1
            if self.is_converged:
                self._trace(
                    f"{before.key} moved from {holder.name} to {taker.name}; before: owner {before.owner}, "
                    f"checkpoint owner {before.checkpoint_owner}, counter {before.counter}"
                )

    def _trace(self, text: str) -> None:
        if len(self.traces) < _TRACES:
            self.traces.append(f"{self._now_s():.3f} s: {text}")
