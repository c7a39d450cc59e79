"""The library's database, filled by hand, and events as API Gateway sends them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import asyncpg
import msgspec

from api import handler as api_handler
from local.postgres import Postgres
from tests.fakes import issuer
from tests.integration.library_bubble import bubble
from tidegate import migrate

Result = TypeVar("Result")

READER_1: Mapping[str, str] = {"username": "reader-1", "token_use": "access"}
READER_2: Mapping[str, str] = {"username": "reader-2", "token_use": "access"}
STAFF: Mapping[str, object] = {"username": "ann", "cognito:groups": ["evening", "staff-north"], "token_use": "access"}
NOBODY: Mapping[str, str] = {"username": "someone", "token_use": "access"}

SHELF = "0b0c8b52-8a5c-4d2c-a1f4-3f0f3b1d9a10"

_LOAN = """
    INSERT INTO loans (number, reader, guarantor, state, fee, rate, renewals, overdue, due, ticket, changed_at,
        _generation, _source_version, _epoch, _read, _translation, _deleted, _event_id, _occurred_at)
    VALUES ($1, $2, $3, 'out', 12.50, 0.1, 9007199254740993, false, '2026-12-01', '6f1e3f6e-9a55-4c5e-8d0e-0a3c6f6f0001',
        '2026-11-21T06:55:03+01:00', 0, 1, 1, 1, 1, $4, 'e', now())
"""
_SEED = (
    f"""INSERT INTO shelves (id, label, _generation, _source_version, _epoch, _read, _translation, _deleted, _event_id,
        _occurred_at) VALUES ('{SHELF}', 'A "quoted" — label', 0, 0, 1, 1, 1, false, 'e', now())""",
    """INSERT INTO "town_branches" (number, name, _generation, _source_version, _epoch, _read, _translation, _deleted,
        _event_id, _occurred_at)
        SELECT n, 'branch ' || n, 0, 0, 1, 1, 1, n = 7, 'e', now() FROM generate_series(-1, 120) AS n""",
    "INSERT INTO tidegate.shard (stream, shard_id) VALUES ('s', 'a'), ('s', 'b')",
    """INSERT INTO tidegate.watermark (stream, shard_id, source, as_of) VALUES
        ('s', 'a', 'loans', '2026-11-21T05:55:03Z'), ('s', 'b', 'loans', '2026-11-21T05:50:00.5Z')""",
)


class Library:
    """A migrated PostgreSQL with a few rows; `reader_url` is the API's login, `postgres.dsn` the superuser's."""

    def __init__(self, runner: asyncio.Runner, postgres: Postgres) -> None:
        self._runner = runner
        self.postgres = postgres
        self.reader_url = postgres.dsn_for("reader_login", "reader-secret")

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self._runner.run(work)

    def execute(self, *statements: str) -> None:
        """As the superuser."""
        self.run(self._execute(statements))

    def fetch(self, url: str, *statements: str) -> list[asyncpg.Record]:
        """The rows of the last statement, all on one connection of their own."""
        return self.run(_fetch(url, statements))

    def seed(self) -> None:
        self.run(self._seed())

    async def _execute(self, statements: tuple[str, ...]) -> None:
        await _fetch(self.postgres.dsn, statements)

    async def _seed(self) -> None:
        connection = await asyncpg.connect(self.postgres.dsn)
        try:
            await connection.execute("CREATE ROLE reader_login LOGIN PASSWORD 'reader-secret' IN ROLE tidegate_reader")
            loans = [
                ("L1", "1", None, False),
                ("L2", "2", "1", False),
                ("L3", "2", None, False),
                ("L4", "1", None, True),
            ]
            await connection.executemany(_LOAN, loans)
            for statement in _SEED:
                await connection.execute(statement)
        finally:
            await connection.close()


async def _fetch(url: str, statements: tuple[str, ...]) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements[:-1]:
            await connection.execute(statement)
        return list(await connection.fetch(statements[-1]))
    finally:
        await connection.close()


@contextmanager
def opened(folder: Path) -> Iterator[Library]:
    """A library of one's own; `folder` takes the migrations."""
    migrate.generate(bubble, folder, "first tables")
    with asyncio.Runner() as runner:
        postgres = Postgres()
        runner.run(postgres.start())
        try:
            migrate.upgrade(postgres.dsn, bubble, folder)
            library = Library(runner, postgres)
            library.seed()
            yield library
        finally:
            runner.run(postgres.stop())


class Reply(msgspec.Struct, frozen=True):
    """What the handler answered; header names in lower case."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.text)


def get(
    path: str, claims: Mapping[str, object] | None = READER_1, *, method: str = "GET",
    query: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None,
) -> Reply:  # fmt: skip
    """Through the Lambda handler, as API Gateway would, with a token of these claims."""
    context: dict[str, Any] = {"http": {"method": method}, "requestId": "request-1", "stage": "$default"}
    sent = dict(headers or {})
    if claims is not None:
        sent["Authorization"] = f"Bearer {issuer.signed(issuer.claims(**claims))}"
    event = {"version": "2.0", "rawPath": path, "headers": sent, "requestContext": context}
    if query:
        event["queryStringParameters"] = dict(query)
    # The sandbox reads its environment at its first request.
    with mock.patch.dict(os.environ, {**issuer.environment(), "TIDEGATE_CURSOR_KEY": "k" * 32}):
        answer: Any = api_handler.handler(event, None)
    shown = {name.lower(): value for name, value in answer["headers"].items()}
    return Reply(answer["statusCode"], shown, answer["body"])
