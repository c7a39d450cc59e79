"""The page's server over a stand-in for the API: what it serves, hands on, and refuses."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from local import gateway, pages


async def _sign_in(username: str, password: str) -> gateway.Tokens:
    if password != "right":
        raise gateway.SignInRefused(username)
    return gateway.Tokens(access_token=f"token of {username}", expires_in=3600)


async def _api(request: web.Request) -> web.Response:
    if request.headers.get("If-None-Match") == '"same"':
        return web.Response(status=304, headers={"ETag": '"same"', "Data-As-Of": "2026-01-01T00:00:00Z"})
    shown = {
        "path": request.raw_path,
        "token": request.headers.get("Authorization"),
        "cookie": request.headers.get("Cookie"),
    }
    return web.json_response(shown, headers={"ETag": '"new"', "Data-As-Of": "2026-01-01T00:00:00Z", "X-Inner": "1"})


@pytest.fixture
async def page() -> AsyncIterator[aiohttp.ClientSession]:
    api = web.Application()
    api.router.add_get("/stage/v1/{rest:.*}", _api)
    async with AsyncExitStack() as stack:
        runner = web.AppRunner(api)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        site = pages.Site(
            served=pages.Served(),
            api_url=f"http://127.0.0.1:{runner.addresses[0][1]}/stage",
            about=pages.About(
                title="Sample",
                users=[pages.Person(username="anna", password="right", title="Anna")],
                back_offices=[pages.Link(title="Office", url="http://127.0.0.1:1")],
            ),
            sign_in=_sign_in,
        )
        address = await stack.enter_async_context(pages.serving(site, 0))
        yield await stack.enter_async_context(aiohttp.ClientSession(address))


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html"), ("/app.js", "text/javascript"), ("/styles.css", "text/css"), ("/icon.svg", "image/svg+xml")],
)
async def test_the_page_is_served_with_its_policy(page: aiohttp.ClientSession, path: str, kind: str) -> None:
    async with page.get(path) as answer:
        assert answer.status == 200
        assert answer.content_type == kind
        assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_sign_in_gives_a_token_or_401(page: aiohttp.ClientSession) -> None:
    async with page.post("/sign-in", json={"username": "anna", "password": "right"}) as answer:
        assert await answer.json() == {"access_token": "token of anna", "expires_in": 3600}
        assert answer.headers["Cache-Control"] == "no-store"
    async with page.post("/sign-in", json={"username": "anna", "password": "wrong"}) as answer:
        assert answer.status == 401


@pytest.mark.parametrize(("body", "kind", "status"), [("{}", "application/json", 400), ("x", "text/plain", 415)])
async def test_a_strange_sign_in_is_refused(page: aiohttp.ClientSession, body: str, kind: str, status: int) -> None:
    async with page.post("/sign-in", data=body, headers={"Content-Type": kind}) as answer:
        assert answer.status == status


async def test_api_requests_are_handed_on_with_what_they_need_and_no_more(page: aiohttp.ClientSession) -> None:
    headers = {"Authorization": "Bearer t", "Cookie": "secret=1"}
    path = URL("/v1/parcels?limit=2&cursor=a%2Fb", encoded=True)
    async with page.get(path, headers=headers) as answer:
        assert await answer.json() == {
            "path": "/stage/v1/parcels?limit=2&cursor=a%2Fb",
            "token": "Bearer t",
            "cookie": None,
        }
        assert answer.headers["ETag"] == '"new"'
        assert answer.headers["Data-As-Of"] == "2026-01-01T00:00:00Z"
        assert "X-Inner" not in answer.headers
    async with page.get("/v1/parcels", headers={"If-None-Match": '"same"'}) as answer:
        assert answer.status == 304
        assert answer.headers["Data-As-Of"] == "2026-01-01T00:00:00Z"


async def test_the_demo_names_users_and_back_offices(page: aiohttp.ClientSession) -> None:
    async with page.get("/demo.json") as answer:
        assert await answer.json() == {
            "title": "Sample",
            "users": [{"username": "anna", "password": "right", "title": "Anna"}],
            "back_offices": [{"title": "Office", "url": "http://127.0.0.1:1"}],
        }


async def test_another_host_name_is_refused(page: aiohttp.ClientSession) -> None:
    async with page.get("/demo.json", headers={"Host": "evil.example"}) as answer:
        assert answer.status == 421
        assert "right" not in await answer.text()
