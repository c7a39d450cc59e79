"""The reads: `api.handler.handler` is what Lambda calls. It imports no AWS client and no ORM; a benchmark watches its start."""

from __future__ import annotations

import os

from api.app import App, Options
from api.cors import Cors
from api.cursor import Cursors
from api.database import Database
from api.entry import Function, Served
from api.settings import ApiSettings
from api.tokens import verifier
from tidegate.bubble import load
from tidegate.errors import Fatal
from tidegate.settings import read


async def serve() -> Served:
    """The reads of the bubble and database that the environment names. Raises Fatal."""
    settings = read(ApiSettings, os.environ)
    bubble = load(settings.bubble)
    database = Database(settings, [shape.table for shape in bubble.shapes])
    app = App(bubble, database, options(settings))
    return Served(app, verifier(settings.tokens), database.close, Cors(settings.cors_origins), settings.origin_key)


def options(settings: ApiSettings) -> Options:
    """Raises Fatal for a cursor key that is too short."""
    keys = [key.reveal().encode() for key in (settings.cursor_key, settings.cursor_key_before) if key is not None]
    try:
        cursors = Cursors(keys)
    except ValueError as error:
        raise Fatal(f"TIDEGATE_CURSOR_KEY: {error}") from error
    return Options(
        cursors=cursors,
        stale_while_revalidate_s=settings.stale_while_revalidate_s,
        ask_again_s=settings.ask_again_s,
        changes_kept_s=settings.changes_kept_s,
    )


handler = Function(serve)
