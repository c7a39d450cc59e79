"""`tidegate logins`: make the programs' logins, after a migration and whenever a password was changed."""

from __future__ import annotations

import argparse
import asyncio
import os

from msgspec import Struct

from tidegate.errors import Fatal
from tidegate.settings import Secret, read


class Passwords(Struct, frozen=True, kw_only=True):
    """The logins' passwords; a login without one is left alone."""

    worker: Secret | None = None
    reader: Secret | None = None
    operator: Secret | None = None


class LoginSettings(Struct, frozen=True, kw_only=True):
    """What `tidegate logins` reads: TIDEGATE_DATABASE_URL of the owner, TIDEGATE_LOGINS_WORKER and so on."""

    database_url: Secret
    logins: Passwords = Passwords()


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = verbs.add_parser(
        "logins",
        help="make worker_login, reader_login and operator_login from TIDEGATE_LOGINS_WORKER, …_READER, …_OPERATOR",
    )
    verb.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    settings = read(LoginSettings, os.environ)
    named = {kind: getattr(settings.logins, kind) for kind in ("worker", "reader", "operator")}
    passwords = {kind: secret for kind, secret in named.items() if secret is not None}
    if not passwords:
        raise Fatal("no password given; set TIDEGATE_LOGINS_WORKER, TIDEGATE_LOGINS_READER or TIDEGATE_LOGINS_OPERATOR")
    for name in asyncio.run(_make(settings.database_url, passwords)):
        print(f"{name} is in place")
    return 0


async def _make(url: Secret, passwords: dict[str, Secret]) -> list[str]:
    from tidegate import logins  # noqa: PLC0415 - the driver takes longer to import than most verbs need
    from tidegate.database import DatabaseSettings, connect  # noqa: PLC0415

    async with connect(url.reveal(), DatabaseSettings(connections=1), "logins") as database:
        return await logins.make(database, passwords)
