"""Addresses of a database: what cannot be taken apart is refused before anybody connects, and nothing of it is shown."""

from __future__ import annotations

import pytest

from tidegate.database import DatabaseSettings, check_address, connect
from tidegate.errors import Fatal

WRONG = (
    "postgresql://user:gehe#im@host/db",
    "postgresql://user:gehe/im@host/db",
    "postgresql://user:gehe?im@host/db",
    "postgresql://user:geheim@host:port/db",
    "postgresql://user:geheim@host:99999/db",
    "postgresql://user:geheim@[::1/db",
    "postgresql://user:12/geheim@host/db",
)
RIGHT = (
    "postgresql://user:p%23ss@host/db",
    "postgresql://user:p%40ss@host:5432/db?sslmode=require",
    "postgresql://user:pass@[::1]:5432/db",
    "postgresql://user:pass@one:5432,two/db",
    "postgresql://user@/db?host=/run/postgresql",
)


@pytest.mark.parametrize("address", WRONG)
async def test_a_wrong_address_is_fatal_and_its_text_shows_no_password(address: str) -> None:
    with pytest.raises(Fatal, match="TIDEGATE_DATABASE_URL") as caught:
        async with connect(address, DatabaseSettings(), "test"):
            pass
    assert not any(piece in str(caught.value) for piece in ("gehe", "im@", "99999"))
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("address", RIGHT)
def test_a_right_address_passes(address: str) -> None:
    check_address(address)
