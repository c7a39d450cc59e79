"""The programs' logins in the database: each a member of its role and of nothing more.

    await make(database, {"worker": Secret("…"), "reader": Secret("…"), "operator": Secret("…")})

Run as the owner, after the migration that makes the roles. It may be repeated: a login that is there gets the password
anew. What is sent is not the password but its SCRAM verifier (RFC 5802 and 7677, as `\\password` of psql sends it), so
that neither the server's log of statements nor pg_stat_activity ever shows a password.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Mapping
from typing import NamedTuple

from tidegate.access import OPERATOR, READER, WORKER
from tidegate.database import Database
from tidegate.settings import Secret

_ITERATIONS = 4096
"""PostgreSQL's own default (scram_iterations)."""


class Login(NamedTuple):
    """`statement_timeout` bounds what the login may ask of the server, wherever it comes from."""

    name: str
    role: str
    statement_timeout: str


LOGINS: Mapping[str, Login] = {
    "worker": Login("worker_login", WORKER, "30s"),
    "reader": Login("reader_login", READER, "10s"),
    "operator": Login("operator_login", OPERATOR, "5min"),
}


async def make(database: Database, passwords: Mapping[str, Secret]) -> list[str]:
    """Make or renew the logins named in `passwords`; returns their names. Raises Transient, and Fatal without the roles."""
    made = []
    async with database.transaction("make the programs' logins") as connection:
        for kind, password in passwords.items():
            login = LOGINS[kind]
            known = await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", login.name)
            # The names are ours and the verifier is base64 with : and $, so nothing needs quoting.
            await connection.execute(
                f"{'ALTER' if known else 'CREATE'} ROLE {login.name} LOGIN PASSWORD '{verifier(password.reveal())}'"
            )
            await connection.execute(f"GRANT {login.role} TO {login.name}")
            await connection.execute(f"ALTER ROLE {login.name} SET statement_timeout = '{login.statement_timeout}'")
            await connection.execute(f"ALTER ROLE {login.name} SET idle_in_transaction_session_timeout = '15s'")
            made.append(login.name)
    return made


def verifier(password: str, salt: bytes | None = None) -> str:
    """What PostgreSQL keeps of a password: SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>.

    The password is taken as it is, which SASLprep leaves alone for ASCII.
    """
    salt = os.urandom(16) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _ITERATIONS)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    stored_key = hashlib.sha256(client_key).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    parts = [base64.b64encode(each).decode() for each in (salt, stored_key, server_key)]
    return f"SCRAM-SHA-256${_ITERATIONS}:{parts[0]}${parts[1]}:{parts[2]}"
