"""Sources for people: a table of all, one in full, an errand's progress, a translator's trial.  (pure)"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct

from tidegate.signals import Control, Signal, State, Verb

_OLD_S = 60
"""A poller says something of its sources three times in this time."""


class View(Struct, frozen=True, kw_only=True):
    """One source as the tools show it; also its JSON. `state` None: no poller has ever said anything of it."""

    name: str
    entity: str
    feed: str
    state: State | None
    control: Control
    signals: tuple[Signal, ...]
    files: tuple[dict[str, Any], ...] = ()

    @property
    def errand(self) -> Signal | None:
        return next((signal for signal in self.signals if not signal.is_over), None)


def table(views: Sequence[View], now: datetime) -> Iterator[str]:
    rows = [("SOURCE", "DOING", "KEYS", "FRESH", "ERRAND", "REMARK")]
    for view in views:
        errand = view.errand
        rows.append(
            (
                view.name,
                _doing(view, now),
                "" if view.state is None else str(view.state.keys),
                "-" if view.state is None else _age(view.state.as_of, view.state.at),
                "" if errand is None else f"{errand.verb} {errand.standing}",
                _remark(view),
            )
        )
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]) - 1)]
    for row in rows:
        yield "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()


def whole(view: View, now: datetime) -> Iterator[str]:
    state, control = view.state, view.control
    yield f"source {view.name}: {view.feed} of {view.entity}"
    yield f"  doing     {_doing(view, now)}"
    if control.paused:
        since = "" if control.at is None else f" since {control.at:%Y-%m-%d %H:%M:%SZ}"
        yield f"  paused    by {control.by or 'somebody'}{since}{': ' if control.reason else ''}{control.reason}"
    if state is not None:
        yield f"  poller    {state.owner}, epoch {state.epoch}, told {_age(state.at, now)} ago"
        yield f"  rows      {state.keys} keys, translation {state.translation}"
        fresh = "no watermark yet" if state.as_of is None else f"{_age(state.as_of, state.at)} old when that was told"
        yield f"  fresh     {fresh}"
        if state.mark:
            yield f"  file      {state.mark}"
        for fault in _faults(state):
            yield f"  ATTENTION {fault}"
    yield from _errands(view.signals, now)
    yield from _files(view.files)


def progress(signal: Signal) -> str:
    return (
        f"{signal.verb} {signal.standing}: {signal.rows} rows, {signal.published} published"
        f"{', ' if signal.note else ''}{signal.note}"
    )


def is_silent(state: State | None, now: datetime) -> bool:
    """Whether no poller works on the source, as far as can be seen."""
    return state is None or (now - state.at).total_seconds() > _OLD_S


def in_the_way(verb: Verb, name: str, state: State | None, control: Control, now: datetime) -> str:
    """Why an errand does not begin at once; "" when it does."""
    if is_silent(state, now):
        return f"no poller works on {name!r} now; it begins when one does"
    if control.paused:
        return f"{name!r} is paused; it begins after: tidegate sources resume {name}"
    if verb.asks and state is not None and state.doing == "closed":
        return f"the back office of {name!r} is not to be asked now; it begins when it may be"
    return ""


def tried(trials: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for at, trial in enumerate(trials, start=1):
        yield f"--- row {at} of {len(trials)}{' ' if trial['origin'] else ''}{trial['origin']}"
        yield f"raw     {_json(trial['raw'])}"
        if trial["error"]:
            yield f"ERROR   {trial['error']}"
        else:
            yield f"entity  {_json(trial['entity'])}"
            yield f"event   {_json(trial['event'])}"


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode().replace("\n", "\n        ")


def _doing(view: View, now: datetime) -> str:
    if is_silent(view.state, now):
        return "no poller" if view.state is None else f"no poller for {_age(view.state.at, now)}"
    assert view.state is not None
    return "paused" if view.control.paused else view.state.doing


def _remark(view: View) -> str:
    faults = [] if view.state is None else list(_faults(view.state))
    refused = sum(entry.get("fate") == "refused" for entry in view.files)
    return "; ".join([*faults, *([f"{refused} files refused"] if refused else [])])


def _faults(state: State) -> Iterator[str]:
    if state.held:
        yield "mass deletion held: see `sources sweep --allow-mass-deletion`"
    if state.error:
        yield state.error
    if state.doubt and not state.held:
        yield "rows may have been missed; a sweep is under way"
    for drift in state.drift:
        yield f"shape: {drift}"


def _errands(signals: Sequence[Signal], now: datetime) -> Iterator[str]:
    if not signals:
        return
    yield "errands"
    for signal in reversed(signals):
        what = " ".join([signal.since or "", *signal.keys[:5]]).strip()
        yield f"  {_age(signal.asked_at, now)} ago by {signal.by or '?'}: {progress(signal)}{' ' if what else ''}{what}"


def _files(files: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not files:
        return
    yield "files"
    for entry in files:
        faults = f", {entry['faults']} bad" if entry.get("faults") else ""
        reason = f": {entry['reason']}" if entry.get("reason") else ""
        yield f"  {entry['at'][:19]}  {entry['fate']:<10}  {entry['name']}  {entry.get('rows', 0)} rows{faults}{reason}"


def _age(then: datetime | None, now: datetime) -> str:
    if then is None:
        return "-"
    seconds = max(0, round((now - then).total_seconds()))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
