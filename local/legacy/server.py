"""One back office as a process: command line, TaskGroup, signals.

    LEGACY_API_KEY=secret python -m local.legacy parcels --port 8701 --data DIR

Exit codes: 0 after SIGTERM or SIGINT, 2 with one line on stderr when the command line, the
environment or the port makes no sense. When it serves, one line goes to stdout:
`legacy parcels ready on http://127.0.0.1:8701`.
"""

import argparse
import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from aiohttp import web

from local import paths
from local.legacy.control import Control
from local.legacy.life import Life, Setting
from local.legacy.manners import Manners, Night, Rules
from local.legacy.office import BackOffice
from local.legacy.store import Store

__all__ = ["BackOffice", "Settings", "run", "serving"]

CLOSE_S = 2.0
"""How long requests in flight may go on after the stop signal."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Of one back office process. `rows`: None for the kind's own default. `port`: 0 for any free one."""

    folder: Path
    api_key: str
    host: str = "127.0.0.1"
    port: int = 0
    rows: int | None = None
    seed: int = 1
    rules: Rules = field(default_factory=Rules)
    life_per_s: float | None = None
    """None leaves the life as it was when the process last ended; 0 switches it off."""


def run(kind: type[BackOffice], argv: Sequence[str] | None = None) -> int:
    """Serve one back office until SIGTERM or SIGINT; answers the exit code."""
    try:
        settings, office = _understood(kind, argv)
        asyncio.run(_serve(office, settings))
    except (ValueError, OSError) as wrong:
        print(f"legacy {kind.kind}: {wrong}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0
    return 0


@asynccontextmanager
async def serving(office: BackOffice, settings: Settings) -> AsyncIterator[str]:
    """The back office in this process; yields its address, such as http://127.0.0.1:8701.

    Raises OSError when the port is taken.
    """
    store = Store(settings.folder, office.records)
    try:
        app, life, manners = _app(office, store, settings)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=CLOSE_S)
        await runner.setup()
        try:
            site = web.TCPSite(runner, settings.host, settings.port)
            await site.start()
            async with asyncio.TaskGroup() as beside:
                tasks = [
                    beside.create_task(life.run(), name="life"),
                    beside.create_task(office.work_beside(lambda: manners.outage), name="beside"),
                ]
                yield f"http://{settings.host}:{runner.addresses[0][1]}"
                for task in tasks:
                    task.cancel()
        finally:
            await runner.cleanup()
    finally:
        store.close()


def _app(office: BackOffice, store: Store, settings: Settings) -> tuple[web.Application, Life, Manners]:
    rows = office.default_rows if settings.rows is None else settings.rows
    office.opened(store, rows, random.Random(settings.seed))
    # After a restart the dice fall differently than after the first start, but still the same each time.
    rng = random.Random(f"{settings.seed}:{store.last_change}")
    manners = Manners(
        rules=settings.rules,
        api_key=settings.api_key,
        key_in=office.api_key,
        refusal=lambda status, text: msgspec.json.encode(office.refusal(status, text)),
        zone=office.zone,
        rng=random.Random(settings.seed),
    )
    life = Life(office, store, rng)
    if settings.life_per_s is not None:
        on = settings.life_per_s > 0
        life.turn(Setting(on=on, changes_per_s=settings.life_per_s) if on else Setting(on=False))
    app = web.Application()
    for path, handler in office.routes().items():
        app.router.add_get(path, manners.before(office.understood(handler)))
    Control(office, store, manners, life, rng).add_to(app, paths.web("backoffice"))
    return app, life, manners


async def _serve(office: BackOffice, settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serving(office, settings) as address:
        print(f"legacy {office.kind} ready on {address}", flush=True)
        await stop.wait()


def _understood(kind: type[BackOffice], argv: Sequence[str] | None) -> tuple[Settings, BackOffice]:
    parser = argparse.ArgumentParser(prog=f"legacy {kind.kind}", description=kind.title or None)
    parser.add_argument("--port", type=int, default=0, help="0: any free one; the ready line names it")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--data", type=Path, required=True, help="folder of the database; made when missing")
    parser.add_argument("--rows", type=int, default=None, help=f"rows on the first start ({kind.default_rows})")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--life", type=float, default=None, metavar="CHANGES_PER_S", help="0: off")
    parser.add_argument("--requests-per-s", type=float, default=25.0, help="budget; above it 429")
    parser.add_argument("--night", default=None, metavar="HH:MM-HH:MM", help="nightly batch in local time: 503")
    parser.add_argument("--no-manners", action="store_true", help="never slow, throttled, closed or cut off")
    kind.add_options(parser)
    options = parser.parse_args(argv)
    api_key = os.environ.get("LEGACY_API_KEY", "")
    if not api_key:
        raise ValueError("the environment variable LEGACY_API_KEY is missing")
    if options.requests_per_s <= 0:
        raise ValueError("--requests-per-s must be above 0")
    if options.rows is not None and options.rows < 0:
        raise ValueError("--rows must not be negative")
    rules = Rules(
        requests_per_s=options.requests_per_s,
        night=Night.parse(options.night) if options.night else None,
        patient=options.no_manners,
    )
    settings = Settings(
        folder=options.data,
        api_key=api_key,
        host=options.host,
        port=options.port,
        rows=options.rows,
        seed=options.seed,
        rules=rules,
        life_per_s=options.life,
    )
    return settings, kind(options)
