"""What a declaration can say of an HTTP back office, over the wire: credentials, links, keysets, families, bodies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import aiohttp
import pytest
from aiohttp import encode_basic_auth, web
from msgspec.structs import replace
from structlog.testing import capture_logs

from poller.gate import Gate
from poller.rest import RestSource
from poller.source import FullWalk, Page, Position, Refused, SinceKeyset, SinceToken
from poller.times import OLDEST
from tests.fakes.poller_world import THINGS
from tidegate.bubble import (
    AfterKey,
    ApiKey,
    Ask,
    Basic,
    Bearer,
    ByKeyset,
    ByToken,
    ClientCredentials,
    Csv,
    Env,
    Get,
    Header,
    LinkHeader,
    NextLink,
    Office,
    PageNumber,
    Param,
    Parent,
    Reread,
    Rest,
    Rows,
)
from tidegate.errors import Transient

SECRETS = {"USER": "anna", "PASSWORD": "pässword", "TOKEN": "t-0-k-e-n", "CLIENT": "me", "CLIENT_SECRET": "s&cret"}
FEED = Rest(
    url=Env("OFFICE_URL"), path="/rows", key="key",
    office=Office(name="office", requests_per_s=1e5, failures=10**6), timeout_s=2,
)  # fmt: skip
NUMBERS = [{"key": f"K{number}", "at": f"2026-11-21 06:00:{number // 2:02d}"} for number in range(9)]


class Server:
    """Answers as the test says, path by path, and keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[web.Request] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        return await self.answer(request)

    async def answer(self, request: web.Request) -> web.Response:
        return web.json_response([])

    def queries(self) -> list[dict[str, str]]:
        return [dict(request.query) for request in self.requests]


@asynccontextmanager
async def office(server: Server, feed: Rest) -> AsyncIterator[RestSource]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        environ = {**SECRETS, "OFFICE_URL": server.url, "TOKEN_URL": f"{server.url}/token"}
        async with aiohttp.ClientSession() as session:
            yield RestSource(THINGS, feed, session, environ, Gate(feed.manners))
    finally:
        await runner.cleanup()


async def walked(source: RestSource, position: Position) -> list[Page]:
    """Every page from a position to the tip."""
    pages = [await source.fetch(position)]
    while pages[-1].has_more:
        pages.append(await source.fetch(pages[-1].following))
        assert len(pages) < 50
    return pages


def keys(pages: list[Page]) -> list[str]:
    return [row["key"] for page in pages for row in page.rows]


class Static(Server):
    def __init__(self, answers: Mapping[str, Any]) -> None:
        super().__init__()
        self.answers = answers

    async def answer(self, request: web.Request) -> web.Response:
        found = self.answers[request.path_qs]
        return found if isinstance(found, web.Response) else web.json_response(found)


@pytest.mark.parametrize(
    ("auth", "header", "query"),
    [
        (Basic(user=Env("USER"), password=Env("PASSWORD", secret=True)),
         ("Authorization", encode_basic_auth("anna", "pässword", "utf-8")), {}),
        (Bearer(token=Env("TOKEN", secret=True)), ("Authorization", "Bearer t-0-k-e-n"), {}),
        (ApiKey(value=Env("TOKEN", secret=True)), ("X-Api-Key", "t-0-k-e-n"), {}),
        (ApiKey(value=Env("TOKEN", secret=True), param="apikey"), ("X-Api-Key", None), {"apikey": "t-0-k-e-n"}),
    ],
)  # fmt: skip
async def test_credentials_headers_and_parameters(auth: Any, header: tuple[str, str], query: dict[str, str]) -> None:
    server = Server()
    extra = {"headers": (Header("X-Tenant", "bern"),), "params": (Param("lang", "de"),)}
    async with office(server, replace(FEED, auth=auth, **extra)) as source:
        await source.fetch(FullWalk())
    (request,) = server.requests
    assert request.headers.get(header[0]) == header[1]
    assert request.headers["X-Tenant"] == "bern"
    assert dict(request.query) == {"lang": "de", **query}
    assert request.headers["User-Agent"].startswith("tidegate/")


class Tokens(Server):
    """An OAuth 2 server and the back office behind it; a token is good until `revoked`."""

    def __init__(self) -> None:
        super().__init__()
        self.issued = 0
        self.revoked = False
        self.forms: list[Any] = []

    async def answer(self, request: web.Request) -> web.Response:
        if request.path == "/token":
            self.forms.append((request.headers.get("Authorization"), dict(await request.post())))
            self.issued += 1
            self.revoked = False
            return web.json_response({"access_token": f"token-{self.issued}", "expires_in": 3600})
        good = request.headers.get("Authorization") == f"Bearer token-{self.issued}" and not self.revoked
        return web.json_response([{"key": "a"}]) if good else web.Response(status=401)


@pytest.mark.parametrize("in_body", [False, True])
async def test_a_token_is_fetched_kept_and_renewed(in_body: bool) -> None:
    server, now_s = Tokens(), 0.0
    auth = ClientCredentials(
        token_url=Env("TOKEN_URL"), client_id=Env("CLIENT"), client_secret=Env("CLIENT_SECRET", secret=True),
        scope="read", in_body=in_body,
    )  # fmt: skip
    async with office(server, replace(FEED, auth=auth)) as source:
        source._wire._credentials._clock = lambda: now_s
        for _ in range(3):
            assert keys([await source.fetch(FullWalk())]) == ["a"]
        assert server.issued == 1
        now_s = 3590.0
        await source.fetch(FullWalk())
        assert server.issued == 2, "before it runs out"
        server.revoked = True
        with pytest.raises(Transient) as caught:
            await source.fetch(FullWalk())
        assert not isinstance(caught.value, Refused), "a new one may help"
        await source.fetch(FullWalk())
        assert server.issued == 3
    header, form = server.forms[0]
    secret = {"client_id": "me", "client_secret": "s&cret"} if in_body else {}
    assert form == {"grant_type": "client_credentials", "scope": "read", **secret}
    assert header == (None if in_body else encode_basic_auth("me", "s%26cret", "utf-8"))


async def test_secrets_are_never_told() -> None:
    class Angry(Server):
        async def answer(self, request: web.Request) -> web.Response:
            return web.Response(status=403, text=str(request.url) + str(request.headers))

    feed = replace(FEED, auth=ApiKey(value=Env("TOKEN", secret=True), param="apikey"))
    with capture_logs() as logs:
        async with office(Angry(), feed) as source:
            with pytest.raises(Refused) as refused:
                await source.fetch(FullWalk())
            source._wire._base = "http://127.0.0.1:1"
            with pytest.raises(Transient) as unreachable:
                await source.fetch(FullWalk())
    for text in (str(refused.value), str(unreachable.value), str(logs), repr(feed)):
        assert "t-0-k-e-n" not in text


async def test_next_links_and_link_headers() -> None:
    server = Static({
        "/rows": {"data": [{"key": "a"}], "links": {"next": "/rows?page=2"}},
        "/rows?page=2": {"data": [{"key": "b"}], "links": {"next": None}},
    })  # fmt: skip
    async with office(server, replace(FEED, rows="data", paging=NextLink(next="links.next"))) as source:
        assert keys(await walked(source, FullWalk())) == ["a", "b"]
    second = web.json_response([{"key": "b"}])
    server = Static({"/rows?size=1": web.json_response([{"key": "a"}], headers={"Link": '<rows?n=2>; rel="next"'}),
                     "/rows?n=2": second})  # fmt: skip
    async with office(server, replace(FEED, paging=LinkHeader(size_param="size", size=1))) as source:
        assert keys(await walked(source, FullWalk())) == ["a", "b"]


async def test_credentials_do_not_follow_a_link_to_somebody_else() -> None:
    server = Static({"/rows": {"data": [{"key": "a"}], "next": "http://elsewhere.example/rows"}})
    async with office(server, replace(FEED, rows="data", paging=NextLink(next="next"))) as source:
        page = await source.fetch(FullWalk())
        with pytest.raises(Transient, match="another server"):
            await source.fetch(page.following)


class Keyset(Server):
    async def answer(self, request: web.Request) -> web.Response:
        query, rows = request.query, NUMBERS
        if "since" in query:
            rows = [row for row in rows if (row["at"], row["key"]) > (query["since"], query["id"])]
        elif "after" in query:
            rows = [row for row in rows if row["key"] > query["after"]]
        return web.json_response(rows[:2])


async def test_a_keyset_of_time_and_key_walks_through_ties() -> None:
    changes = ByKeyset(time_param="since", key_param="id", column="at", format="%Y-%m-%d %H:%M:%S")
    server = Keyset()
    async with office(server, replace(FEED, changes=changes, paging=AfterKey(param="after"))) as source:
        pages = await walked(source, SinceKeyset(bound=OLDEST))
        assert keys(pages) == [row["key"] for row in NUMBERS]
        assert pages[-1].following == SinceKeyset(bound=datetime(2026, 11, 21, 6, 0, 4), key="K8")
        assert pages[-1].as_of is not None
        assert keys(await walked(source, FullWalk())) == [row["key"] for row in NUMBERS]
    assert server.queries()[1] == {"since": "2026-11-21 06:00:00", "id": "K1"}


async def test_an_opaque_token_is_followed_and_one_that_is_too_old_starts_over() -> None:
    server = Static({
        "/rows": {"items": [{"key": "a"}], "sync": "t1", "more": True},
        "/rows?sync=t1": {"items": [{"key": "b"}], "sync": "t2", "more": False},
        "/rows?sync=old": web.Response(status=410),
    })  # fmt: skip
    changes = ByToken(param="sync", next="sync", more="more")
    async with office(server, replace(FEED, rows="items", changes=changes)) as source:
        assert source.start == SinceToken()
        pages = await walked(source, SinceToken())
        assert keys(pages) == ["a", "b"]
        assert pages[-1].following == SinceToken(token="t2")
        lost = await source.fetch(SinceToken(token="old"))
        assert (lost.following, lost.has_more, lost.doubt) == (SinceToken(), True, True)


async def test_children_are_asked_for_parent_by_parent() -> None:
    server = Static({
        "/customers?page=1": {"items": [{"id": "x/1", "zone": {"name": "north"}}, {"id": 2}], "pages": 2},
        "/customers?page=2": {"items": [{"id": 3}, {"id": 4}], "pages": 2},
        "/customers/x%2F1/orders?after=a": [{"key": "b"}],
        "/customers/x%2F1/orders?after=b": [],
        "/customers/x%2F1/orders": [{"key": "a"}],
        "/customers/2/orders": [],
        "/customers/3/orders": web.Response(status=404),
        "/customers/4/orders": [{"key": "c"}],
        "/customers/4/orders?after=c": [],
    })  # fmt: skip
    parent = Parent(
        path="/customers", rows="items", key="id", paging=PageNumber(param="page", pages="pages"),
        inherit={"customer": "id", "region": "zone.name"},
    )  # fmt: skip
    feed = replace(FEED, path="/customers/{parent}/orders", paging=AfterKey(param="after"), parent=parent)
    async with office(server, feed) as source:
        pages = await walked(source, FullWalk())
    assert [row for page in pages for row in page.rows] == [
        {"key": "a", "customer": "x/1", "region": "north"}, {"key": "b", "customer": "x/1", "region": "north"},
        {"key": "c", "customer": 4, "region": None},
    ]  # fmt: skip
    assert pages[-1].as_of is not None


@pytest.mark.parametrize("validator", [{"ETag": '"v1"'}, {"Last-Modified": "Sat, 21 Nov 2026 06:00:00 GMT"}])
async def test_an_answer_is_asked_for_again_only_if_it_changed(validator: dict[str, str]) -> None:
    class Cached(Server):
        async def answer(self, request: web.Request) -> web.Response:
            asked = {request.headers.get("If-None-Match"), request.headers.get("If-Modified-Since")}
            if set(validator.values()) & asked:
                return web.Response(status=304)
            return web.json_response([{"key": "a"}], headers=validator)

    server = Cached()
    async with office(server, replace(FEED, conditional=True)) as source:
        first, second = await source.fetch(FullWalk()), await source.fetch(FullWalk())
    assert first.rows == second.rows == ({"key": "a"},)
    assert second.as_of is not None
    assert len(server.requests) == 2


async def test_xml_and_csv() -> None:
    xml = "<answer><row><key>a</key></row></answer>"
    server = Static({"/rows": web.Response(text=xml, content_type="application/xml")})
    async with office(server, replace(FEED, rows="answer.row", body="xml")) as source:
        assert keys([await source.fetch(FullWalk())]) == ["a"]
    server = Static({"/rows": web.Response(text="key;n\né;1\n", content_type="text/csv", charset="latin-1")})
    async with office(server, replace(FEED, body=Csv(delimiter=";"))) as source:
        assert (await source.fetch(FullWalk())).rows == ({"key": "é", "n": "1"},)


async def test_a_single_row_is_asked_for_by_its_path() -> None:
    server = Static({"/rows/a%2F1": {"key": "a/1"}, "/rows/b": web.Response(status=404)})
    async with office(server, replace(FEED, reread=Reread(path="/rows/{key}", rows=""))) as source:
        assert source.reread_size == 1
        assert (await source.reread(["a/1"])).rows == ({"key": "a/1"},)
        assert (await source.reread(["b"])).rows == ()


async def test_a_source_in_a_few_lines_of_python() -> None:
    async def read(get: Get, ask: Ask) -> Rows:
        job = await get("/reports", {"from": str(ask.page or 0)})
        report = await get(f"/reports/{job['id']}")
        return Rows(rows=report["lines"], next=report["next"])

    server = Static({
        "/reports?from=0": {"id": 5}, "/reports/5": {"lines": [{"key": "a"}], "next": 7},
        "/reports?from=7": {"id": 6}, "/reports/6": {"lines": [{"key": "b"}], "next": None},
    })  # fmt: skip
    async with office(server, replace(FEED, read=read)) as source:
        assert keys(await walked(source, FullWalk())) == ["a", "b"]
    server = Static({"/reports?from=0": {"no": 5}})
    async with office(server, replace(FEED, read=read)) as source:
        with pytest.raises(Transient, match=r"read function gave up: KeyError: 'id'"):
            await source.fetch(FullWalk())


async def test_a_page_that_repeats_the_one_before_is_no_page() -> None:
    same = {"rows": [{"key": "a"}], "pages": 3}
    server = Static({"/rows?page=1": same, "/rows?page=2": same})
    async with office(server, replace(FEED, rows="rows", paging=PageNumber(param="page", pages="pages"))) as source:
        page = await source.fetch(FullWalk())
        with pytest.raises(Transient, match="repeats"):
            await source.fetch(page.following)
