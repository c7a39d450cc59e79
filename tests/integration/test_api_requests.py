"""Whatever a caller sends, the handler answers below 500, in words, with a real PostgreSQL behind it."""

from __future__ import annotations

import base64
import urllib.parse
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api import handler as api_handler
from api import queries
from tests.integration.library import READER_1, SHELF, Library, get, opened
from tests.integration.library_bubble import Branch, Loan, Shelf
from tidegate.entity import describe

COLLECTIONS = {"loans": describe(Loan), "town-branches": describe(Branch), "shelves": describe(Shelf)}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    with opened(tmp_path_factory.mktemp("library") / "migrations") as made:
        yield made


@pytest.fixture(autouse=True, scope="module")
def sandbox(library: Library) -> Iterator[None]:
    """One sandbox for all: no request may spoil the next one's connection."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIDEGATE_BUBBLE", "tests.integration.library_bubble")
        patch.setenv("TIDEGATE_DATABASE_URL", library.reader_url)
        api_handler.handler.reset()
        yield
        api_handler.handler.reset()


@pytest.mark.parametrize(
    "key",
    [
        "%2F", "a%2Fb", "%2F%2F", "%252F", "%00", "L1%00", "%F0%9F%93%9A", "é", "\u202e", "\ud800", "%ED%A0%80", "%FF", "%",
        "%zz", "..", "-", " ", "%20L1", "\n", "1e5", "0x1", "NaN", "{}", "L1'--", "L1;", "a" * 10_000, "%F0%9F%93%9A" * 2_500,
        "9" * 10_000, "-9223372036854775808", "9223372036854775807", "9223372036854775808", "2147483648",
        "{" + SHELF + "}", SHELF.replace("-", ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("collection", COLLECTIONS)
def test_a_key_that_is_not_there_is_404(collection: str, key: str) -> None:
    reply = get(f"/v1/{collection}/{key}")
    assert reply.status == 404, reply.text
    assert reply.json["type"] == "urn:tidegate:problem:no-such-row"
    assert reply.json["where"] == {"in": "path", "name": "key"}


def test_a_key_with_a_slash_or_another_script_is_found(library: Library) -> None:
    keys = ("a/b", "a%b", "Zürich 📚", "k" * 2_000)
    copied = (
        "SELECT '{key}', reader, guarantor, state, fee, rate, renewals, overdue, due, ticket, changed_at, _generation,"
    )
    copied += (
        "_source_version, _epoch, _read, _translation, _deleted, _event_id, _occurred_at FROM loans WHERE number = 'L1'"
    )
    columns = copied.removeprefix("SELECT '{key}', ").partition(" FROM")[0]
    try:
        library.execute(*(f"INSERT INTO loans (number, {columns}) {copied.format(key=key)}" for key in keys))
        for key in keys:
            assert get(f"/v1/loans/{urllib.parse.quote(key, safe='')}").json["number"] == key
    finally:
        library.execute("DELETE FROM loans WHERE number NOT LIKE 'L_'")


@pytest.mark.parametrize(
    ("query", "name", "kind"),
    [
        ({"limit": "00010"}, "limit", "bad-limit"),
        ({"limit": ""}, "limit", "bad-limit"),
        ({"limit": "1,2"}, "limit", "bad-limit"),
        ({"limit": "\ud800"}, "limit", "bad-limit"),
        ({"limit": "9" * 10_000}, "limit", "bad-limit"),
        ({"cursor": ""}, "cursor", "bad-cursor"),
        ({"cursor": "\0"}, "cursor", "bad-cursor"),
        ({"cursor": "é"}, "cursor", "bad-cursor"),
        ({"cursor": "x" * 10_000}, "cursor", "bad-cursor"),
        ({"cursor": base64.urlsafe_b64encode(b"[" * 5_000).decode()}, "cursor", "bad-cursor"),
        ({"cursor": base64.urlsafe_b64encode(b'["loans","a\\u0000"]').decode()}, "cursor", "bad-cursor"),
        ({"cursor": base64.urlsafe_b64encode(b'["loans","\\ud800"]').decode()}, "cursor", "bad-cursor"),
        ({"cursor": base64.urlsafe_b64encode(b'["shelves","1"]').decode()}, "cursor", "bad-cursor"),
        ({"Limit": "5"}, "Limit", "unknown-parameter"),
        ({"offset": "5", "limit": "5"}, "offset", "unknown-parameter"),
        ({"": ""}, "", "unknown-parameter"),
        ({"\ud800" * 200: ""}, None, "unknown-parameter"),
    ],
)
def test_a_parameter_that_is_wrong_is_400_and_named(query: dict[str, str], name: str | None, kind: str) -> None:
    reply = get("/v1/loans", query=query)
    assert reply.status == 400, reply.text
    assert reply.json["type"] == f"urn:tidegate:problem:{kind}"
    assert reply.json["where"]["in"] == "query"
    assert name is None or reply.json["where"]["name"] == name
    assert len(reply.text) < 1_000


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "OPTIONS", "nonsense", ""])
def test_another_method_is_405(method: str) -> None:
    reply = get("/v1/loans", method=method)
    assert (reply.status, reply.headers["allow"]) == (405, "GET")


@pytest.mark.parametrize("path", ["", "/", "//", "\ud800", "/v1/\ud800", "/v1/" + "x" * 10_000, "/v1/%00", "/V1/loans"])
def test_another_path_is_404_and_its_log_line_is_short(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    reply = get(path)
    assert (reply.status, reply.json["type"]) == (404, "urn:tidegate:problem:no-such-collection")
    assert len(capsys.readouterr().out) < 300


def test_a_value_that_only_the_database_refuses_is_400_and_keeps_the_connection(
    library: Library, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Our own checks find every such value that we know; here they are blind."""
    assert get("/v1/loans").status == 200
    connections = "SELECT array_agg(pid) AS pids FROM pg_stat_activity WHERE usename = 'reader_login'"
    before = library.fetch(library.postgres.dsn, connections)[0]["pids"]
    monkeypatch.setattr(queries, "key_fits", lambda shape, text: True)
    for path in ("/v1/loans/a%00hidden", "/v1/town-branches/99999999999999999999", "/v1/shelves/hidden"):
        reply = get(path)
        assert reply.status == 400, path
        assert reply.json["type"] == "urn:tidegate:problem:bad-value"
    assert library.fetch(library.postgres.dsn, connections)[0]["pids"] == before
    lines = [msgspec.json.decode(line) for line in capsys.readouterr().out.splitlines()]
    reasons = [line["reason"] for line in lines if line["event"] == "api.value_refused"]
    assert reasons == ["untranslatable_character", "numeric_value_out_of_range", "invalid_text_representation"]
    assert not any("hidden" in str(line) for line in lines)


ANY_TEXT = st.lists(
    st.characters(exclude_categories=()) | st.sampled_from("\ud800\udfff\0/%[] \u2003"), max_size=20
).map("".join)
"""Lone surrogates too: an event is JSON, and JSON can spell them."""

CURSORS = ANY_TEXT | st.tuples(st.sampled_from([*COLLECTIONS, "none"]), st.text(max_size=20)).map(
    lambda pair: base64.urlsafe_b64encode(msgspec.json.encode(pair)).decode().rstrip("=")
)
KEYS = st.one_of(
    ANY_TEXT,
    ANY_TEXT.map(lambda text: urllib.parse.quote(text, safe="", errors="replace")),
    st.binary(max_size=40).map(urllib.parse.quote_from_bytes),
    st.integers().map(str),
    st.uuids().map(str),
)
PATHS = st.one_of(
    st.tuples(st.sampled_from([*COLLECTIONS, "openapi.json", "none"]), KEYS).map(lambda parts: "/v1/" + "/".join(parts)),
    st.sampled_from([f"/v1/{name}" for name in COLLECTIONS]),
    ANY_TEXT,
)  # fmt: skip
QUERIES = st.fixed_dictionaries(
    {}, optional={"limit": ANY_TEXT | st.integers().map(str), "cursor": CURSORS}
) | st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=2)
CLAIMS = st.one_of(
    st.none(),
    st.just(READER_1),
    st.dictionaries(
        st.sampled_from(["username", "cognito:groups", "scope"]),
        ANY_TEXT | ANY_TEXT.map("reader-".__add__) | st.lists(ANY_TEXT, max_size=3) | st.integers(),
    ),
)
METHODS = st.sampled_from(["GET", "GET", "GET", "get", "HEAD", "POST"]) | ANY_TEXT


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(path=PATHS, query=QUERIES, claims=CLAIMS, method=METHODS, tag=ANY_TEXT)
def test_no_request_makes_a_server_error(
    path: str, query: dict[str, str], claims: dict[str, Any] | None, method: str, tag: str
) -> None:
    reply = get(path, claims, method=method, query=query, headers={"If-None-Match": tag})
    assert reply.status in {200, 304, 400, 401, 404, 405}, reply.text
    reply.text.encode()
    if reply.status >= 400:
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.json["status"] == reply.status
