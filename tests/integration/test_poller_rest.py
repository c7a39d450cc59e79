"""The HTTP adapter over the wire: what it asks, how it reads the answers, and what goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from msgspec.structs import replace

from poller.rest import RestSource
from poller.source import FullWalk, Page, Refused, SinceRevision, SinceTime
from poller.times import OLDEST
from tests.fakes.poller_world import THINGS
from tidegate.bubble import ByRevision, ByTime, Env, Header, Offset, PageNumber, PageToken, Reread, Rest
from tidegate.errors import Fatal, Transient

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
FEED = Rest(
    url=Env("OFFICE_URL"),
    path="/rows",
    rows="data.rows",
    key="key",
    paging=PageNumber(param="page", pages="pages", total="total", size_param="size", size=2),
    changes=ByTime(param="since", column="at", format="%Y-%m-%d %H:%M:%S", zone="Europe/Zurich"),
    reread=Reread(path="/by-key", param="key", size=3),
    headers=(Header("Authorization", Env("OFFICE_KEY", secret=True), prefix="ApiKey "),),
    timeout_s=0.3,
    requests_per_s=1000,
)


@asynccontextmanager
async def office(handler: Handler, feed: Rest = FEED) -> AsyncIterator[RestSource]:
    """A source that asks a server whose every path is this handler."""
    app = web.Application()
    app.router.add_get("/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        environ = {"OFFICE_URL": f"http://127.0.0.1:{runner.addresses[0][1]}/", "OFFICE_KEY": "secret"}
        async with aiohttp.ClientSession() as session:
            yield RestSource(THINGS, feed, session, environ)
    finally:
        await runner.cleanup()


def answers(body: object, **how: Any) -> tuple[Handler, list[web.Request]]:
    """A handler that always answers the same, and the requests it got."""
    requests: list[web.Request] = []

    async def handler(request: web.Request) -> web.Response:
        requests.append(request)
        return web.json_response(body, **how)

    return handler, requests


async def test_a_page_of_changes_by_time() -> None:
    rows = [{"key": "a", "at": "2026-11-21 06:55:03"}, {"key": "b", "at": "2026-11-21 06:55:04"}]
    handler, requests = answers({"data": {"rows": rows}, "pages": 3, "total": 5})
    async with office(handler) as source:
        page = await source.fetch(SinceTime(bound=OLDEST))
        assert page.rows == tuple(rows)
        assert page.following == SinceTime(bound=datetime(2026, 11, 21, 6, 55, 4))
        assert page.has_more
        assert abs(page.served_at - datetime.now(UTC)) < timedelta(seconds=2)
    (request,) = requests
    assert request.path == "/rows"
    assert dict(request.query) == {"since": "1970-01-01 00:00:00", "page": "1", "size": "2"}
    assert request.headers["Authorization"] == "ApiKey secret"


async def test_a_full_walk_asks_for_pages_and_nothing_else() -> None:
    requests: list[web.Request] = []

    async def handler(request: web.Request) -> web.Response:
        requests.append(request)
        rows = {"2": [{"key": "c"}, {"key": "d"}], "3": [{"key": "e"}]}[request.query["page"]]
        return web.json_response({"data": {"rows": rows}, "pages": 3, "total": 5})

    async with office(handler) as source:
        page = await source.fetch(FullWalk(page=2))
        assert isinstance(page.following, FullWalk)
        assert page.following.page == 3
        last = await source.fetch(page.following)
    assert not last.has_more
    assert [dict(request.query) for request in requests] == [
        {"page": "2", "size": "2"}, {"page": "3", "size": "2"},
    ]  # fmt: skip


@pytest.mark.parametrize(("separator", "query"), [(None, [("key", "a,1"), ("key", "b")]), (";", [("key", "a,1;b")])])
async def test_a_reread_names_its_keys(separator: str | None, query: list[tuple[str, str]]) -> None:
    handler, requests = answers({"data": {"rows": [{"key": "b"}]}})
    reread = Reread(path="/by-key", param="key", size=3, separator=separator)
    async with office(handler, _with(reread=reread)) as source:
        page = await source.reread(["a,1", "b"])
        with pytest.raises(ValueError, match="cannot re-read 4 keys"):
            await source.reread(list("abcd"))
    assert page.rows == ({"key": "b"},)
    assert requests[0].path == "/by-key"
    assert list(requests[0].query.items()) == query


async def test_rows_that_are_arrays_get_their_names() -> None:
    body = {"names": ["key", "rev"], "data": {"rows": [["a", 7], ["b"]]}, "next": "t2"}
    feed = _with(
        columns="names", paging=PageToken(param="token", next="next"), changes=ByRevision(param="after", column="rev")
    )
    handler, requests = answers(body)
    async with office(handler, feed) as source:
        page = await source.fetch(SinceRevision(bound=5, at=5))
        walk = await source.fetch(FullWalk(page="t1"))
    assert page.rows == ({"key": "a", "rev": 7}, {"row": ["b"]})
    assert isinstance(page.following, SinceRevision)
    assert page.following.at == 7
    assert isinstance(walk.following, FullWalk)
    assert walk.following.page == "t2"
    assert [dict(request.query) for request in requests] == [{"after": "5"}, {"token": "t1"}]


async def test_offsets() -> None:
    feed = _with(paging=Offset(param="offset", next="next", size_param="limit", size=2))
    handler, _ = answers({"data": {"rows": [{"key": "a"}]}, "next": 2})
    async with office(handler, feed) as source:
        page = await source.fetch(FullWalk())
        assert isinstance(page.following, FullWalk)
        assert page.following.page == 2
        with pytest.raises(Transient, match="next offset"):
            await source.fetch(page.following)


@pytest.mark.parametrize(
    ("status", "headers", "expected", "wish_s"),
    [
        (429, {"Retry-After": "7"}, Transient, 7.0),
        (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, Transient, 0.0),
        (503, {"Retry-After": "later"}, Transient, None),
        (500, {}, Transient, None),
        (408, {}, Transient, None),
        (302, {"Location": "/login"}, Transient, None),
        (401, {}, Refused, None),
        (403, {"Retry-After": "60"}, Refused, 60.0),
        (404, {}, Refused, None),
        (400, {}, Refused, None),
    ],
)
async def test_statuses(status: int, headers: dict[str, str], expected: type[Exception], wish_s: float | None) -> None:
    handler, _ = answers({"error": status}, status=status, headers=headers)
    async with office(handler) as source:
        with pytest.raises(expected) as caught:
            await source.fetch(FullWalk())
    assert type(caught.value) is expected
    assert getattr(caught.value, "retry_after_s", None) == wish_s
    assert "secret" not in str(caught.value)


async def test_a_token_that_expired_is_no_reason_to_end() -> None:
    handler, _ = answers({}, status=410)
    async with office(handler, _with(paging=PageToken(param="token", next="next"))) as source:
        with pytest.raises(Transient) as caught:
            await source.fetch(FullWalk(page="old"))
    assert not isinstance(caught.value, Refused)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>closed at night</html>",
        b'{"data": {"rows": null}}',
        b'{"data": {"rows": []}}',
        b"\xff\xfe",
        b"",
        b"[" * 1000 + b"]" * 1000,
    ],
    ids=["html", "no-rows", "no-pages", "not-text", "empty", "deep"],
)
async def test_answers_that_are_none(body: bytes) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    async with office(handler) as source:
        with pytest.raises(Transient):
            await source.fetch(FullWalk())


async def test_another_charset() -> None:
    async def handler(_: web.Request) -> web.Response:
        body = '{"data": {"rows": [{"key": "Zürich"}]}, "pages": 1}'.encode("latin-1")
        return web.Response(body=body, content_type="application/json", charset="latin-1")

    async with office(handler) as source:
        assert (await source.fetch(FullWalk())).rows == ({"key": "Zürich"},)


async def test_nobody_there_too_slow_and_cut_off() -> None:
    gone = asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        if request.query["page"] == "1":
            await gone.wait()
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with office(slow) as source:
        with pytest.raises(Transient, match="no answer in"):
            await source.fetch(FullWalk())
        gone.set()
        with pytest.raises(Transient):
            await source.fetch(FullWalk(page=2))
    with pytest.raises(Transient):
        await _closed_port()


async def _closed_port() -> Page:
    async with aiohttp.ClientSession() as session:
        environ = {"OFFICE_URL": "http://127.0.0.1:1", "OFFICE_KEY": "secret"}
        return await RestSource(THINGS, FEED, session, environ).fetch(FullWalk())


async def test_the_request_budget_spaces_requests() -> None:
    handler, _ = answers({"data": {"rows": []}, "pages": 1})
    async with office(handler, _with(requests_per_s=20)) as source:
        began = asyncio.get_running_loop().time()
        for _ in range(4):
            await source.fetch(FullWalk())
        assert asyncio.get_running_loop().time() - began >= 3 / 20 * 0.95


async def test_live_changes_go_before_a_backfill_of_the_same_minute() -> None:
    handler, requests = answers({"data": {"rows": []}, "pages": 1})
    live, past = (SinceTime(bound=datetime.now() - timedelta(seconds=age)) for age in (1, 60))
    async with office(handler, _with(requests_per_s=10)) as source, asyncio.TaskGroup() as group:
        for position, urgent in ((live, True), (past, False), (live, True), (live, True)):
            group.create_task(source.fetch(position, urgent=urgent))
            await asyncio.sleep(0)
    asked = [request.query["since"] for request in requests]
    assert asked == [asked[0], asked[0], asked[0], min(asked)]
    assert min(asked) < asked[0]


async def test_a_missing_variable_is_named() -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(Fatal, match="OFFICE_KEY"):
            RestSource(THINGS, FEED, session, {"OFFICE_URL": "http://127.0.0.1:1"})


async def test_a_cursor_of_another_kind_is_this_source_s_failure_alone() -> None:
    handler, _ = answers({})
    async with office(handler) as source:
        with pytest.raises(Refused, match="cursor is of another kind"):
            await source.fetch(SinceRevision())


def _with(**changed: Any) -> Rest:
    return replace(FEED, **changed)
