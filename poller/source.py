"""A back office as the loop sees it: positions, pages and the one method that fetches.  (pure)

A source never sleeps and never retries: one `fetch` is one request, so that the loop can number the requests.
`schedule` says when, `walk` says where the next request continues.

A position is plain JSON; the cursor keeps it. There are six kinds:

    FullWalk       every row once, page by page: the initial load of a source without changes, and every sweep
    SinceTime      changes by modification time, inclusive lower bound that moves with the rows
    SinceKeyset    changes by (modification time, key), exclusive lower bound
    SinceRevision  changes by revision, exclusive lower bound
    SinceToken     changes by a token that only the back office understands
    InFiles        files of changes, one after the other
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Protocol

import msgspec

from tidegate.errors import Transient
from tidegate.feeds import PageRef, RawRow


class ParentRow(msgspec.Struct, frozen=True, array_like=True):
    """A parent whose children are to be asked for, and what they get from it."""

    key: str
    inherited: dict[str, Any]


class FullWalk(msgspec.Struct, frozen=True, kw_only=True, tag="walk", omit_defaults=True):
    """A place in a walk over every row.

    shrank   rows went away or moved while walking, so that a row may have slipped to a page already read
    edge     digest of the keys of the page before this one, and `last` the last of them
    parents  whose children are still to be asked for, of the parents' page before `parent_page`;
             `has_parents`: there is such a page
    """

    page: PageRef = None
    asked_at: datetime | None = None
    total: int | None = None
    shrank: bool = False
    edge: str = ""
    last: str | None = None
    parents: tuple[ParentRow, ...] = ()
    parent_page: PageRef = None
    has_parents: bool = False


class SinceTime(msgspec.Struct, frozen=True, kw_only=True, tag="time", omit_defaults=True):
    """`bound` is the back office's own wall clock, without zone. See `poller.walk` for the rest.

    round      0: walking by the bound; 1, 2, …: rounds over a tie group that is larger than a page
    tail       paging over the last seconds with an unmoved bound
    digest     of the keys seen in this round; `previous` that of the round before
    """

    bound: datetime
    page: PageRef = None
    round: int = 0
    tail: bool = False
    digest: str = ""
    previous: str = ""


class SinceRevision(msgspec.Struct, frozen=True, kw_only=True, tag="revision", omit_defaults=True):
    """`bound` is where the next poll starts, `at` how far this one is; both exclusive.

    high, high_at  the highest revision seen at a tip, and when: the next bound, once late commits had their time
    asked_at       when this poll's first request was sent; None between two polls
    loaded         an earlier poll has reached the tip
    """

    bound: int = 0
    at: int = 0
    high: int = 0
    high_at: datetime | None = None
    asked_at: datetime | None = None
    loaded: bool = False


class SinceKeyset(msgspec.Struct, frozen=True, kw_only=True, tag="keyset", omit_defaults=True):
    """(`bound`, `key`) is where the next poll starts, (`at`, `at_key`) how far this one is; both exclusive.

    `asked_at`: when this poll's first request was sent; None between two polls.
    """

    bound: datetime
    key: str = ""
    at: datetime | None = None
    at_key: str = ""
    asked_at: datetime | None = None


class SinceToken(msgspec.Struct, frozen=True, kw_only=True, tag="token", omit_defaults=True):
    """`token` is None where the feed begins; `asked_at` as in SinceKeyset."""

    token: str | None = None
    asked_at: datetime | None = None


class InFiles(msgspec.Struct, frozen=True, kw_only=True, tag="files", omit_defaults=True):
    """Files of changes: the one in hand ("" between two) and how many of its rows are acknowledged. `done`: all of them."""

    name: str = ""
    etag: str = ""
    row: int = 0
    done: bool = False


Live = SinceTime | SinceKeyset | SinceRevision | SinceToken | InFiles
Position = FullWalk | Live


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one request.

    rows       as the back office gave them, empty for none
    following  where the next request continues; for the last page of a walk, where the next poll starts
    has_more   False at the tip: nothing is left to ask now
    served_at  the answer's own time, aware
    as_of      everything that changed before it has been shown by this poll; None when this page proves nothing
    doubt      rows may have been missed for good here: only a sweep can tell
    newest     the highest revision among the rows; None when they have none
    mark       names the state of a source that changes as a whole (a file's name); "" for others
    unchanged  the mark is the one the caller had: `rows` is empty and means nothing
    stated_at  the time that the rows are of, where what is asked for later may be older (a file); None: the later, the newer
    """

    rows: tuple[RawRow, ...]
    following: Position
    has_more: bool
    served_at: datetime
    as_of: datetime | None = None
    doubt: bool = False
    newest: int | None = None
    mark: str = ""
    unchanged: bool = False
    stated_at: datetime | None = None


class FileRow(dict[str, Any]):
    """A raw row out of a file. `fault` is why it could not be read ("": it could); it then holds the line's text as `raw`.

    Where it stands is no part of the row: the same row on another line is the same row.
    """

    __slots__ = ("fault", "file", "line")

    def __init__(self, values: Iterable[tuple[str, str]], file: str, line: int, fault: str = "") -> None:
        super().__init__(values)
        self.file = file
        self.line = line
        self.fault = fault

    @property
    def origin(self) -> str:
        """Where it stands, for people."""
        return f"{self.file} line {self.line}"


class Refused(Transient):
    """This source will answer so until a person mends something there or in its declaration; other sources go on."""


class Source(Protocol):
    """One feed of one entity, over its adapter. Every call is at most one request for rows.

    start            where polling for changes begins; None: there are no changes to ask for, every poll is a full walk
    reread_size      keys in one keyed re-read; 0: the back office cannot be asked by key
    absence_decides  one full walk is a consistent whole, so that a row missing from it is gone
    """

    @property
    def start(self) -> Live | None: ...

    @property
    def reread_size(self) -> int: ...

    @property
    def absence_decides(self) -> bool: ...

    def may_ask_ahead(self, position: Position) -> bool:
        """Whether the page at a position may be asked for before the cursor has come there."""
        ...

    async def fetch(self, position: Position, mark: str = "", *, urgent: bool = True) -> Page:
        """Raises Transient (with the back office's own retry_after_s, if it said one), of it Refused.

        Not `urgent`: live changes of this back office go first, whatever the position is.
        """
        ...

    async def reread(self, keys: Sequence[str]) -> Page:
        """The rows that exist among `keys` (at most `reread_size`). Raises as fetch does."""
        ...


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the cursor remembers of a source, as JSON.

    live    where polling for changes continues; None for a source without changes
    loaded  the first walk reached the tip: from here on watermarks are true
    doubt   a sweep must come first before the next watermark
    mark    the `Page.mark` that was worked through last
    """

    live: Live | None = None
    loaded: bool = False
    doubt: bool = False
    mark: str = ""


class Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """The durable position of one source.

    revision  for compare-and-set: rises with every write
    epoch     the poller's term: rises with every opening, never falls
    journal   number of the last journal object whose events were all acknowledged
    snapshot  name of the index snapshot that the journals continue; "" for none
    """

    source: str
    progress: Progress
    revision: int
    epoch: int
    journal: int = 0
    snapshot: str = ""
