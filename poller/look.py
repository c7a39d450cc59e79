"""What a poller knows of one key, for `tidegate explain`: read only, without a lease, beside a poller that runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import aiohttp

from poller.cursor_store import DynamoCursorStore
from poller.index_store import S3IndexStore
from poller.rest import RestSource
from poller.snapshot import Entry, fingerprint
from poller.translate import Reading, raw_key, translate
from tidegate.bubble import Source
from tidegate.errors import Rejected
from tidegate.explain import Observed, SourceRow
from tidegate.feeds import Rest


async def known(declared: Source, key: str, *, dynamodb: Any, table: str, s3: Any, bucket: str) -> Entry | None:
    """The key's entry in the index, as the cursor vouches for it. `dynamodb`, `s3`: aiobotocore clients.

    Reads the whole index, as a poller does that starts. Raises Transient, Fatal.
    """
    cursor = await DynamoCursorStore(dynamodb, table).look(declared.name)
    if cursor is None:
        return None
    return (await S3IndexStore(s3, bucket).load(cursor)).index.get(key)


def observed(declared: Source, entry: Entry) -> Observed:
    """The entry in the words of the report."""
    return Observed(
        source=declared.name,
        version=entry.version,
        state=entry.state.name.lower(),
        unsure=entry.unsure,
        behind=entry.translation < declared.translation,
    )


async def ask(declared: Source, key: str, entry: Entry | None, environ: Mapping[str, str]) -> SourceRow | None:
    """One request for the row by its key; None for a source that cannot be asked by key.

    Raises Transient when the back office does not answer, Fatal when a variable of the source is missing.
    """
    if not isinstance(declared.feed, Rest) or declared.feed.reread is None:
        return None
    reading = Reading.of(declared)
    async with aiohttp.ClientSession() as session:
        page = await RestSource(declared, declared.feed, session, environ).reread([key])
    row = next((row for row in page.rows if raw_key(row, reading.key_path) == key), None)
    if row is None:
        return SourceRow(source=declared.name, found=False)
    try:
        translate(row, key, reading)
        fault = ""
    except Rejected as error:
        fault = f"{error.reason}: {error}"
    same = entry is not None and entry.fingerprint == fingerprint(row)
    return SourceRow(source=declared.name, found=True, same=same, fault=fault, row=row)
