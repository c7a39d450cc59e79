"""What verbs that work on the database share: the connection, who is asking, and a question before it is too late."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tidegate.database import Connection, Database, DatabaseSettings, connect
from tidegate.errors import Fatal

_SETTINGS = DatabaseSettings(connections=2)


@asynccontextmanager
async def database() -> AsyncIterator[Database]:
    """The database of TIDEGATE_DATABASE_URL. Raises Fatal when it is not set."""
    url = os.environ.get("TIDEGATE_DATABASE_URL")
    if not url:
        raise Fatal("TIDEGATE_DATABASE_URL is not set; give the address of the database")
    async with connect(url, _SETTINGS, "cli") as opened:
        yield opened


async def who(connection: Connection) -> str:
    """The person at the keyboard and the login of the database, for the record."""
    login = str(await connection.fetchval("SELECT session_user"))
    try:
        return f"{getpass.getuser()} as {login}"
    except (KeyError, OSError):
        # A container may run under a number that has no name.
        return f"user {os.getuid()} as {login}"


def confirm(question: str, *, yes: bool) -> None:
    """Ask, unless told already. Raises Fatal when the answer is no, or when there is nobody to ask."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Fatal(f"{question} Nobody is here to answer; add --yes if that is meant")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise Fatal("nothing was done")


def shown(text: str, characters: int | None = None) -> str:
    """Text from outside on one line, made safe for a terminal: what does not print is escaped."""
    line = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return line if characters is None or len(line) <= characters else line[: characters - 1] + "…"
