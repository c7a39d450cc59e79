"""One connection to PostgreSQL for one sandbox, over asyncpg; vendor errors become ours here.

A Lambda sandbox serves one request at a time, so it has one connection and no pool. Between requests the sandbox
may be frozen for minutes while a firewall or a proxy forgets the connection; therefore a read that finds its old
connection dead opens a new one and tries once more. It is a read: twice does no harm.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

import asyncpg
import msgspec

from api.iam import password_of
from api.queries import Query, Viewers
from api.settings import ApiSettings
from tidegate.access_sql import ROLE_CHECK, read_statement
from tidegate.database import DRIVER_ERRORS, translate
from tidegate.errors import Fatal, Rejected, TidegateError, Transient

RETRY_AFTER_S = 2
"""What callers are told while the database is away: a fail-over of Aurora takes seconds to tens of seconds."""

# SQLSTATEs after which this connection is of no use: broken, shut down, its prepared statement unknown.
_LOST = ("08", "26", "57P")

# Of asyncpg's errors about an address nothing is repeated: their text may hold the password.
_NO_ADDRESS = "TIDEGATE_DATABASE_URL is not an address; use postgresql://…"


class _ConnectionLost(Transient):
    """The connection is of no more use; a new one may be."""


class Read(msgspec.Struct, frozen=True):
    """Rows as JSON texts in order; source → its oldest watermark, None while it has none everywhere."""

    items: list[str]
    as_of: dict[str, datetime | None]


_encoder = msgspec.json.Encoder()
_freshness = msgspec.json.Decoder(dict[str, datetime | None])


class Database:
    """The reader's connection; bound to the event loop of its first use."""

    def __init__(self, settings: ApiSettings, tables: Sequence[str]) -> None:
        self._settings = settings
        self._tables = list(tables)
        self._password = _password(settings)
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None

    async def read(self, viewers: Viewers, query: Query, sources: Sequence[str]) -> Read:
        """Claims, freshness and rows in one statement, which is its own transaction.

        Raises:
            Transient: the database is away, or took longer than the statement timeout.
            Rejected: it refuses a value of the request or of the claims.
            Fatal: it refuses us, its schema is not this release's, or the login may see more than it should.
        """
        was_open = self._connection is not None
        try:
            return await self._read(viewers, query, sources)
        except _ConnectionLost:
            if not was_open:
                raise
        return await self._read(viewers, query, sources)

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close(timeout=self._settings.connect_timeout_s)

    async def _read(self, viewers: Viewers, query: Query, sources: Sequence[str]) -> Read:
        connection = await self._connected()
        text = read_statement(query.statement)
        arguments = _encoder.encode({**query.arguments, "viewers": viewers}).decode()
        timeout_s = self._settings.statement_timeout_s
        try:
            if query.keeps_plan:
                [found] = await connection.fetch(text, arguments, sources, timeout=timeout_s)
            else:
                async with asyncio.timeout(timeout_s):
                    # Without a name it is forgotten, and planned for these arguments; both are of one transaction.
                    statement = await connection.prepare(text, name="")
                    [found] = await statement.fetch(arguments, sources)
        except DRIVER_ERRORS as error:
            raise self._dropped(error) from error
        return Read(found["items"], _freshness.decode(found["freshness"]))

    async def _connected(self) -> asyncpg.Connection[asyncpg.Record]:
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        self._connection = None
        settings = self._settings
        try:
            self._connection = await asyncpg.connect(
                settings.database_url.reveal(),
                password=self._password,
                timeout=settings.connect_timeout_s,
                command_timeout=settings.statement_timeout_s,
                statement_cache_size=settings.statement_cache_size,
            )
            role = await self._connection.fetchrow(ROLE_CHECK, self._tables)
        except asyncpg.exceptions.ClientConfigurationError as error:
            raise Fatal(_NO_ADDRESS) from error
        except DRIVER_ERRORS as error:
            raise self._dropped(error) from error
        except ValueError as error:
            # After OSError, as a bad certificate is both.
            raise Fatal(_NO_ADDRESS) from error
        fault = _fault_of(role or {})
        if fault is not None:
            self._connection.terminate()
            self._connection = None
            raise Fatal(fault)
        return self._connection

    def _dropped(self, error: Exception) -> TidegateError:
        """Say what the error means, and give the connection up unless a value was at fault."""
        ours = translated(error)
        if self._connection is not None and not isinstance(ours, Rejected):
            self._connection.terminate()
            self._connection = None
        return ours


def _password(settings: ApiSettings) -> Callable[[], str] | None:
    """What makes a password for each connection; None when the address holds one. Raises Fatal."""
    if not settings.database_iam:
        return None
    return password_of(settings.database_url.reveal(), os.environ, lambda: datetime.now(UTC))


def translated(error: Exception) -> TidegateError:
    """A vendor error as one of ours; what a SQLSTATE means is decided in `tidegate.database`."""
    ours = translate(error, "read")
    if not isinstance(ours, Transient):
        return ours
    if isinstance(error, asyncpg.PostgresError):
        is_lost = (error.sqlstate or "").startswith(_LOST)
    else:
        is_lost = not isinstance(error, TimeoutError)
    return (_ConnectionLost if is_lost else Transient)(str(ours), retry_after_s=RETRY_AFTER_S)


def _fault_of(role: Mapping[str, object]) -> str | None:
    """Why rows must not be read as this login: row-level security would not, or might not, hold."""
    name = role.get("name", "?")
    if role.get("superuser") or role.get("bypasses"):
        kind = "a superuser" if role.get("superuser") else "a role with BYPASSRLS"
        return f"the login {name} is or can become {kind} and would see every row; use a member of tidegate_reader only"
    if role.get("owned"):
        return f"the login {name} owns {role['owned']}; use a member of tidegate_reader, not the owner"
    if role.get("wider"):
        return f"the login {name} sees rows as {role['wider']} too; use a member of tidegate_reader only"
    if role.get("unguarded"):
        return f"row-level security is not forced on {role['unguarded']}; run `tidegate migrate`"
    if role.get("missing"):
        return f"the tables {role['missing']} do not exist; run `tidegate migrate`"
    return None
