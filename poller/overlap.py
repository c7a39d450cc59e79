"""How late commits are found: the recent past is asked for once more, beside the cursor.  (pure)

A change may become visible long after its timestamp or revision, when the cursor has passed it. So the places that polls
have come to are remembered for one and a half times `overlap_s`, and twice in that time a poll starts at the oldest of them:
whatever was committed since the last such poll, at most `overlap_s` late, lies behind that place. What is known
already is dropped by the index. Nothing of this is durable: after a take a sweep follows soon, and finds the same.
"""

from __future__ import annotations

from collections import deque

from msgspec.structs import replace

from poller.source import FullWalk, Live, Position, SinceKeyset, SinceRevision, SinceTime, SinceToken

_KEPT = 64


class Overlap:
    """Times are the caller's monotonic seconds. `overlap_s` 0: nothing is asked for again."""

    def __init__(self, overlap_s: float) -> None:
        self._overlap_s = overlap_s
        self._places: deque[tuple[float, Live]] = deque(maxlen=_KEPT)
        self._asked_at: float | None = None

    def note(self, now: float, place: Live | None) -> None:
        """A poll has come to the tip, and the next one starts at `place`."""
        if place is None or isinstance(place, SinceToken) or not self._overlap_s:
            return
        if isinstance(place, SinceTime) and (place.page is not None or place.round):
            return
        if not self._places or now - self._places[-1][0] >= self._overlap_s / (_KEPT / 2):
            self._places.append((now, place))
        # The first place that is old enough covers all that is younger.
        while len(self._places) > 1 and now - self._places[1][0] >= 1.5 * self._overlap_s:
            self._places.popleft()

    def again(self, now: float) -> Live | None:
        """Where the poll that begins now starts instead of at the cursor; None: at the cursor."""
        if not self._places:
            return None
        self._asked_at = now if self._asked_at is None else self._asked_at
        if now - self._asked_at < self._overlap_s / 2:
            return None
        self._asked_at = now
        place = self._places[0][1]
        return replace(place, at=place.bound) if isinstance(place, SinceRevision) else place

    def clip(self, place: Position) -> None:
        """The back office's order fell back to `place`: no poll starts beyond it."""
        if not isinstance(place, FullWalk):
            clipped = [(at, place if _is_beyond(known, place) else known) for at, known in self._places]
            self._places = deque(clipped, maxlen=_KEPT)


def _is_beyond(known: Live, place: Position) -> bool:
    match known, place:
        case ((SinceTime(bound=bound) | SinceKeyset(bound=bound)), (SinceTime(bound=limit) | SinceKeyset(bound=limit))):
            return bound > limit
        case SinceRevision(bound=revision), SinceRevision(bound=most):
            return revision > most
    return False
