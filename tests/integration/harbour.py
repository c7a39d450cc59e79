"""The harbour's database, filled by hand, and its reads without a gateway in front: a request in, an answer out."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
import msgspec

from api.app import App, Options
from api.cursor import Cursors
from api.database import Database
from api.entry import Served, respond
from api.request import Request
from api.settings import ApiSettings
from api.tokens import Verifier
from local.postgres import Postgres
from tests.fakes import issuer
from tests.integration.harbour_bubble import bubble
from tidegate import migrate
from tidegate.settings import read

Result = TypeVar("Result")
Row = dict[str, Any]

KEY = "a-key-of-the-tests-with-thirty-two-bytes"
OWNER_1: Mapping[str, object] = {"sub": "s1", "client_id": "page", "username": "owner-o1"}
OWNER_2: Mapping[str, object] = {"sub": "s2", "client_id": "page", "username": "owner-o2"}
MASTER: Mapping[str, object] = {"sub": "s3", "client_id": "page", "username": "m", "cognito:groups": ["master-north"]}
NOW = datetime(2026, 11, 21, 6, 0, tzinfo=UTC)
OWN = ("_generation", "_source_version", "_epoch", "_read", "_translation", "_deleted", "_event_id", "_occurred_at")


class Reply(msgspec.Struct, frozen=True):
    """An answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.text)


class Claimed(Verifier):
    """Takes every caller's word."""

    def __init__(self, claims: Mapping[str, object] | None) -> None:
        self._claims = claims

    async def claims(self, authorization: str | None) -> Mapping[str, object] | None:
        return self._claims


class Harbour:
    """A migrated PostgreSQL with ships; `ships` are the same rows as values, by their key."""

    def __init__(self, runner: asyncio.Runner, postgres: Postgres) -> None:
        self._runner = runner
        self.postgres = postgres
        self.ships: dict[str, Row] = {}
        self.reader_url = postgres.dsn_for("reader_login", "reader-secret")
        self.settings = read(ApiSettings, self.environment())
        self.database = Database(self.settings, [shape.table for shape in bubble.shapes])
        self.app = App(bubble, self.database, self.options())

    def environment(self) -> dict[str, str]:
        return {
            **issuer.environment(),
            "TIDEGATE_BUBBLE": "tests.integration.harbour_bubble",
            "TIDEGATE_DATABASE_URL": self.reader_url,
            "TIDEGATE_CURSOR_KEY": KEY,
            "TIDEGATE_STATEMENT_TIMEOUT_S": "2",
            "TIDEGATE_CONNECT_TIMEOUT_S": "2",
        }

    def options(self, **changes: Any) -> Options:
        return Options(**{"cursors": Cursors([KEY.encode()]), "now": lambda: NOW, **changes})

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self._runner.run(work)

    def ask(
        self, path: str, who: Mapping[str, object] | None = MASTER, query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None, app: App | None = None,
    ) -> Reply:  # fmt: skip
        request = Request(
            method="GET", path=path, query=query or {}, headers=headers or {}, claims=who, request_id="r1"
        )  # fmt: skip
        served = Served(app or self.app, Claimed(who))
        answer = self.run(respond(served, request))
        return Reply(answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.body)

    def walk(self, path: str, who: Mapping[str, object], query: Mapping[str, str]) -> Iterator[list[Row]]:
        """Page after page."""
        cursor: str | None = None
        while True:
            page = self.ask(path, who, {**query, **({"cursor": cursor} if cursor else {})})
            assert page.status == 200, page.text
            yield page.json["items"]
            cursor = page.json["next_cursor"]
            if cursor is None:
                return

    def execute(self, *statements: str) -> None:
        """As the superuser, each a transaction of its own."""
        self.run(self._execute(statements))

    def put(self, table: str, rows: Sequence[Row]) -> None:
        """Write rows as a worker would, the newest version of each."""
        self.run(self._put(table, rows))

    async def _execute(self, statements: Sequence[str]) -> None:
        connection = await asyncpg.connect(self.postgres.dsn)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def _put(self, table: str, rows: Sequence[Row]) -> None:
        connection = await asyncpg.connect(self.postgres.dsn)
        columns = [*rows[0], *OWN]
        places = ", ".join(f"${number}" for number in range(1, len(columns) + 1))
        names = ", ".join(columns)
        statement = f"INSERT INTO {table} ({names}) VALUES ({places})"
        try:
            await connection.executemany(
                statement, [(*row.values(), 0, 0, 1, 1, 1, False, "e", NOW) for row in rows]
            )  # fmt: skip
        finally:
            await connection.close()


def ships(count: int) -> list[Row]:
    """Ships with few different values in every column, None among them, so that orders have many equals."""
    chance = random.Random(6)
    return [
        {
            "imo": f"imo{number:04d}",
            "name": chance.choice(["Aare", "Brise", "Brioche", "Čajka", "b", "B, c\\d", "Zürich"]),
            "flag": chance.choice(["ch", "fr", "pa"]),
            "owner": chance.choice(["o1", "o2"]),
            "agent": chance.choice([None, "o1", "o2"]),
            "quay": chance.choice([None, 1, 2, 3]),
            "tonnage": chance.choice([-5, 0, 10, 9_007_199_254_740_993]),
            "draught_m": chance.choice([None, Decimal("2.50"), Decimal("2.5"), Decimal("10"), Decimal("-0.001")]),
            "speed_kn": chance.choice([0.1, 12.0, -1.5e-7, 30.25]),
            "piloted": chance.random() < 0.5,
            "built_on": chance.choice([None, date(1999, 12, 31), date(2020, 2, 29)]),
            "eta": chance.choice([None, NOW, NOW + timedelta(microseconds=1), NOW - timedelta(days=400)]),
            "transponder": UUID(int=chance.getrandbits(128)),
        }
        for number in range(count)
    ]


@contextmanager
def opened(folder: Path, count: int = 60, port: int = 0) -> Iterator[Harbour]:
    """A harbour of one's own; `folder` takes the migrations, and a server that is to be restarted a port."""
    migrate.generate(bubble, folder, "first tables")
    with asyncio.Runner() as runner:
        postgres = Postgres(port=port)
        runner.run(postgres.start())
        try:
            migrate.upgrade(postgres.dsn, bubble, folder)
            harbour = Harbour(runner, postgres)
            _fill(harbour, count)
            yield harbour
            runner.run(harbour.database.close())
        finally:
            runner.run(postgres.stop())


def _fill(harbour: Harbour, count: int) -> None:
    rows = ships(count)
    harbour.ships = {row["imo"]: row for row in rows}
    harbour.put("ships", rows)
    harbour.put("quays", [{"number": number, "name": f"Quay {number}"} for number in (1, 2)])
    visits = [
        {"id": UUID(int=number), "ship": f"imo{number // 5:04d}", "payer": f"o{1 + number % 2}",
         "paid": Decimal(number) / 4, "at": NOW - timedelta(days=number)}
        for number in range(50)
    ]  # fmt: skip
    harbour.put("visits", visits)
    harbour.execute(
        "CREATE ROLE reader_login LOGIN PASSWORD 'reader-secret' IN ROLE tidegate_reader",
        "INSERT INTO tidegate.shard (stream, shard_id) VALUES ('s', 'a')",
        "INSERT INTO tidegate.watermark (stream, shard_id, source, as_of) VALUES "
        "('s', 'a', 'register', '2026-11-21T05:55:00Z'), ('s', 'a', 'till', '2026-11-21T05:30:00Z')",
    )
