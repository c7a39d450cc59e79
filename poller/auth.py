"""Credentials of a back office: what every request carries, and tokens that are renewed in time.

A secret is in a header or a parameter and nowhere else: no error, log line or metric names one.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote_plus

from tidegate.errors import Fatal, Transient
from tidegate.feeds import ApiKey, Auth, Basic, Bearer, ClientCredentials, Env, Rest

Post = Callable[[str, Mapping[str, str], Mapping[str, str]], Awaitable[Any]]
"""Address, form and headers in, parsed JSON out. Raises Transient, of it Refused."""

_EARLY = 0.2
"""A token is renewed when this share of its life is left, at most EARLY_S."""
_EARLY_S = 60.0
_LIFE_S = 300.0
"""Of a token whose server does not say how long it lives."""


def value_of(source: str, value: Env | str, environ: Mapping[str, str]) -> str:
    """The text that a declaration names. Raises Fatal when its variable is missing."""
    if isinstance(value, str):
        return value
    text = environ.get(value.name) or value.default
    if not text:
        raise Fatal(f"source {source!r}: the environment variable {value.name} is missing")
    return text


class Credentials:
    """What the requests of one source carry. `clock` is monotonic, in seconds. Raises Fatal as value_of."""

    def __init__(
        self, source: str, feed: Rest, environ: Mapping[str, str], post: Post, clock: Callable[[], float]
    ) -> None:
        self._source = source
        self._environ = environ
        self._post = post
        self._clock = clock
        self._lock = asyncio.Lock()
        self._token = ""
        self._until = float("-inf")
        self._oauth = feed.auth if isinstance(feed.auth, ClientCredentials) else None
        self._headers = {each.name: each.prefix + self._value(each.value) for each in feed.headers}
        self.params = [(each.name, self._value(each.value)) for each in feed.params]
        self._fixed(feed.auth)

    def _value(self, value: Env | str) -> str:
        return value_of(self._source, value, self._environ)

    def _fixed(self, auth: Auth | None) -> None:
        match auth:
            case Basic():
                self._headers["Authorization"] = _basic(self._value(auth.user), self._value(auth.password))
            case Bearer():
                self._headers["Authorization"] = f"Bearer {self._value(auth.token)}"
            case ApiKey(param=None):
                self._headers[auth.header] = self._value(auth.value)
            case ApiKey(param=param):
                self.params.append((str(param), self._value(auth.value)))
            case ClientCredentials():
                for env in (auth.token_url, auth.client_id, auth.client_secret):
                    self._value(env)
            case None:
                pass

    async def headers(self) -> dict[str, str]:
        """The headers of the next request, with a token that lives. Raises Transient, of it Refused."""
        if self._oauth is None:
            return self._headers
        async with self._lock:
            if self._clock() >= self._until:
                await self._renew(self._oauth)
        return {**self._headers, "Authorization": f"Bearer {self._token}"}

    def refused(self) -> bool:
        """The back office answered 401; True when a new token may help."""
        had_token = self._oauth is not None and self._until > float("-inf")
        self._until = float("-inf")
        return had_token

    async def _renew(self, oauth: ClientCredentials) -> None:
        client, secret = self._value(oauth.client_id), self._value(oauth.client_secret)
        form = {"grant_type": "client_credentials"}
        form |= {name: text for name, text in (("scope", oauth.scope), ("audience", oauth.audience)) if text}
        headers: dict[str, str] = {}
        if oauth.in_body:
            form |= {"client_id": client, "client_secret": secret}
        else:
            headers["Authorization"] = _basic(quote_plus(client), quote_plus(secret))
        asked = self._clock()
        reply = await self._post(self._value(oauth.token_url), form, headers)
        token = reply.get("access_token") if isinstance(reply, dict) else None
        if not isinstance(token, str) or not token:
            raise Transient(f"{self._source}: the token server's answer has no access_token")
        life = reply.get("expires_in")
        life_s = float(life) if isinstance(life, int | float) and life > 0 else _LIFE_S
        self._token, self._until = token, asked + life_s - min(_EARLY_S, _EARLY * life_s)


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
