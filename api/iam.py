"""RDS IAM authentication: a password that is a signature, made when it is needed and good for 15 minutes.  (pure)

What is signed is the address of nothing, `https://<host>:<port>/?Action=connect&DBUser=<user>`, with Signature Version 4 in
its query; RDS recomputes it. A library is not needed for that, and an AWS client would take longer to import than all
else together.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from urllib.parse import parse_qs, quote, unquote, urlsplit

import msgspec

from tidegate.errors import Fatal

_ALGORITHM = "AWS4-HMAC-SHA256"
_EXPIRES_S = 900
_SERVICE = "rds-db"
_NO_BODY = hashlib.sha256(b"").hexdigest()
_ENCRYPTED = ("require", "verify-ca", "verify-full")
_HERE = ("127.0.0.1", "localhost", "::1")


class Signer(msgspec.Struct, frozen=True, kw_only=True):
    """Who signs, as the Lambda runtime's environment says it."""

    access_key: str
    secret_key: str
    region: str
    session_token: str = ""

    def __repr__(self) -> str:
        return f"Signer({self.region!r})"


def signer_of(environ: Mapping[str, str]) -> Signer:
    """Raises Fatal when the environment does not say."""
    try:
        return Signer(
            access_key=environ["AWS_ACCESS_KEY_ID"],
            secret_key=environ["AWS_SECRET_ACCESS_KEY"],
            session_token=environ.get("AWS_SESSION_TOKEN", ""),
            region=environ.get("AWS_REGION") or environ["AWS_DEFAULT_REGION"],
        )
    except KeyError as error:
        raise Fatal(f"TIDEGATE_DATABASE_IAM is set, but the environment has no {error.args[0]} to sign with") from None


def password_of(url: str, environ: Mapping[str, str], now: Callable[[], datetime]) -> Callable[[], str]:
    """What to call for a password, each time that a connection is opened. `environ` is read then, too.

    Raises Fatal for an address without a user, or over which the token would go in the clear.
    """
    parts = urlsplit(url)
    mode = parse_qs(parts.query).get("sslmode", ["prefer"])[-1]
    if not parts.username or not parts.hostname:
        raise Fatal("TIDEGATE_DATABASE_URL names no user or no host, and the token is made for both")
    if mode not in _ENCRYPTED and parts.hostname not in _HERE:
        raise Fatal(
            "TIDEGATE_DATABASE_IAM needs TLS: add ?sslmode=verify-full and sslrootcert to TIDEGATE_DATABASE_URL"
        )
    host, port, user = parts.hostname, parts.port or 5432, unquote(parts.username)
    return lambda: auth_token(host, port, user, signer_of(environ), now())


def auth_token(host: str, port: int, user: str, signer: Signer, now: datetime) -> str:
    """The token, as `aws rds generate-db-auth-token` prints it."""
    time = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{time[:8]}/{signer.region}/{_SERVICE}/aws4_request"
    stated = {
        "Action": "connect",
        "DBUser": user,
        "X-Amz-Algorithm": _ALGORITHM,
        "X-Amz-Credential": f"{signer.access_key}/{scope}",
        "X-Amz-Date": time,
        "X-Amz-Expires": str(_EXPIRES_S),
        "X-Amz-SignedHeaders": "host",
    }
    if signer.session_token:
        stated["X-Amz-Security-Token"] = signer.session_token
    query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in sorted(stated.items()))
    request = f"GET\n/\n{query}\nhost:{host}:{port}\n\nhost\n{_NO_BODY}"
    text = f"{_ALGORITHM}\n{time}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{signer.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    return f"{host}:{port}/?{query}&X-Amz-Signature={signature}"
