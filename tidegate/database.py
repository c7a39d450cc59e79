"""PostgreSQL: the pool, and SQLSTATE → our four classes. The one place where that is decided.

    async with database.transaction() as connection:
        await connection.execute(…)

Transient: the server is away, starting, full, read-only, or chose this transaction as a victim. Rejected: the values
are at fault, not the statement. Fatal: the schema or the rights are not what this release expects. The class of a
SQLSTATE is its first two characters; single codes that differ from their class are named, and a test holds the
table against every error that the driver knows.

Nothing is left in a session that outlives a transaction, but prepared statements, which a setting turns off: see
docs/decisions/0014-database-faults.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Annotated, Literal, TypeAlias
from urllib.parse import urlsplit

import asyncpg
from asyncpg.pool import PoolConnectionProxy
from asyncpg.transaction import Transaction
from msgspec import Meta, Struct

from tidegate.columns import COMPLETENESS
from tidegate.errors import Fatal, Rejected, TidegateError, Transient

Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"
Verdict = Literal["transient", "rejected", "schema", "access", "fatal"]

MIGRATE_HINT = "run `tidegate migrate`"

# The driver's own default; there are fewer different ones.
_STATEMENTS = 100
_IS_READ_ONLY = "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean"

# InternalClientError: a statement on a connection that was just told of the server's end and is not closed yet, as on a
# failover of Aurora (MagicStack/asyncpg, issue 784).
DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)

CLASSES: dict[str, Verdict] = {
    "00": "fatal",  # successful completion: never an error
    "01": "fatal",  # warning
    "02": "fatal",  # no data
    "03": "fatal",  # statement not yet complete
    "08": "transient",  # connection exception
    "09": "fatal",  # triggered action exception
    "0A": "fatal",  # feature not supported
    "0B": "fatal",  # invalid transaction initiation
    "0F": "fatal",  # locator exception
    "0L": "access",  # invalid grantor
    "0P": "access",  # invalid role specification
    "0Z": "fatal",  # diagnostics exception
    "10": "fatal",  # XQuery error
    "20": "fatal",  # case not found
    "21": "fatal",  # cardinality violation: coalescing has a bug
    "22": "rejected",  # data exception
    "23": "rejected",  # integrity constraint violation
    "24": "fatal",  # invalid cursor state
    "25": "fatal",  # invalid transaction state
    "26": "transient",  # the prepared statement is gone: a proxy gave us another session
    "27": "fatal",  # triggered data change violation
    "28": "access",  # invalid authorization
    "2B": "fatal",  # dependent privilege descriptors still exist
    "2D": "fatal",  # invalid transaction termination
    "2F": "fatal",  # SQL routine exception
    "34": "fatal",  # invalid cursor name
    "38": "fatal",  # external routine exception
    "39": "fatal",  # external routine invocation exception
    "3B": "fatal",  # savepoint exception
    "3D": "schema",  # invalid catalog name: the database does not exist
    "3F": "schema",  # invalid schema name
    "40": "transient",  # transaction rollback: serialization, deadlock
    "42": "schema",  # syntax error or access rule violation: undefined table, column, function
    "44": "rejected",  # WITH CHECK OPTION violation
    "53": "transient",  # insufficient resources: connections, memory, disk
    "54": "rejected",  # program limit exceeded: a value too long for its index
    "55": "transient",  # object not in prerequisite state: locks, object in use
    "57": "transient",  # operator intervention: shutdown, starting up, statement time-out
    "58": "transient",  # system error outside PostgreSQL
    "72": "transient",  # snapshot too old
    "F0": "fatal",  # configuration file error
    "HV": "fatal",  # foreign data wrapper error
    "P0": "fatal",  # PL/pgSQL error
    "XX": "fatal",  # internal error
}
CODES: dict[str, Verdict] = {
    "23502": "schema",  # a column must be given that we do not give: our own fields may all be NULL
    "25006": "transient",  # read-only transaction: a failover made our writer a reader
    "25P03": "transient",  # idle in transaction too long
    "25P04": "transient",  # transaction took too long
    "42501": "access",  # insufficient privilege
    "57P04": "schema",  # the database was dropped
    "58P01": "fatal",  # undefined file
    "58P02": "fatal",  # duplicate file
}


class DatabaseSettings(Struct, frozen=True, kw_only=True):
    """Bounds of every database call."""

    connections: Annotated[int, Meta(ge=1, le=100, description="the most this process opens")] = 8
    connect_timeout_s: Annotated[float, Meta(gt=0, description="one try to connect")] = 5.0
    statement_timeout_s: Annotated[float, Meta(gt=0, description="one statement; the server stops it then")] = 30.0
    acquire_timeout_s: Annotated[float, Meta(gt=0, description="wait for a free connection of the pool")] = 30.0
    idle_transaction_timeout_s: Annotated[
        float,
        Meta(gt=0, description="a transaction without a word from us; the server ends it then, and frees its locks"),
    ] = 15.0
    through_proxy: Annotated[
        bool,
        Meta(description="RDS Proxy is between: no named statements, and time-outs come by ALTER ROLE, or it pins"),
    ] = False


def verdict_of(sqlstate: str) -> Verdict:
    """What a SQLSTATE means for us. An unknown class is Fatal: better loud than lost."""
    return CODES.get(sqlstate) or CLASSES.get(sqlstate[:2], "fatal")


def translate(error: Exception, doing: str) -> TidegateError:
    """One error of the driver or of its connection as one of ours, not raised."""
    detail = f"could not {doing}: {type(error).__name__}: {error}"
    if isinstance(error, asyncpg.PostgresError):
        return _translate_state(error, detail)
    if isinstance(error, asyncpg.exceptions.ClientConfigurationError):
        return Fatal(f"{detail}; check TIDEGATE_DATABASE_URL")
    # What is left: refused, broken and closing connections, unknown hosts, standbys, time-outs.
    return Transient(detail)


def _translate_state(error: asyncpg.PostgresError, detail: str) -> TidegateError:
    if isinstance(error, asyncpg.exceptions.InvalidCachedStatementError | asyncpg.exceptions.OutdatedSchemaCacheError):
        # A migration ran under us; the driver forgets the old plan and the next try makes a new one.
        return Transient(detail)
    sqlstate = str(error.sqlstate or "")
    verdict = verdict_of(sqlstate)
    if isinstance(error, asyncpg.CheckViolationError) and str(error.constraint_name).endswith(COMPLETENESS):
        # Whatever our own release requires was looked at before; so this is the rule of another one.
        verdict = "schema"
    match verdict:
        case "transient":
            return Transient(detail)
        case "rejected":
            return Rejected(_reason(error), f"{detail} (SQLSTATE {sqlstate})")
        case "schema":
            named = ".".join(filter(None, (error.table_name, error.column_name or error.constraint_name)))
            where = f" ({named})" if named else ""
            return Fatal(f"{detail}{where}: the database is not of this release's shape; {MIGRATE_HINT}")
        case "access":
            return Fatal(f"{detail}: check the user of TIDEGATE_DATABASE_URL and its role; {MIGRATE_HINT}")
        case _:
            return Fatal(f"{detail} (SQLSTATE {sqlstate})")


def _reason(error: asyncpg.PostgresError) -> str:
    """`numeric_value_out_of_range`, `check_violation`, …: the driver's class name in the words of the SQL standard."""
    if type(error) is asyncpg.DataError:
        # Raised by the driver itself: it cannot put the value on the wire, mostly because it is out of its type's range.
        return "unstorable"
    name = type(error).__name__.removesuffix("Error")
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


@contextmanager
def database_errors(doing: str) -> Iterator[None]:
    """Translate what the driver raises in the block. `doing` says what was tried, for the reader of the log."""
    try:
        yield
    except DRIVER_ERRORS as error:
        raise translate(error, doing) from error


class Database:
    """A pool of connections that are opened when they are needed, so a program starts while the database is away."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], settings: DatabaseSettings) -> None:
        self._pool = pool
        self._settings = settings
        self._answered_s = float("-inf")

    @asynccontextmanager
    async def transaction(self, doing: str) -> AsyncIterator[Connection]:
        """One transaction on one connection; commits at the end of the block, rolls back when it raises.

        Raises Transient, Rejected or Fatal for what the database or the driver says inside the block. After
        Transient the outcome of a commit may be unknown.
        """
        with database_errors(doing):
            async with self._acquired() as connection:
                transaction = connection.transaction()
                try:
                    await transaction.start()
                    yield connection
                    await transaction.commit()
                except BaseException as error:
                    await self._undo(connection, transaction, error)
                    raise
                await self._answered(connection)

    @asynccontextmanager
    async def statement(self, doing: str) -> AsyncIterator[Connection]:
        """A connection for one statement, which is a transaction of its own. Raises as `transaction` does."""
        with database_errors(doing):
            async with self._acquired() as connection:
                try:
                    yield connection
                except BaseException as error:
                    await self._undo(connection, None, error)
                    raise
                await self._answered(connection)

    async def _answered(self, connection: Connection) -> None:
        """It did as it was told; but a server that takes no writes must not be asked again."""
        if _is_read_only(connection):
            await self._pool.expire_connections()
        else:
            self._answered_s = asyncio.get_running_loop().time()

    async def probe(self, within_s: float) -> None:
        """Ask whether it answers and takes writes. Raises Transient when it does not `within_s`, and Fatal."""
        doing = "ask the database whether it takes writes"
        try:
            async with asyncio.timeout(within_s), self.transaction(doing) as connection:
                if await connection.fetchval(_IS_READ_ONLY):
                    await self._pool.expire_connections()
                    raise Transient("the database is read-only: a standby, or in the middle of a failover")
        except TimeoutError as error:
            raise Transient(f"could not {doing}: no answer within {within_s:g} s") from error

    @property
    def silence_s(self) -> float:
        """Seconds since a transaction was committed on a server that takes writes."""
        return asyncio.get_running_loop().time() - self._answered_s

    @asynccontextmanager
    async def _acquired(self) -> AsyncIterator[Connection]:
        try:
            connection = await self._pool.acquire(timeout=self._settings.acquire_timeout_s)
        except TimeoutError as error:
            raise TimeoutError(self._why_none()) from error
        try:
            yield connection
        finally:
            await self._pool.release(connection)

    def _why_none(self) -> str:
        pool, settings = self._pool, self._settings
        if pool.get_size() >= pool.get_max_size() and not pool.get_idle_size():
            return (
                f"all {settings.connections} connections are in use and none became free within "
                f"{settings.acquire_timeout_s:g} s (TIDEGATE_DATABASE_CONNECTIONS)"
            )
        return f"no connection within {min(settings.connect_timeout_s, settings.acquire_timeout_s):g} s"

    async def _undo(self, connection: Connection, transaction: Transaction | None, error: BaseException) -> None:
        """Leave no transaction behind, and no connection that cannot be trusted."""
        if _says_read_only(error):
            # After a failover every pooled connection leads to a reader.
            await self._pool.expire_connections()
        # What fails here, fails for the same reason; a connection that is gone has nothing to undo.
        with suppress(*DRIVER_ERRORS):
            if isinstance(error, TimeoutError | asyncio.CancelledError):
                # The server does not answer, or nobody waits for its answer: to ask it for more may take as long again.
                connection.terminate()
            elif transaction is not None and connection.is_in_transaction():
                await transaction.rollback()


def _is_read_only(connection: Connection) -> bool:
    """By what the server reports unasked. Servers before 14, and proxies, may not."""
    reported = connection.get_settings()
    names = ("in_hot_standby", "default_transaction_read_only")
    return any(getattr(reported, name, "off") == "on" for name in names)


def _says_read_only(error: BaseException | None) -> bool:
    """Whether a read-only server is behind it; within a savepoint it is one of ours already."""
    while error is not None and not isinstance(error, asyncpg.ReadOnlySQLTransactionError):
        error = error.__cause__
    return error is not None


def _session_settings(settings: DatabaseSettings) -> dict[str, str]:
    if settings.through_proxy:
        return {}
    return {
        "statement_timeout": str(int(settings.statement_timeout_s * 1000)),
        "idle_in_transaction_session_timeout": str(int(settings.idle_transaction_timeout_s * 1000)),
        "timezone": "UTC",
        "jit": "off",
    }


async def _keep_session(connection: object) -> None:
    """No transaction leaves anything behind in its session, so there is nothing to reset, and no need to ask."""


def check_address(url: str) -> None:
    """Raises Fatal for an address that cannot be taken apart; the text does not show it, for a password is in it.

    The driver would find out at the first connection only, as a ValueError that may quote a piece of the password.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = None
    if parts is None or "#" in url or "@" in parts.path or not all(map(_has_good_port, _hosts(parts.netloc))):
        raise Fatal(
            "TIDEGATE_DATABASE_URL: it is not postgresql://user:password@host:port/database; in the user and the password "
            "write : / ? # [ ] @ and % as percent escapes, such as %23 for #"
        ) from None


def _hosts(netloc: str) -> list[str]:
    return netloc.rpartition("@")[2].split(",")


def _has_good_port(host: str) -> bool:
    # An IPv6 address has its colons in brackets.
    port = host.rpartition("]")[2].partition(":")[2]
    return not port or (port.isascii() and port.isdigit() and 0 < int(port) < 65_536)


@asynccontextmanager
async def connect(url: str, settings: DatabaseSettings, program: str) -> AsyncIterator[Database]:
    """A pool for the block. Connects to nothing yet; `program` is what pg_stat_activity shows.

    Raises Fatal when `url` is no address of a PostgreSQL database.
    """
    check_address(url)
    with database_errors("use the database address"):
        pool = asyncpg.create_pool(
            url,
            min_size=0,
            max_size=settings.connections,
            timeout=settings.connect_timeout_s,
            command_timeout=settings.statement_timeout_s + 5,
            statement_cache_size=0 if settings.through_proxy else _STATEMENTS,
            reset=_keep_session,
            server_settings={"application_name": f"tidegate-{program}", **_session_settings(settings)},
        )
        await pool
    try:
        yield Database(pool, settings)
    finally:
        # Closing politely would wait for a transaction that was cancelled on purpose.
        pool.terminate()
