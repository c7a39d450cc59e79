"""Where the rows are in an answer, and what they get from the objects around them.  (pure)

A path is names joined by dots; a name with `[]` after it is a list, and the path goes on in each of its objects:
`customers[].orders` are the orders of every customer of the answer. "" is the whole answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from poller.translate import dig
from tidegate.feeds import RawRow


class Odd(ValueError):
    """The answer is not what the declaration says."""


def rows_at(document: object, path: str, inherit: Mapping[str, str], *, lone: bool = False) -> list[object]:
    """The rows at a path. `lone`: a single object is a list of one, nothing is a list of none (as XML has it).

    Raises Odd when there is no list.
    """
    if not inherit and "[" not in path and not lone:
        found = dig(document, tuple(path.split("."))) if path else document
        if not isinstance(found, list):
            raise Odd(f"no list of rows at {path!r}")
        return found
    return list(_walked(document, path, path, inherit, {}, lone))


def _walked(
    value: object, path: str, whole: str, inherit: Mapping[str, str], around: Mapping[str, object], lone: bool
) -> Iterator[object]:
    head, has_more, rest = path.partition("[].")
    found = dig(value, tuple(head.split("."))) if head else value
    if lone and not isinstance(found, list):
        found = [] if found is None or found == "" else [found]
    if not isinstance(found, list):
        raise Odd(f"no list of rows at {whole!r}")
    if not has_more:
        yield from ({**row, **around} if isinstance(row, dict) and around else row for row in found)
        return
    for each in found:
        inherited = {name: dig(each, tuple(where.split("."))) for name, where in inherit.items()}
        known = {name: got for name, got in inherited.items() if got is not None}
        if isinstance(each, dict):
            # A parent without the list has no children.
            inner = rest.partition("[]")[0].split(".")[0]
            if each.get(inner) is not None:
                yield from _walked(each, rest, whole, inherit, {**around, **known}, lone)


def as_rows(found: Sequence[object], names: object = None) -> tuple[RawRow, ...]:
    """As rows with columns: arrays get the names that the answer gave. What has another form is kept for quarantine.

    Raises Odd when the names are no list.
    """
    if names is None:
        if set(map(type, found)) == {dict}:
            return tuple(cast("Sequence[RawRow]", found))
        return tuple(row if isinstance(row, dict) else {"row": row} for row in found)
    if not isinstance(names, list):
        raise Odd("no list of column names")
    return tuple(
        dict(zip(map(str, names), row, strict=True))
        if isinstance(row, list) and len(row) == len(names)
        else {"row": row}
        for row in found
    )
