"""Compares what the back offices hold with what the front office shows: in the database, and through the API."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import quote

import aiohttp
import asyncpg
import msgspec
from yarl import URL

from local.demo_spec import User
from local.stack import Office, Stack
from tidegate.entity import EntityShape

Row = dict[str, object]
Rows = dict[str, Row]

_PAGE_ROWS = 200
_NOBODY = "everyone:*"
# The Lambda stand-in answers 502 to the one request whose worker was killed; a browser would ask again.
_API_TRIES = 3


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of all entities. missing: not in front; stale: other content; ghosts: only in front."""

    rows_back_office: int = 0
    rows_front_office: int = 0
    missing: int = 0
    stale: int = 0
    ghosts: int = 0
    examples: tuple[str, ...] = ()

    @property
    def is_none(self) -> bool:
        return self.missing == self.stale == self.ghosts == 0

    def __add__(self, other: Difference) -> Difference:
        return Difference(
            rows_back_office=self.rows_back_office + other.rows_back_office,
            rows_front_office=self.rows_front_office + other.rows_front_office,
            missing=self.missing + other.missing,
            stale=self.stale + other.stale,
            ghosts=self.ghosts + other.ghosts,
            examples=(self.examples + other.examples)[:5],
        )

    def __str__(self) -> str:
        text = f"{self.missing} missing, {self.stale} stale, {self.ghosts} ghosts"
        return text + (f" ({', '.join(self.examples)})" if self.examples else "")


class ApiCheck(msgspec.Struct, frozen=True, kw_only=True):
    """What the API's answers came to."""

    reads: int
    rows: int
    mismatches: tuple[str, ...]


class _Line(msgspec.Struct, frozen=True):
    key: str
    row: Row


_line = msgspec.json.Decoder(_Line)


async def truth(stack: Stack, office: Office, entity: str, viewer: str | None = None) -> Rows:
    """The rows that the back office itself says should be shown, by key."""
    query = {"entity": entity} | ({"viewer": viewer} if viewer else {})
    async with stack.session.get(f"{office.url}/_sim/truth", params=query) as answer:
        answer.raise_for_status()
        lines = (await answer.read()).splitlines()
    return {line.key: line.row for line in map(_line.decode, lines)}


async def compare(stack: Stack) -> Difference:
    """Row by row, every entity: the back offices' own truth against the database, read as the operator."""
    total = Difference()
    connection = await asyncpg.connect(stack.database("operator_login"))
    try:
        for office in stack.offices:
            for entity in office.spec.entities:
                shape = shape_of(stack, entity)
                expected = await truth(stack, office, entity)
                total += _difference(entity, expected, await projected(connection, shape))
    finally:
        await connection.close()
    return total


async def projected(connection: asyncpg.Connection, shape: EntityShape) -> Rows:
    """The live rows of one table, in the API's JSON form, by key."""
    columns = ", ".join(f'"{field.name}"' for field in shape.fields)
    records = await connection.fetch(f'SELECT {columns} FROM "{shape.table}" WHERE NOT _deleted')
    rows: list[Row] = msgspec.to_builtins([dict(record) for record in records])
    return {str(row[shape.key.name]): row for row in rows}


def shape_of(stack: Stack, entity: str) -> EntityShape:
    return next(shape for shape in stack.bubble.shapes if shape.name == entity)


def _difference(entity: str, expected: Mapping[str, Row], found: Mapping[str, Row]) -> Difference:
    missing = expected.keys() - found.keys()
    ghosts = found.keys() - expected.keys()
    stale = {key for key in expected.keys() & found.keys() if expected[key] != found[key]}
    named = [("missing", missing), ("stale", stale), ("ghost", ghosts)]
    return Difference(
        rows_back_office=len(expected),
        rows_front_office=len(found),
        missing=len(missing),
        stale=len(stale),
        ghosts=len(ghosts),
        examples=tuple(f"{kind} {entity} {key}" for kind, keys in named for key in sorted(keys)[:2]),
    )


class ApiReader:
    """Reads the API with one user's own token; counts its requests. `headers` carry the token."""

    def __init__(self, stack: Stack, user: User, token: str) -> None:
        self.user = user
        self.reads = 0
        self._stack = stack
        self.headers = {"Authorization": f"Bearer {token}"}

    @classmethod
    async def signed_in(cls, stack: Stack, user: User) -> ApiReader:
        tokens = await stack.sign_in(user.username, stack.password(user))
        return cls(stack, user, tokens.access_token)

    async def row(self, collection: str, key: str) -> tuple[int, Row | None]:
        """Status and row; the row is None for any status but 200."""
        status, body = await self.get(f"/v1/{collection}/{quote(key, safe='')}")
        return status, msgspec.json.decode(body, type=Row) if status == 200 else None

    async def all_rows(self, shape: EntityShape) -> list[Row]:
        """Every page of a collection. Raises RuntimeError for an answer other than 200."""
        rows: list[Row] = []
        cursor: str | None = ""
        while cursor is not None:
            query = f"limit={_PAGE_ROWS}" + (f"&cursor={quote(cursor, safe='')}" if cursor else "")
            status, body = await self.get(f"/v1/{shape.collection}?{query}")
            if status != 200:
                raise RuntimeError(f"{self.user.username}: /v1/{shape.collection} answers {status}: {body[:200]!r}")
            page = msgspec.json.decode(body, type=_Page)
            rows += page.items
            cursor = page.next_cursor
        return rows

    async def get(self, path: str) -> tuple[int, bytes]:
        address = URL(f"{self._stack.deployment.api_url}{path}", encoded=True)
        for attempt in range(_API_TRIES):
            self.reads += 1
            async with self._stack.session.get(address, headers=self.headers) as answer:
                body = await answer.read()
            if answer.status not in (502, 503) or attempt == _API_TRIES - 1:
                break
            await asyncio.sleep(0.2)
        return answer.status, body


class _Page(msgspec.Struct, frozen=True):
    items: list[Row]
    next_cursor: str | None


async def check_api(stack: Stack, users: tuple[User, ...]) -> ApiCheck:
    """Each user's view through the gateway, all pages, against the back office's list for the same person.

    Also: no token is refused with 401, and somebody else's row is answered 404.
    """
    reads = rows = 0
    mismatches: list[str] = []
    for user in users:
        reader = await ApiReader.signed_in(stack, user)
        for office in stack.offices:
            for entity in office.spec.entities:
                shape = shape_of(stack, entity)
                expected = await truth(stack, office, entity, user.viewer or _NOBODY)
                shown = await reader.all_rows(shape)
                rows += len(shown)
                mismatches += _view_faults(user, shape, expected, shown)
                mismatches += await _foreign_row_faults(stack, reader, office, shape, expected)
        reads += reader.reads
    mismatches += await _no_token_faults(stack)
    return ApiCheck(reads=reads + 1, rows=rows, mismatches=tuple(mismatches))


def _view_faults(user: User, shape: EntityShape, expected: Rows, shown: list[Row]) -> list[str]:
    found = {str(row[shape.key.name]): row for row in shown}
    faults = []
    if len(found) != len(shown):
        faults.append(f"{user.username}: {shape.collection} shows a row twice")
    difference = _difference(shape.name, expected, found)
    if not difference.is_none:
        faults.append(f"{user.username}: {shape.collection}: {difference}")
    return faults


async def _foreign_row_faults(
    stack: Stack, reader: ApiReader, office: Office, shape: EntityShape, own: Rows
) -> list[str]:
    everything = await truth(stack, office, shape.name)
    foreign = next((key for key in everything if key not in own), None)
    if foreign is None:
        return []
    status, _ = await reader.row(shape.collection, foreign)
    return [] if status == 404 else [f"{reader.user.username}: {shape.collection}/{foreign} answers {status}, not 404"]


async def _no_token_faults(stack: Stack) -> list[str]:
    address = f"{stack.deployment.api_url}/v1/{stack.bubble.shapes[0].collection}"
    async with stack.session.get(address, timeout=aiohttp.ClientTimeout(total=15)) as answer:
        return [] if answer.status == 401 else [f"without a token the API answers {answer.status}, not 401"]
