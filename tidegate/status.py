"""How a deployment is, judged from what its servers say about themselves.  (pure)

`tidegate status` asks (`tidegate.cli.status_run`), here the answers become lines: each names a section and a subject,
says in one sentence how it is, and is `ok`, a `note` or a `breach`. The limits are those at which a person should act;
they are later than the alarms, which watch all the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

from msgspec import Struct

Section = Literal["freshness", "letters", "outbox", "shards", "sources"]
State = Literal["ok", "note", "breach"]
SECTIONS: tuple[Section, ...] = ("freshness", "letters", "outbox", "shards", "sources")


class Limits(Struct, frozen=True, kw_only=True):
    """What is still well. Ages and lags in seconds."""

    age_s: float = 300.0
    lag_s: float = 60.0
    letters: int = 0
    outbox_age_s: float = 900.0


class Freshness(Struct, frozen=True, kw_only=True):
    """One source as `tidegate.data_as_of` knows it. `age_s` None: not the whole truth at the moment.

    watermarked  whether the source can say how fresh it is
    letters      open dead letters of its rows; gap: an open gap in the stream, which counts for every source
    """

    source: str
    age_s: float | None
    watermarked: bool = True
    letters: int = 0
    gap: bool = False


class Letters(Struct, frozen=True, kw_only=True):
    """One group of open dead letters."""

    fingerprint: str
    stage: str
    reason: str
    entity: str | None
    letters: int
    oldest_s: float


class Waiting(Struct, frozen=True, kw_only=True):
    """What the outbox holds for one destination. `known`: the bubble still has it; `oldest_s` None: nothing waits."""

    destination: str
    known: bool
    waiting: int
    oldest_s: float | None
    dead: int


class ShardLease(Struct, frozen=True, kw_only=True):
    """One shard that is open or not read to its end. `lag_ms` None: not asked, or no place to measure from.

    leased     it has a lease; live: somebody works on it, None: nobody holds it
    waits_for  parents that are not read to their end: it starts after them
    """

    shard: str
    leased: bool
    holder: str | None
    live: bool | None
    lag_ms: int | None
    waits_for: tuple[str, ...] = ()


class Polled(Struct, frozen=True, kw_only=True):
    """One source as its poller left it. `loaded` and `doubt` are of its cursor; `loaded` None: it has no cursor yet."""

    source: str
    holder: str | None
    live: bool | None
    loaded: bool | None
    doubt: bool


class Line(Struct, frozen=True, kw_only=True):
    """One line of the report, for people and, as JSON, for programs. `figures` hold what the text says in numbers."""

    section: Section
    subject: str
    state: State
    text: str
    figures: Mapping[str, float | int | str | bool | None] = {}


# ---------------------------------------------------------------- judging, section by section


def freshness(found: Iterable[Freshness], limits: Limits) -> Iterator[Line]:
    for each in found:
        state, text = _freshness(each, limits)
        yield Line(
            section="freshness", subject=each.source, state=state, text=text,
            figures={"age_s": each.age_s, "letters": each.letters, "gap": each.gap},
        )  # fmt: skip


def _freshness(each: Freshness, limits: Limits) -> tuple[State, str]:
    if not each.watermarked:
        return "note", "does not say how fresh it is (watermark=False)"
    if each.age_s is not None:
        old = f"as of {span(each.age_s)} ago"
        if each.age_s <= limits.age_s:
            return "ok", old
        return "breach", f"{old}, more than {span(limits.age_s)}: is the back office, its poller or a worker away?"
    if each.gap:
        return "breach", "incomplete: a gap in the stream is open; republish the sources, then drop its letter"
    if each.letters:
        return "breach", f"incomplete: {count(each.letters, 'dead letter')} of its rows open"
    return "breach", "incomplete: no watermark of it has reached every shard yet"


def letters(found: Sequence[Letters], limits: Limits) -> Iterator[Line]:
    total = sum(group.letters for group in found)
    if not found:
        yield Line(section="letters", subject="all", state="ok", text="none open", figures={"letters": 0})
    for group in found:
        of = f" of {group.entity}" if group.entity else ""
        yield Line(
            section="letters", subject=group.fingerprint, state="breach" if total > limits.letters else "note",
            text=f"{count(group.letters, 'dead letter')}{of} open, {group.stage}: {group.reason}, "
            f"the first {span(group.oldest_s)} ago",
            figures={"letters": group.letters, "oldest_s": group.oldest_s},
        )  # fmt: skip


def outbox(found: Iterable[Waiting], limits: Limits) -> Iterator[Line]:
    for each in found:
        state, text = _waiting(each, limits)
        yield Line(
            section="outbox", subject=each.destination, state=state, text=text,
            figures={"waiting": each.waiting, "oldest_s": each.oldest_s, "dead": each.dead},
        )  # fmt: skip


def _waiting(each: Waiting, limits: Limits) -> tuple[State, str]:
    if each.oldest_s is None:
        text = "nothing waits"
    else:
        text = f"{count(each.waiting, 'change')} waiting, the oldest for {span(each.oldest_s)}"
    if not each.known and (each.waiting or each.dead):
        return "breach", f"{text}; the bubble has no such destination any more, so nobody sends it"
    if each.dead:
        return "breach", f"{text}; {count(each.dead, 'change')} given up"
    if each.oldest_s is not None and each.oldest_s > limits.outbox_age_s:
        return "breach", f"{text}, more than {span(limits.outbox_age_s)}: is the receiver away?"
    return "ok", text


def shards(found: Iterable[ShardLease], limits: Limits) -> Iterator[Line]:
    for each in found:
        state, text = _shard(each, limits)
        yield Line(
            section="shards", subject=each.shard, state=state, text=text,
            figures={"holder": each.holder, "live": each.live, "lag_ms": each.lag_ms},
        )  # fmt: skip


def _shard(each: ShardLease, limits: Limits) -> tuple[State, str]:
    lag = "" if each.lag_ms is None else f", {span(each.lag_ms / 1000)} behind the tip"
    if not each.leased:
        return "breach", "has no lease: no worker knows of it yet"
    if each.holder is None and each.waits_for:
        return "note", f"waits until {', '.join(each.waits_for)} is read to the end"
    if each.holder is None:
        return "breach", f"free: nobody works on it{lag}"
    if not each.live:
        return "breach", f"held by {each.holder}, which shows no sign of life{lag}"
    if each.lag_ms is not None and each.lag_ms > limits.lag_s * 1000:
        return "breach", f"{each.holder} works on it{lag}, more than {span(limits.lag_s)}"
    return "ok", f"{each.holder} works on it{lag}"


def sources(found: Iterable[Polled]) -> Iterator[Line]:
    for each in found:
        state, text = _polled(each)
        yield Line(
            section="sources", subject=each.source, state=state, text=text,
            figures={"holder": each.holder, "live": each.live, "loaded": each.loaded, "doubt": each.doubt},
        )  # fmt: skip


def _polled(each: Polled) -> tuple[State, str]:
    if each.loaded is None and each.holder is None:
        return "breach", "was never polled"
    if each.holder is None:
        return "breach", "free: nobody polls it"
    if not each.live:
        return "breach", f"held by {each.holder}, which shows no sign of life"
    if not each.loaded:
        return "note", f"{each.holder} polls it; its first load is under way"
    if each.doubt:
        return "note", f"{each.holder} polls it; rows may have slipped a walk, a sweep has to prove otherwise"
    return "ok", f"{each.holder} polls it"


# ---------------------------------------------------------------- the report


def breaches(lines: Iterable[Line]) -> int:
    return sum(line.state == "breach" for line in lines)


_MARKS: Mapping[State, str] = {"ok": "ok", "note": "note", "breach": "BREACH"}
_GOOD_SHOWN = 8
"""A section with more lines than this shows those that are well as one line."""


def report(lines: Sequence[Line], *, all_of_them: bool) -> Iterator[str]:
    """For a person: what is wrong stands out, and hundreds of shards that are well take one line."""
    for section in SECTIONS:
        mine = [line for line in lines if line.section == section]
        good = [line for line in mine if line.state == "ok"]
        shown = mine if all_of_them or len(mine) <= _GOOD_SHOWN else [line for line in mine if line not in good]
        width = max((len(line.subject) for line in shown), default=0)
        for line in shown:
            yield f"{section:<10} {_MARKS[line.state]:<6} {line.subject:<{width}}  {line.text}"
        if len(shown) < len(mine):
            yield f"{section:<10} {_MARKS['ok']:<6} {len(good)} others are well (--all names them)"
    wrong = breaches(lines)
    yield ""
    yield "all is well" if not wrong else f"{count(wrong, 'breach', 'breaches')}; docs/RUNBOOK.md says what to do"


def span(seconds: float) -> str:
    """A duration for a person, in the unit that fits."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 72 * 3600 else f"{seconds / 86_400:.0f} days"


def count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
