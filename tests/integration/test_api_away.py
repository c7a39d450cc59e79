"""The database stands still, or is gone: problem details within the time-outs, and recovery without a restart."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import asyncpg
import pytest

from tests.integration.harbour import MASTER, Harbour, Reply, opened


@pytest.fixture(scope="module")
def harbour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harbour]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with opened(tmp_path_factory.mktemp("harbour") / "migrations", count=5, port=port) as made:
        yield made


async def backends(harbour: Harbour) -> list[int]:
    """The server processes of the reader's connections."""
    connection = await asyncpg.connect(harbour.postgres.dsn)
    try:
        rows = await connection.fetch("SELECT pid FROM pg_stat_activity WHERE usename = 'reader_login'")
    finally:
        await connection.close()
    return [row["pid"] for row in rows]


def is_away(reply: Reply) -> bool:
    assert reply.status == 503, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json["type"] == "urn:tidegate:problem:unavailable"
    assert int(reply.headers["retry-after"]) >= 1
    assert "127.0.0.1" not in reply.text
    return True


@pytest.mark.timeout(60)
def test_a_database_that_does_not_answer_is_given_up_in_time(harbour: Harbour) -> None:
    """Were there no time-out, this test would be ended by its own."""
    assert harbour.ask("/v1/ships", MASTER).status == 200
    # Each backend leads a process group of its own.
    stopped = [harbour.postgres.pid, *harbour.run(backends(harbour))]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        assert is_away(harbour.ask("/v1/ships", MASTER)), "on the connection that was open"
        assert is_away(harbour.ask("/v1/ships", MASTER)), "and on a new one"
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    assert harbour.ask("/v1/ships", MASTER).status == 200


def test_a_database_that_was_restarted_is_found_again(harbour: Harbour) -> None:
    before = harbour.ask("/v1/ships", MASTER)
    harbour.run(harbour.postgres.kill())
    assert is_away(harbour.ask("/v1/ships", MASTER))
    assert is_away(harbour.ask("/v1/ships/imo0001", MASTER))
    harbour.run(harbour.postgres.start())
    after = harbour.ask("/v1/ships", MASTER, headers={"if-none-match": before.headers["etag"]})
    assert after.status == 304
