"""Who gets what: every address of the route table × everybody who might ask, with real tokens and a real PostgreSQL.

What each caller may see is computed here from the rows and the declarations, by other means than the policies.
"""

from __future__ import annotations

import asyncio
import re
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import product
from typing import Any

import asyncpg
import msgspec
import pytest

from api.answer import Answer
from api.app import App, Options
from api.cursor import Cursors
from api.database import Database
from api.entry import App as Serving
from api.entry import Served, failed, respond
from api.ingest import Ingest, Post
from api.openapi import document
from api.request import Request
from api.routes import Route, gateway_routes, routes_of
from api.settings import ApiSettings, IngestSettings, TokenSettings, UserSettings
from api.tokens import verifier
from api.user import User
from local.postgres import Postgres
from tests.fakes import issuer
from tests.integration.matrix_bubble import bubble
from tidegate import migrate
from tidegate.errors import Fatal, Rejected, Superseded, Transient
from tidegate.settings import Secret
from tidegate.users import Stored

CUSTOMERS, PARTNERS, OFFICES = ("c1", "c2", "c3"), ("p1", "p2", None), ("o1", "o2")
GOODS = [
    {"number": f"R-{customer}-{partner or 'none'}-{office}", "customer": customer, "partner": partner, "office": office}
    for customer, partner, office in product(CUSTOMERS, PARTNERS, OFFICES)
]
BILLS = [{"number": f"R-bill-{customer}", "customer": customer} for customer in CUSTOMERS]
TOWNS = [{"number": "R-town"}]
ROWS: dict[str, list[dict[str, str | None]]] = {"consignments": GOODS, "invoices": BILLS, "towns": TOWNS}  # type: ignore[dict-item]

CLIENTS = (issuer.CLIENT, "partner-p1")
TOKENS = TokenSettings(issuer=issuer.ISSUER, clients=CLIENTS, jwks=issuer.jwks())


class Caller(msgspec.Struct, frozen=True):
    """Who asks: whose rows they should see, and the token they bring. `is_let_in`: whether it is a good one."""

    viewers: Mapping[str, str]
    token: Callable[[], str | None]
    is_let_in: bool = True

    def sees(self, row: Mapping[str, str | None]) -> bool:
        if len(row) == 1:
            return self.is_let_in
        return self.is_let_in and any(row.get(kind) == identity for kind, identity in self.viewers.items())


def token(**claims: Any) -> Callable[[], str]:
    return lambda: issuer.signed(issuer.claims(**claims))


def forged() -> str:
    """Customer 1's own token, with customer 2's name in it."""
    header, claims, signature = issuer.signed(issuer.claims(username="customer-c1")).split(".")
    stated = msgspec.json.decode(urlsafe_b64decode(claims + "=="))
    return f"{header}.{issuer.part({**stated, 'username': 'customer-c2'})}.{signature}"


CALLERS: dict[str, Caller] = {
    "customer 1": Caller({"customer": "c1"}, token(sub="s-c1", username="customer-c1")),
    "customer 2": Caller({"customer": "c2"}, token(sub="s-c2", username="customer-c2")),
    "partner 1, by client": Caller({"partner": "p1"}, token(sub="partner-p1", client_id="partner-p1", username=None)),
    "partner 2, by group": Caller({"partner": "p2"}, token(sub="s-p2", **{"cognito:groups": ["partner-p2"]})),
    "staff": Caller({"office": "o1"}, token(sub="s-o1", **{"cognito:groups": ["x", "office-o1"]})),
    "stranger": Caller({}, token(sub="s-x")),
    "none": Caller({}, lambda: None, is_let_in=False),
    "expired": Caller({}, token(username="customer-c1", exp=int(time.time()) - 60), is_let_in=False),
    "forged": Caller({}, forged, is_let_in=False),
    "ID token": Caller({}, token(token_use="id", aud=issuer.CLIENT, username="customer-c1"), is_let_in=False),
    "other pool": Caller({}, token(iss=issuer.ISSUER + "x", username="customer-c1"), is_let_in=False),
}


class Memory:
    """What the writing functions write to, for looking at it."""

    def __init__(self) -> None:
        self.posts: list[Post] = []
        self.users: dict[str, Stored] = {}

    async def put(self, posts: Sequence[Post]) -> list[bool]:
        self.posts += posts
        return [True] * len(posts)

    async def get(self, subject: str) -> Stored | None:
        return self.users.get(subject)

    async def create(self, subject: str, attributes: str) -> Stored:
        if subject in self.users:
            raise Superseded("there is one")
        return self.users.setdefault(subject, Stored("v1", attributes))

    async def replace(self, subject: str, attributes: str, version: str) -> Stored:
        self.users[subject] = Stored("v2", attributes)
        return self.users[subject]

    async def delete(self, subject: str, version: str) -> None:
        del self.users[subject]


class World:
    """All three functions over one database."""

    def __init__(self, runner: asyncio.Runner, postgres: Postgres) -> None:
        self.memory = Memory()
        self._runner = runner
        address = Secret(postgres.dsn_for("reader_login", "reader-secret"))
        settings = ApiSettings(bubble="", database_url=address, tokens=TOKENS, cursor_key=Secret("k" * 32))
        self.database = Database(settings, [shape.table for shape in bubble.shapes])
        arriving = IngestSettings(bubble="", tokens=TOKENS, stream="s")
        keeping = UserSettings(bubble="", tokens=TOKENS, user_table="t")
        self._apps: dict[str, Serving] = {
            "reads": App(bubble, self.database, Options(cursors=Cursors([b"k" * 32]))),
            "ingest": Ingest(bubble, self.memory, arriving, lambda: datetime.now(UTC)),
            "user": User(bubble, self.memory, keeping),
        }

    def run(self, work: Any) -> Any:
        return self._runner.run(work)

    def ask(self, route: Route, path: str, bearer: str | None, body: object = None) -> Answer:
        media = "application/merge-patch+json" if route.method == "PATCH" else "application/json"
        headers = {"content-type": media, "if-match": "*"}
        if bearer is not None:
            headers["authorization"] = f"Bearer {bearer}"
        raw = msgspec.json.encode(body) if body is not None else b""
        request = Request(method=route.method, path=path, query={}, headers=headers, request_id="r", body=raw)
        return self.run(self._answer(route, request))  # type: ignore[no-any-return]

    async def _answer(self, route: Route, request: Request) -> Answer:
        try:
            return await respond(Served(self._apps[route.function], verifier(TOKENS)), request)
        except (Rejected, Transient, Fatal) as error:
            return failed(error, request.request_id)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("matrix") / "migrations"
    migrate.generate(bubble, folder, "first tables")
    with asyncio.Runner() as runner:
        postgres = Postgres()
        runner.run(postgres.start())
        try:
            migrate.upgrade(postgres.dsn, bubble, folder)
            runner.run(_seed(postgres.dsn))
            made = World(runner, postgres)
            yield made
            runner.run(made.database.close())
        finally:
            runner.run(postgres.stop())


async def _seed(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("CREATE ROLE reader_login LOGIN PASSWORD 'reader-secret' IN ROLE tidegate_reader")
        for table, rows in ROWS.items():
            names, places = ", ".join(rows[0]), ", ".join(f"${number}" for number, _ in enumerate(rows[0], 1))
            text = (
                f"INSERT INTO {table} ({names}, _generation, _source_version, _epoch, _read, _translation, _deleted,"
                f" _event_id, _occurred_at) VALUES ({places}, 0, 1, 1, 1, 1, false, 'e', now())"
            )
            await connection.executemany(text, [tuple(row.values()) for row in rows])
    finally:
        await connection.close()


ROUTES = routes_of(bubble)
EVENT = {"specversion": "1.0", "id": "e1", "type": "matrix.note", "data": {"text": "R-"}}
BODIES = {"POST /v1/events": EVENT, "POST /v1/user": {"a": 1}, "PUT /v1/user": {"a": 2}, "PATCH /v1/user": {"a": 3}}


def paths_of(route: Route) -> list[str]:
    """The addresses of a template: with the key of every row, seen or not."""
    before, brace, _ = route.path.partition("{")
    if not brace:
        return [route.path]
    return [before + str(row["number"]) for row in ROWS[route.path.split("/")[2]]]


def shown_rows(answer: Answer) -> set[str]:
    return set(re.findall(r'"(R-[a-z0-9-]+)"', answer.body))


@pytest.mark.parametrize("name", CALLERS)
@pytest.mark.parametrize("route", ROUTES, ids=[f"{route.method} {route.path}" for route in ROUTES])
def test_everybody_gets_what_is_theirs_and_nothing_else(world: World, route: Route, name: str) -> None:
    caller = CALLERS[name]
    world.memory.posts.clear()
    world.memory.users = {"s-c1": Stored("v1", '{"whose":"c1"}'), "s-c2": Stored("v1", '{"whose":"c2"}')}
    before = dict(world.memory.users)
    for path in paths_of(route):
        answer = world.ask(route, path, caller.token(), BODIES.get(f"{route.method} {route.path}"))
        if not caller.is_let_in and not route.is_open:
            assert answer.status == 401, answer.body
            challenge = "Bearer" if caller.token() is None else 'Bearer error="invalid_token"'
            assert answer.headers["WWW-Authenticate"] == challenge
            assert shown_rows(answer) == set()
        else:
            check = {"reads": _check_reads, "ingest": _check_ingest, "user": _check_user}[route.function]
            check(world, route, path, caller, answer)
    if not caller.is_let_in:
        assert (world.memory.posts, world.memory.users) == ([], before)


def _check_reads(world: World, route: Route, path: str, caller: Caller, answer: Answer) -> None:
    seen = {str(row["number"]) for rows in ROWS.values() for row in rows if caller.sees(row)}
    assert answer.headers["Cache-Control"].startswith("private")
    assert answer.headers["Vary"] == "Authorization"
    assert shown_rows(answer) <= seen, "somebody else's row"
    if "{" in route.path:
        key = path.rpartition("/")[2]
        assert (answer.status, shown_rows(answer)) == ((200, {key}) if key in seen else (404, set()))
        return
    assert answer.status == 200, answer.body
    collection = route.path.removeprefix("/v1/")
    if collection in ROWS:
        assert shown_rows(answer) == {str(row["number"]) for row in ROWS[collection]} & seen
    if route.path == "/v1/reports/load":
        counted = sum(line["consignments"] for line in msgspec.json.decode(answer.body)["rows"])
        assert counted == sum(map(caller.sees, GOODS))


def _check_ingest(world: World, route: Route, path: str, caller: Caller, answer: Answer) -> None:
    may_send = bool(caller.viewers.keys() & {"customer", "office"})
    assert answer.status == (202 if may_send else 403), answer.body
    assert len(world.memory.posts) == may_send
    for post in world.memory.posts:
        sent = msgspec.json.decode(post.data)
        assert sent["subject"].endswith(next(iter(caller.viewers.values())))


def _check_user(world: World, route: Route, path: str, caller: Caller, answer: Answer) -> None:
    others = {subject: stored for subject, stored in world.memory.users.items() if stored.version == "v1"}
    own = caller.viewers.get("customer")
    if "partner" in caller.viewers and caller.viewers["partner"] == "p1":
        assert answer.status == 403, "a program has no attributes"
    elif route.method == "POST":
        assert answer.status == (409 if own in ("c1", "c2") else 201)
    else:
        # What is there is their own, and only that was changed.
        expected = {"GET": 200, "PUT": 200, "PATCH": 200, "DELETE": 204}[route.method]
        assert answer.status == (expected if own in ("c1", "c2") else 404), answer.body
    for subject, whose in (("s-c1", "c1"), ("s-c2", "c2")):
        if own != whose:
            assert others[subject].attributes == f'{{"whose":"{whose}"}}'
            assert whose not in answer.body


def test_the_specification_and_the_table_know_the_same_addresses() -> None:
    """A route that is in neither cannot be found by anybody; one that is in one only is tested for nobody."""
    stated = {(method.upper(), path) for path, item in document(bubble)["paths"].items() for method in item}
    listed = {(route.method, route.path) for route in ROUTES}
    assert stated <= listed
    assert {(route.method, route.path) for route in ROUTES if route.function != "reads"} <= stated
    assert {route.function for route in gateway_routes(bubble)} == {"reads", "ingest", "user"}
    assert {route.path for route in ROUTES if route.is_open} == {"/v1/openapi.json", "/v1/docs"}
