"""How an HTTP back office is asked: paging, changes, credentials, manners. Declarations only.  (pure)

What the fields of `Rest` mean for the guarantees is told in docs/SOURCES.md.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

RawRow = Mapping[str, Any]
"""One row as the back office gave it: column name → JSON value (text for CSV and XML)."""

PageRef = int | str | None
"""What names a page in a request: a number, an offset, a token or an address; None is the first page."""


class Env(msgspec.Struct, frozen=True):
    """A value that the program reads from the environment when it starts. Secrets are never shown."""

    name: str
    secret: bool = False
    default: str | None = None


class Header(msgspec.Struct, frozen=True):
    """A request header; `Header("Authorization", Env("KEY", secret=True), prefix="ApiKey ")`."""

    name: str
    value: Env | str
    prefix: str = ""


class Param(msgspec.Struct, frozen=True):
    """A query parameter that every request carries."""

    name: str
    value: Env | str


# ---------------------------------------------------------------- paging


class OnePage(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Every answer is whole."""

    size_param: str | None = None
    size: int = 200


class PageNumber(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Pages `first`, `first` + 1, …

    pages, more  where the answer says how many there are, or whether there is another; neither: an empty page is the end
    total        where it says how many rows there are: with it, a short answer is noticed
    """

    param: str
    pages: str | None = None
    more: str | None = None
    total: str | None = None
    size_param: str | None = None
    size: int = 200
    first: int = 1


class Offset(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Rows from an offset; `next` is where the answer names the next offset, null at the end.

    Without `next` the rows are counted, each page begins with the last row of the one before (so that rows that moved
    are noticed), and an empty page is the end. `total` as in PageNumber.
    """

    param: str
    next: str | None = None
    total: str | None = None
    size_param: str | None = None
    size: int = 200


class PageToken(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An opaque token; `next` is where the answer names the next one, null at the end."""

    param: str
    next: str
    size_param: str | None = None
    size: int = 200


class NextLink(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`next` is where the answer names the address of the next page, null at the end."""

    next: str
    size_param: str | None = None
    size: int = 200


class LinkHeader(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The answer's Link header names the next page: `<…>; rel="next"` (RFC 8288)."""

    size_param: str | None = None
    size: int = 200


class AfterKey(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Rows come by key, those after the key in `param`; an empty page is the end. Nothing can shift."""

    param: str
    size_param: str | None = None
    size: int = 200


Paging = OnePage | PageNumber | Offset | PageToken | NextLink | LinkHeader | AfterKey


# ---------------------------------------------------------------- changes


class ByTime(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Changes since a modification time: rows come ordered by `column`, from `param` on (inclusive).

    format  strptime/strftime text of the times, or "iso", "epoch_s", "epoch_ms"
    zone    the IANA zone of times without an offset
    """

    param: str
    column: str
    format: str = "iso"
    zone: str = "UTC"


class ByKeyset(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Changes after a pair of time and key: rows come ordered by (`column`, key), those after the pair (exclusive).

    `format` and `zone` as in ByTime. The paging is not used: a page is asked for by the last row of the one before.
    """

    time_param: str
    key_param: str
    column: str
    format: str = "iso"
    zone: str = "UTC"


class ByRevision(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Changes since a revision: an integer `column` that rises with every change of any row, exclusive."""

    param: str
    column: str


class ByToken(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Changes since an opaque token, which every answer names anew at `next`; the paging is not used.

    `more` is where the answer says whether to ask on at once; without it an answer without rows is the end. An answer
    of 400 or 410 means that the token is too old: everything is walked anew.
    """

    param: str
    next: str
    more: str | None = None


ChangesBy = ByTime | ByKeyset | ByRevision | ByToken


class Reread(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for rows by key: the judge of deletions. Keys repeat `param`, or are joined by `separator`.

    A `path` with `{key}` asks for one row at a time; 404 and 410 then say that it does not exist.
    rows  where the rows are, as in `Rest`; "" is the whole answer, None means as in the lists
    """

    path: str
    param: str = ""
    size: int = 50
    separator: str | None = None
    rows: str | None = None

    @property
    def is_single(self) -> bool:
        return "{key}" in self.path


# ---------------------------------------------------------------- credentials


class Basic(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """User name and password."""

    user: Env
    password: Env


class Bearer(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A token that somebody else renews."""

    token: Env


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A key in a header, or in a query parameter when `param` names one."""

    value: Env
    header: str = "X-Api-Key"
    param: str | None = None


class ClientCredentials(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """OAuth 2 (RFC 6749, 4.4): a token from `token_url`, renewed before it expires and after a 401.

    `in_body`: the client's name and secret go into the form, for servers that do not take them as Basic.
    """

    token_url: Env
    client_id: Env
    client_secret: Env
    scope: str = ""
    audience: str = ""
    in_body: bool = False


Auth = Basic | Bearer | ApiKey | ClientCredentials


# ---------------------------------------------------------------- manners


class Hours(msgspec.Struct, frozen=True, kw_only=True):
    """When a back office may be asked, by the clock of its own `zone`.

    open   "mon-fri 06:00-22:00", "sat 08:00-12:00", "00:00-24:00" (every day); none: always
    quiet  the same form; taken out of `open`. A window may run over midnight: "23:30-02:15"
    """

    zone: str
    open: tuple[str, ...] = ()
    quiet: tuple[str, ...] = ()


class Office(msgspec.Struct, frozen=True, kw_only=True):
    """What one back office bears, whoever asks: shared by all sources that name it and by all poller processes.

    requests_per_s  never more, evenly spaced
    concurrency     requests under way at the same time
    hours           when it may be asked at all; None: always
    failures        so many failures in a row, and it is left alone for a while; then one request tries
    """

    name: str
    requests_per_s: float = 20.0
    concurrency: int = 4
    hours: Hours | None = None
    failures: int = 8


# ---------------------------------------------------------------- what no declaration covers


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted of a source in Python: `page` as it named it (None: the first), `since` as the feed writes it.

    `since` is None in a full walk, which must show every row.
    """

    page: PageRef = None
    since: str | None = None


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """What it answers. `next` names the page after this one, None at the end."""

    rows: Sequence[RawRow]
    next: PageRef = None


class Get(Protocol):
    """One request, with the feed's address, credentials, budget and manners; answers the parsed body."""

    def __call__(self, path: str, params: Mapping[str, str] | None = None) -> Awaitable[Any]: ...


Reader = Callable[[Get, Ask], Awaitable[Rows]]


# ---------------------------------------------------------------- the feed


class Csv(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A body of comma-separated values whose first line names the columns."""

    delimiter: str = ","
    quote: str = '"'


class Parent(msgspec.Struct, frozen=True, kw_only=True):
    """The resource whose rows own this one: `/customers` of `/customers/{parent}/orders`.

    inherit  columns that every child row gets from its parent: column name → dotted path in the parent's row
    """

    path: str
    rows: str
    key: str
    paging: Paging = OnePage()
    inherit: Mapping[str, str] = {}


class Rest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An HTTP back office.

    path         where the rows are listed; without the incremental parameter it lists all of them, by key
    rows         dotted path of the rows in the answer, "" for the whole; `customers[].orders` are those of every customer
    inherit      columns that such a nested row gets from the object around it: column name → dotted path there
    key          dotted path of the key in a raw row
    columns      where the names are, when rows are arrays
    changes      how to ask for changes only; None: every poll is a full walk
    reread       how to ask for rows by key; None: absence from a second full walk decides a deletion
    parent       another resource whose every row is asked for its children; full walks only
    conditional  ask again with If-None-Match or If-Modified-Since; answers are kept in memory for it, up to 16 MiB
    read         a function that asks and pages in the feed's stead (`path`, `rows`, `paging` and `parent` are not used)
    office       the budget and the manners; None: one named after `url`, with `requests_per_s`
    """

    url: Env
    path: str = "/"
    rows: str = ""
    key: str
    paging: Paging = OnePage()
    inherit: Mapping[str, str] = {}
    columns: str | None = None
    changes: ChangesBy | None = None
    reread: Reread | None = None
    parent: Parent | None = None
    body: Literal["json", "xml"] | Csv = "json"
    auth: Auth | None = None
    headers: tuple[Header, ...] = ()
    params: tuple[Param, ...] = ()
    conditional: bool = False
    read: Reader | None = None
    office: Office | None = None
    timeout_s: float = 10.0
    requests_per_s: float = 20.0

    @property
    def manners(self) -> Office:
        return self.office or Office(name=self.url.name, requests_per_s=self.requests_per_s)

    @property
    def environment(self) -> tuple[Env, ...]:
        """Every variable that it needs."""
        named: list[Env | str] = [self.url]
        named += [header.value for header in self.headers]
        named += [param.value for param in self.params]
        if self.auth is not None:
            named += [getattr(self.auth, field) for field in self.auth.__struct_fields__]
        return tuple(each for each in named if isinstance(each, Env))
