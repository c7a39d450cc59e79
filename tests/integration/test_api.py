"""The Lambda handler on a real PostgreSQL: who sees what, how fresh it is, and what happens when things go wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import asyncpg
import msgspec
import pytest

from api import handler as api_handler
from tests.integration.library import NOBODY, READER_1, READER_2, SHELF, STAFF, Library, get, opened
from tidegate.access_sql import read_statement


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    with opened(tmp_path_factory.mktemp("library") / "migrations") as made:
        yield made


@pytest.fixture(autouse=True)
def sandbox(library: Library, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test starts as a fresh Lambda sandbox would."""
    monkeypatch.setenv("TIDEGATE_BUBBLE", "tests.integration.library_bubble")
    monkeypatch.setenv("TIDEGATE_DATABASE_URL", library.reader_url)
    api_handler.handler.reset()
    yield
    api_handler.handler.reset()


def numbers(path: str, claims: Mapping[str, object] = READER_1) -> list[str]:
    return [item["number"] for item in get(path, claims).json["items"]]


# --- what is shown ---------------------------------------------------------------------------------


def test_a_row_has_the_entity_s_fields_in_their_order_and_the_contract_s_forms() -> None:
    reply = get("/v1/loans/L1")
    assert reply.status == 200
    assert reply.text == (
        '{"number":"L1","reader":"1","guarantor":null,"state":"out","fee":"12.50","rate":0.1,'
        '"renewals":9007199254740993,"overdue":false,"due":"2026-12-01",'
        '"ticket":"6f1e3f6e-9a55-4c5e-8d0e-0a3c6f6f0001","changed_at":"2026-11-21T05:55:03Z"}'
    )


def test_forms_do_not_depend_on_the_session(library: Library) -> None:
    plain = get("/v1/loans/L1").text
    settings = ("timezone = 'Asia/Tokyo'", "datestyle = 'German, DMY'", "extra_float_digits = -5")
    try:
        library.execute(*(f"ALTER ROLE reader_login SET {setting}" for setting in settings))
        api_handler.handler.reset()
        reply = get("/v1/loans/L1")
    finally:
        library.execute("ALTER ROLE reader_login RESET ALL")
    without_float = plain.replace('"rate":0.1', '"rate":?')
    assert reply.text.replace('"rate":0.1', '"rate":?') == without_float
    assert reply.headers["data-as-of"] == "2026-11-21T05:50:00.500000Z"


def test_microseconds_are_shown_as_msgspec_writes_them(library: Library) -> None:
    try:
        library.execute("UPDATE loans SET changed_at = '2026-11-21T05:55:03.120Z' WHERE number = 'L1'")
        assert get("/v1/loans/L1").json["changed_at"] == "2026-11-21T05:55:03.120000Z"
    finally:
        library.execute("UPDATE loans SET changed_at = '2026-11-21T05:55:03Z' WHERE number = 'L1'")


def test_pages_by_key_cover_everything_once() -> None:
    seen, cursor, pages = [], None, 0
    while True:
        query = {"limit": "50"} | ({"cursor": cursor} if cursor else {})
        page = get("/v1/town-branches", query=query).json
        seen += [item["number"] for item in page["items"]]
        cursor, pages = page["next_cursor"], pages + 1
        if cursor is None:
            break
    assert seen == [n for n in range(-1, 121) if n != 7]
    assert pages == 3


def test_a_page_that_ends_exactly_has_no_next() -> None:
    page = get("/v1/town-branches", query={"limit": "200"}).json
    assert len(page["items"]) == 121
    assert page["next_cursor"] is None
    first = get("/v1/town-branches").json
    assert len(first["items"]) == 50, "the default limit"


def test_keys_of_every_type() -> None:
    assert get("/v1/town-branches/-1").json == {"number": -1, "name": "branch -1"}
    assert get(f"/v1/shelves/{SHELF.upper()}").json["label"] == 'A "quoted" — label'
    for path in (
        "/v1/town-branches/007",
        "/v1/town-branches/x",
        "/v1/town-branches/99999999999999999999",
        "/v1/shelves/1",
    ):
        assert get(path).status == 404, path
    assert get("/v1/loans/L1%00").status == 404
    assert get("/v1/loans/L1' OR true --").status == 404


# --- who sees it -----------------------------------------------------------------------------------


def test_a_reader_sees_own_rows_only_and_no_tombstone() -> None:
    assert numbers("/v1/loans", READER_1) == ["L1", "L2"]
    assert numbers("/v1/loans", READER_2) == ["L2", "L3"]
    assert get("/v1/loans/L3", READER_2).status == 200
    hidden, deleted, absent = (
        get("/v1/loans/L3", READER_1),
        get("/v1/loans/L4", READER_1),
        get("/v1/loans/L9", READER_1),
    )
    assert hidden.status == deleted.status == absent.status == 404
    assert hidden.text == deleted.text == absent.text, "nothing tells a hidden row from one that is not there"


def test_staff_see_all_and_strangers_only_what_everyone_sees() -> None:
    assert numbers("/v1/loans", STAFF) == ["L1", "L2", "L3"]
    assert numbers("/v1/loans", NOBODY) == []
    assert get("/v1/shelves", NOBODY).json["items"] != []


def test_claims_do_not_reach_the_next_request() -> None:
    assert numbers("/v1/loans", STAFF) == ["L1", "L2", "L3"]
    assert numbers("/v1/loans", NOBODY) == []
    assert get("/v1/loans/L1", NOBODY).status == 404
    refused = get("/v1/loans", None)
    assert refused.status == 401
    assert refused.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("username", ["[reader-1]", "x reader-1", "[x reader-1]", " reader-1", "staff-north"])
def test_a_chosen_name_does_not_make_its_bearer_somebody_else(username: str) -> None:
    assert numbers("/v1/loans", {"username": username, "token_use": "access"}) == []


def test_a_claim_is_never_sql() -> None:
    for name in ("1' OR true --", '1"}', "1\\", "]}", "1\0"):
        assert numbers("/v1/loans", {"username": f"reader-{name}"}) == [], name


def test_the_database_shows_nothing_without_claims(library: Library) -> None:
    url = library.reader_url
    assert library.fetch(url, "SELECT * FROM loans") == []
    assert library.fetch(url, "SELECT * FROM town_branches") == []
    assert library.fetch(url, "SELECT * FROM loans WHERE _deleted") == []
    staff = "SELECT set_config('tidegate.viewers', '{\"staff\": [\"north\"]}', false)"
    assert [row["number"] for row in library.fetch(url, staff, "SELECT number FROM loans ORDER BY 1")] == [
        "L1",
        "L2",
        "L3",
    ]


REFUSED = (
    "SELECT * FROM tidegate.shard",
    "SELECT * FROM tidegate.watermark",
    "SELECT * FROM tidegate.dead_letter",
    "UPDATE loans SET reader = '1'",
    "INSERT INTO shelves SELECT * FROM shelves",
    "DELETE FROM loans",
    "TRUNCATE loans",
    "ALTER TABLE loans DISABLE ROW LEVEL SECURITY",
    "ALTER TABLE loans NO FORCE ROW LEVEL SECURITY",
    "DROP POLICY tidegate_reader_select ON loans",
    "CREATE TABLE public.mine (id int)",
    "CREATE FUNCTION tidegate.viewer_ids(kind text) RETURNS text[] LANGUAGE sql AS 'SELECT ARRAY[''north'']'",
    "SET ROLE tidegate_worker",
    "SET ROLE postgres",
    "SET SESSION AUTHORIZATION postgres",
    "ALTER ROLE reader_login BYPASSRLS",
    "GRANT tidegate_worker TO reader_login",
)


@pytest.mark.parametrize("statement", REFUSED)
def test_the_reader_s_login_may_not(library: Library, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        library.fetch(library.reader_url, statement)


def test_row_security_cannot_be_switched_off(library: Library) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
        library.fetch(library.reader_url, "SET row_security = off", "SELECT * FROM loans")


def test_claims_are_set_before_the_rows_are_read_and_end_with_the_statement(library: Library) -> None:
    rows = "SELECT ARRAY(SELECT number FROM loans ORDER BY 1)"
    text = read_statement(rows).replace("$1", """'{"viewers": {"staff": ["n"]}}'""").replace("$2", "'{loans}'")
    assert library.fetch(library.reader_url, text)[0]["items"] == ["L1", "L2", "L3"]
    plain = text.replace("'tidegate.viewers'", "'tidegate.others'")
    assert library.fetch(library.reader_url, plain)[0]["items"] == [], (
        "without its claims the same statement sees nothing"
    )
    left = "SELECT nullif(current_setting('tidegate.viewers', true), '') AS left"
    assert library.fetch(library.reader_url, text, left)[0]["left"] is None
    assert library.fetch(library.reader_url, text, "SELECT * FROM loans") == []


# --- how fresh it is -------------------------------------------------------------------------------


def test_data_as_of_is_the_oldest_watermark_of_all_shards() -> None:
    for path in ("/v1/loans", "/v1/loans/L1", "/v1/loans/unknown"):
        headers = get(path).headers
        assert headers["data-as-of"] == "2026-11-21T05:50:00.500000Z", path
        assert "data-incomplete" not in headers
        assert "data-unwatermarked" not in headers


def test_a_source_without_watermarks_is_named() -> None:
    headers = get("/v1/town-branches").headers
    assert headers["data-unwatermarked"] == "branches"
    assert "data-as-of" not in headers
    assert "data-incomplete" not in headers


def test_while_a_shard_has_no_watermark_the_answer_is_incomplete(library: Library) -> None:
    try:
        library.execute("INSERT INTO tidegate.shard (stream, shard_id) VALUES ('s', 'new')")
        headers = get("/v1/loans").headers
    finally:
        library.execute("DELETE FROM tidegate.shard WHERE shard_id = 'new'")
    assert headers["data-incomplete"] == "loans"
    assert "data-as-of" not in headers


def test_not_modified_keeps_the_etag_and_renews_the_freshness(library: Library) -> None:
    first = get("/v1/loans/L1")
    again = {"If-None-Match": f'W/"other", {first.headers["etag"]}'}
    try:
        library.execute("UPDATE tidegate.watermark SET as_of = '2026-11-21T05:56:00Z'")
        second = get("/v1/loans/L1", headers=again)
        assert (second.status, second.text) == (304, "")
        assert second.headers["etag"] == first.headers["etag"]
        assert second.headers["data-as-of"] == "2026-11-21T05:56:00Z"
        library.execute("UPDATE loans SET fee = 13.00 WHERE number = 'L1'")
        third = get("/v1/loans/L1", headers=again)
        assert third.status == 200
        assert third.headers["etag"] != first.headers["etag"]
    finally:
        library.execute(
            "UPDATE loans SET fee = 12.50 WHERE number = 'L1'",
            "UPDATE tidegate.watermark SET as_of = '2026-11-21T05:55:03Z' WHERE shard_id = 'a'",
            "UPDATE tidegate.watermark SET as_of = '2026-11-21T05:50:00.5Z' WHERE shard_id = 'b'",
        )


def test_answers_are_private_to_the_caller() -> None:
    for reply in (get("/v1/loans"), get("/v1/loans/none"), get("/v1/loans", None), get("/v1/loans", method="POST")):
        assert reply.headers["cache-control"] == "private, no-cache"
        assert reply.headers["vary"] == "Authorization"
        assert reply.headers["x-request-id"] == "request-1"


# --- when something is wrong -----------------------------------------------------------------------


def test_a_connection_that_died_is_replaced_without_the_caller_noticing(library: Library) -> None:
    assert get("/v1/loans/L1").status == 200
    library.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'reader_login'")
    assert get("/v1/loans/L1").status == 200
    assert get("/v1/loans/L1").status == 200


@pytest.mark.parametrize("cache_size", ["0", "16"])
def test_one_connection_with_or_without_prepared_statements(
    library: Library, monkeypatch: pytest.MonkeyPatch, cache_size: str
) -> None:
    monkeypatch.setenv("TIDEGATE_STATEMENT_CACHE_SIZE", cache_size)
    for _ in range(4):
        assert get("/v1/loans/L1").status == 200
    count = "SELECT count(*) AS n FROM pg_stat_activity WHERE usename = 'reader_login'"
    assert library.fetch(library.postgres.dsn, count)[0]["n"] == 1


def test_the_database_away(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TIDEGATE_DATABASE_URL", "postgresql://reader:hidden-password@127.0.0.1:1/none")
    reply = get("/v1/loans")
    assert reply.status == 503
    assert int(reply.headers["retry-after"]) >= 1
    assert reply.headers["content-type"] == "application/problem+json"
    assert "127.0.0.1" not in reply.text
    assert "Traceback" not in reply.text
    log = capsys.readouterr().out
    assert '"event":"api.database_away"' in log
    assert "hidden-password" not in log


def test_a_read_that_takes_too_long_is_given_up(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    assert get("/v1/loans").status == 200
    monkeypatch.setenv("TIDEGATE_STATEMENT_TIMEOUT_S", "0.2")
    api_handler.handler.reset()
    assert get("/v1/loans").status == 200
    slow = "CREATE POLICY slow ON loans AS RESTRICTIVE FOR SELECT TO tidegate_reader USING (pg_sleep(0.3) IS NOT NULL)"
    try:
        library.execute(slow)
        assert get("/v1/loans", STAFF).status == 503
    finally:
        library.execute("DROP POLICY slow ON loans")
    assert get("/v1/loans", STAFF).status == 200


FAULTS = (
    ("ALTER ROLE reader_login BYPASSRLS", "ALTER ROLE reader_login NOBYPASSRLS", "BYPASSRLS"),
    ("ALTER ROLE reader_login SUPERUSER", "ALTER ROLE reader_login NOSUPERUSER", "superuser"),
    ("GRANT tidegate_operator TO reader_login", "REVOKE tidegate_operator FROM reader_login", "tidegate_operator"),
    ("GRANT tidegate_worker TO reader_login", "REVOKE tidegate_worker FROM reader_login", "tidegate_worker"),
    ("GRANT tidegate_worker TO tidegate_reader", "REVOKE tidegate_worker FROM tidegate_reader", "tidegate_worker"),
    (
        "CREATE POLICY wide ON loans FOR SELECT TO reader_login USING (true)",
        "DROP POLICY wide ON loans",
        "reader_login",
    ),
    ("ALTER TABLE shelves OWNER TO reader_login", "ALTER TABLE shelves OWNER TO postgres", "owns"),
    ("ALTER TABLE loans NO FORCE ROW LEVEL SECURITY", "ALTER TABLE loans FORCE ROW LEVEL SECURITY", "not forced"),
    ("ALTER TABLE shelves RENAME TO shelf", "ALTER TABLE shelf RENAME TO shelves", "do not exist"),
)


@pytest.mark.parametrize(("fault", "repair", "words"), FAULTS, ids=[fault for fault, *_ in FAULTS])
def test_it_refuses_to_serve_when_policies_might_not_hold(
    library: Library, capsys: pytest.CaptureFixture[str], fault: str, repair: str, words: str
) -> None:
    try:
        library.execute(fault)
        reply = get("/v1/loans", STAFF)
    finally:
        library.execute(repair)
    assert reply.status == 503
    assert "loans" not in reply.text
    logged = [msgspec.json.decode(line) for line in capsys.readouterr().out.splitlines()]
    reasons = [line["reason"] for line in logged if line["event"] == "api.fatal"]
    assert len(reasons) == 1
    assert words in reasons[0]
    assert get("/v1/loans", STAFF).status == 200, "and serves again once it is put right"


@pytest.mark.parametrize("url", ["nonsense", "https://h/d", "postgresql://reader:hidden-password@h:port/d"])
def test_an_address_that_is_none_is_fatal(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TIDEGATE_DATABASE_URL", url)
    assert get("/v1/loans").status == 503
    log = capsys.readouterr().out
    assert '"event":"api.fatal"' in log
    assert "hidden-password" not in log


def test_a_wrong_password_or_bubble_is_fatal_and_said_without_secrets(
    library: Library, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TIDEGATE_DATABASE_URL", library.postgres.dsn_for("reader_login", "wrong-secret"))
    assert get("/v1/loans").status == 503
    monkeypatch.setenv("TIDEGATE_BUBBLE", "no_such_bubble")
    api_handler.handler.reset()
    assert get("/v1/loans").status == 503
    log = capsys.readouterr().out
    assert "no_such_bubble" in log
    assert "wrong-secret" not in log
