"""Whose token it is: the signature and its keys, over joserfc; vendor errors become ours here.

API Gateway has looked at the token before; this is the second lock, for a route whose authorizer somebody forgot, a
function URL, a load balancer. The issuer's keys are fetched once and kept. A token that names a key which is not
known has them fetched again, for issuers rotate, but not before `refetch_s` is over: whoever sends made-up names
makes no traffic. What is known stays in use while the issuer does not answer, for a bounded time.

In a function without a way out to the issuer, the keys themselves are a setting (`TIDEGATE_TOKENS_JWKS`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import msgspec
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import RSAKey

from api.compact import ALGORITHM, Claims, Expectation, Judged, Unidentified, bearer, claims_of, judged, parsed
from api.settings import TokenSettings
from tidegate.errors import Fatal, Transient

_LARGEST_JWKS_BYTES = 256 * 1024
_LEAST_RSA_BITS = 2048
_RETRY_AFTER_S = 2
_DECODED = jws.JWSRegistry(algorithms=[ALGORITHM], strict_check_header=False)

Fetch = Callable[[], Awaitable[bytes]]


class Key(msgspec.Struct, frozen=True, eq=False):
    """One public key of the issuer. Two fetches make two, so what was verified under an older one is verified anew."""

    rsa: RSAKey


class Keys:
    """The issuer's public keys, by name. `now` is a monotonic clock in seconds."""

    def __init__(self, settings: TokenSettings, fetch: Fetch, now: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._fetch = fetch
        self._now = now
        self._keys: Mapping[str, Key] = {}
        self._fetched_s: float | None = None
        self._tried_s: float | None = None
        self._fetching = asyncio.Lock()

    async def key(self, kid: str) -> Key:
        """Raises Unidentified for a key that the issuer does not have, Transient when he does not answer."""
        if (found := self._known(kid)) is not None:
            return found
        failure: Transient | None = None
        async with self._fetching:
            # Another request may have fetched them meanwhile.
            if self._known(kid) is None and self._may_fetch():
                failure = await self._refresh()
        if (found := self._usable().get(kid)) is not None:
            return found
        if failure is not None:
            raise failure
        if self._fetched_s is None:
            raise Transient("the token issuer's keys are not there yet", retry_after_s=_RETRY_AFTER_S)
        raise Unidentified("the token is signed with a key that its issuer does not have")

    def _known(self, kid: str) -> Key | None:
        """The key, unless it is time to ask whether it still is one."""
        is_fresh = self._fetched_s is not None and self._now() - self._fetched_s < self._settings.keys_max_age_s
        return self._keys.get(kid) if is_fresh else None

    def _usable(self) -> Mapping[str, Key]:
        """What is known, however old, up to the limit for an issuer that does not answer."""
        if self._fetched_s is None or self._now() - self._fetched_s > self._settings.keys_stale_s:
            return {}
        return self._keys

    def _may_fetch(self) -> bool:
        # While nobody can be let in, the pause is short.
        pause_s = self._settings.refetch_s if self._fetched_s is not None else _RETRY_AFTER_S
        return self._tried_s is None or self._now() - self._tried_s >= pause_s

    async def _refresh(self) -> Transient | None:
        self._tried_s = self._now()
        try:
            self._keys = keys_of(await self._fetch())
        except Transient as error:
            return error
        self._fetched_s = self._now()
        return None


class Verifier:
    """Verifies tokens for one deployment. `clock` is Unix time in seconds."""

    def __init__(self, settings: TokenSettings, keys: Keys, clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._clock = clock
        self._most_bytes = settings.max_bytes
        self._expected = Expectation(
            issuer=settings.issuer,
            clients=frozenset(settings.clients),
            uses=frozenset(settings.uses) if settings.profile == "cognito" else frozenset(),
            leeway_s=settings.leeway_s,
        )

    async def claims(self, authorization: str | None) -> Claims | None:
        """The claims of a request's token; None when it carries none.

        Raises:
            Unidentified: the token is not one that this API takes; the text says why.
            Transient: the issuer's keys cannot be had.
        """
        token = bearer(authorization, self._most_bytes)
        if token is None:
            return None
        compact = parsed(token)
        key = await self._keys.key(compact.kid)
        # A page sends the same token again and again; the clock is asked each time all the same.
        return _signed(compact.text, key, self._expected).at(self._clock())


def verifier(settings: TokenSettings, clock: Callable[[], float] = time.time) -> Verifier:
    """The verifier of the settings. Raises Fatal for a key set in them that is none."""
    if settings.jwks is None:
        return Verifier(settings, Keys(settings, HttpKeys(settings).fetch), clock)
    given = settings.jwks.encode()

    async def fetch() -> bytes:
        return given

    if not keys_of(given):
        raise Fatal("TIDEGATE_TOKENS_JWKS holds no RSA key for signatures")
    return Verifier(settings, Keys(settings, fetch), clock)


@lru_cache(maxsize=64)
def _signed(token: str, key: Key, expected: Expectation) -> Judged:
    """What a token says whose signature holds, if it is meant for us. Raises Unidentified, which is not remembered."""
    try:
        found = jws.deserialize_compact(token, key.rsa, algorithms=[ALGORITHM], registry=_DECODED)
    except (JoseError, ValueError) as error:
        raise Unidentified("the token's signature does not hold") from error
    return judged(claims_of(found.payload or b""), expected)


def keys_of(document: bytes) -> dict[str, Key]:
    """The RSA keys of a JWKS that may verify RS256, by name; others are left out.

    Raises Transient for what is no JWKS: an issuer that answers so is out of order, and may be in order later.
    """
    try:
        listed = msgspec.json.decode(document, type=_KeySet).keys
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Transient("the token issuer's keys are no JWKS", retry_after_s=_RETRY_AFTER_S) from error
    found = {}
    for each in listed:
        if each.get("kty") == "RSA" and each.get("use", "sig") == "sig" and each.get("alg", ALGORITHM) == ALGORITHM:
            kid, key = each.get("kid"), _rsa(each)
            if isinstance(kid, str) and kid not in found and key is not None:
                found[kid] = key
    return found


def _rsa(stated: Mapping[str, Any]) -> Key | None:
    """The public half only, whatever else is stated; None for what is no key, or one too short to trust."""
    modulus, exponent = stated.get("n"), stated.get("e")
    # Six bits a sign; looked at first, as joserfc would only warn.
    if not (isinstance(modulus, str) and isinstance(exponent, str) and len(modulus) * 6 >= _LEAST_RSA_BITS):
        return None
    try:
        return Key(RSAKey.import_key({"kty": "RSA", "n": modulus, "e": exponent}))
    except (JoseError, ValueError):
        return None


class _KeySet(msgspec.Struct):
    keys: list[dict[str, Any]]


class HttpKeys:
    """The issuer's JWKS over HTTP: one GET, bounded in time and size, no redirects."""

    def __init__(self, settings: TokenSettings) -> None:
        self._settings = settings

    async def fetch(self) -> bytes:
        """Raises Transient, whatever goes wrong."""
        try:
            async with asyncio.timeout(self._settings.fetch_timeout_s):
                return await asyncio.to_thread(self._get)
        except (OSError, TimeoutError, ValueError) as error:
            raise Transient(
                f"the token issuer's keys cannot be had: {type(error).__name__}", retry_after_s=_RETRY_AFTER_S
            ) from error

    def _get(self) -> bytes:
        # Only needed once in an hour, and not at all where the keys are a setting.
        from http.client import HTTPConnection, HTTPException, HTTPSConnection  # noqa: PLC0415

        address = urlsplit(self._settings.keys_url)
        kind = HTTPSConnection if address.scheme == "https" else HTTPConnection
        connection = kind(address.netloc, timeout=self._settings.fetch_timeout_s)
        try:
            connection.request("GET", address.path + (f"?{address.query}" if address.query else ""))
            with connection.getresponse() as answer:
                document = answer.read(_LARGEST_JWKS_BYTES + 1)
        except HTTPException as error:
            raise OSError(f"no HTTP: {error!r}") from error
        finally:
            connection.close()
        if answer.status != 200 or len(document) > _LARGEST_JWKS_BYTES:
            raise OSError(f"status {answer.status}, {len(document)} bytes")
        return document
