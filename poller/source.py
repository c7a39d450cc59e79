"""A back office as the loop sees it: positions, pages and the one method that fetches.  (pure)

A source never sleeps and never retries: one `fetch` is one request, so that the loop can number the requests.
`schedule` says when, `walk` says where the next request continues.

A position is plain JSON; the cursor keeps it. There are three kinds:

    FullWalk       every row once, page by page: the initial load of a source without changes, and every sweep
    SinceTime      changes by modification time, inclusive lower bound that moves with the rows
    SinceRevision  changes by revision, exclusive lower bound
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

import msgspec

from tidegate.bubble import RawRow
from tidegate.errors import Transient

PageRef = int | str | None
"""What names a page in a request: a page number, an offset or a token; None is the first page."""


class FullWalk(msgspec.Struct, frozen=True, kw_only=True, tag="walk", omit_defaults=True):
    """`shrank`: rows went away while walking, so that a row may have slipped to a page already read."""

    page: PageRef = None
    asked_at: datetime | None = None
    total: int | None = None
    shrank: bool = False


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


Position = FullWalk | SinceTime | SinceRevision


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one request.

    rows       as the back office gave them, empty for none
    following  where the next request continues; for the last page of a walk, where the next poll starts
    has_more   False at the tip: nothing is left to ask now
    served_at  the answer's own time, aware
    as_of      everything that changed before it has been shown by this poll; None when this page proves nothing
    doubt      rows may have been missed for good here: only a sweep can tell
    mark       names the state of a source that changes as a whole (a file's name); "" for others
    unchanged  the mark is the one the caller had: `rows` is empty and means nothing
    """

    rows: tuple[RawRow, ...]
    following: Position
    has_more: bool
    served_at: datetime
    as_of: datetime | None = None
    doubt: bool = False
    mark: str = ""
    unchanged: bool = False


class Refused(Transient):
    """This source will answer so until a person mends something there or in its declaration; other sources go on."""


class Source(Protocol):
    """One feed of one entity, over its adapter. Every call is at most one request for rows.

    start            where polling for changes begins; None: there are no changes to ask for, every poll is a full walk
    reread_size      keys in one keyed re-read; 0: the back office cannot be asked by key
    absence_decides  one full walk is a consistent whole, so that a row missing from it is gone
    """

    @property
    def start(self) -> SinceTime | SinceRevision | None: ...

    @property
    def reread_size(self) -> int: ...

    @property
    def absence_decides(self) -> bool: ...

    async def fetch(self, position: Position, mark: str = "") -> Page:
        """Raises Transient (with the back office's own retry_after_s, if it said one), of it Refused."""
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

    live: SinceTime | SinceRevision | None = None
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
