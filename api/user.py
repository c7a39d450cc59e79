"""/v1/user: what a signed-in user keeps with us of their own, as one JSON object.

    GET     200 with its ETag, or 404
    POST    begin: 201, or 409 when there is something already
    PUT     replace: If-Match: <ETag>, or If-None-Match: * to begin
    PATCH   application/merge-patch+json (RFC 7396) with If-Match
    DELETE  with If-Match: 204

Whose it is comes from the token alone. A change says which version it is based on: without one it is refused (428), and
with an old one too (412), so no change of another page or device is lost silently. It belongs to whoever signed in;
programs have none.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from api.access import identified
from api.answer import Answer, Refused
from api.faults import answered, at
from api.request import Request
from api.routes import USER as PATH
from api.routes import USER_METHODS as METHODS
from api.settings import UserSettings
from tidegate.bubble import Bubble
from tidegate.errors import Superseded

_JSON = "application/json"
_MERGE = "application/merge-patch+json"
_ANY = "*"

_encoder = msgspec.json.Encoder()


class Stored(Protocol):
    """A user's attributes as JSON, and which version of them."""

    @property
    def version(self) -> str: ...

    @property
    def attributes(self) -> str: ...


class Users(Protocol):
    """Where the attributes are kept; `tidegate.users` is the adapter. Writes raise Superseded: another version is the latest."""

    async def get(self, subject: str) -> Stored | None: ...
    async def create(self, subject: str, attributes: str) -> Stored: ...
    async def replace(self, subject: str, attributes: str, version: str) -> Stored: ...
    async def delete(self, subject: str, version: str) -> None: ...


class User:
    """The one resource."""

    def __init__(self, bubble: Bubble, users: Users, settings: UserSettings) -> None:
        self._bubble = bubble
        self._users = users
        self._settings = settings

    async def answer(self, request: Request) -> Answer:
        """Raises Transient or Fatal as the table does."""
        return await answered(request, self._routed)

    async def _routed(self, request: Request) -> Answer:
        at(request, PATH, METHODS)
        caller = identified(request, self._bubble)
        if caller.is_machine:
            detail = "attributes belong to users who sign in; this token is of a program itself"
            raise Refused(403, "no-user", "Forbidden", detail)
        try:
            return await getattr(self, f"_{request.method.lower()}")(request, caller.subject)  # type: ignore[no-any-return]
        except Superseded as error:
            raise _changed() from error

    async def _get(self, request: Request, subject: str) -> Answer:
        found = await self._found(subject)
        asked = request.headers.get("if-none-match")
        if asked is not None and (asked.strip() == _ANY or found.version in _tags(asked, weak=True)):
            return Answer(status=304, headers={"ETag": _etag(found)})
        return _shown(200, found)

    async def _post(self, request: Request, subject: str) -> Answer:
        attributes = self._attributes(request)
        try:
            return _shown(201, await self._users.create(subject, attributes), {"Location": PATH})
        except Superseded as error:
            detail = "there are attributes already; change them by PUT or PATCH with If-Match"
            raise Refused(409, "already-there", "Already there", detail) from error

    async def _put(self, request: Request, subject: str) -> Answer:
        attributes = self._attributes(request)
        if request.headers.get("if-none-match", "").strip() == _ANY and "if-match" not in request.headers:
            return _shown(201, await self._users.create(subject, attributes), {"Location": PATH})
        found = await self._matched(request, subject)
        return _shown(200, await self._users.replace(subject, attributes, found.version))

    async def _patch(self, request: Request, subject: str) -> Answer:
        patch = self._object(request, _MERGE)
        found = await self._matched(request, subject)
        merged = _merged(msgspec.json.decode(found.attributes), patch)
        return _shown(200, await self._users.replace(subject, self._encoded(merged), found.version))

    async def _delete(self, request: Request, subject: str) -> Answer:
        found = await self._matched(request, subject)
        await self._users.delete(subject, found.version)
        return Answer(status=204)

    async def _found(self, subject: str) -> Stored:
        found = await self._users.get(subject)
        if found is None:
            raise Refused(404, "no-attributes", "Not found", "there are no attributes yet; begin with POST")
        return found

    async def _matched(self, request: Request, subject: str) -> Stored:
        """What is stored, if it is what the request is based on. Raises Refused: 428, 404 or 412."""
        asked = request.headers.get("if-match")
        if asked is None:
            detail = "say which version this is based on: If-Match with the ETag of the last answer"
            raise Refused(428, "no-version", "Precondition required", detail)
        found = await self._found(subject)
        if asked.strip() != _ANY and found.version not in _tags(asked, weak=False):
            raise _changed()
        return found

    def _attributes(self, request: Request) -> str:
        return self._encoded(self._object(request, _JSON))

    def _object(self, request: Request, media: str) -> dict[str, Any]:
        if len(request.body) > self._settings.max_bytes:
            raise self._too_large()
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != media:
            raise Refused(415, "bad-media-type", "Unsupported media type", f"send {media}")
        try:
            read: dict[str, Any] = msgspec.json.decode(request.body, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Refused(400, "bad-body", "Bad body", f"the body is no JSON object: {error}") from error
        if _depth(read) > self._settings.max_depth:
            detail = f"objects and lists may stand {self._settings.max_depth} deep within each other"
            raise Refused(400, "too-deep", "Bad body", detail)
        return read

    def _encoded(self, attributes: dict[str, Any]) -> str:
        encoded = _encoder.encode(attributes)
        if len(encoded) > self._settings.max_bytes:
            raise self._too_large()
        return encoded.decode()

    def _too_large(self) -> Refused:
        detail = f"a user's attributes may take {self._settings.max_bytes} bytes of JSON"
        return Refused(413, "too-large", "Content too large", detail)


def _merged(target: Any, patch: Any) -> Any:
    """RFC 7396: null takes away, objects are merged, everything else replaces."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merged(merged.get(name), value)
    return merged


def _depth(value: Any) -> int:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return 1 + max(map(_depth, inner), default=0)
    return 0


def _shown(status: int, stored: Stored, headers: dict[str, str] | None = None) -> Answer:
    stated = {"Content-Type": _JSON, "ETag": _etag(stored), **(headers or {})}
    return Answer(status=status, body=stored.attributes, headers=stated)


def _etag(stored: Stored) -> str:
    return f'"{stored.version}"'


def _tags(header: str, *, weak: bool) -> set[str]:
    """The versions that a header names. For a change only strong ones count (RFC 9110)."""
    tags = [tag.strip() for tag in header.split(",")]
    if weak:
        tags = [tag.removeprefix("W/") for tag in tags]
    return {tag[1:-1] for tag in tags if len(tag) > 2 and tag[0] == tag[-1] == '"'}


def _changed() -> Refused:
    detail = "the attributes have changed since; read them again and repeat the change"
    return Refused(412, "changed-since", "Precondition failed", detail)
