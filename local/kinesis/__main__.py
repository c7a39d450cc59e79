"""`python -m local.kinesis`: the stand-in as a process. Exit codes: 0 stopped by a signal, 1 cannot start."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from local.kinesis.errors import LogDamaged
from local.kinesis.server import serving
from local.kinesis.settings import Settings


def _settings(arguments: list[str]) -> Settings:
    defaults = Settings(Path())
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or defaults.region
    parser = argparse.ArgumentParser(prog="python -m local.kinesis", description="The embedded Kinesis stand-in.")
    parser.add_argument("--data", type=Path, required=True, help="directory of the logs, made if it is missing")
    parser.add_argument("--host", default=defaults.host)
    parser.add_argument("--port", type=int, default=defaults.port, help="0 takes a free one (default %(default)s)")
    parser.add_argument("--region", default=region, help="in the ARNs (default %(default)s)")
    parser.add_argument(
        "--enforce-limits",
        action=argparse.BooleanOptionalAction,
        default=defaults.enforce_limits,
        help="the service's limits of each shard (default: on)",
    )
    for name, text in (
        ("iterator_expiry_s", "age at which a shard iterator expires"),
        ("subscription_s", "longest life of a SubscribeToShard answer"),
        ("heartbeat_s", "longest silence in a SubscribeToShard answer"),
        ("transition_s", "how long a new or resharded stream is not ACTIVE"),
    ):
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=float, default=getattr(defaults, name), help=f"{text} (default %(default)s)")
    return Settings(**vars(parser.parse_args(arguments)))


async def _run(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serving(settings) as address:
        limits = "on" if settings.enforce_limits else "off"
        print(f"kinesis ready on {address} (limits {limits}, logs in {settings.data})", flush=True)
        await stop.wait()


def main() -> int:
    settings = _settings(sys.argv[1:])
    try:
        asyncio.run(_run(settings))
    except (LogDamaged, OSError) as error:
        print(f"kinesis cannot start: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
