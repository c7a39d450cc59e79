"""What the reads handler takes from its environment; read once, when the sandbox starts."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tidegate.errors import Fatal


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One sandbox's settings.

    bubble                import path of the bubble
    database_url          postgresql:// address with a login that is a member of tidegate_reader
    statement_timeout_s   the longest wait for one read; API Gateway itself gives up after 30
    connect_timeout_s     the longest wait for a connection, part of every cold start
    statement_cache_size  prepared statements to keep; 0 prepares none by name, as a transaction-mode proxy
                          needs (RDS Proxy would pin the session). Above 0 it saves a network round trip
    """

    bubble: str
    database_url: str
    statement_timeout_s: float = 5.0
    connect_timeout_s: float = 3.0
    statement_cache_size: int = 0

    def __repr__(self) -> str:
        # The address holds the password.
        return f"Settings(bubble={self.bubble!r})"


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Raises Fatal, naming the variable and the remedy."""
    return Settings(
        bubble=_text(environment, "TIDEGATE_BUBBLE", "the import path of your bubble, such as examples.parcels.bubble"),
        database_url=_text(environment, "TIDEGATE_DATABASE_URL", "postgresql://<reader>:<password>@<host>:<port>/<db>"),
        statement_timeout_s=_number(environment, "TIDEGATE_STATEMENT_TIMEOUT_S", 5.0, least=0.01),
        connect_timeout_s=_number(environment, "TIDEGATE_CONNECT_TIMEOUT_S", 3.0, least=0.01),
        statement_cache_size=int(_number(environment, "TIDEGATE_STATEMENT_CACHE_SIZE", 0, least=0)),
    )


def _text(environment: Mapping[str, str], name: str, example: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise Fatal(f"{name} is not set; set it to {example}")
    return value


def _number(environment: Mapping[str, str], name: str, default: float, *, least: float) -> float:
    text = environment.get(name, "")
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        raise Fatal(f"{name} is {text!r}; it must be a number") from None
    if not least <= value < float("inf"):
        raise Fatal(f"{name} is {text}; it must be at least {least:g}")
    return value
