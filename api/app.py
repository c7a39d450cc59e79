"""The route table of the reads: request in, answer out, errors as problem details.

    GET /v1/{collection}           rows, page after page: {"items": […], "next_cursor": …|null}
    GET /v1/{collection}/{key}     one row
    GET /v1/{collection}/changes   what changed since a cursor: {"changes": […], "next_cursor": …, "has_more": …}
    GET /v1/reports                the declared reports
    GET /v1/reports/{name}         one of them, counted over what the caller may see
    GET /v1/openapi.json           the specification, open to all
    GET /v1/docs                   the same as a page for people

Everything but the last two needs claims. docs/API.md says what callers may rely on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Protocol

import msgspec

from api import changes, queries, reports, selection
from api.access import Caller, admit, encode_viewers, identified
from api.answer import HTML_TYPE, JSON_TYPE, Answer, Refused, Where, as_of_then, representation
from api.catalog import Collection, collections_of, feeds_of
from api.changes import Since
from api.cursor import Cursors, Position
from api.database import Read
from api.faults import answered
from api.filters import filters_of, only, shown
from api.queries import Query, Viewers
from api.reports import Results
from api.request import Request
from api.selection import DEFAULT_LIMIT, LARGEST_LIMIT, Selection
from tidegate.bubble import Bubble
from tidegate.entity import describe

_PREFIX = "/v1/"
_SPECIFICATION = "openapi.json"
_PAGE = "docs"
_CHANGES = "changes"
_REPORTS = "reports"
_LIMIT = re.compile(r"[1-9][0-9]{0,8}")


class Reads(Protocol):
    """What the routes need of a database."""

    async def read(self, viewers: Viewers, query: Query, sources: Sequence[str]) -> Read: ...


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How the reads answer.

    stale_while_revalidate_s  so long a browser may show what it has while it asks anew
    ask_again_s               what a caller for whom nothing changed is told to wait
    changes_kept_s            so old a cursor of changes may be; departures must be kept for longer
    reports_kept_s            so long a report is remembered, if nothing changed
    """

    cursors: Cursors
    stale_while_revalidate_s: int = 0
    ask_again_s: int = 2
    changes_kept_s: int = 86_400
    reports_kept_s: float = 3_600
    now: Callable[[], datetime] = lambda: datetime.now(UTC)


class Asked(msgspec.Struct, frozen=True):
    """A request whose caller is known."""

    request: Request
    by: Caller

    @property
    def caller(self) -> str:
        """Whom a cursor is bound to: subject, client and view."""
        return f"{self.by.subject}\n{self.by.client}\n{encode_viewers(self.by.viewers)}"


class App:
    """Answers the requests of one bubble."""

    def __init__(self, bubble: Bubble, database: Reads, options: Options) -> None:
        self._bubble = bubble
        self._database = database
        self._options = options
        self._collections = collections_of(bubble)
        self._reports = {report.name: report for report in bubble.reports}
        self._results = Results(kept_s=options.reports_kept_s)

    # Most sandboxes never serve these two, so their modules are not even imported at start.

    @cached_property
    def _specification(self) -> str:
        from api import openapi  # noqa: PLC0415

        return openapi.encoded(self._bubble)

    @cached_property
    def _page_for_people(self) -> tuple[str, dict[str, str]]:
        from api import openapi, page  # noqa: PLC0415

        headers = {"Content-Type": HTML_TYPE, "Content-Security-Policy": page.CONTENT_POLICY}
        return page.page(openapi.document(self._bubble)), headers

    async def answer(self, request: Request) -> Answer:
        """Raises Transient, Rejected or Fatal as the database does; `api.faults` makes answers of them."""
        return await answered(request, self._routed)

    async def _routed(self, request: Request) -> Answer:
        if request.method != "GET":
            detail = f"this address only reads; use GET instead of {shown(request.method)}"
            raise Refused(405, "method-not-allowed", "Method not allowed", detail, headers={"Allow": "GET"})
        if request.path == _PREFIX + _SPECIFICATION:
            return representation(self._specification, request.headers.get("if-none-match"))
        if request.path == _PREFIX + _PAGE:
            text, headers = self._page_for_people
            return representation(text, request.headers.get("if-none-match")).with_headers(headers)
        asked = Asked(request, identified(request, self._bubble))
        name, slash, key = request.path.removeprefix(_PREFIX).partition("/")
        if name == _REPORTS and request.path.startswith(_PREFIX):
            answer = await self._report(asked, key) if slash else self._report_list(asked)
            return answer.with_headers(self._caching())
        collection = self._collections.get(name) if request.path.startswith(_PREFIX) else None
        if collection is None:
            known = ", ".join(_PREFIX + name for name in self._collections)
            where = Where("path", "collection")
            raise Refused(404, "no-such-collection", "No such collection", f"there are {known}", where=where)
        if key == _CHANGES:
            return await self._changes(asked, collection)
        answer = await (self._row(asked, collection, key) if slash else self._page(asked, collection))
        return answer.with_headers(self._caching())

    def _caching(self) -> dict[str, str]:
        """Made for this caller; a browser may show it again once it has asked whether it still holds."""
        seconds = self._options.stale_while_revalidate_s
        return {"Cache-Control": f"private, max-age=0, stale-while-revalidate={seconds}"} if seconds else {}

    async def _page(self, asked: Asked, collection: Collection) -> Answer:
        shape, limit = collection.shape, limit_of(asked.request)
        wanted = selection.listed(shape, collection.joins, asked.request.query)
        bound = f"{shape.collection} {wanted.text()}"
        after = self._after(asked, bound)
        query = queries.page(shape, wanted, limit=limit, after=after, viewers=asked.by.viewers)
        read, freshness = await self._read(asked, collection, wanted, query)
        rows, cursor = read.items[:limit], "null"
        if len(rows) == limit:
            last = queries.placed(rows[-1])
            rows[-1] = last.row
            if len(read.items) > limit:
                cursor = f'"{self._options.cursors.seal(asked.caller, bound, last.position())}"'
        body = f'{{"items":[{",".join(rows)}],"next_cursor":{cursor}}}'
        return representation(body, asked.request.headers.get("if-none-match")).with_headers(freshness)

    async def _row(self, asked: Asked, collection: Collection, key: str) -> Answer:
        shape = collection.shape
        only(asked.request.query, selection.SINGLE)
        wanted = selection.single(shape, collection.joins, asked.request.query)
        if not queries.key_fits(shape, key):
            raise no_such_row(collection, {})
        read, freshness = await self._read(asked, collection, wanted, queries.row(shape, key, wanted))
        if not read.items:
            raise no_such_row(collection, freshness)
        return representation(read.items[0], asked.request.headers.get("if-none-match")).with_headers(freshness)

    async def _changes(self, asked: Asked, collection: Collection) -> Answer:
        shape, query, options = collection.shape, asked.request.query, self._options
        only(query, ("cursor", "fields", "limit"))
        limit, wanted = limit_of(asked.request), selection.fields_only(shape, query)
        bound = changes.bound(shape, wanted)
        since = self._since(asked, bound)
        place = None if since is None else since.place
        read, freshness = await self._read(
            asked, collection, wanted, changes.query(shape, wanted.fields, place, limit)
        )  # fmt: skip
        found = changes.page(read.items, place, limit)
        if place is not None and place.xid > found.newest:
            raise _gone("the database was restored to an earlier time")
        if since is not None and not found.is_all:
            freshness = as_of_then(freshness, since.as_of)
        following = Since(found.next, int(options.now().timestamp()), freshness.get("Data-As-Of"))
        cursor = options.cursors.seal(asked.caller, bound, following.position())
        wait_s = 0 if found.has_more else options.ask_again_s
        headers = {**freshness, "Next-Cursor": cursor, "Retry-After": str(wait_s)}
        if since is not None and not found.items:
            return Answer(status=304, headers=headers)
        more = "true" if found.has_more else "false"
        body = f'{{"changes":[{",".join(found.items)}],"next_cursor":"{cursor}","has_more":{more}}}'
        return Answer(status=200, body=body, headers={**headers, "Content-Type": JSON_TYPE})

    def _report_list(self, asked: Asked) -> Answer:
        only(asked.request.query, ())
        listed = [{"name": report.name, "title": report.title} for report in self._bubble.reports]
        body = msgspec.json.encode({"reports": listed}).decode()
        return representation(body, asked.request.headers.get("if-none-match"))

    async def _report(self, asked: Asked, name: str) -> Answer:
        report = self._reports.get(name)
        if report is None:
            there = ", ".join(self._reports) or "none"
            where = Where("path", "name")
            raise Refused(404, "no-such-report", "No such report", f"the reports are: {there}", where=where)
        shape = describe(report.entity)
        filters = filters_of([shape.field(each) for each in report.filters], asked.request.query, ())
        key = f"{name} {Selection((), filters=filters).text()} {encode_viewers(asked.by.viewers)}"
        now = self._options.now()
        known = self._results.get(key, now)
        read, freshness = await self._read(
            asked,
            self._collections[shape.collection],
            Selection(()),
            reports.query(report, shape, filters, known, asked.by.viewers),
        )
        found = reports.result(read.items, known, now, report.most_rows)
        if found is None:
            detail = (
                f"the report has more than {report.most_rows} lines; filter it by {', '.join(report.filters) or 'less'}"
            )
            raise Refused(400, "report-too-large", "Report too large", detail, headers=freshness)
        self._results.put(key, found)
        body = f'{{"report":"{name}","rows":[{found.lines}]}}'
        age = {"Age": str(int((now - found.computed_at).total_seconds()))}
        return representation(body, asked.request.headers.get("if-none-match")).with_headers({**freshness, **age})

    def _since(self, asked: Asked, bound: str) -> Since | None:
        position = self._after(asked, bound)
        if position is None:
            return None
        since = changes.since_of(position)
        if self._options.now().timestamp() - since.given_s > self._options.changes_kept_s:
            raise _gone(f"it is older than {self._options.changes_kept_s} s")
        return since

    async def _read(
        self, asked: Asked, collection: Collection, wanted: Selection, query: Query
    ) -> tuple[Read, dict[str, str]]:
        """The rows, and the headers that say how fresh they are: they and all that is embedded in them."""
        shown = [collection, *(self._collections[join.shape.collection] for join in wanted.joins)]
        for each in shown:
            # What the scope of a collection closes, no report and no embedding opens.
            admit(asked.by.claims, self._bubble, _PREFIX + each.shape.collection)
        feeds = feeds_of(source for each in shown for source in each.sources) if wanted.joins else collection.feeds
        read = await self._database.read(asked.by.viewers, query, feeds.watermarked)
        return read, feeds.headers(read.as_of, self._options.now())

    def _after(self, asked: Asked, bound: str) -> Position | None:
        cursor = asked.request.query.get("cursor")
        if cursor is None:
            return None
        try:
            return self._options.cursors.open(asked.caller, bound, cursor)
        except ValueError as error:
            raise Refused(400, "bad-cursor", "Bad cursor", str(error), where=Where("query", "cursor")) from error


def _gone(why: str) -> Refused:
    detail = f"the cursor cannot be followed: {why}; start again without a cursor, and read the collection anew"
    return Refused(410, "cursor-gone", "Cursor gone", detail, where=Where("query", "cursor"))


def no_such_row(collection: Collection, headers: dict[str, str]) -> Refused:
    # The same words for a row that is not there, is deleted, or belongs to somebody else.
    detail = f"{collection.shape.collection} has no row of this key that you may see"
    return Refused(404, "no-such-row", "No such row", detail, where=Where("path", "key"), headers=headers)


def limit_of(request: Request) -> int:
    """Rows on a page. Raises Refused."""
    text = request.query.get("limit")
    if text is None:
        return DEFAULT_LIMIT
    if _LIMIT.fullmatch(text) is None or int(text) > LARGEST_LIMIT:
        detail = f"limit is {shown(text)}; it must be a whole number from 1 to {LARGEST_LIMIT}"
        raise Refused(400, "bad-limit", "Bad limit", detail, where=Where("query", "limit"))
    return int(text)
