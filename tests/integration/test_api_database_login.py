"""How the reads come to the database: by an IAM token, and through a proxy in transaction mode."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import msgspec
import pytest
from botocore.session import Session

from api import database as api_database
from api import handler as api_handler
from api.iam import Signer, auth_token, password_of, signer_of
from tests.integration.library import NOBODY, READER_1, READER_2, STAFF, Library, get, opened
from tests.integration.transaction_proxy import Proxy, proxied
from tidegate.cli import main
from tidegate.errors import Fatal

SIGNER = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "wJalr/+=", "AWS_REGION": "eu-central-1"}
NOW = datetime(2026, 11, 21, 6, 0, tzinfo=UTC)
HOST, USER = "db.cluster-x.eu-central-1.rds.amazonaws.com", "reader+login@x"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    with opened(tmp_path_factory.mktemp("library") / "migrations") as made:
        yield made


@pytest.fixture(autouse=True)
def sandbox(library: Library, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TIDEGATE_BUBBLE", "tests.integration.library_bubble")
    monkeypatch.setenv("TIDEGATE_DATABASE_URL", library.reader_url)
    api_handler.handler.reset()
    yield
    api_handler.handler.reset()


# --- by an IAM token -------------------------------------------------------------------------------


@pytest.mark.parametrize("session_token", ["", "IQoJb3JpZ2luX2VjE/+=="])
def test_the_token_is_the_one_that_the_sdk_makes(session_token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session()
    session.set_credentials("AKIDEXAMPLE", "wJalr/+=", session_token or None)
    client = session.create_client("rds", region_name="eu-central-1")
    theirs = client.generate_db_auth_token(DBHostname=HOST, Port=5433, DBUsername=USER)
    stated = parse_qs(urlsplit(f"//{theirs}").query)
    at = datetime.strptime(stated["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    signer = Signer(access_key="AKIDEXAMPLE", secret_key="wJalr/+=", region="eu-central-1", session_token=session_token)
    ours = auth_token(HOST, 5433, USER, signer, at)
    assert parse_qs(urlsplit(f"//{ours}").query) == stated
    assert ours.partition("?")[0] == theirs.partition("?")[0] == f"{HOST}:5433/"


def test_a_token_is_made_anew_for_each_connection_and_says_nothing_of_its_key() -> None:
    times = iter([NOW, NOW + timedelta(minutes=16)])
    password = password_of(f"postgresql://u%40x@{HOST}/d?sslmode=verify-full", SIGNER, lambda: next(times))
    first, second = password(), password()
    assert first != second
    assert parse_qs(first)["DBUser"] == ["u@x"]
    assert "wJalr" not in first + repr(signer_of(SIGNER))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"postgresql://u@{HOST}/d", "needs TLS"),
        (f"postgresql://u@{HOST}/d?sslmode=prefer", "needs TLS"),
        (f"postgresql://{HOST}/d?sslmode=require", "names no user"),
    ],
)
def test_a_token_never_goes_in_the_clear(url: str, words: str) -> None:
    with pytest.raises(Fatal, match=words):
        password_of(url, SIGNER, lambda: NOW)
    with pytest.raises(Fatal, match="AWS_SECRET_ACCESS_KEY"):
        signer_of({"AWS_ACCESS_KEY_ID": "x", "AWS_REGION": "y"})


def test_the_handler_signs_in_with_a_token(
    library: Library, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return NOW

    monkeypatch.setattr(api_database, "datetime", Clock)
    for name, value in SIGNER.items():
        monkeypatch.setenv(name, value)
    url = urlsplit(library.reader_url)
    monkeypatch.setenv("TIDEGATE_DATABASE_URL", f"postgresql://reader_login@127.0.0.1:{url.port}{url.path}")
    monkeypatch.setenv("TIDEGATE_DATABASE_IAM", "true")
    assert get("/v1/loans/L1").status == 503, "the password of before is no token"
    token = auth_token("127.0.0.1", url.port or 0, "reader_login", signer_of(SIGNER), NOW)
    try:
        library.execute(f"ALTER ROLE reader_login PASSWORD '{token}'")
        assert get("/v1/loans/L1").status == 200
    finally:
        library.execute("ALTER ROLE reader_login PASSWORD 'reader-secret'")
    assert "X-Amz-Signature" not in capsys.readouterr().out


# --- through a proxy in transaction mode -----------------------------------------------------------


@contextmanager
def proxy_beside(library: Library) -> Iterator[Proxy]:
    """The proxy in a thread of its own, with three connections that others have left to it."""
    port = urlsplit(library.reader_url).port or 0
    ready, stop, made = threading.Event(), threading.Event(), []

    async def serve() -> None:
        async with proxied(port) as proxy:
            made.append(proxy)
            url = library.reader_url.replace(f":{port}/", f":{proxy.port}/")
            for client in [await asyncpg.connect(url, statement_cache_size=0) for _ in range(3)]:
                await client.close()
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(20)
        yield made[0]
    finally:
        stop.set()
        thread.join(20)


def behind(library: Library, proxy: Proxy) -> str:
    return library.reader_url.replace(f":{urlsplit(library.reader_url).port}/", f":{proxy.port}/")


def test_every_request_is_right_on_whichever_connection_it_lands(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy_beside(library) as proxy:
        monkeypatch.setenv("TIDEGATE_DATABASE_URL", behind(library, proxy))
        for _ in range(6):
            for claims, seen in (
                (READER_1, ["L1", "L2"]),
                (READER_2, ["L2", "L3"]),
                (STAFF, ["L1", "L2", "L3"]),
                (NOBODY, []),
            ):
                assert [row["number"] for row in get("/v1/loans", claims).json["items"]] == seen
        assert get("/v1/loans/L1").status == 200
        assert len(proxy.transactions) == 4
        assert min(proxy.transactions) >= 6, "they were spread over all"
        prepared = "SELECT count(*) FROM pg_prepared_statements WHERE statement NOT LIKE '%pg_prepared%'"
        left = f"SELECT ({prepared}) + coalesce(length(current_setting('tidegate.viewers', true)), 0) AS n"
        assert {library.fetch(behind(library, proxy), left)[0]["n"] for _ in range(4)} == {0}
        api_handler.handler.reset()


def test_the_proxy_of_these_tests_finds_what_is_left_in_a_session(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named statements do not survive it: so the test above could fail."""
    with proxy_beside(library) as proxy:
        monkeypatch.setenv("TIDEGATE_DATABASE_URL", behind(library, proxy))
        monkeypatch.setenv("TIDEGATE_STATEMENT_CACHE_SIZE", "16")
        assert {get("/v1/loans").status for _ in range(8)} == {200}
        assert len(proxy.transactions) > 4, "each time that a statement was missing, a new connection was opened"
        api_handler.handler.reset()


# --- and as somebody else, to see what they see ----------------------------------------------------


def show(library: Library, capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    bubble = ["--bubble", "tests.integration.library_bubble", "--json"]
    assert main(["access", "show", *bubble, *arguments]) == 0
    return {each["entity"]: each for each in msgspec.json.decode(capsys.readouterr().out)["entities"]}


def test_access_show_counts_what_the_policies_show(library: Library, capsys: pytest.CaptureFixture[str]) -> None:
    seen = show(library, capsys, "--as", "reader:1")
    assert {name: each["rows"] for name, each in seen.items()} == {"loan": 2, "branch": 121, "shelf": 1}
    assert [(way["kind"], way["rows"]) for way in seen["loan"]["ways"]] == [("reader", 2), ("staff", 0)]
    assert "tidegate.viewer_ids('reader'" in seen["loan"]["policies"][0]
    assert show(library, capsys, "--as", "staff:north")["loan"]["rows"] == 3
    assert show(library, capsys, "--as", '{"username": "reader-2", "cognito:groups": []}')["loan"]["rows"] == 2
    limited = show(library, capsys, "--as", "reader:9", "--limit", "5")
    assert (limited["loan"]["rows"], limited["branch"]["rows"], limited["branch"]["is_more"]) == (0, 5, True)


def test_access_show_needs_the_reader_s_rights(
    library: Library, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["access", "show", "--bubble", "tests.integration.library_bubble", "--as", "reader:1"]
    monkeypatch.setenv("TIDEGATE_DATABASE_URL", library.postgres.dsn)
    assert main(arguments) == 0, "a superuser may become the reader, and sees no more than he"
    assert "loan (/v1/loans): 2 rows" in capsys.readouterr().out
    try:
        library.execute("CREATE ROLE nobody LOGIN PASSWORD 'nobody-secret'")
        monkeypatch.setenv("TIDEGATE_DATABASE_URL", library.postgres.dsn_for("nobody", "nobody-secret"))
        assert main(arguments) == 1
        assert "no member of tidegate_reader" in capsys.readouterr().err
    finally:
        library.execute("DROP ROLE nobody")
