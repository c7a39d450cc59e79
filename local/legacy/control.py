"""The `/_sim` endpoints and the screen of a back office. Local only, not behind the API key.

    GET  /_sim/health      {"ok": true}
    GET  /_sim/stats       {"rows": {entity: n}, "changes": n, "life": bool, "changes_per_s": x, "outage": bool,
                            "requests": {"served", "unauthorized", "throttled", "unavailable", "slow"}}
    GET  /_sim/truth       ?entity=parcel[&viewer=customer:1001] → NDJSON {"key", "row"}, by key, one snapshot
    GET  /_sim/changes     ?after=N&limit=1000 → [{"no", "entity", "key", "operation", "committed_at_ms", "row"}]
    GET  /_sim/rows        ?entity=&offset=0&limit=50&q=&order=key|recent → {"total", "rows": [{"key", "row"}]}
    GET  /_sim/describe    {"kind", "title", "entities": [{"name", "columns", "editable": [Shape]}]}
    POST /_sim/burst       {"creates", "updates", "corrections", "deletes"} → {"applied": {…}, "last_change": n}
    POST /_sim/life        {"on": bool, "changes_per_s": 5}
    POST /_sim/outage      {"on": bool}
    POST /_sim/edit        {"entity", "key", "fields": {clean name: value}} → {"row", "last_change"}
    POST /_sim/delete      {"entity", "key"} → {"last_change"}
    POST /_sim/restore     {"entity", "key"}: a deleted row comes back, as from a backup → {"row", "last_change"}

Errors are {"error": text} with 400 (not understood), 404 (no such row or entity) or 409 (restore of a row that is
there). Bodies are JSON; their content type is not looked at.
"""

import asyncio
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar, cast

import msgspec
from aiohttp import web

from local.legacy.desk import Desk
from local.legacy.dialect import BadQuery, whole
from local.legacy.life import Burst, Life, Setting
from local.legacy.manners import Handler, Manners
from local.legacy.office import BackOffice, reply
from local.legacy.record import Clean, Record, Row, Viewer, shapes
from local.legacy.store import Store

T = TypeVar("T")

TRUTH_LINES = 2000
"""Lines of the truth that are read in one go, outside the event loop."""


class Toggle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    on: bool


class Named(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    entity: str
    key: str


class Edit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    entity: str
    key: str
    fields: dict[str, Clean]


class NoSuch(LookupError):
    """No such entity or row: HTTP 404."""


class Control:
    """Everything that people and tests do to a back office behind its legacy API's back."""

    def __init__(self, office: BackOffice, store: Store, manners: Manners, life: Life, rng: random.Random) -> None:
        self._office = office
        self._store = store
        self._manners = manners
        self._life = life
        self._rng = rng

    def add_to(self, app: web.Application, screen: Path) -> None:
        """Register the endpoints, and the static files of the screen at `/`."""
        reads = {
            "health": self._health,
            "stats": self._stats,
            "truth": self._truth,
            "changes": self._changes,
            "rows": self._rows,
            "describe": self._describe,
        }
        writes = {
            "burst": self._burst,
            "life": self._set_life,
            "outage": self._set_outage,
            "edit": self._edit,
            "delete": self._delete,
            "restore": self._restore,
        }
        for name, handler in reads.items():
            app.router.add_get(f"/_sim/{name}", _answered(handler))
        for name, handler in writes.items():
            app.router.add_post(f"/_sim/{name}", _answered(handler))
        for file in sorted(screen.iterdir()):
            if file.is_file():
                app.router.add_get("/" if file.name == "index.html" else f"/{file.name}", _serving(file))

    # --- looking -------------------------------------------------------------------------------

    async def _health(self, request: web.Request) -> web.Response:
        return reply({"ok": True})

    async def _stats(self, request: web.Request) -> web.Response:
        tally = self._manners.tally
        return reply(
            {
                "rows": {kind.entity: self._store.count(kind) for kind in self._office.records},
                "changes": self._store.last_change,
                "life": self._life.setting.on,
                "changes_per_s": self._life.setting.changes_per_s,
                "outage": self._manners.outage,
                "requests": {
                    "served": tally.served,
                    "unauthorized": tally.unauthorized,
                    "throttled": tally.throttled,
                    "unavailable": tally.unavailable,
                    "slow": tally.slow,
                },
            }
        )

    async def _truth(self, request: web.Request) -> web.StreamResponse:
        kind = self._kind(request.query.get("entity", ""))
        named = request.query.get("viewer")
        try:
            viewer = Viewer.parse(named) if named else None
        except ValueError as wrong:
            raise BadQuery(str(wrong)) from None
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        lines = self._store.truth(kind, viewer)
        while chunk := await asyncio.to_thread(_some, lines):
            await response.write(chunk)
        await response.write_eof()
        return response

    async def _changes(self, request: web.Request) -> web.Response:
        after = whole(request.query, "after", 0, 0, 2**62)
        limit = whole(request.query, "limit", 1000, 1, 100_000)
        return reply(self._store.changes(after, limit))

    async def _rows(self, request: web.Request) -> web.Response:
        query = request.query
        kind = self._kind(query.get("entity", ""))
        like = f"%{_escaped(query.get('q', ''))}%" if query.get("q") else "%"
        offset, limit = whole(query, "offset", 0, 0, 2**31), whole(query, "limit", 50, 1, 1000)
        order = query.get("order", "key")
        if order not in ("key", "recent"):
            raise BadQuery("order must be key or recent")
        found = self._store.page(kind, "recent" if order == "recent" else "key", offset, limit, like=like)
        rows = [{"key": record.key(), "row": record.truth()} for record in found]
        return reply({"total": self._store.count(kind, like=like), "rows": rows})

    async def _describe(self, request: web.Request) -> web.Response:
        entities = [
            {
                "name": kind.entity,
                "columns": [name for name in kind.__struct_fields__ if name not in kind.hidden],
                "editable": shapes(kind),
            }
            for kind in self._office.records
        ]
        return reply({"kind": self._office.kind, "title": self._office.title, "entities": entities})

    # --- doing ---------------------------------------------------------------------------------

    async def _burst(self, request: web.Request) -> web.Response:
        applied = await self._life.burst(await _body(request, Burst))
        return reply({"applied": applied.applied, "last_change": applied.last_change})

    async def _set_life(self, request: web.Request) -> web.Response:
        setting = await _body(request, Setting)
        self._life.turn(setting)
        return reply({"on": setting.on, "changes_per_s": setting.changes_per_s})

    async def _set_outage(self, request: web.Request) -> web.Response:
        self._manners.outage = (await _body(request, Toggle)).on
        return reply({"on": self._manners.outage})

    async def _edit(self, request: web.Request) -> web.Response:
        edit = await _body(request, Edit)
        record = self._existing(edit.entity, edit.key)
        refused = sorted(set(edit.fields) - set(record.editable))
        if refused:
            raise BadQuery(f"not editable: {', '.join(refused)}; editable: {', '.join(record.editable)}")
        whole_row = cast(Row, msgspec.to_builtins(record)) | edit.fields
        try:
            edited = msgspec.convert(whole_row, type(record)).checked()
        except ValueError as wrong:
            raise BadQuery(str(wrong)) from None
        return self._written(edited)

    async def _delete(self, request: web.Request) -> web.Response:
        named = await _body(request, Named)
        desk = Desk(self._store, self._rng)
        desk.delete(self._existing(named.entity, named.key))
        return reply({"last_change": self._store.commit(desk)})

    async def _restore(self, request: web.Request) -> web.Response:
        named = await _body(request, Named)
        kind = self._kind(named.entity)
        if self._store.find(kind, named.key) is not None:
            return reply({"error": f"{named.entity} {named.key} is not deleted"}, 409)
        record = self._store.last_removed(kind, named.key)
        if record is None:
            raise NoSuch(f"no deleted {named.entity} {named.key}")
        return self._written(record)

    def _written(self, record: Record) -> web.Response:
        desk = Desk(self._store, self._rng)
        desk.put(record)
        last = self._store.commit(desk)
        stored = self._store.find(type(record), record.key())
        return reply({"row": stored.truth() if stored else None, "last_change": last})

    def _kind(self, entity: str) -> type[Record]:
        kind = self._store.records.get(entity)
        if kind is None:
            raise NoSuch(f"no entity {entity!r}; there are: {', '.join(self._store.records)}")
        return kind

    def _existing(self, entity: str, key: str) -> Record:
        record = self._store.find(self._kind(entity), key)
        if record is None:
            raise NoSuch(f"no {entity} {key}")
        return record


async def _body(request: web.Request, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(await request.read() or b"{}", type=kind)
    except ValueError as wrong:
        raise BadQuery(str(wrong)) from None


def _answered(handler: Handler) -> Handler:
    async def answered(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except BadQuery as bad:
            return reply({"error": str(bad)}, 400)
        except NoSuch as missing:
            return reply({"error": str(missing)}, 404)

    return answered


def _serving(file: Path) -> Handler:
    async def serve(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(file, headers={"Cache-Control": "no-cache"})

    return serve


def _some(lines: Iterator[bytes]) -> bytes:
    return b"".join(islice(lines, TRUTH_LINES))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
