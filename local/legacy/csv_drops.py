"""Writes full extracts as CSV files when their rows changed: into a folder, into an S3 bucket, or both.

Names: `<unit>/<entity>-<UTC time with microseconds>.csv`, such as
`commercial/airline-20261121T055503123456Z.csv`; in S3 below the prefix (drops/). A file appears whole:
the folder gets it by a rename, S3 puts are atomic anyway. A later extract has a later name.
"""

import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError

from local.legacy.fleet import Dropped
from local.legacy.store import Store

KEEP_FILES = 20
"""The folder keeps the newest ones of an entity."""
UNREACHABLE = (BotoCoreError, ClientError, aiohttp.ClientError, OSError, TimeoutError)
RETRY_S = (0.5, 1.0, 2.0, 5.0)
# Stand-ins for S3 on a laptop have no names such as bucket.localhost.
S3_CONFIG = AioConfig(s3={"addressing_style": "path"}, connect_timeout=5, read_timeout=30)


@dataclass(frozen=True, slots=True)
class Destination:
    """`folder` and `bucket`: None for not there. `pause_s`: how long to collect changes before the next extract."""

    folder: Path | None
    bucket: str | None
    prefix: str = "drops/"
    pause_s: float = 2.0


class Dropper:
    """Keeps the files up with the store. After a restart it writes what the last process still owed."""

    def __init__(self, store: Store, kinds: Sequence[type[Dropped]], to: Destination) -> None:
        self._store = store
        self._kinds = {kind.entity: kind for kind in kinds}
        self._to = to
        self._owed = {entity for entity in self._kinds if self._is_behind(entity)}
        self._changed = asyncio.Event()
        self._last_us = 0
        self._session = get_session()

    async def run(self, is_out: Callable[[], bool]) -> None:
        """Until cancelled; nothing leaves the house while `is_out()`."""
        self._store.after_commit.append(self._note)
        if self._owed:
            self._changed.set()
        while True:
            await self._changed.wait()
            if not is_out():
                self._changed.clear()
                for entity in sorted(self._owed):
                    await self._drop(self._kinds[entity])
            await asyncio.sleep(self._to.pause_s)

    def _is_behind(self, entity: str) -> bool:
        dropped = self._store.note(f"dropped:{entity}")
        return dropped is None or self._store.last_change_of(entity) > int(dropped)

    def _note(self, touched: frozenset[str]) -> None:
        if touched & self._kinds.keys():
            self._owed |= touched & self._kinds.keys()
            self._changed.set()

    async def _drop(self, kind: type[Dropped]) -> None:
        self._owed.discard(kind.entity)
        up_to = self._store.last_change
        content = kind.extract(self._store.page(kind, "key", 0, sys.maxsize))
        name = f"{kind.unit}/{kind.entity}-{self._moment()}.csv"
        if self._to.folder is not None:
            _write(self._to.folder / name, content)
        if self._to.bucket is not None:
            await self._upload(self._to.bucket, self._to.prefix + name, content)
        self._store.set_note(f"dropped:{kind.entity}", str(up_to))

    def _moment(self) -> str:
        # Rises even when the wall clock steps back while this process lives.
        self._last_us = max(self._last_us + 1, self._store.clock_ms() * 1000)
        at = datetime.fromtimestamp(self._last_us // 1_000_000, UTC).replace(microsecond=self._last_us % 1_000_000)
        return f"{at:%Y%m%dT%H%M%S%fZ}"

    async def _upload(self, bucket: str, key: str, content: bytes) -> None:
        attempt = 0
        while True:
            try:
                async with self._session.create_client("s3", config=S3_CONFIG) as client:
                    await client.put_object(Bucket=bucket, Key=key, Body=content, ContentType="text/csv")
                return
            except UNREACHABLE as failed:
                # The store may start later than this office, or be away for a while: the extract waits for it.
                wait_s = RETRY_S[min(attempt, len(RETRY_S) - 1)]
                print(f"legacy flights: drop {key} not stored, again in {wait_s} s: {failed}", file=sys.stderr)
                attempt += 1
                await asyncio.sleep(wait_s)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(content)
    part.replace(path)
    entity = path.name.partition("-")[0]
    for old in sorted(path.parent.glob(f"{entity}-*.csv"))[:-KEEP_FILES]:
        old.unlink()
