"""The embedded PostgreSQL: starts, survives SIGKILL, keeps its rows, leaves nothing behind."""

from pathlib import Path

import asyncpg
import pytest

from local.postgres import Postgres, PostgresError


async def test_rows_survive_a_kill_and_a_restart(tmp_path: Path) -> None:
    # tmp_path's parents are closed to other users, as a home folder is.
    async with Postgres(tmp_path / "pg") as postgres:
        connection = await asyncpg.connect(postgres.dsn)
        await connection.execute("create table kept (n int); insert into kept select generate_series(1, 100)")
        first = postgres.pid
        await postgres.kill()
        await connection.close(timeout=1)
        await postgres.start()
        assert postgres.pid != first
        connection = await asyncpg.connect(postgres.dsn)
        assert await connection.fetchval("select count(*) from kept") == 100
        await connection.close()
    again = Postgres(tmp_path / "pg")
    await again.start()
    try:
        connection = await asyncpg.connect(again.dsn)
        assert await connection.fetchval("select count(*) from kept") == 100
        await connection.close()
    finally:
        await again.stop()


async def test_a_wrong_password_is_refused() -> None:
    async with Postgres() as postgres:
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(postgres.dsn_for("postgres", "guess"))


async def test_a_temporary_cluster_is_removed() -> None:
    postgres = Postgres()
    await postgres.start()
    folder = postgres.folder
    assert (folder / "cluster").is_dir()
    await postgres.stop()
    assert not folder.exists()
    with pytest.raises(PostgresError):
        _ = postgres.pid


async def test_a_taken_port_is_said(tmp_path: Path) -> None:
    async with Postgres() as first:
        second = Postgres(tmp_path / "second", port=first.port)
        with pytest.raises(PostgresError, match=f"port {first.port}.*Address already in use"):
            await second.start()
        await second.stop()
