"""A webhook: one signed POST for each change. The adapter of `worker.ports.Destination` over aiohttp.

The body is the CloudEvent. The headers are those of Standard Webhooks 1.0, so a receiver can use any library for it:

    webhook-id         the event's id, the same at every repetition: by it the receiver does its work once
    webhook-timestamp  seconds since 1970 when this attempt was made
    webhook-signature  `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`; one for each secret, spaces between

What the answer means:

    2xx                                       accepted
    no connection, time-out, 3xx, 401, 403,   Transient: the receiver is away, busy or not set up for us; redirects are not
    404, 408, 425, 429, 5xx                   followed. With Retry-After, not before that, and nothing else either
    400, 410 and every other 4xx              Rejected: it does not want this change. The change is dead, the next one goes
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from urllib.parse import urlsplit

import aiohttp

from tidegate import __version__, retry_after
from tidegate.bubble import Env, Webhook
from tidegate.errors import Fatal, Rejected, Transient
from worker.ports import Effect

_PASSING = frozenset({401, 403, 404, 408, 425, 429})
_SECRET_BYTES = range(24, 65)
_QUOTED_BYTES = 300


def sign(secret: bytes, event_id: str, timestamp: int, body: bytes) -> str:
    """One signature, as it stands in `webhook-signature`."""
    signed = hmac.new(secret, f"{event_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return "v1," + base64.b64encode(signed.digest()).decode()


class WebhookDestination:
    """`environ` holds the values that the declaration names by `Env`. Raises Fatal when one is missing or unusable."""

    def __init__(
        self,
        declared: Webhook,
        session: aiohttp.ClientSession,
        environ: Mapping[str, str],
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.name = declared.name
        self.timeout_s = declared.timeout_s
        self._session = session
        self._now = now
        self._url = _url(declared, environ)
        self._secrets = _secrets(declared, environ)

    async def send(self, effect: Effect) -> None:
        try:
            async with self._session.post(
                self._url,
                data=effect.payload,
                headers=self._headers(effect),
                timeout=aiohttp.ClientTimeout(total=self.timeout_s),
                allow_redirects=False,
            ) as answer:
                if 200 <= answer.status < 300:
                    return
                said = await answer.content.read(_QUOTED_BYTES)
        except TimeoutError as error:
            raise Transient(f"{self.name}: no answer within {self.timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Transient(f"{self.name}: {type(error).__name__}: {error}") from error
        self._refuse(answer.status, answer.headers.get("Retry-After"), said)

    def _headers(self, effect: Effect) -> dict[str, str]:
        timestamp = int(self._now())
        signatures = [sign(secret, effect.event_id, timestamp, effect.payload) for secret in self._secrets]
        return {
            "content-type": "application/cloudevents+json; charset=utf-8",
            "user-agent": f"tidegate/{__version__}",
            "webhook-id": effect.event_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join(signatures),
        }

    def _refuse(self, status: int, wish: str | None, said: bytes) -> None:
        text = f"{self.name}: the receiver answered {status}: {said.decode(errors='replace')}"
        if status in _PASSING or not 400 <= status < 500:
            wish_s = retry_after.seconds(wish, datetime.fromtimestamp(self._now(), UTC))
            raise Transient(text, retry_after_s=wish_s)
        raise Rejected(f"http_{status}", text)


@asynccontextmanager
async def connect(
    declared: Sequence[Webhook], environ: Mapping[str, str]
) -> AsyncIterator[tuple[WebhookDestination, ...]]:
    """The destinations, for the block, with connections of their own. Raises Fatal as WebhookDestination does."""
    # How many are under way at once is bounded by who sends.
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield tuple(WebhookDestination(each, session, environ) for each in declared)


def _value(declared: Webhook, env: Env, environ: Mapping[str, str]) -> str:
    value = environ.get(env.name, "").strip() or env.default
    if value is None:
        raise Fatal(f"destination {declared.name!r}: the environment variable {env.name} is missing")
    return value


def _url(declared: Webhook, environ: Mapping[str, str]) -> str:
    url = _value(declared, declared.url, environ)
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise Fatal(f"destination {declared.name!r}: {declared.url.name} is no https:// or http:// address")
    return url


def _secrets(declared: Webhook, environ: Mapping[str, str]) -> list[bytes]:
    found = [(env.name, value) for env in declared.secrets if (value := _value(declared, env, environ))]
    if not found:
        raise Fatal(f"destination {declared.name!r}: none of its secrets is set; what it sends must be signed")
    return [_key(declared, name, value) for name, value in found]


def _key(declared: Webhook, name: str, value: str) -> bytes:
    try:
        key = base64.b64decode(value.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) not in _SECRET_BYTES:
        raise Fatal(
            f"destination {declared.name!r}: {name} is not the base64 of {_SECRET_BYTES[0]} to {_SECRET_BYTES[-1]} "
            "bytes; make one with `openssl rand -base64 32`"
        ) from None
    return key
