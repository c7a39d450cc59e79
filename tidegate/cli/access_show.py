"""`tidegate access show`: what a caller may see, as the database itself has it."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
from base64 import urlsafe_b64decode
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tidegate import bubble as bubbles
from tidegate.access import READER, reader_condition
from tidegate.bubble import Bubble
from tidegate.cli import console
from tidegate.database import Connection
from tidegate.entity import EVERYONE, EntityShape, Reader
from tidegate.errors import Fatal

Viewers = Mapping[str, Sequence[str]]

_POLICIES = """
SELECT policyname, qual FROM pg_policies
WHERE schemaname = current_schema() AND tablename = $1 AND cmd IN ('SELECT', 'ALL') AND $2 = ANY (roles)
ORDER BY policyname
"""
_MAY_BECOME = "SELECT pg_has_role(session_user, $1, 'MEMBER')"


class Way(msgspec.Struct, frozen=True):
    """One declaration of an entity: by being of `kind`, through `fields` (none: every row). `rows` None: not counted."""

    kind: str
    fields: Sequence[str]
    ids: Sequence[str]
    rows: int | None = None


class Seen(msgspec.Struct, frozen=True):
    """One entity: how many rows are seen at all, by which ways, and the policies that decide."""

    entity: str
    collection: str
    rows: int | None
    is_more: bool
    ways: Sequence[Way]
    policies: Sequence[str]


def run_show(arguments: argparse.Namespace) -> int:
    """0 when it is explained, whatever may be seen."""
    if not arguments.bubble:
        raise Fatal("no bubble named; pass --bubble package.module or set TIDEGATE_BUBBLE")
    bubble = bubbles.load(arguments.bubble)
    viewers = viewers_named(bubble, arguments.who)
    shapes = [shape for shape in bubble.shapes if arguments.entity in (None, shape.name)]
    if not shapes:
        known = ", ".join(shape.name for shape in bubble.shapes)
        raise Fatal(f"there is no entity {arguments.entity!r}; there are: {known}")
    if os.environ.get("TIDEGATE_DATABASE_URL"):
        seen = asyncio.run(_counted(shapes, viewers, arguments.limit))
    else:
        seen = [_declared(shape, viewers) for shape in shapes]
    if arguments.json:
        print(msgspec.json.encode({"viewers": viewers, "entities": seen}).decode())
    else:
        print("\n".join(_lines(bubble, viewers, seen)))
    return 0


def viewers_named(bubble: Bubble, given: Sequence[str]) -> Viewers:
    """The viewers of `--as`. Raises Fatal for what names none."""
    if len(given) == 1 and given[0].startswith(("{", "@")):
        # By name, because the kernel imports none of the programs: the API's own reading of claims is the one that counts.
        found: Viewers = importlib.import_module("api.access").viewers_of(_claims(given[0]), bubble.viewers)
        return found
    kinds = {viewer.kind for viewer in bubble.viewers} | {EVERYONE}
    named: dict[str, list[str]] = {EVERYONE: ["*"]}
    for each in given:
        kind, colon, identity = each.partition(":")
        if not colon or not identity or kind not in kinds:
            raise Fatal(
                f"--as {each!r} names no viewer; write kind:id with one of {', '.join(sorted(kinds))}, or claims"
            )
        named.setdefault(kind, []).append(identity)
    return {kind: sorted(set(ids)) for kind, ids in sorted(named.items())}


def _claims(given: str) -> dict[str, Any]:
    try:
        text: str | bytes = given
        if given.startswith("@"):
            token = Path(given[1:]).read_text(encoding="ascii").strip().removeprefix("Bearer ")
            text = urlsafe_b64decode(token.split(".")[1] + "===")
        claims: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
    except (OSError, ValueError, IndexError, msgspec.MsgspecError) as error:
        raise Fatal(
            f"--as holds no claims: {type(error).__name__}; give a JSON object, or @FILE with a token"
        ) from error
    return claims


def _declared(shape: EntityShape, viewers: Viewers) -> Seen:
    """What can be said without a database."""
    policy = " OR ".join(reader_condition(reader) for reader in shape.readers)
    return Seen(
        shape.name, shape.collection, None, False, list(_ways(shape, viewers)), [f'NOT "_deleted" AND ({policy})']
    )


def _ways(shape: EntityShape, viewers: Viewers) -> Iterator[Way]:
    for reader in shape.readers:
        yield Way(reader.kind, reader.fields, viewers.get(reader.kind, ()))


async def _counted(shapes: Sequence[EntityShape], viewers: Viewers, limit: int) -> list[Seen]:
    async with console.database() as database, database.transaction("look as a caller") as connection:
        if not await connection.fetchval(_MAY_BECOME, READER):
            login = await connection.fetchval("SELECT session_user")
            raise Fatal(f"the login {login} is no member of {READER}, whose view is asked for; use the API's login")
        # With the reader's rights and nobody else's, for this transaction.
        await connection.execute(f"SET LOCAL ROLE {READER}")
        claims = msgspec.json.encode(viewers).decode()
        await connection.execute("SELECT set_config('tidegate.viewers', $1, true)", claims)
        return [await _seen(connection, shape, viewers, limit) for shape in shapes]


async def _seen(connection: Connection, shape: EntityShape, viewers: Viewers, limit: int) -> Seen:
    rows = await _count(connection, shape, "true", limit + 1)
    ways = []
    for reader, way in zip(shape.readers, _ways(shape, viewers), strict=True):
        ways.append(msgspec.structs.replace(way, rows=await _of(connection, shape, reader, limit)))
    found = await connection.fetch(_POLICIES, shape.table, READER)
    policies = [str(row["qual"]) for row in found]
    return Seen(shape.name, shape.collection, min(rows, limit), rows > limit, ways, policies)


async def _of(connection: Connection, shape: EntityShape, reader: Reader, limit: int) -> int:
    return await _count(connection, shape, reader_condition(reader), limit)


async def _count(connection: Connection, shape: EntityShape, condition: str, most: int) -> int:
    text = f'SELECT count(*) FROM (SELECT 1 FROM "{shape.table}" WHERE {condition} LIMIT $1) AS counted'
    found: int = await connection.fetchval(text, most)
    return found


def _lines(bubble: Bubble, viewers: Viewers, seen: Sequence[Seen]) -> Iterator[str]:
    yield "the caller is " + "; ".join(f"{kind} {', '.join(map(console.shown, ids))}" for kind, ids in viewers.items())
    for viewer in bubble.viewers:
        how = "a value of" if viewer.many else "the whole"
        yield f"  {viewer.kind} comes from {how} claim {viewer.claim!r}" + (
            f" after {viewer.prefix!r}" if viewer.prefix else ""
        )
    for each in seen:
        counted = "rows not counted" if each.rows is None else f"{each.rows}{'+' if each.is_more else ''} rows"
        yield f"\n{each.entity} (/v1/{each.collection}): {counted}"
        for way in each.ways:
            through = f"whose {' or '.join(way.fields)} is the caller's {way.kind}" if way.fields else "all of them"
            if not way.ids:
                yield f"  no   as {way.kind}: the caller is none"
            else:
                rows = "" if way.rows is None else f"{way.rows} rows, "
                yield f"  yes  as {way.kind} {', '.join(map(console.shown, way.ids))}: {rows}{through}"
        for policy in each.policies:
            yield f"  policy: {' '.join(policy.split())}"
