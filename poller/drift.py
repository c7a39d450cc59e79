"""The shape of a source's rows, and what is new about it: a field that came, went, or holds something else.  (pure)

The shape is learned from the first rows: which fields there are, of what kinds their values are, and which of them every
row had. From then on each row is compared with it. What follows is the source's `drift`:

    warn        it is told once, and belongs to the shape from then on
    quarantine  rows that lack a field, or hold something else in one, are quarantined; a new field is only told
    stop        nothing more is published until a person accepts: `tidegate sources resume NAME --accept-shape`

A null says nothing about a field's kind. Fields of objects count by their dotted path, what is in lists does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import islice
from typing import Any, Literal, NamedTuple

import msgspec

from poller.source import FileRow
from tidegate.feeds import RawRow

LEARN_ROWS = 1_000
_DEPTH = 3
_FORMS = 5_000
_NOTES = 20
_NULL = "null"
_KINDS: Mapping[type, str] = {
    type(None): _NULL, bool: "boolean", int: "number", float: "number", str: "text", list: "list", tuple: "list",
}  # fmt: skip
_FLAT = frozenset(_KINDS)

Policy = Literal["warn", "quarantine", "stop"]


class Kind(StrEnum):
    NEW = "new"
    MISSING = "missing"
    RETYPED = "retyped"


class Drift(NamedTuple):
    """What one row has that the shape has not. `holds` is the kind of the value, `text` is for people."""

    kind: Kind
    field: str
    holds: str
    text: str


class Shape(msgspec.Struct, kw_only=True):
    """`fields` by dotted path: the kinds of their values. `always`: those that every row had. `rows` were learned from.

    `accepted` is the number of times that a person accepted another one.
    """

    fields: dict[str, list[str]] = {}
    always: list[str] = []
    rows: int = 0
    accepted: int = 0


class ShapeWatch:
    """Watches over the rows of one source. `is_dirty`: the shape is to be kept."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._forms: dict[object, tuple[Drift, ...]] = {}
        self._told: set[Drift] = set()
        self.shape = Shape()
        self.is_dirty = False
        self.notes: list[str] = []

    def begin(self, shape: Shape | None) -> None:
        """Go on from a shape that was kept; None: there is none."""
        self.shape = shape or Shape()
        self._forms.clear()

    def accept(self, number: int) -> bool:
        """A person accepted for the `number`th time: learn anew. False: that is known."""
        if number <= self.shape.accepted:
            return False
        self.begin(Shape(accepted=number))
        self.notes.clear()
        self._told.clear()
        self.is_dirty = True
        return True

    def look(self, rows: Iterable[RawRow]) -> list[Drift]:
        """Compare, or learn from, rows; answers what is new, each once."""
        found: list[Drift] = []
        readable = (row for row in rows if not (isinstance(row, FileRow) and row.fault))
        for row in islice(readable, max(0, LEARN_ROWS - self.shape.rows)):
            self._learn(row)
        others = list(readable)
        if self._has_only_known(others):
            return found
        for form, row in {_form(row, _DEPTH): row for row in others}.items():
            for drift in self._drifts(form, row):
                if drift not in self._told:
                    self._told.add(drift)
                    found.append(drift)
        if found:
            self.notes = [*self.notes, *(drift.text for drift in found)][-_NOTES:]
            if self._policy == "warn":
                self._extend(found)
        return found

    def _has_only_known(self, rows: Sequence[RawRow]) -> bool:
        """Whether it is quickly told that nothing is new in any of them: flat rows, all with the same fields."""
        if len(forms := set(map(tuple, rows))) != 1:
            return not forms
        [names] = forms
        for name, values in zip(names, zip(*[row.values() for row in rows], strict=True), strict=True):
            kinds = set(map(_KINDS.get, set(map(type, values))))
            if name not in self.shape.fields or not kinds.issubset((*self.shape.fields[name], _NULL)):
                return False
        return set(self.shape.always).issubset(names)

    @property
    def judges(self) -> bool:
        """Whether there may be rows that are not to be translated."""
        return self._policy == "quarantine" and self.shape.rows >= LEARN_ROWS

    def fault(self, row: RawRow) -> str:
        """Why a row is not to be translated; "" when it may be."""
        if not self.judges:
            return ""
        drifts = [drift.text for drift in self._drifts(_form(row, _DEPTH), row) if drift.kind is not Kind.NEW]
        return "; ".join(drifts)

    def refusal(self) -> str:
        """Why nothing may be published now; "" when it may."""
        return "; ".join(self.notes) if self._policy == "stop" else ""

    def _drifts(self, form: object, row: RawRow) -> tuple[Drift, ...]:
        known = self._forms.get(form)
        if known is None:
            if len(self._forms) >= _FORMS:
                self._forms.clear()
            known = self._forms[form] = tuple(self._compare(dict(_kinds(row, "", _DEPTH))))
        return known

    def _compare(self, kinds: Mapping[str, str]) -> Iterable[Drift]:
        fields = self.shape.fields
        for name, kind in kinds.items():
            expected = fields.get(name)
            if expected is None:
                yield Drift(Kind.NEW, name, kind, f"there is a new field {name!r} ({kind})")
            elif kind != _NULL and kind not in expected and expected != [_NULL]:
                was = " or ".join(each for each in expected if each != _NULL)
                yield Drift(Kind.RETYPED, name, kind, f"the field {name!r} holds {kind}, and held {was}")
        for name in self.shape.always:
            if name not in kinds:
                yield Drift(Kind.MISSING, name, "", f"the field {name!r} is missing")

    def _learn(self, row: RawRow) -> None:
        shape, kinds = self.shape, dict(_kinds(row, "", _DEPTH))
        for name, kind in kinds.items():
            known = shape.fields.setdefault(name, [])
            if kind not in known:
                known.append(kind)
        shape.always = [name for name in (shape.always if shape.rows else kinds) if name in kinds]
        shape.rows += 1
        self.is_dirty = True

    def _extend(self, found: Iterable[Drift]) -> None:
        for drift in found:
            if drift.kind is Kind.MISSING:
                self.shape.always.remove(drift.field)
            else:
                self.shape.fields.setdefault(drift.field, []).append(drift.holds)
        self._forms.clear()
        self.is_dirty = True


def _form(row: Mapping[str, Any], depth: int) -> object:
    """The same for rows of the same fields and types, and quick to have."""
    types = tuple(map(type, row.values()))
    if depth and not _FLAT.issuperset(types):
        return tuple(row), tuple(
            _form(value, depth - 1) if isinstance(value, dict) else type(value) for value in row.values()
        )
    return tuple(row), types


def _kinds(row: Mapping[str, Any], prefix: str, depth: int) -> Iterable[tuple[str, str]]:
    for name, value in row.items():
        if isinstance(value, dict) and depth:
            yield f"{prefix}{name}", "object"
            yield from _kinds(value, f"{prefix}{name}.", depth - 1)
        else:
            yield f"{prefix}{name}", _KINDS.get(type(value), "object")
