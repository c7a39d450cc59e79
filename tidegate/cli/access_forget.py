"""`tidegate access forget`: delete what is kept of a user who signs in."""

from __future__ import annotations

import argparse
import asyncio
import os

from tidegate import aws
from tidegate.cli import console
from tidegate.errors import Fatal
from tidegate.users import UserStore


def run_forget(arguments: argparse.Namespace) -> int:
    """0 when it is done, whether there was anything or not."""
    table, url = os.environ.get("TIDEGATE_USER_TABLE"), os.environ.get("TIDEGATE_DATABASE_URL")
    if not table and not url:
        raise Fatal("neither TIDEGATE_USER_TABLE nor TIDEGATE_DATABASE_URL is set, so there is nothing to look in")
    console.confirm(f"Delete all that is kept of the user {console.shown(arguments.subject)}?", yes=arguments.yes)
    if table:
        was_there = asyncio.run(_attributes(table, arguments.subject))
        print(f"{table}: {'the attributes are deleted' if was_there else 'there were no attributes'}")
    if url:
        print(f"tidegate.inbound: {asyncio.run(_events(arguments.subject))} events are deleted")
    print(
        "not reached: the stream of arrivals until its retention ends, dead letters of it, backups, the user pool itself"
    )
    return 0


async def _attributes(table: str, subject: str) -> bool:
    async with aws.client("dynamodb") as client:
        return await UserStore(client, table).erase(subject)


async def _events(subject: str) -> int:
    async with console.database() as database, database.transaction("delete a user's events") as connection:
        text = "WITH gone AS (DELETE FROM tidegate.inbound WHERE subject = $1 RETURNING 1) SELECT count(*) FROM gone"
        count: int = await connection.fetchval(text, subject)
        return count
