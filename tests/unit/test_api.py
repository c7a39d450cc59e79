"""The pure half of the API: cursors, SQL, answers, events, and the route table over a fake database."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from api import changes, queries, selection
from api.answer import Answer, etag_of, freshness_headers, representation
from api.app import App, Options
from api.cursor import Cursors
from api.database import Read, translated
from api.faults import unacceptable, unavailable
from api.filters import Filter
from api.queries import Query
from api.request import Request, request_of
from api.selection import LARGEST_LIMIT
from api.settings import ApiSettings
from tests.fakes import issuer
from tests.integration.library_bubble import Branch, Loan, Shelf, bubble
from tidegate.database import verdict_of
from tidegate.entity import EntityShape, describe
from tidegate.errors import Fatal, Rejected, Transient
from tidegate.settings import read

ROOT = Path(__file__).parents[2]
LOANS, BRANCHES, SHELVES = describe(Loan), describe(Branch), describe(Shelf)


def whole(shape: EntityShape) -> selection.Selection:
    """All fields of all rows, by key: what a request without parameters asks for."""
    return selection.listed(shape, {}, {})


# --- queries ---------------------------------------------------------------------------------------


def test_only_declared_fields_are_selected_and_values_are_never_text() -> None:
    wanted = whole(LOANS)
    first = queries.page(LOANS, wanted, limit=51, after=None)
    later = queries.page(LOANS, wanted, limit=3, after=["x' OR true --"])
    for query in (first, later, queries.row(LOANS, "x' OR true --", wanted)):
        assert "OR true" not in query.statement
        assert "_deleted" not in query.statement
        assert "*" not in query.statement
    assert first == Query(first.statement, {}, keeps_plan=True)
    assert later == Query(later.statement, {"after": ["x' OR true --"]}, keeps_plan=False)
    assert "WHERE" not in first.statement
    single = queries.row(SHELVES, "k", whole(SHELVES)).statement
    assert single.endswith("""WHERE stored."id" = ($1::jsonb ->> 'key')::uuid)""")
    paged = queries.page(BRANCHES, whole(BRANCHES), limit=1, after=["5"]).statement
    assert "($1::jsonb -> 'after' ->> 0)::bigint" in paged


def test_only_what_is_read_in_one_way_for_all_arguments_keeps_its_plan() -> None:
    assert queries.row(LOANS, "k", whole(LOANS)).keeps_plan
    filtered = msgspec.structs.replace(whole(LOANS), filters=(Filter(LOANS.key, "eq", "L1"),))
    assert not queries.page(LOANS, filtered, limit=5, after=None).keeps_plan
    assert not changes.query(LOANS, LOANS.fields, changes.Place(7), 5).keeps_plan


def test_one_statement_serves_all_callers_of_a_kind_and_says_how_many_ids_they_have() -> None:
    def asked(viewers: queries.Viewers) -> str:
        return queries.page(LOANS, whole(LOANS), limit=1, after=None, viewers=viewers).statement

    one, other, many = ({"reader": ids} for ids in (["1"], ["2' OR true --"], ["1", "2"]))
    assert asked(one) == asked(other)
    assert """stored."reader"::text = (SELECT $1::jsonb -> 'viewers' -> 'reader' ->> 0)""" in asked(one)
    assert """stored."reader"::text = ANY ((SELECT tidegate.viewer_ids('reader'))::text[])""" in asked(many)
    assert "WHERE false" in asked({"nobody": ["1"]})
    assert "WHERE" not in asked({**many, "staff": ["north"]}), "who sees everything is not narrowed"


@pytest.mark.parametrize(
    ("text", "fits"),
    [("1", True), ("-9223372036854775808", True), ("-9223372036854775809", False),
     ("0", True), ("-0", False), ("007", False), ("+1", False), ("", False),
     ("9223372036854775808", False), ("١", False), ("1 ", False), ("1" * 5000, False)],
)  # fmt: skip
def test_which_texts_can_be_an_integer_key(text: str, fits: bool) -> None:
    assert queries.key_fits(BRANCHES, text) is fits


# --- answers ---------------------------------------------------------------------------------------


def test_etags_follow_the_bytes() -> None:
    assert etag_of("a") == etag_of("a") != etag_of("b")
    assert etag_of("a").startswith('"')
    assert representation("a", None).status == 200
    for tag in (etag_of("a"), "W/" + etag_of("a"), f'"x", {etag_of("a")}', "*"):
        assert representation("a", tag) == Answer(status=304, headers={"ETag": etag_of("a")})
    for tag in (etag_of("b"), "", etag_of("a").strip('"')):
        assert representation("a", tag).status == 200


OLD, NEW = datetime(2026, 11, 21, 5, 55, 3, tzinfo=UTC), datetime(2026, 11, 21, 6, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("as_of", "unwatermarked", "headers"),
    [
        ({"a": NEW, "b": OLD}, (), {"Data-As-Of": "2026-11-21T05:55:03Z"}),
        ({"a": NEW, "b": None}, (), {"Data-Incomplete": "b"}),
        ({"a": NEW}, ("x", "y"), {"Data-As-Of": "2026-11-21T06:00:00Z", "Data-Unwatermarked": "x,y"}),
        ({}, ("x",), {"Data-Unwatermarked": "x"}),
        ({}, (), {}),
    ],
)
def test_freshness(as_of: dict[str, datetime | None], unwatermarked: tuple[str, ...], headers: dict[str, str]) -> None:
    assert freshness_headers(as_of, unwatermarked) == headers


# --- events ----------------------------------------------------------------------------------------


def event(path: str, **context: Any) -> dict[str, Any]:
    context = {"http": {"method": "get", "path": path}, "requestId": "r1", "stage": "$default"} | context
    return {
        "version": "2.0",
        "rawPath": path,
        "headers": {"If-None-Match": "x"},
        "requestContext": context,
        "body": None,
    }


def test_an_event_of_the_gateway() -> None:
    request = request_of(event("/v1/loans/a%25b"))
    assert request == Request(
        method="GET", path="/v1/loans/a%b", query={}, headers={"if-none-match": "x"}, request_id="r1"
    )
    assert request_of(event("/prod/v1/loans", stage="prod")).path == "/v1/loans"
    claimed = {"jwt": {"claims": {"username": "ann"}, "scopes": None}}
    assert request_of(event("/v1/loans", authorizer=claimed)).claims is None, "the token itself is what counts"
    assert request_of(event("/v1/user") | {"body": "é"}).body == "é".encode()
    assert request_of(event("/v1/user") | {"body": "w6k=", "isBase64Encoded": True}).body == "é".encode()
    with pytest.raises(Fatal, match="base64"):
        request_of(event("/v1/user") | {"body": "é", "isBase64Encoded": True})


@pytest.mark.parametrize("wrong", [None, [], {}, {"version": "1.0", "path": "/"}, event("/v1") | {"version": "1.0"}])
def test_another_kind_of_event_is_fatal(wrong: object) -> None:
    with pytest.raises(Fatal, match="payload format"):
        request_of(wrong)


# --- the route table -------------------------------------------------------------------------------


class FakeDatabase:
    """Answers what it is told to, and remembers what it was asked."""

    def __init__(self, items: Sequence[str] = (), failure: Exception | None = None) -> None:
        self.items = list(items)
        self.failure = failure
        self.asked: list[tuple[queries.Viewers, Query, Sequence[str]]] = []

    async def read(self, viewers: queries.Viewers, query: Query, sources: Sequence[str]) -> Read:
        self.asked.append((viewers, query, sources))
        if self.failure is not None:
            raise self.failure
        return Read(self.items, {source: OLD for source in sources})


CLAIMS = {"sub": "s1", "client_id": "page", "username": "reader-1"}


async def ask(database: FakeDatabase, path: str, **changes: Any) -> Answer:
    request = Request(
        method="GET", path=path, query={}, headers={}, claims=CLAIMS, request_id="r1"
    )  # fmt: skip
    app = App(bubble, database, Options(cursors=Cursors([b"k" * 32])))
    return await app.answer(msgspec.structs.replace(request, **changes))


def problem_of(answer: Answer) -> dict[str, Any]:
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = msgspec.json.decode(answer.body)
    assert problem["status"] == answer.status
    assert problem["request_id"] == answer.headers["X-Request-Id"] == "r1"
    assert set(problem) <= {"type", "title", "status", "detail", "where", "request_id"}
    return problem


async def test_a_page_asks_for_one_row_more_and_hands_on_the_texts() -> None:
    database = FakeDatabase(['{"number":1}', '[2]\n{"number":2}', '{"number":3}'])
    answer = await ask(database, "/v1/town-branches", query={"limit": "2"})
    assert database.asked[0][0] == {"everyone": ["*"], "reader": ["1"]}
    assert "LIMIT 3)" in database.asked[0][1].statement
    page = msgspec.json.decode(answer.body)
    assert [item["number"] for item in page["items"]] == [1, 2]
    await ask(database, "/v1/town-branches", query={"cursor": page["next_cursor"]})
    assert database.asked[1][1].arguments == {"after": [2]}


@pytest.mark.parametrize(
    "limit", ["0", str(LARGEST_LIMIT + 1), "-1", "1.0", "", "ten", "1,2", "１", "9" * 5000, "00010", "+5", " 5"]
)
async def test_a_bad_limit_says_what_and_where(limit: str) -> None:
    database = FakeDatabase()
    problem = problem_of(await ask(database, "/v1/loans", query={"limit": limit}))
    assert problem["status"] == 400
    assert problem["type"] == "urn:tidegate:problem:bad-limit"
    assert problem["where"] == {"in": "query", "name": "limit"}
    assert "1 to 200" in problem["detail"]
    assert database.asked == []


async def test_a_bad_cursor_says_what_and_where() -> None:
    problem = problem_of(await ask(FakeDatabase(), "/v1/loans", query={"cursor": "tampered"}))
    assert (problem["status"], problem["where"]) == (400, {"in": "query", "name": "cursor"})


@pytest.mark.parametrize("path", ["/v1/loans", "/v1/loans/L1"])
async def test_a_parameter_that_nothing_reads_is_named(path: str) -> None:
    database = FakeDatabase()
    problem = problem_of(await ask(database, path, query={"limits": "5"}))
    assert (problem["status"], problem["type"]) == (400, "urn:tidegate:problem:unknown-parameter")
    assert problem["where"] == {"in": "query", "name": "limits"}
    assert database.asked == []


@pytest.mark.parametrize("name", ["limit", "cursor"])
async def test_a_row_has_no_pages(name: str) -> None:
    answer = await ask(FakeDatabase(), "/v1/loans/L1", query={name: "1"})
    assert problem_of(answer)["where"] == {"in": "query", "name": name}


@pytest.mark.parametrize("path", ["/v1/nope", "/v1", "/v1/", "/", "/loans", "/v2/loans", "/v1/openapi.json/x"])
async def test_unknown_paths(path: str) -> None:
    problem = problem_of(await ask(FakeDatabase(), path))
    assert problem["status"] == 404
    assert "/v1/loans" in problem["detail"]


async def test_a_row_that_is_not_there() -> None:
    answer = await ask(FakeDatabase(), "/v1/loans/a/b")
    assert problem_of(answer)["type"] == "urn:tidegate:problem:no-such-row"
    assert answer.headers["Data-As-Of"] == "2026-11-21T05:55:03Z"


async def test_other_methods_and_missing_claims() -> None:
    for method in ("DELETE", "POST", "HEAD", "\ud800"):
        refused = await ask(FakeDatabase(), "/v1/loans", method=method)
        assert (problem_of(refused)["status"], refused.headers["Allow"]) == (405, "GET")
    anonymous = await ask(FakeDatabase(), "/v1/loans", claims=None)
    assert (problem_of(anonymous)["status"], anonymous.headers["WWW-Authenticate"]) == (401, "Bearer")


async def test_the_specification_is_open_and_can_be_asked_for_again() -> None:
    first = await ask(FakeDatabase(), "/v1/openapi.json", claims=None)
    assert first.status == 200
    again = await ask(FakeDatabase(), "/v1/openapi.json", claims=None, headers={"if-none-match": first.headers["ETag"]})
    assert again.status == 304


@pytest.mark.parametrize(
    ("failure", "seconds"),
    [(Transient("secret host", retry_after_s=1.2), "2"), (Transient("x"), "1"), (Fatal("x"), "30")],
)
async def test_an_unreadable_database_is_503_without_details(failure: Transient | Fatal, seconds: str) -> None:
    with pytest.raises(type(failure)):
        await ask(FakeDatabase(failure=failure), "/v1/loans")
    answer = unavailable(failure, "r1")
    assert problem_of(answer)["status"] == 503
    assert answer.headers["Retry-After"] == seconds
    assert "secret" not in answer.body


# --- settings and errors ---------------------------------------------------------------------------

ENVIRONMENT = {"TIDEGATE_BUBBLE": "b", "TIDEGATE_DATABASE_URL": "postgresql://u:hush@h/d", **issuer.environment(),
               "TIDEGATE_CURSOR_KEY": "whisper" * 5}  # fmt: skip


def test_settings_have_defaults_and_hide_the_password() -> None:
    settings = read(ApiSettings, {**ENVIRONMENT, "TIDEGATE_STATEMENT_CACHE_SIZE": "16"})
    assert (settings.statement_timeout_s, settings.connect_timeout_s, settings.statement_cache_size) == (5.0, 3.0, 16)
    assert "hush" not in repr(settings)
    assert "whisper" not in repr(settings)


@pytest.mark.parametrize(
    "change",
    [{"TIDEGATE_BUBBLE": ""}, {"TIDEGATE_DATABASE_URL": ""}, {"TIDEGATE_STATEMENT_TIMEOUT_S": "soon"},
     {"TIDEGATE_CONNECT_TIMEOUT_S": "0"}, {"TIDEGATE_STATEMENT_TIMEOUT_S": "nan"}, {"TIDEGATE_STATEMENT_CACHE_SIZE": "-1"}],
)  # fmt: skip
def test_a_wrong_setting_names_its_variable(change: dict[str, str]) -> None:
    with pytest.raises(Fatal, match=next(iter(change))):
        read(ApiSettings, {**ENVIRONMENT, **change})


def test_every_error_of_postgresql_means_here_what_it_means_to_the_worker() -> None:
    known = [kind for kind in vars(asyncpg.exceptions).values() if getattr(kind, "sqlstate", None)]
    codes = [kind for kind in known if issubclass(kind, asyncpg.PostgresError)]
    assert len(codes) > 200
    classes = {"transient": Transient, "rejected": Rejected, "schema": Fatal, "access": Fatal, "fatal": Fatal}
    # These two share a code with errors that mean something else, and pass by themselves.
    stale = asyncpg.exceptions.InvalidCachedStatementError, asyncpg.exceptions.OutdatedSchemaCacheError
    for kind in codes:
        wanted = Transient if issubclass(kind, stale) else classes[verdict_of(kind.sqlstate)]
        assert isinstance(translated(kind("x")), wanted), kind
    for error in (ConnectionRefusedError(), TimeoutError(), asyncpg.InterfaceError("connection is closed")):
        assert isinstance(translated(error), Transient)


def test_the_log_tells_the_state_of_a_refused_value_and_not_the_value() -> None:
    refused = translated(asyncpg.InvalidTextRepresentationError('invalid input syntax for type bigint: "secret"'))
    assert isinstance(refused, Rejected)
    assert refused.reason == "invalid_text_representation"
    answer = unacceptable(refused, "r1")
    assert problem_of(answer)["type"] == "urn:tidegate:problem:bad-value"
    assert answer.status == 400
    assert "secret" not in answer.body


# --- cold start ------------------------------------------------------------------------------------


def test_the_handler_starts_without_the_heavy_libraries() -> None:
    code = (
        "import sys, api.handler, tidegate.bubble; tidegate.bubble.load('examples.parcels.bubble'); print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    assert {"asyncpg", "tidegate.database"} <= set(loaded)
    heavy = {
        "aiobotocore",
        "botocore",
        "sqlalchemy",
        "alembic",
        "pydantic",
        "aiohttp",
        "structlog",
        "prometheus_client",
        "worker",
        "poller",
        "local",
    }
    assert heavy.isdisjoint(loaded)
