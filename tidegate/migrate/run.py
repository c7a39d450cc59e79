"""The acting half: one connection of the owner, one step after the other, and no step that makes others wait for long.

Each step is a transaction of its own. A lock that is not had within `lock_timeout_ms` is given up, so that nobody queues
up behind the migration while it queues up behind a long reader; the step is tried again after a pause.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, TypeVar

import sqlalchemy as sa
from msgspec import Meta, Struct
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from tidegate.database import check_address
from tidegate.errors import Fatal

Result = TypeVar("Result")
Work = Callable[[Connection], Result]

# One migration at a time: any constant will do, as long as every release uses the same.
_TRY_LOCK = "SELECT pg_try_advisory_lock(7126001)"
# A lock that is not had in time, and a deadlock with somebody who works.
_TRY_AGAIN = frozenset({"55P03", "40P01"})

_OLDEST = """
SELECT string_agg(format('pid %s (%s, %s, for %s s)', pid, coalesce(nullif(application_name, ''), 'no name'), state,
                         extract(epoch FROM now() - xact_start)::int), '; ' ORDER BY xact_start)
FROM (SELECT * FROM pg_stat_activity
      WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
      ORDER BY xact_start LIMIT 3) AS oldest
"""

# An index whose building broke off is in the way, and is of no use to anybody.
_INVALID = """
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pg_index AS i
JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE NOT i.indisvalid AND c.relkind = 'i'
  AND (n.nspname = 'tidegate' OR i.indrelid = ANY (SELECT to_regclass(quote_ident(t)) FROM unnest($1::text[]) AS t))
  AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index AS p WHERE p.index_relid = i.indexrelid)
"""


class Limits(Struct, frozen=True, kw_only=True):
    """How patient a migration is."""

    lock_timeout_ms: Annotated[
        int, Meta(ge=1, description="the longest that others may have to wait behind a step that waits for a lock")
    ] = 2_000
    pause_s: Annotated[float, Meta(gt=0, description="the most between two tries of a step (full jitter)")] = 2.0
    patience_s: Annotated[float, Meta(gt=0, description="for how long one step is tried; then a person must look")] = (
        300.0
    )


class Session:
    """The migration's connection. `tables` are those of the bubble."""

    def __init__(self, connection: AsyncConnection, limits: Limits, tables: Sequence[str]) -> None:
        self._connection = connection
        self._limits = limits
        self._tables = list(tables)

    async def look(self, work: Work[Result]) -> Result:
        """Read something."""
        try:
            return await self._connection.run_sync(work)
        finally:
            await self._connection.rollback()

    async def do(self, what: str, work: Work[None]) -> None:
        """One step; `work` begins and ends its own transactions, if it is a migration, else it is one.

        Raises Fatal when it fails, or gets no lock for `patience_s`. What was committed before stays.
        """
        deadline_s = _now_s() + self._limits.patience_s
        while True:
            try:
                await self._connection.run_sync(work)
                return await self._connection.commit()
            except sa.exc.DBAPIError as error:
                await self._connection.rollback()
                if sqlstate_of(error) not in _TRY_AGAIN:
                    raise Fatal(f"{what} failed: {error.orig}; what was done before it stays") from error
                if _now_s() >= deadline_s:
                    raise Fatal(
                        f"{what} got no lock for {self._limits.patience_s:g} s and was given up; the oldest transactions: "
                        f"{await self._oldest()}; end them or wait, then migrate again"
                    ) from error
            await asyncio.sleep(random.uniform(0, self._limits.pause_s))
            await self._drop_invalid_indexes()

    async def do_beside(self, statement: str) -> None:
        """One statement outside of a transaction, which waits for transactions, and for which nobody waits."""

        def run(connection: Connection) -> None:
            connection.exec_driver_sql("SET lock_timeout = 0")
            connection.exec_driver_sql(statement)
            connection.exec_driver_sql("RESET lock_timeout")

        plain = await self._connection.execution_options(isolation_level="AUTOCOMMIT")
        try:
            await plain.run_sync(run)
        finally:
            await plain.rollback()
            await self._connection.execution_options(isolation_level="READ COMMITTED")

    async def alone(self) -> None:
        """Wait until no other migration runs. Raises Fatal when it takes longer than `patience_s`.

        Asked again and again: who waits inside of a statement would be waited for by an index that is being built.
        """
        deadline_s = _now_s() + self._limits.patience_s
        while not await self.look(lambda connection: connection.exec_driver_sql(_TRY_LOCK).scalar_one()):
            if _now_s() >= deadline_s:
                raise Fatal(f"another migration runs and did not end within {self._limits.patience_s:g} s")
            await asyncio.sleep(random.uniform(0, min(self._limits.pause_s, 0.5)))
        await self._drop_invalid_indexes()

    async def _drop_invalid_indexes(self) -> None:
        def invalid(connection: Connection) -> Sequence[str]:
            return connection.exec_driver_sql(_INVALID, (self._tables,)).scalars().all()

        for name in await self.look(invalid):
            await self.do_beside(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")

    async def _oldest(self) -> str:
        found: str | None = await self.look(lambda connection: connection.exec_driver_sql(_OLDEST).scalar())
        return found or "none"


def sqlstate_of(error: sa.exc.DBAPIError) -> str:
    return str(getattr(error.orig, "sqlstate", None) or "")


@asynccontextmanager
async def connected(url: str, limits: Limits, tables: Sequence[str]) -> AsyncIterator[Session]:
    """The owner's connection for the block. Raises Fatal when the database cannot be reached, or refuses."""
    check_address(url)
    engine = create_async_engine(
        url.replace("postgresql://", "postgresql+asyncpg://", 1),
        connect_args={
            # An index takes as long as it takes, whatever the owner's role is told otherwise.
            "server_settings": {
                "application_name": "tidegate-migrate",
                "lock_timeout": f"{limits.lock_timeout_ms}ms",
                "statement_timeout": "0",
            }
        },
    )
    try:
        async with _opened(url, engine.connect()) as connection:
            yield Session(connection, limits, tables)
    except sa.exc.DBAPIError as error:
        raise Fatal(f"the database refused or went away: {error.orig}; what was done before it stays") from error
    finally:
        await engine.dispose()


@asynccontextmanager
async def _opened(url: str, opening: AsyncConnection) -> AsyncIterator[AsyncConnection]:
    try:
        connection = await opening.start()
    except (OSError, sa.exc.DBAPIError) as error:
        shown = sa.make_url(url).render_as_string(hide_password=True)
        raise Fatal(f"TIDEGATE_DATABASE_URL: cannot connect to {shown}: {error}; is the database up?") from error
    try:
        yield connection
    finally:
        await connection.close()


def _now_s() -> float:
    return asyncio.get_running_loop().time()
