"""How a page is asked for, and how an answer names the one after it.  (pure)"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from poller.rows import Odd
from poller.translate import dig
from tidegate.feeds import (
    AfterKey,
    LinkHeader,
    NextLink,
    Offset,
    OnePage,
    PageNumber,
    PageRef,
    PageToken,
    Paging,
)

Params = list[tuple[str, str]]


class Shown(NamedTuple):
    """What an answer showed. `link` is its Link header's next address, "" for none."""

    document: object
    keys: Sequence[str | None]
    link: str = ""


class Following(NamedTuple):
    """`total` rows there are, if it says so; `moved`: the page does not begin where the one before ended."""

    page: PageRef
    total: int | None = None
    moved: bool = False


def whole(value: object) -> int | None:
    """An integer, also one written as text."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        return int(value)
    return None


def whole_numbers(values: list[Any]) -> Sequence[int | None]:
    """As `whole`, of each."""
    return values if set(map(type, values)) == {int} else list(map(whole, values))


def address(paging: Paging, page: PageRef) -> str | None:
    """The page's own address, where pages have one."""
    return str(page) if isinstance(paging, NextLink | LinkHeader) and page is not None else None


def page_params(paging: Paging, page: PageRef) -> Params:
    """The parameters that ask for a page."""
    params: Params = []
    match paging:
        case PageNumber():
            params.append((paging.param, str(paging.first if page is None else page)))
        case Offset():
            params.append((paging.param, str(page or 0)))
        case PageToken() | AfterKey() if page is not None:
            params.append((paging.param, str(page)))
    return params if paging.size_param is None else [*params, (paging.size_param, str(paging.size))]


def following(paging: Paging, shown: Shown, page: PageRef, last: str | None) -> Following:
    """The page after `page`, whose predecessor ended with the key `last`. Raises Odd."""
    total = None
    if isinstance(paging, PageNumber | Offset) and paging.total is not None:
        total = whole(_at(shown, paging.total))
    match paging:
        case OnePage():
            return Following(None)
        case PageNumber():
            return Following(_next_number(paging, shown, page, total), total)
        case Offset():
            return _next_offset(paging, shown, page, total, last)
        case PageToken(next=where):
            token = _at(shown, where)
            return Following(None if token in (None, "", False) else str(token))
        case NextLink(next=where):
            link = _at(shown, where)
            return Following(None if link in (None, "", False) else str(link))
        case LinkHeader():
            return Following(shown.link or None)
        case AfterKey():
            return Following(_next_key(shown, page))


def _at(shown: Shown, where: str) -> object:
    return dig(shown.document, tuple(where.split(".")))


def _next_number(paging: PageNumber, shown: Shown, page: PageRef, total: int | None) -> PageRef:
    number = paging.first if page is None else int(page)
    count = len(shown.keys)
    if paging.pages is not None:
        pages = whole(_at(shown, paging.pages))
        if pages is None:
            raise Odd(f"no number of pages at {paging.pages!r}")
        if total is not None and pages == -(-total // paging.size):
            _refuse_short(count, total, (number - paging.first) * paging.size, paging.size)
        return number + 1 if count and number - paging.first + 1 < pages else None
    if paging.more is not None:
        more = _at(shown, paging.more)
        if not isinstance(more, bool):
            raise Odd(f"neither true nor false at {paging.more!r}")
        return number + 1 if count and more else None
    return number + 1 if count else None


def _refuse_short(count: int, total: int, before: int, size: int) -> None:
    """An answer that says how many rows there are and shows fewer was cut off."""
    expected = min(size, max(0, total - before))
    if count < expected:
        raise Odd(f"it shows {count} rows where there must be {expected}")


def _next_offset(paging: Offset, shown: Shown, page: PageRef, total: int | None, last: str | None) -> Following:
    offset, count = int(page or 0), len(shown.keys)
    if paging.next is None:
        moved = page is not None and last is not None and (not count or shown.keys[0] != last)
        # The next page begins with this one's last row.
        going_on = offset + count - 1 if count > 1 or (count and page is None) else None
        return Following(going_on, total, moved)
    after = _at(shown, paging.next)
    if after is None or after == "" or after is False:
        if total is not None:
            _refuse_short(count, total, offset, max(paging.size, count))
        return Following(None, total)
    number = whole(after)
    if number is None or number <= offset:
        raise Odd(f"the next offset at {paging.next!r} is {after!r}")
    if total is not None:
        _refuse_short(count, total, offset, number - offset)
    return Following(number if count else None, total)


def _next_key(shown: Shown, page: PageRef) -> PageRef:
    if not shown.keys:
        return None
    key = shown.keys[-1]
    if key is None:
        raise Odd("its last row has no usable key, so the next page cannot be asked for")
    if key == page:
        raise Odd(f"it shows rows up to {key!r} again")
    return key


_LINK = re.compile(r"<([^>]*)>\s*((?:;\s*[^,;=\s]+\s*(?:=\s*(?:\"[^\"]*\"|[^\",;\s]+))?\s*)*)")
_REL = re.compile(r";\s*rel\s*=\s*(?:\"([^\"]*)\"|([^\",;\s]+))", re.IGNORECASE)


def next_link(header: str) -> str:
    """The address of the next page in a Link header; "" when it names none."""
    for target, params in _LINK.findall(header):
        named = _REL.search(params)
        if named and "next" in (named[1] or named[2] or "").lower().split():
            return str(target)
    return ""
